"""The text for Prometheus: every family from the start, the right numbers, and never much work at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from edge import SEGMENT_BYTES, Edge, bucket, budget, moment, policy, tokens
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.segment import Segment
from fairvisor.exposition import Active, Crowd, Exposition, Sources
from fairvisor.llm.usage import Usage
from fairvisor.metrics import FAMILIES, LOOPS, REMAINING, Counter, Latency, Tally, TokenMeter
from fairvisor.metrics.families import DURATION, FAULTS, TOKENS_ACCURACY

NOTHING = Sources(lambda: None, tuple, lambda: Crowd(0, 0, 0))
NOW = moment(0)


def expose(segment: Segment, sources: Sources = NOTHING, at: Now = NOW) -> dict[str, Metric]:
    """The families, by the name that their samples have."""
    return read(b"".join(Exposition(segment, sources).pieces(at)))


def read(text: bytes) -> dict[str, Metric]:
    families = {each.name: each for each in text_string_to_metric_families(text.decode())}
    return {f"{name}_total" if each.type == "counter" else name: each for name, each in families.items()}


def samples(metric: Metric) -> dict[tuple[str, ...], float]:
    """By the values of the labels, in the order of the labels' names."""
    return {tuple(value for _, value in sorted(each.labels.items())): each.value for each in metric.samples}


def active(edge: Edge, expires_at_ns: int | None = None) -> Sources:
    found = Active(edge.bundle, 3, NOW.wall_ns, expires_at_ns)
    return Sources(lambda: found, tuple, lambda: Crowd(2, 7, 1))


def test_every_family_is_there_from_the_start() -> None:
    shown = expose(Segment.private(SEGMENT_BYTES))
    assert list(shown) == [family.name for family in FAMILIES]
    assert {name: metric.documentation for name, metric in shown.items()} == {
        family.name: family.help for family in FAMILIES
    }
    assert {name: metric.type for name, metric in shown.items()} == {
        family.name: family.kind for family in FAMILIES
    }


def test_what_is_known_beforehand_is_zero_from_the_start() -> None:
    shown = expose(Segment.private(SEGMENT_BYTES))
    assert samples(shown[FAULTS.name]) == {(part,): 0 for part in sorted(FAULTS.known)}
    assert samples(shown["fairvisor_reloads_total"])["applied",] == 0
    assert samples(shown["fairvisor_repeated_requests_total"]) == {(): 0}
    assert samples(shown["fairvisor_decisions_total"]) == {}


def test_counters_of_every_process_are_added_up() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    exposition = Exposition(segment, NOTHING)
    Counter(segment, LOOPS, "p", "warn").add(3)
    assert b'action="warn",policy="p"} 3.0' in b"".join(exposition.pieces(NOW))
    for _ in range(2):
        Counter(segment, LOOPS, "p", "warn").add(2)
    Counter(segment, LOOPS, "q", "warn").add(1)
    shown = read(b"".join(exposition.pieces(NOW)))
    assert samples(shown[LOOPS.name]) == {("warn", "p"): 7, ("warn", "q"): 1}


def test_values_of_labels_are_escaped() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    Counter(segment, LOOPS, 'say "hi" \\ there', "warn").add()
    assert samples(expose(segment)[LOOPS.name]) == {("warn", 'say "hi" \\ there'): 1}


def test_series_of_another_version_are_passed_over() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    segment.series("fairvisor_of_old_total", (("policy", "p"),))
    assert "fairvisor_of_old_total" not in expose(segment)


def test_a_long_family_has_its_head_once_and_all_of_its_samples() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    for number in range(100):
        Counter(segment, LOOPS, str(number), "warn").add(number)
    text = b"".join(Exposition(segment, NOTHING).pieces(NOW))
    assert text.count(b"# TYPE fairvisor_loop_detected_total") == 1
    assert samples(read(text)[LOOPS.name]) == {("warn", str(number)): number for number in range(100)}


def test_a_slice_renders_few_samples_whatever_there_is() -> None:
    segment = Segment.private(1 << 22)
    for number in range(1500):
        Counter(segment, LOOPS, str(number), "warn").add()
    pieces = list(Exposition(segment, NOTHING).pieces(NOW))
    assert len(pieces) > 1500 / 20
    assert max(piece.count(b"\n") for piece in pieces) < 40


