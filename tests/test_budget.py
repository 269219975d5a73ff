"""`cost_based` in simulated time: exact totals, stages, windows."""

from __future__ import annotations

from typing import Any

import pytest
from edge import DAY, Edge, budget, policy
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.bundle.compile import Options


def staged(*stages: tuple[float, str] | tuple[float, str, int], **more: Any) -> Edge:
    actions = [
        {"threshold_percent": stage[0], "action": stage[1]}
        | ({"delay_ms": stage[2]} if len(stage) > 2 else {})
        for stage in stages
    ]
    return Edge(policy("p", budget("b", staged_actions=actions, **more)))


def test_a_budget_admits_what_it_holds_and_refusals_charge_nothing() -> None:
    edge = Edge(policy("p", budget("b", amount=10, cost_key="header:c")))
    assert [edge.ask(headers={"c": cost}).remaining for cost in ("4", "3.5")] == [6, 2]
    refused = edge.ask(headers={"c": "2.500001"})
    assert (refused.reason, refused.remaining, refused.should_retry) == ("budget_exhausted", 2, False)
    assert edge.ask(headers={"c": "2.5"}).remaining == 0
    assert edge.ask(headers={"c": "0.000001"}).status == 429


def test_a_cost_that_is_not_told_is_the_default() -> None:
    edge = Edge(policy("p", budget("b", amount=10, cost_key="query:c", default_cost=3, fixed_cost=9)))
    assert [edge.ask(path=path).remaining for path in ("/", "/?c=2", "/?c=x")] == [7, 5, 2]


def test_a_tenth_ten_times_is_one() -> None:
    assert Edge(policy("p", budget("b", amount=1, fixed_cost=0.1))).admits() == 10


@given(st.lists(st.decimals("0.000001", "4", places=6), max_size=12), st.decimals("0.5", "10", places=6))
@settings(max_examples=50)
def test_any_mix_of_costs_is_summed_exactly(costs: list[Any], amount: Any) -> None:
    edge = Edge(policy("p", budget("b", amount=float(amount), cost_key="header:c")))
    spent = amount * 0
    for cost in costs:
        fits = spent + cost <= amount
        assert (edge.ask(headers={"c": str(cost)}).status == 204) == fits
        spent += cost if fits else 0


def test_headers_describe_the_window() -> None:
    reply = Edge(policy("p", budget("b", amount=10, period="1h"))).ask(at=600.5)
    assert reply.headers["RateLimit-Policy"] == '"b";q=10;w=3600'
    assert (reply.remaining, reply.reset) == (9, 3000)


@pytest.mark.parametrize(
    ("period", "length"),
    [("1m", 60), ("5m", 300), ("15m", 900), ("1h", 3600), ("6h", 6 * 3600), ("12h", 12 * 3600), ("1d", DAY),
     ("7d", 7 * DAY)],
)  # fmt: skip
def test_a_new_window_starts_at_zero(period: str, length: int) -> None:
    edge = Edge(policy("p", budget("b", amount=2, period=period)))
    assert edge.admits() == 2
    refused = edge.ask(at=length - 1)
    assert (refused.status, refused.reset) == (429, 1)
    assert edge.admits(at=length) == 2


def test_a_clock_that_is_set_back_finds_the_earlier_window_as_it_was() -> None:
    edge = Edge(policy("p", budget("b", amount=2, period="1m")))
    assert edge.admits(at=59) == 2
    assert edge.admits(at=60) == 2
    assert edge.admits(at=59.5) == 0


def test_a_time_zone_moves_the_day() -> None:
    edge = Edge(policy("p", budget("b", amount=1, period="1d", timezone="Asia/Tokyo")))
    assert edge.ask(at=0).reset == 15 * 3600  # 09:00 in Tokyo
    assert edge.ask(at=15 * 3600 - 1).status == 429
    assert edge.ask(at=15 * 3600).status == 204


def test_a_reload_that_changes_the_budget_keeps_what_was_spent() -> None:
    edge = Edge(policy("p", budget("b", amount=10)))
    assert edge.admits() == 10
    edge.reload(policy("p", budget("b", amount=15)))
    assert edge.admits() == 5
    edge.reload(policy("p", budget("b", amount=4)))
    assert edge.ask().remaining == 0


@pytest.mark.parametrize("more", [{"period": "1d"}, {"timezone": "Europe/Berlin"}])
def test_a_reload_that_changes_period_or_zone_starts_a_new_total(more: dict[str, str]) -> None:
    edge = Edge(policy("p", budget("b", amount=3)))
    assert edge.admits() == 3
    edge.reload(policy("p", budget("b", amount=3, **more)))  # type: ignore[arg-type]
    assert edge.admits() == 3


def test_warn_and_throttle_apply_from_their_threshold_on_and_the_highest_stage_wins() -> None:
    edge = staged((50, "warn"), (80, "throttle", 250), (100, "reject"))
    replies = [edge.ask() for _ in range(11)]
    assert [reply.action for reply in replies] == 4 * ["allow"] + 3 * ["warn"] + 3 * ["throttle"] + ["reject"]
    warnings = [reply.headers.get("X-Fairvisor-Warning") for reply in replies]
    assert warnings == 4 * [None] + 3 * ["budget_warn"] + 3 * ["budget_throttle"] + [None]
    assert [reply.delay_ms for reply in replies] == 7 * [0] + 3 * [250] + [0]
    assert {reply.status for reply in replies[:10]} == {204}


def test_a_lower_stage_does_not_come_back_above_a_warning() -> None:
    edge = staged((10, "throttle", 9), (20, "warn"))
    assert [edge.ask().action for _ in range(11)] == ["throttle"] + 9 * ["warn"] + ["reject"]


def test_a_reject_below_the_budget_admits_exactly_that_share() -> None:
    edge = staged((80, "reject"))
    first = edge.ask()
    assert (first.headers["RateLimit-Limit"], first.remaining) == ("8", 7)
    assert edge.admits() == 7


def test_stages_need_not_fall_on_whole_amounts() -> None:
    edge = staged((33.3, "warn"), (66.6, "reject"), amount=1, cost_key="header:c")
    assert edge.ask(headers={"c": "0.332999"}).action == "allow"
    assert edge.ask(headers={"c": "0.000001"}).action == "warn"
    assert edge.ask(headers={"c": "0.333001"}).status == 429
    assert edge.ask(headers={"c": "0.333"}).status == 204


def test_a_reject_at_nothing_admits_nothing_and_a_warning_at_nothing_always_warns() -> None:
    assert staged((0, "reject")).admits() == 0
    assert staged((0, "warn")).ask().action == "warn"


def test_a_full_table_lets_pass_or_refuses_as_the_settings_say() -> None:
    rule = budget("b", amount=7)
    lenient = Edge(policy("p", rule), full=True)
    strict = Edge(policy("p", rule), full=True, options=Options(reject_when_full=True))
    assert (lenient.ask().status, lenient.ask().remaining) == (204, 7)
    assert (strict.ask().reason, strict.ask().remaining) == ("budget_exhausted", 0)
    assert lenient.metric("table_full_total", policy="p", rule="b") == 2
