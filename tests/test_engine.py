"""The order of evaluation: what comes first, what is given back, what shadow leaves alone, what headers describe."""

from __future__ import annotations

from typing import Any

import pytest
from edge import START_S, Edge, Json, bucket, budget, instant, policy, tokens

from fairvisor.errors import Conflict, RequestError
from fairvisor.llm.reservation import unseal
from fairvisor.llm.usage import Usage

DAY = 86_400
LOOP: Json = {"loop_detection": {"enabled": True, "window_seconds": 60, "threshold_identical_requests": 2}}
BREAKER: Json = {
    "circuit_breaker": {"enabled": True, "spend_rate_threshold_per_minute": 1, "scope": "policy"},
}
ONE = {"burst": 1, "rate": 0.001}


def until(at: float) -> Json:
    return {"enabled": True, "reason": "a drill", "expires_at": instant(at)}


# The order


def test_kill_switches_come_before_everything_and_loops_before_breakers_before_rules() -> None:
    edge = Edge(policy("p", bucket("r", **ONE), **LOOP, **BREAKER))
    assert edge.ask(path="/1").status == 204  # opens the breaker, empties the bucket
    assert edge.ask(path="/2").reason == "circuit_breaker_open"
    assert edge.ask(path="/2").reason == "loop_detected"
    edge.reload(
        policy("p", bucket("r", **ONE), **LOOP, **BREAKER),
        kill_switches=[{"scope_key": "request:method", "scope_value": "GET"}],
    )
    assert edge.ask(path="/2").reason == "kill_switch_active"


def test_policies_are_evaluated_in_order_of_id_and_rules_as_written() -> None:
    edge = Edge(
        policy("b", bucket("r", **ONE)),
        policy("a", bucket("z", **ONE), bucket("a", **ONE)),
    )
    assert edge.ask().status == 204
    assert edge.ask().rule == "a/z"


def test_every_matching_policy_must_let_it_pass() -> None:
    edge = Edge(policy("a", bucket("r", burst=5)), policy("b", bucket("r", burst=2, rate=0.001), path="/v1"))
    assert edge.admits(path="/v1/x") == 2
    assert edge.ask(path="/v1/x").rule == "b/r"
    assert edge.admits(path="/other") == 3, "the refused ones were given back"


def test_a_path_that_cannot_be_read_is_a_bad_request() -> None:
    with pytest.raises(RequestError):
        Edge(policy("p", bucket("r"))).ask(path="/../x")


def test_where_no_policy_applies_a_request_passes_without_headers() -> None:
    edge = Edge(policy("p", bucket("r"), path="/v1"))
    reply = edge.ask(path="/other")
    assert (reply.status, reply.headers, reply.rule) == (204, {}, None)
    assert edge.metric("decisions_total", policy="", rule="", action="allow") == 1


# Giving back


@pytest.mark.parametrize(
    "first",
    [
        bucket("first", burst=3, rate=0.001),
        bucket("first", "header:x-key", burst=6, rate=0.001, fixed_cost=2),
        budget("first", amount=3, period="1d"),
        budget(
            "first",
            amount=0.3,
            fixed_cost=0.1,
            period="1d",
            staged_actions=[{"threshold_percent": 1, "action": "warn"}],
        ),
        tokens("first", tpm=3, tokens_per_day=300, default_max_completion=0, default_prompt_tokens=1),
    ],
    ids=lambda rule: rule["algorithm"],
)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["same policy", "later policy"])
def test_a_refused_request_leaves_no_charge_on_what_passed_before(first: Json, elsewhere: bool) -> None:
    last = bucket("last", **ONE, match={"header:x-last": "1"})
    edge = Edge(*([policy("p", first), policy("q", last)] if elsewhere else [policy("p", first, last)]))
    asked = {"x-key": "a", "x-last": "1"}
    assert edge.ask(headers=asked).status == 204
    for _ in range(20):
        assert edge.ask(headers=asked).rule == ("q/last" if elsewhere else "p/last")
    assert edge.admits(key="a") == 2