def test_two_expositions_at_once_do_not_disturb_each_other() -> None:
    segment = Segment.private(1 << 22)
    exposition = Exposition(segment, NOTHING)
    for number in range(50):
        Counter(segment, LOOPS, str(number), "warn").add()
    first = exposition.pieces(NOW)
    begun = [next(first) for _ in range(12)]
    for number in range(50, 200):
        Counter(segment, LOOPS, str(number), "warn").add()
    second = b"".join(exposition.pieces(NOW))
    text = b"".join([*begun, *first])
    assert len(samples(read(second)[LOOPS.name])) == 200
    assert len(samples(read(text)[LOOPS.name])) >= 50


def test_durations_are_counted_below_powers_of_two() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    latency = Latency(segment)
    for duration_ns in (0, 1023, 1024, 50_000, 2 * NS_PER_S):
        latency.observe(duration_ns)
    metric = expose(segment)[DURATION.name]
    buckets = {each.labels["le"]: each.value for each in metric.samples if each.name.endswith("_bucket")}
    assert (buckets["1.024e-06"], buckets["2.048e-06"], buckets["3.2768e-05"]) == (2, 3, 3)
    assert (buckets["6.5536e-05"], buckets["1.073741824"], buckets["+Inf"]) == (4, 4, 5)
    single = {each.name: each.value for each in metric.samples if not each.labels}
    assert single == {f"{DURATION.name}_count": 5, f"{DURATION.name}_sum": pytest.approx(2.000052047)}


def test_the_bundle_tells_of_itself() -> None:
    edge = Edge(
        policy("a", bucket("r")),
        policy("b", bucket("r"), mode="shadow"),
        policy("c", bucket("r"), mode="shadow"),
        kill_switches=[
            {"scope_key": "header:x-a", "scope_value": "1"},
            {"scope_key": "header:x-a", "scope_value": "2", "expires_at": "2026-03-02T00:01:00Z"},
        ],
        global_shadow={"enabled": True, "reason": "night", "expires_at": "2026-03-02T00:02:00Z"},
    )
    shown = expose(edge.segment, active(edge, NOW.wall_ns + NS_PER_S))

    def value(name: str, metrics: dict[str, Metric] = shown) -> float:
        return samples(metrics[f"fairvisor_{name}"])[()]

    assert value("bundle_version") == 1
    assert value("bundle_policies") == 3
    assert value("bundle_loaded_timestamp_seconds") == NOW.wall_ns / NS_PER_S
    assert value("bundle_expires_timestamp_seconds") == NOW.wall_ns / NS_PER_S + 1
    assert value("shadow_mode_active") == 2
    assert (value("kill_switch_active"), value("global_shadow_active")) == (2, 1)
    assert samples(shown["fairvisor_config_info"]) == {(edge.bundle.sha256, "1"): 1}
    assert (value("workers"), value("connections"), value("throttles_waiting")) == (2, 7, 1)
    later = expose(edge.segment, active(edge), moment(60))
    assert (value("kill_switch_active", later), value("global_shadow_active", later)) == (1, 1)
    last = expose(edge.segment, active(edge), moment(120))
    assert value("global_shadow_active", last) == 0
    assert samples(last["fairvisor_bundle_expires_timestamp_seconds"]) == {}


def test_overridden_kill_switches_are_not_in_force() -> None:
    edge = Edge(
        policy("a", bucket("r")),
        kill_switches=[{"scope_key": "header:x-a", "scope_value": "1"}],
        kill_switch_override={"enabled": True, "reason": "mistake", "expires_at": "2026-03-02T00:01:00Z"},
    )
    shown = expose(edge.segment, active(edge))
    assert samples(shown["fairvisor_kill_switch_active"]) == {(): 0}
    assert samples(shown["fairvisor_kill_switch_override_active"]) == {(): 1}
    assert samples(expose(edge.segment, active(edge), moment(60))["fairvisor_kill_switch_active"]) == {(): 1}


