"""Counting: series are interned when they first count, and no label takes a value from a client."""

from __future__ import annotations

import re

import pytest
from edge import SEGMENT_BYTES, Edge, bucket, budget, policy, tokens

from fairvisor.counters.segment import Segment
from fairvisor.metrics import DECISIONS, DESCRIPTOR_MISSING, FAMILIES, LOOPS, Counter, Tally


def series(segment: Segment) -> dict[tuple[str, ...], int]:
    return {(name, *(value for _, value in labels)): value for name, labels, value in segment.series_values()}


def test_a_counter_takes_a_cell_when_it_first_counts() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    counter = Counter(segment, DECISIONS, "p", "r", "allow", "")
    assert series(segment) == {}
    counter.hit()
    counter.hit()
    counter.add(5)
    assert series(segment) == {("fairvisor_decisions_total", "p", "r", "allow", ""): 7}


def test_the_same_series_is_one_cell_whoever_counts() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    for _ in range(3):
        Counter(segment, LOOPS, "p", "warn").add(2)
    assert series(segment) == {("fairvisor_loop_detected_total", "p", "warn"): 6}


def test_every_label_has_a_value() -> None:
    with pytest.raises(AssertionError):
        Counter(Segment.private(SEGMENT_BYTES), DECISIONS, "p")


def test_a_tally_fills_in_its_policy_and_where_there_is_that_label_its_rule() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    tally = Tally(segment, "p", "r", "shadow")
    tally.add(DESCRIPTOR_MISSING, "header:x")
    tally.add(LOOPS, "warn", amount=3)
    tally.add(LOOPS, "warn")
    tally.refused.hit()
    assert series(segment) == {
        ("fairvisor_descriptor_missing_total", "p", "r", "header:x"): 1,
        ("fairvisor_loop_detected_total", "p", "warn"): 4,
        ("fairvisor_limit_results_total", "p", "r", "shadow", "refused"): 1,
    }


def test_families_have_names_and_help_that_prometheus_takes() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"fairvisor_[a-z][a-z0-9_]*[a-z]", name) for name in names)
    assert all(family.help.strip() and "\n" not in family.help for family in FAMILIES)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for family in FAMILIES for label in family.labels)


def test_what_is_counted_is_declared() -> None:
    declared = {family.name: family.labels for family in FAMILIES}
    for name, labels, _ in _busy_edge().segment.series_values():
        assert tuple(label for label, _ in labels) == declared[name]


def test_no_label_takes_a_value_from_a_client() -> None:
    text = str([labels for _, labels, _ in _busy_edge().segment.series_values()])
    assert "CLIENT" not in text
    assert "192.0.2" not in text


def _busy_edge() -> Edge:
    """Every kind of limit, for a client that says CLIENT wherever it can."""
    loop = {"enabled": True, "window_seconds": 60, "threshold_identical_requests": 3, "action": "warn"}
    breaker = {"enabled": True, "spend_rate_threshold_per_minute": 5}
    edge = Edge(
        policy(
            "a", bucket("r", "header:x-key", burst=2), budget("b", "query:q", amount=3), loop_detection=loop
        ),
        policy("b", tokens("t", "llm:model", tpm=2000), circuit_breaker=breaker),
        policy("c", bucket("s", "header:x-absent"), mode="shadow", circuit_breaker=breaker),
        kill_switches=[{"scope_key": "header:x-stop", "scope_value": "*"}],
    )
    for number in range(12):
        headers = {"user-agent": "CLIENT", "x-stop": "CLIENT"} if number == 7 else {"cookie": "CLIENT=1"}
        edge.ask(
            "POST",
            f"/v1/CLIENT/{number}?q=CLIENT{number}",
            headers,
            key=f"CLIENT{number % 3}",
            host="client.example.com",
            body={"model": "CLIENT"} if number % 2 else b"CLIENT",
            request_id=f"CLIENT{number % 5}",
        )
    return edge