def test_a_later_policy_gives_back_what_shadow_policies_took_too() -> None:
    shadow = policy("a", bucket("r", burst=2, rate=0.001), mode="shadow")
    edge = Edge(shadow, policy("b", bucket("r", **ONE, match={"header:x-key": "a"})))
    assert [edge.ask(key="a").status for _ in range(9)] == [204] + 8 * [429]
    assert edge.ask(key="b").would_reject == []
    assert edge.ask(key="b").would_reject == ["a/r"]


# The fallback


def test_the_fallback_is_used_when_no_rule_ran() -> None:
    rule = bucket("r", "header:x-key", burst=2, rate=0.001)
    edge = Edge(policy("p", rule, fallback_limit=bucket("ignored", **ONE) | {"name": "rest"}))
    assert edge.admits(key="a") == 2
    assert edge.ask().rule == "p/rest"
    assert edge.ask().rule == "p/rest"
    assert edge.ask().status == 429
    assert edge.ask(key="b").rule == "p/r"


def test_a_fallback_needs_no_name_and_may_be_missing_a_key_itself() -> None:
    fallback = {key: value for key, value in bucket("", "header:x-other").items() if key != "name"}
    edge = Edge(policy("p", bucket("r", "header:x-key"), fallback_limit=fallback))
    assert edge.ask(headers={"x-other": "o"}).rule == "p/fallback_limit"
    assert edge.ask().rule is None


def test_a_rule_that_refuses_did_run() -> None:
    fallback = bucket("rest", burst=100)
    edge = Edge(policy("p", bucket("r", **ONE), fallback_limit=fallback))
    assert edge.admits() == 1
    reject = bucket("r", "header:x-key", on_missing="reject")
    assert Edge(policy("p", reject, fallback_limit=fallback)).ask().reason == "descriptor_missing"


# Shadow


def test_a_shadow_policy_reports_and_changes_nothing() -> None:
    stages = [{"threshold_percent": 1, "action": "throttle", "delay_ms": 500}]
    shadow = policy("a", budget("b", amount=5, staged_actions=stages), bucket("r", **ONE), mode="shadow")
    edge = Edge(shadow, policy("b", bucket("real", burst=9)))
    replies = [edge.ask() for _ in range(4)]
    assert [reply.would_reject for reply in replies] == [[], ["a/r"], ["a/r"], ["a/r"]]
    assert {reply.status for reply in replies} == {204}
    assert [reply.remaining for reply in replies] == [8, 7, 6, 5]
    assert {reply.rule for reply in replies} == {"b/real"}
    assert {reply.delay_ms for reply in replies} == {0}
    assert all("X-Fairvisor-Warning" not in reply.headers for reply in replies)
    assert edge.metric("shadow_would_reject_total", policy="a", rule="r", reason="rate_limit_exceeded") == 3


def test_a_shadow_policy_that_would_reject_gives_back_its_own_charges() -> None:
    twice = bucket("twice", burst=2, rate=0.001)
    edge = Edge(policy("p", twice, bucket("second", burst=1, rate=1), mode="shadow"))
    asked = [(0, []), (0, ["p/second"]), (0, ["p/second"]), (1.1, []), (2.2, ["p/twice"])]
    assert [(at, edge.ask(at=at).would_reject) for at, _ in asked] == asked


def test_shadow_counters_never_touch_enforced_ones() -> None:
    rules = [bucket("r", burst=3, rate=0.001), budget("b", amount=5, period="1d")]
    edge = Edge(policy("p", *rules, mode="shadow"))
    for _ in range(9):
        edge.ask()
    edge.reload(policy("p", *rules))
    assert edge.admits() == 3
    edge.reload(policy("p", *rules, mode="shadow"))
    assert edge.ask().would_reject == ["p/r"]