def test_without_a_bundle_there_is_no_version() -> None:
    shown = expose(Segment.private(SEGMENT_BYTES))
    assert samples(shown["fairvisor_bundle_version"]) == {(): 0}
    assert samples(shown["fairvisor_config_info"]) == {}


def test_faults_are_shown_by_part() -> None:
    sources = NOTHING._replace(faults=lambda: {"audit_log": "full"})
    shown = samples(expose(Segment.private(SEGMENT_BYTES), sources)[FAULTS.name])
    assert {part for (part,), value in shown.items() if value} == {"audit_log"}


def test_the_slots_add_up() -> None:
    edge = Edge(policy("a", bucket("r", "header:x-key"), budget("b", "header:x-key")))
    for key in "abc":
        edge.ask(key=key)
    shown = expose(edge.segment)
    slots = samples(shown["fairvisor_table_slots"])
    assert (slots["times",], slots["totals",]) == (3, 3)
    assert sum(slots.values()) == samples(shown["fairvisor_table_size_slots"])[()]


def lowest(edge: Edge, at: float, name: str = "ratelimit_remaining") -> dict[tuple[str, ...], float]:
    return samples(expose(edge.segment, NOTHING, moment(at))[f"fairvisor_{name}"])


def test_the_least_that_any_key_had_left_is_shown() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key", burst=9), budget("b", amount=50)))
    for key in "abbbbcc":
        edge.ask(key=key)
    assert lowest(edge, 0) == {("enforce", "p", "r"): 5, ("enforce", "p", "b"): 43}


def test_a_low_is_shown_for_half_a_minute_and_then_what_came_after() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key", burst=9)))
    for _ in range(12):
        edge.ask(key="a")
    assert lowest(edge, 0) == {("enforce", "p", "r"): 0}
    edge.ask(key="b", at=20)
    assert lowest(edge, 30) == {("enforce", "p", "r"): 0}
    edge.ask(key="b", at=31)
    assert lowest(edge, 31) == {("enforce", "p", "r"): 8}
    assert lowest(edge, 62) == {}


def test_another_process_with_a_higher_low_does_not_hide_the_lower() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    one, other = (Tally(segment, "p", "r", "enforce", REMAINING) for _ in range(2))
    one.lower(3_000_000)
    other.lower(7_999_999)
    assert samples(expose(segment)[REMAINING.name]) == {("enforce", "p", "r"): 3}


def test_limits_that_have_nothing_left_to_show_show_nothing() -> None:
    loop = {"enabled": True, "window_seconds": 60, "threshold_identical_requests": 2, "action": "warn"}
    breaker = {"enabled": True, "spend_rate_threshold_per_minute": 1}
    edge = Edge(
        policy(
            "p",
            bucket("r", "header:x-absent", on_missing="reject"),
            loop_detection=loop,
            circuit_breaker=breaker,
        )
    )
    for _ in range(4):
        edge.ask()
    assert lowest(edge, 0) == {}


def test_shadow_counters_are_told_apart() -> None:
    edge = Edge(policy("p", bucket("r", burst=1), mode="shadow"))
    for _ in range(3):
        edge.ask()
    assert lowest(edge, 0) == {("shadow", "p", "r"): 0}


def test_tokens_are_told_in_families_of_their_own() -> None:
    edge = Edge(policy("p", tokens("t", tpm=1000, tokens_per_day=5000, default_max_completion=100)))
    edge.ask("POST", body={"max_tokens": 400})
    assert lowest(edge, 0) == {}
    assert lowest(edge, 0, "tokens_remaining") == {("enforce", "p", "t"): 599}  # the prompt counts one
    assert samples(expose(edge.segment)["fairvisor_tokens_reserved_total"]) == {("p", "t"): 401}


def test_settlements_tell_how_good_the_estimates_are() -> None:
    edge = Edge(policy("p", tokens("t", tpm=100_000, default_max_completion=100)))
    meter = TokenMeter(edge.segment)
    for used in (40, 60, 150):
        reply = edge.ask("POST", body={"max_tokens": 100})
        for each in edge.settle(reply.reservation, Usage(output=used)):
            meter.settled(*each)
    shown = expose(edge.segment)
    assert samples(shown["fairvisor_tokens_consumed_total"]) == {("p", "t"): 250}
    assert samples(shown["fairvisor_token_reservation_unused_total"]) == {("p", "t"): 61 + 41}
    assert samples(shown["fairvisor_token_reservation_excess_total"]) == {("p", "t"): 49}
    assert samples(shown[TOKENS_ACCURACY.name]) == {("p", "t"): pytest.approx(250 / 303)}


