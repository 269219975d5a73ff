"""What operators see of a counter is what the next request finds, and what they forget is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from edge import Edge, Json, bucket, budget, identity_of, moment, policy, tokens
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.context import Context
from fairvisor.descriptors import Told
from fairvisor.engine import Policy
from fairvisor.rules.keys import Scope


def compiled(edge: Edge) -> Policy:
    return next(edge.bundle.routes.policies())


def standings(edge: Edge, *values: str | None, at: float = 0) -> Any:
    limit: Any = compiled(edge).rules[0]
    return limit.standings(edge.counters, limit.scope.chosen(list(values)), moment(at))


LIMITS = [
    bucket("r", "header:x-key", rate=1, burst=10),
    bucket("r", "header:x-key", rate=1, burst=10, on_missing="shared"),
    budget("r", "header:x-key", amount=10),
    budget("r", "header:x-key", amount=20, staged_actions=[{"threshold_percent": 50, "action": "reject"}]),
]


@pytest.mark.parametrize("rule", LIMITS)
def test_what_is_left_is_what_the_answer_said(rule: Json) -> None:
    edge = Edge(policy("p", rule))
    for _ in range(3):
        reply = edge.ask(key="a")
    (standing,) = standings(edge, "a")
    assert standing.remaining_u == reply.remaining * 1_000_000 == 7_000_000
    assert standing.quota.amount_u == 10_000_000
    assert -(-standing.reset_ns // 10**9) == reply.reset
    assert standings(edge, "b")[0].remaining_u == 10_000_000


@pytest.mark.parametrize("rule", LIMITS)
def test_a_counter_that_is_forgotten_is_fresh(rule: Json) -> None:
    edge = Edge(policy("p", rule))
    assert edge.admits(key="a") == edge.admits(key="b") == 10
    (standing,) = standings(edge, "a")
    assert edge.counters.delete(standing.key, moment(0).mono_ns)
    assert edge.admits(key="a") == 10
    assert edge.admits(key="b") == 0


def test_tokens_have_a_minute_and_a_day() -> None:
    edge = Edge(
        policy("p", tokens("r", "header:x-key", tpm=1000, tokens_per_day=5000, default_max_completion=100))
    )
    edge.ask(key="a", at=3600)
    minute, day = standings(edge, "a", at=3600)
    assert (minute.name, minute.remaining_u) == ("minute", 900_000_000)
    assert (day.name, day.remaining_u, day.reset_ns) == ("day", 4_900_000_000, 23 * 3600 * 10**9)


VALUE = st.none() | st.text(min_size=1, max_size=4)


@given(st.lists(VALUE, max_size=3), st.sampled_from(["skip", "reject", "shared"]))
def test_values_are_spelled_as_those_of_a_request(values: list[str | None], on_missing: str) -> None:
    found = dict(enumerate(values))
    keys = tuple((str(index), Told(lambda context, index=index: found[index])) for index in found)
    scope = Scope("", keys, (), on_missing)
    context = Context("GET", "", "/", {}, "192.0.2.1", identity_of(()), moment(0))
    assert (scope.chosen(list(values)) or None) == (scope.values(context) or None)


def breaker(**more: Any) -> Json:
    return {
        "enabled": True,
        "spend_rate_threshold_per_minute": 100,
        "action": "reject",
        "auto_reset_after_minutes": 5,
        **more,
    }


@pytest.mark.parametrize("scope", ["policy", "global"])
def test_a_breaker_is_tripped_and_reset_by_hand(scope: str) -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key"), circuit_breaker=breaker(scope=scope)))
    found = compiled(edge).breaker
    assert found is not None
    assert found.key_name == ""
    assert not found.reset(edge.counters, None, moment(0))
    assert found.trip(edge.counters, None, moment(0))
    assert not found.trip(edge.counters, None, moment(0))
    assert found.opened_ns(edge.counters, None, moment(1)) == moment(0).wall_ns
    assert edge.ask(key="a", at=1).reason == "circuit_breaker_open"
    assert found.reset(edge.counters, None, moment(1))
    assert edge.ask(key="a").status == 204
    assert edge.metric("circuit_trips_total") == 1


def test_a_breaker_of_one_key_leaves_the_others_alone() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key"), circuit_breaker=breaker(scope="key")))
    found = compiled(edge).breaker
    assert found is not None
    assert found.key_name == "header:x-key"
    found.trip(edge.counters, "a", moment(0))
    assert edge.ask(key="a").reason == "circuit_breaker_open"
    assert edge.ask(key="b").status == 204
    assert found.opened_ns(edge.counters, "b", moment(0)) == 0


def test_a_reset_forgets_what_was_spent() -> None:
    edge = Edge(
        policy(
            "p",
            budget("r", amount=1000, cost_key="header:x-cost"),
            circuit_breaker=breaker(auto_reset_after_minutes=0),
        )
    )
    found = compiled(edge).breaker
    assert found is not None
    edge.ask(headers={"x-cost": "99"})
    assert not found.reset(edge.counters, None, moment(0))
    edge.ask(headers={"x-cost": "99"})
    assert found.opened_ns(edge.counters, None, moment(0)) == 0
    edge.ask(headers={"x-cost": "1"})
    assert edge.ask().reason == "circuit_breaker_open"


def test_a_breaker_that_resets_itself_reads_as_closed_when_its_time_is_over() -> None:
    edge = Edge(policy("p", bucket("r"), circuit_breaker=breaker()))
    found = compiled(edge).breaker
    assert found is not None
    found.trip(edge.counters, None, moment(0))
    assert found.opened_ns(edge.counters, None, moment(299)) > 0
    assert found.opened_ns(edge.counters, None, moment(300)) == 0