def test_a_shadow_policy_reports_beside_a_real_refusal() -> None:
    edge = Edge(policy("a", bucket("r", **ONE), mode="shadow"), policy("b", bucket("r", **ONE)))
    edge.ask()
    refused = edge.ask()
    assert (refused.rule, refused.would_reject) == ("b/r", ["a/r"])


def test_the_bundle_can_make_shadow_the_default() -> None:
    defaults = {"mode": "shadow"}
    assert Edge(policy("p", bucket("r", **ONE)), defaults=defaults).admits(most=5) == 5
    assert Edge(policy("p", bucket("r", **ONE), mode="enforce"), defaults=defaults).admits(most=5) == 1


def test_global_shadow_softens_every_policy_until_it_expires() -> None:
    edge = Edge(policy("p", bucket("r", burst=2, rate=0.001)), global_shadow=until(60))
    replies = [edge.ask(at=10) for _ in range(4)]
    assert [reply.would_reject for reply in replies] == [[], [], ["p/r"], ["p/r"]]
    assert {(reply.status, len(reply.headers)) for reply in replies} == {(204, 0)}
    assert edge.admits(at=60) == 2, "its own counters were left alone"


def test_global_shadow_that_is_not_enabled_softens_nothing() -> None:
    for shadow in ({"enabled": False}, {"enabled": False, "expires_at": instant(60)}):
        assert Edge(policy("p", bucket("r", **ONE)), global_shadow=shadow).admits() == 1


def test_shadow_loops_and_breakers_only_report() -> None:
    edge = Edge(policy("p", bucket("r", burst=100), mode="shadow", **LOOP, **BREAKER))
    assert [edge.ask(path=path).would_reject for path in ("/1", "/2", "/2")] == [
        [],
        ["p/circuit_breaker"],
        ["p/loop_detection"],
    ]


# What headers describe


def test_the_tightest_limit_is_shown() -> None:
    edge = Edge(
        policy("a", bucket("wide", burst=100), bucket("narrow", burst=10)),
        policy("b", budget("middle", amount=50, fixed_cost=8)),
    )
    assert [edge.ask().rule for _ in range(2)] == ["b/middle", "b/middle"]
    assert Edge(policy("a", bucket("wide", burst=100), bucket("narrow", burst=10))).ask().rule == "a/narrow"
    assert Edge(policy("a", bucket("one", burst=9), bucket("two", burst=9))).ask().rule == "a/one"


def test_all_warnings_are_told_and_the_slowest_holds_the_answer() -> None:
    stages = [{"threshold_percent": 1, "action": "throttle", "delay_ms": 50}]
    loop: Json = {"loop_detection": LOOP["loop_detection"] | {"action": "throttle"}}
    edge = Edge(
        policy("a", budget("b", amount=100, staged_actions=stages), **loop),
        policy("b", budget("w", amount=100, staged_actions=[{"threshold_percent": 1, "action": "warn"}])),
    )
    first, second = edge.ask(), edge.ask()
    assert (first.action, first.delay_ms) == ("throttle", 50)
    assert first.headers["X-Fairvisor-Warning"] == "budget_throttle, budget_warn"
    assert (second.action, second.delay_ms) == ("throttle", 200)
    assert second.headers["X-Fairvisor-Warning"] == "loop_throttle, budget_throttle, budget_warn"
    assert second.headers["X-Fairvisor-Loop-Count"] == "2"


def test_decisions_and_limits_are_counted_once_each() -> None:
    edge = Edge(policy("p", bucket("r", burst=2, rate=0.001), bucket("s", burst=9)))
    for _ in range(5):
        edge.ask()
    assert edge.metric("decisions_total", policy="p", rule="r", action="allow") == 2
    assert (
        edge.metric("decisions_total", policy="p", rule="r", action="reject", reason="rate_limit_exceeded")
        == 3
    )
    assert edge.metric("decisions_total") == 5
    assert edge.metric("limit_results_total", rule="r", mode="enforce", result="allowed") == 2
    assert edge.metric("limit_results_total", rule="r", result="refused") == 3
    assert edge.metric("limit_results_total", rule="s") == 2