@pytest.fixture
def tripped() -> Iterator[Edge]:
    breaker = {"enabled": True, "spend_rate_threshold_per_minute": 3, "auto_reset_after_minutes": 5}
    edge = Edge(policy("p", bucket("r", burst=99), circuit_breaker=breaker))
    for _ in range(4):
        edge.ask()
    yield edge


def test_an_open_circuit_breaker_is_shown_until_it_closes_by_itself(tripped: Edge) -> None:
    def state(at: float) -> dict[tuple[str, ...], float]:
        return samples(expose(tripped.segment, NOTHING, moment(at))["fairvisor_circuit_state"])

    assert state(1) == {("enforce", "p"): 1}
    assert state(299) == {("enforce", "p"): 1}
    assert state(301) == {("enforce", "p"): 0}


def test_a_breaker_that_only_an_operator_closes_stays_open() -> None:
    breaker = {"enabled": True, "spend_rate_threshold_per_minute": 3}
    edge = Edge(policy("p", bucket("r", burst=99), circuit_breaker=breaker))
    for _ in range(4):
        edge.ask()
    shown = expose(edge.segment, NOTHING, moment(86_400))
    assert samples(shown["fairvisor_circuit_state"]) == {("enforce", "p"): 1}


@pytest.mark.parametrize("minutes", [0, 5], ids=["by hand only", "by itself too"])
def test_breakers_of_keys_are_shown_open_until_the_last_one_was_reset(minutes: int) -> None:
    config = {"enabled": True, "spend_rate_threshold_per_minute": 3, "auto_reset_after_minutes": minutes}
    edge = Edge(policy("p", bucket("r", "header:x-key"), circuit_breaker=config | {"scope": "key"}))
    (found,) = edge.bundle.routes.policies()
    breaker = found.breaker
    assert breaker is not None

    def state() -> float:
        return samples(expose(edge.segment, NOTHING, moment(1))["fairvisor_circuit_state"])["enforce", "p"]

    for value in ("a", "b"):
        assert breaker.trip(edge.counters, value, moment(0))
    assert not breaker.trip(edge.counters, "a", moment(0))
    assert not breaker.reset(edge.counters, "c", moment(1))
    assert breaker.reset(edge.counters, "a", moment(1))
    assert state() == 1
    assert breaker.reset(edge.counters, "b", moment(1))
    assert state() == 0
    assert not breaker.reset(edge.counters, "b", moment(1))
    assert breaker.trip(edge.counters, "a", moment(1))
    assert state() == 1
    for value in ("b", "a"):
        breaker.reset(edge.counters, value, moment(1))
    assert state() == 0


def test_an_open_breaker_that_is_asked_for_months_is_shown_as_long() -> None:
    config = {"enabled": True, "spend_rate_threshold_per_minute": 1}
    edge = Edge(policy("p", bucket("r", burst=99), circuit_breaker=config))
    for day in range(0, 200, 20):
        edge.ask(at=86_400 * day)
    shown = expose(edge.segment, NOTHING, moment(86_400 * 200))
    assert samples(shown["fairvisor_circuit_state"]) == {("enforce", "p"): 1}
    (found,) = edge.bundle.routes.policies()
    assert found.breaker is not None
    assert found.breaker.reset(edge.counters, None, moment(86_400 * 200))
    shown = expose(edge.segment, NOTHING, moment(86_400 * 200))
    assert samples(shown["fairvisor_circuit_state"]) == {("enforce", "p"): 0}


def test_kill_switch_hits_are_counted_by_descriptor() -> None:
    switches = [{"scope_key": "header:x-key", "scope_value": value} for value in "ab"]
    edge = Edge(policy("p", bucket("r")), kill_switches=switches)
    for key in "aabc":
        edge.ask(key=key)
    assert samples(expose(edge.segment)["fairvisor_kill_switch_hits_total"]) == {("header:x-key",): 3}
