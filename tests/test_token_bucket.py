"""`token_bucket` in simulated time: exact admission, what is left, when a retry fits, reloads."""

from __future__ import annotations

from fractions import Fraction

import pytest
from edge import Edge, bucket, policy
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.bundle.compile import Options


@pytest.mark.parametrize("rate", [0.001, 0.333333, 1, 3, 7, 1e6])
@pytest.mark.parametrize("burst", [1, 2, 100])
def test_a_fresh_bucket_is_full_and_admits_exactly_burst(rate: float, burst: float) -> None:
    edge = Edge(policy("p", bucket("r", rate=rate, burst=max(rate, burst))))
    assert edge.admits(most=101) == min(max(rate, burst), 101)


@given(
    st.fractions(Fraction(1, 100), 50, max_denominator=1000),
    st.integers(1, 40),
    st.lists(st.integers(0, 3_000), min_size=1, max_size=40),
)
@settings(max_examples=60)
def test_no_more_passes_than_burst_plus_what_refilled(
    rate: Fraction, burst: int, steps_ms: list[int]
) -> None:
    """And no less: as soon as a whole token has come back, one more request passes."""
    per_s = float(round(rate, 3)) or 0.001
    burst = max(burst, int(per_s) + 1)
    edge = Edge(policy("p", bucket("r", rate=per_s, burst=burst)))
    level, at_ms = Fraction(burst), 0
    for step_ms in steps_ms:
        at_ms += step_ms
        level = min(Fraction(burst), level + Fraction(str(per_s)) * step_ms / 1000)
        expected = level >= 1
        passed = edge.ask(at=at_ms / 1000).status == 204
        if abs(level - 1) > Fraction(
            1, 10**6
        ):  # rates are rounded by a few parts in 10^12, on the strict side
            assert passed == expected
        level -= passed


def test_remaining_counts_down_and_reset_says_when_it_is_full() -> None:
    edge = Edge(policy("p", bucket("r", rate=2, burst=5)))
    seen = [(reply.remaining, reply.reset) for reply in (edge.ask() for _ in range(5))]
    assert seen == [(4, 1), (3, 1), (2, 2), (1, 2), (0, 3)]
    refused = edge.ask()
    assert (refused.remaining, refused.reset) == (0, 1)


def test_a_quota_is_the_burst_and_the_time_that_fills_it() -> None:
    reply = Edge(policy("p", bucket("r", rate=3, burst=10))).ask()
    assert reply.headers["RateLimit-Policy"] == '"r";q=10;w=4'
    assert reply.headers["RateLimit-Limit"] == "10"


@given(st.floats(0.01, 1000).map(lambda rate: round(rate, 3)), st.integers(1, 9))
@settings(max_examples=60)
def test_a_refused_request_fits_when_its_waiting_time_is_over_and_not_before(rate: float, cost: int) -> None:
    edge = Edge(policy("p", bucket("r", rate=rate, burst=max(10, rate), fixed_cost=cost)))
    while (reply := edge.ask()).status == 204:
        pass
    assert reply.decision.verdict is not None
    wait_ns = reply.decision.verdict.reset_ns
    assert edge.ask(at=(wait_ns - 1000) / 1e9).status == 429
    assert edge.ask(at=(wait_ns + 1000) / 1e9).status == 204


def test_refusals_charge_nothing() -> None:
    edge = Edge(policy("p", bucket("r", rate=1, burst=2)))
    assert edge.admits() == 2
    for tenth in range(1, 10):
        assert edge.ask(at=tenth / 10).reason == "rate_limit_exceeded"
    assert edge.ask(at=1.001).status == 204


def test_a_cost_above_burst_never_fits_and_the_client_is_told_so() -> None:
    edge = Edge(policy("p", bucket("r", rate=1, burst=100, cost_source="header:x-cost")))
    reply = edge.ask(headers={"X-Cost": "100.000001"})
    assert (reply.reason, reply.should_retry, reply.remaining) == ("rate_limit_exceeded", False, 100)
    assert reply.retry_after >= reply.reset == 100
    assert edge.ask(headers={"X-Cost": "100"}).status == 204
    assert edge.ask(headers={"X-Cost": "100"}).should_retry


def test_a_cost_is_fixed_or_from_a_header_or_from_the_query() -> None:
    fixed = Edge(policy("p", bucket("r", rate=0.001, burst=10, fixed_cost=2.5)))
    assert fixed.admits() == 4
    header = Edge(policy("p", bucket("r", rate=0.001, burst=10, cost_source="header:X-Cost", default_cost=3)))
    assert [header.ask(headers={"x-cost": cost}).remaining for cost in ("4", "0.5", "junk")] == [6, 5, 2]
    query = Edge(policy("p", bucket("r", rate=0.001, burst=10, cost_source="query:n", default_cost=3)))
    assert [query.ask(path=f"/{tail}").remaining for tail in ("?n=2", "?x=1&n=%31", "", "?n=1&n=1")] == [
        8,
        7,
        4,
        3,
    ]
    assert query.ask(path="/?n=1&n=2").reason == "ambiguous_request"


def test_mixed_costs_that_sum_to_the_burst_fit_and_one_millionth_more_does_not() -> None:
    edge = Edge(policy("p", bucket("r", rate=0.000777, burst=3, cost_source="header:c")))
    for cost in ("1.234567", "0.765433", "0.999999"):
        assert edge.ask(headers={"c": cost}).status == 204
    assert edge.ask(headers={"c": "0.000002"}).status == 429
    assert edge.ask(headers={"c": "0.000001"}).status == 204
    assert edge.ask(headers={"c": "0.000001"}).status == 429


def test_a_reload_that_changes_the_rate_keeps_the_debt_in_time_capped_at_the_new_burst() -> None:
    edge = Edge(policy("p", bucket("r", rate=1, burst=10)))
    assert edge.admits() == 10
    edge.reload(policy("p", bucket("r", rate=10, burst=200)))  # 10 s of debt are 100 tokens now
    assert edge.ask().remaining == 99
    edge.reload(policy("p", bucket("r", rate=2, burst=4)))  # what would be more than full is empty
    assert edge.ask().reset == 1
    assert edge.ask(at=1.001).remaining == 1


@pytest.mark.parametrize(
    "changed",
    [
        policy("p", bucket("r", "header:x-key", "request:method")),
        policy("p", bucket("r", "header:x-other")),
        policy("p", bucket("s", "header:x-key")),
        policy("q", bucket("r", "header:x-key")),
    ],
)
def test_a_reload_that_changes_what_is_counted_starts_a_new_counter(changed: dict[str, object]) -> None:
    first = policy("p", bucket("r", "header:x-key"))
    edge = Edge(first)
    assert edge.admits(key="a", headers={"x-other": "a"}) == 5
    edge.reload(changed)
    assert edge.admits(key="a", headers={"x-other": "a"}) == 5
    edge.reload(first)
    assert edge.admits(key="a") == 0


def test_a_full_table_lets_pass_or_refuses_as_the_settings_say() -> None:
    rule = bucket("r", burst=7)
    lenient = Edge(policy("p", rule), full=True)
    strict = Edge(policy("p", rule), full=True, options=Options(reject_when_full=True))
    assert (lenient.ask().status, lenient.ask().remaining) == (204, 7)
    assert (strict.ask().reason, strict.ask().retry_after) == ("rate_limit_exceeded", 1)
    assert lenient.metric("table_full_total", policy="p", rule="r") == 2