# Asked twice


ASKED: dict[str, Any] = {
    "method": "GET",
    "path": "/v1/x",
    "host": "a.example.com",
    "headers": {"authorization": "Bearer a"},
    "request_id": "id-1",
}


def test_a_repeated_question_is_answered_alike_and_not_charged() -> None:
    edge = Edge(policy("p", bucket("r", burst=1, rate=0.001), budget("b", amount=1), **BREAKER, **LOOP))
    assert edge.ask(**ASKED).remaining == 0
    for at in (0, 1, 9.9):
        assert edge.ask(**ASKED, at=at).status == 204
    assert edge.metric("repeated_requests_total") == 3
    assert edge.ask(**(ASKED | {"request_id": "id-2"})).status == 429


def test_after_ten_seconds_it_is_another_request() -> None:
    edge = Edge(policy("p", bucket("r", **ONE)))
    assert edge.ask(**ASKED).status == 204
    assert edge.ask(**ASKED, at=10).status == 429


@pytest.mark.parametrize(
    "other",
    [
        {"request_id": "id-2"},
        {"request_id": ""},
        {"method": "HEAD"},
        {"path": "/v1/x?a"},
        {"host": "b.example.com"},
        {"client": "192.0.2.99"},
        {"headers": {"authorization": "Bearer b"}},
        {"headers": {}},
    ],
    ids=str,
)
def test_only_the_same_question_is_a_repeated_one(other: dict[str, Any]) -> None:
    edge = Edge(policy("p", bucket("r", **ONE)))
    assert edge.ask(**ASKED).status == 204
    assert edge.ask(**(ASKED | other)).status == 429


def test_a_refusal_is_not_remembered() -> None:
    edge = Edge(policy("p", bucket("r", burst=1, rate=1)))
    edge.ask()
    assert edge.ask(**ASKED).status == 429
    assert edge.ask(**ASKED, at=1.1).status == 204
    assert edge.ask(at=1.1).status == 429, "it was charged"


def test_a_repeated_question_shows_what_is_left_now() -> None:
    edge = Edge(policy("p", bucket("r", burst=10, rate=0.001)))
    assert [edge.ask(**ASKED).remaining, edge.ask().remaining, edge.ask(**ASKED).remaining] == [9, 8, 8]


def test_a_repeated_question_gets_the_same_reservation_which_settles_once() -> None:
    edge = Edge(policy("p", tokens("t", tpm=1000, default_max_completion=600)))
    first, second = edge.ask(**ASKED), edge.ask(**ASKED, at=5)
    key, wall_ns = edge.segment.reservation_key, START_S * 10**9
    assert unseal(key, first.reservation, wall_ns).nonce == unseal(key, second.reservation, wall_ns).nonce
    edge.settle(second.reservation, Usage(input=100))
    with pytest.raises(Conflict):
        edge.settle(first.reservation, Usage(input=100))
    assert edge.ask(at=5).remaining == 383, "483 were left, 500 came back, 600 were taken"


def test_a_kill_switch_stops_a_repeated_question_too() -> None:
    edge = Edge(policy("p", bucket("r")))
    edge.ask(**ASKED)
    edge.reload(policy("p", bucket("r")), kill_switches=[{"scope_key": "request:method", "scope_value": "*"}])
    assert edge.ask(**ASKED).reason == "kill_switch_active"


# Reloads


def test_a_reload_keeps_counters_and_leaves_out_what_is_gone() -> None:
    edge = Edge(policy("p", bucket("r", burst=5, rate=0.001)), policy("q", bucket("r", **ONE)))
    assert edge.admits() == 1
    edge.reload(policy("p", bucket("r", burst=5, rate=0.001)))
    assert edge.admits() == 4
    edge.reload()
    assert edge.ask().headers == {}
