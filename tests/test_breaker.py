"""The circuit breaker in simulated time: what it counts, when it opens and closes, for whom."""

from __future__ import annotations

from typing import Any

import pytest
from edge import Edge, bucket, budget, instant, policy, tokens

from fairvisor.bundle.compile import Options
from fairvisor.llm.usage import Usage

DAY = 86_400


def breaker(threshold: float = 3, **more: Any) -> dict[str, Any]:
    return {"circuit_breaker": {"enabled": True, "spend_rate_threshold_per_minute": threshold, **more}}


def edge(threshold: float = 3, *rules: Any, **more: Any) -> Edge:
    return Edge(
        policy("p", *(rules or [bucket("r", "header:x-key", burst=1000)]), **breaker(threshold, **more))
    )


def test_the_request_that_reaches_the_threshold_passes_and_opens_it() -> None:
    open_ = edge(3)
    assert open_.admits(key="a") == 3
    reply = open_.ask(key="a")
    assert (reply.reason, reply.should_retry) == ("circuit_breaker_open", False)
    assert "RateLimit" not in reply.headers
    assert open_.metric("circuit_trips_total", policy="p") == 1


def test_a_spend_that_jumps_over_the_threshold_opens_it_too() -> None:
    rule = bucket("r", "header:x-key", burst=1000, cost_source="header:c")
    open_ = edge(100, rule)
    assert open_.ask(key="a", headers={"c": "250"}).status == 204
    assert open_.ask(key="a").status == 429


def test_the_minute_slides() -> None:
    """Spending 2 at 30 s weighs 1 at 90 s, when half of its minute is left."""
    open_ = edge(3)
    for at in (30, 30, 90):
        assert open_.ask(key="a", at=at).status == 204
    assert open_.ask(key="a", at=90).status == 204, "1 + 2 reach 3 now"
    assert open_.ask(key="a", at=90).status == 429
    slow = edge(4)
    assert [slow.ask(key="a", at=30 * n).status for n in range(40)] == 40 * [204], (
        "two a minute are never four"
    )


def test_without_auto_reset_it_stays_open_until_somebody_resets_it() -> None:
    open_ = edge(1)
    assert open_.admits(key="a") == 1
    replies = [open_.ask(key="a", at=day * DAY) for day in range(0, 400, 20)]
    assert {reply.reason for reply in replies} == {"circuit_breaker_open"}
    assert {60 <= reply.retry_after <= 90 for reply in replies} == {True}


def test_auto_reset_closes_it_and_starts_from_zero() -> None:
    open_ = edge(3, auto_reset_after_minutes=0.5)
    assert open_.admits(key="a", at=5) == 3
    reply = open_.ask(key="a", at=10)
    assert 25 <= reply.retry_after <= 37
    assert open_.ask(key="a", at=34.9).status == 429
    assert open_.admits(key="a", at=35) == 3, "the windows were zeroed"
    assert open_.metric("circuit_trips_total") == 2


def test_a_reload_changes_when_it_closes() -> None:
    open_ = edge(1, auto_reset_after_minutes=60)
    assert open_.admits(key="a") == 1
    open_.reload(policy("p", bucket("r", "header:x-key"), **breaker(1, auto_reset_after_minutes=5)))
    assert open_.ask(key="a", at=299).status == 429
    assert open_.ask(key="a", at=300).status == 204


def test_rejected_requests_cannot_trip_it() -> None:
    open_ = edge(3, bucket("r", "header:x-key", rate=0.001, burst=2))
    assert open_.admits(key="a") == 2
    for _ in range(10):
        assert open_.ask(key="a").reason == "rate_limit_exceeded"
    assert open_.metric("circuit_trips_total") == 0


def test_a_later_policy_that_rejects_keeps_the_breaker_of_an_earlier_one_uncharged() -> None:
    strict = bucket("s", "header:x-key", rate=0.001, burst=1, match={"header:x-key": "a"})
    open_ = Edge(policy("a", bucket("r", burst=1000), **breaker(3, scope="policy")), policy("b", strict))
    assert [open_.ask(key="a").status for _ in range(9)] == [204] + 8 * [429]
    assert open_.admits(key="b") == 2, "three in all"


def test_a_refused_request_charges_no_rule() -> None:
    open_ = edge(1)
    assert open_.ask(key="a").remaining == 999
    assert open_.ask(key="a").status == 429
    assert open_.ask(key="b").remaining == 999
    wide = edge(1, scope="policy", auto_reset_after_minutes=1)
    wide.ask(key="a")
    wide.ask(key="a")
    assert wide.ask(key="a", at=60).remaining == 999


@pytest.mark.parametrize(
    ("scope", "same_key", "other_key", "other_policy"),
    [("key", 429, 204, 204), ("policy", 429, 429, 204), ("global", 429, 429, 429), (None, 429, 204, 204)],
)
def test_it_opens_for_a_key_a_policy_or_all(
    scope: str | None, same_key: int, other_key: int, other_policy: int
) -> None:
    control = breaker(2, **({} if scope is None else {"scope": scope}))
    rule = bucket("r", "header:x-key", burst=1000)
    open_ = Edge(policy("p", rule, path="/p", **control), policy("q", rule, path="/q", **control))
    assert open_.admits(path="/p", key="a") == 2
    assert open_.ask(path="/p", key="a").status == same_key
    assert open_.ask(path="/p", key="b").status == other_key
    assert open_.ask(path="/q", key="a").status == other_policy


def test_requests_without_the_key_share_the_policy() -> None:
    open_ = edge(2)
    assert open_.admits() == 2
    assert open_.ask(headers={"x-key": ""}).status == 429
    assert open_.ask(key="-:").status == 204


def test_the_first_limit_key_of_the_policy_is_the_key_and_another_key_is_another_breaker() -> None:
    rules = bucket("one"), bucket("two", "header:x-key", "request:method", burst=1000)
    open_ = edge(2, *rules)
    assert open_.admits(key="a") == 2
    assert open_.ask("PUT", key="a").status == 429
    open_.reload(policy("p", bucket("two", "header:x-other"), **breaker(2)))
    assert open_.ask(headers={"x-other": "a"}).status == 204


@pytest.mark.parametrize(
    ("rules", "cost"),
    [
        ([budget("b", amount=1e6, fixed_cost=25), bucket("r", burst=1000)], 25),
        ([bucket("r", burst=1000, fixed_cost=0.5), budget("b", amount=1e6, fixed_cost=7)], 0.5),
        ([bucket("m", match={"request:method": "PUT"}), bucket("r", burst=1000, fixed_cost=20)], 20),
        ([], 1),
    ],
)
def test_a_request_costs_what_its_first_rule_charges_and_one_without_a_rule(
    rules: list[Any], cost: float
) -> None:
    assert Edge(policy("p", *rules, **breaker(5 * cost, scope="policy"))).admits() == 5


def test_a_settled_reservation_corrects_what_was_spent() -> None:
    hint = Options(trust_token_hint=True)
    rule = tokens("t", tpm=1_000_000, default_max_completion=0)
    open_ = Edge(policy("p", rule, **breaker(1000, scope="policy")), options=hint)
    ask = {"headers": {"x-token-estimate": "600"}}
    first = open_.ask(**ask)
    open_.settle(first.reservation, Usage(input=100))
    second = open_.ask(**ask)
    assert open_.ask(headers={"x-token-estimate": "1"}).status == 204, "100 + 600 were spent, not 1,200"
    open_.settle(second.reservation, Usage(input=999))
    assert open_.ask(headers={"x-token-estimate": "1"}).status == 204, "this one reaches the threshold"
    assert open_.ask(headers={"x-token-estimate": "1"}).reason == "circuit_breaker_open"


def test_in_shadow_it_has_its_own_windows_and_stops_nobody() -> None:
    rule = bucket("r", burst=1000)
    shadow = Edge(policy("p", rule, mode="shadow", **breaker(2, scope="policy")))
    assert shadow.admits(most=10) == 10
    assert shadow.ask().would_reject == ["p/circuit_breaker"]
    shadow.reload(policy("p", rule, **breaker(2, scope="policy")))
    assert shadow.admits() == 2


def test_under_global_shadow_it_does_not_count_for_real() -> None:
    drill = {"enabled": True, "reason": "drill", "expires_at": instant(60)}
    real = Edge(policy("p", bucket("r", burst=1000), **breaker(2, scope="policy")), global_shadow=drill)
    assert real.admits(most=10) == 10
    assert real.admits(at=60) == 2
