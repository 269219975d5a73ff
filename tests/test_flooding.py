"""A flood of new keys: whom it may push out of the table, and whom never. `perf/flood.py` does it with ten million."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest
from edge import Edge, bucket, budget, policy, tokens
from tables import NOW, SECOND, TOKEN, c_table, per_of, slot_of, table_memory, table_over

from fairvisor.counters import ALLOWED
from fairvisor.counters._table import WORD_CLAIM_EVICTIONS, WORD_EVICTIONS, WORD_FULL
from fairvisor.counters.records import Slot, Time, unpack, window
from fairvisor.errors import Conflict
from fairvisor.llm.usage import Usage

BURST = 1000 * TOKEN
SLOW = per_of(1)  # a bucket that was used once stays in the table for a while
DAY = 86_400 * SECOND


def test_a_flood_that_fits_changes_no_victim() -> None:
    """The table is sized for it: half of the slots are in use in the end."""
    table = c_table(8 * 4096)
    for victim in range(100):
        table.take(victim, NOW, (1 + victim) * TOKEN, BURST, SLOW)
        table.add(10**6 + victim, NOW, 1 + victim, 1000, DAY)
    for key in range(2 * 10**6, 2 * 10**6 + 16_000):
        assert table.take(key, NOW + key, TOKEN, BURST, SLOW)[0] == ALLOWED
    assert (table.word_get(WORD_EVICTIONS), table.word_get(WORD_FULL)) == (0, 0)
    for victim in range(100):
        assert table.peek_bucket(victim, NOW, BURST, SLOW)[0] == BURST - (1 + victim) * TOKEN
        assert table.peek_total(10**6 + victim, NOW) == 1 + victim


def test_a_table_filled_ten_times_over_goes_on_deciding_and_counts_whom_it_forgot() -> None:
    """Budgets stay whatever comes, and so do buckets that are in use all the time."""
    table = c_table(1024)
    step_ns = SECOND // 1000
    budgets, busy = range(10**6, 10**6 + 100), range(2 * 10**6, 2 * 10**6 + 50)
    for key in budgets:
        table.add(key, NOW, 7, 1000, DAY)
    now = NOW
    for key in range(10 * 1024):
        now += step_ns
        assert table.take(key, now, 100 * TOKEN, BURST, SLOW)[0] == ALLOWED
        if key % 100 == 0:
            for used in busy:
                assert table.take(used, now, 0 if key else 500 * TOKEN, BURST, SLOW)[0] == ALLOWED
    assert table.word_get(WORD_FULL) == 0
    assert 9 * 1024 < table.word_get(WORD_EVICTIONS) < 10 * 1024
    assert [table.peek_total(key, now) for key in budgets] == [7] * len(budgets)
    refilled_u = (now - NOW) // 1000  # one token a second
    for key in busy:
        left = table.peek_bucket(key, now, BURST, SLOW)[0]
        assert abs(left - (500 * TOKEN + refilled_u)) < 2 * TOKEN


def new_bucket(edge: Edge, number: int) -> None:
    assert edge.ask(path="/bucket", key=f"k{number}").status == 204


def new_loop(edge: Edge, number: int) -> None:
    assert edge.ask("POST", "/loop", body=b"%d" % number).status == 204


def new_request_id(edge: Edge, number: int) -> None:
    assert edge.ask(path="/id", request_id=f"r{number}").status == 204


def new_reservation(edge: Edge, number: int) -> None:
    assert edge.ask("POST", "/llm", key=f"k{number}", body={"max_tokens": 10}).reservation


def new_settlement(edge: Edge, number: int) -> None:
    edge.settle(edge.ask("POST", "/shared", body={"max_tokens": 10}).reservation, Usage(output=5))


FLOODED = [
    policy("bucket", bucket("b", "header:x-key", rate=0.001), path="/bucket"),
    policy(
        "loop",
        loop_detection={"enabled": True, "window_seconds": 3600, "threshold_identical_requests": 2},
        path="/loop",
    ),
    policy("id", bucket("b", rate=1e6, burst=1e6), path="/id"),
    policy("llm", tokens("t", "header:x-key", tpm=1, burst_tokens=1000), path="/llm"),
    policy("shared", tokens("t", tpm=1e9), path="/shared"),
]


@pytest.mark.parametrize("new_key", [new_bucket, new_loop, new_request_id, new_reservation, new_settlement])
def test_no_kind_of_key_that_clients_make_evicts_a_budget_or_fills_a_window(
    new_key: Callable[[Edge, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven times the slots of the table, as ten million are in a segment of 48 MiB, within an hour."""
    monkeypatch.setattr("edge.SEGMENT_BYTES", 64 * 1024)
    edge = Edge(*FLOODED, policy("paid", budget("b", "header:x-key", amount=100), path="/paid"))
    for owner in range(20):
        assert edge.ask(path="/paid", key=f"o{owner}").remaining == 99
    slots = edge.segment.table.slots
    for number in range(7 * slots):
        edge.at += 3000 / (7 * slots)
        new_key(edge, number)
    assert edge.segment.table.word_get(WORD_FULL) == 0
    assert [edge.ask(path="/paid", key=f"o{owner}").remaining for owner in range(20)] == [98] * 20


def test_a_settlement_whose_nonce_was_pushed_out_gives_nothing_back_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.SEGMENT_BYTES", 64 * 1024)
    edge = Edge(policy("p", tokens("t", tpm=1e9, tokens_per_day=1e9)))
    asked = {"max_tokens": 10}
    reservations = [edge.ask("POST", body=asked, at=0.01 * number).reservation for number in range(4000)]
    for token in reservations:
        edge.settle(token, Usage(output=5))
    assert edge.segment.table.word_get(WORD_CLAIM_EVICTIONS) > 3000
    left = [edge.ask("POST", body=asked).remaining for _ in range(2)]
    for token in reservations:
        with suppress(Conflict):  # its nonce is still there
            edge.settle(token, None)
    left.append(edge.ask("POST", body=asked).remaining)
    assert left[0] - left[1] == left[1] - left[2], "of the day, only the last request is gone"


@pytest.mark.parametrize("seed", range(4))
def test_nobody_is_pushed_out_while_one_who_ran_out_or_was_used_earlier_is_in_the_window(seed: int) -> None:
    """So a key of the last second goes only where everybody else's use was as recent."""
    dice = random.Random(seed)
    slots = 64
    memory = table_memory(slots)
    table = table_over(memory, slots)
    now, evicted = NOW, 0
    for _ in range(6000):
        now += dice.choice([0, SECOND // 50, SECOND // 3])
        key = dice.randrange(400)
        places = [place for group in window(key, slots // 8) for place in group]
        before = {place: unpack(*slot_of(memory, place)) for place in places}
        count = table.word_get(WORD_EVICTIONS)
        cost_u = dice.choice([TOKEN // 100, TOKEN, 40 * TOKEN])
        if dice.randrange(10):
            table.take(key, now, cost_u, BURST, SLOW)
        else:
            table.add(key + 1000, now, 1, 1000, SECOND * dice.randrange(1, 400))
            continue
        if table.word_get(WORD_EVICTIONS) > count:
            evicted += 1
            (victim,) = [
                slot
                for place, slot in before.items()
                if slot is not None and _fingerprint(unpack(*slot_of(memory, place))) != slot.fp
            ]
            assert all(slot is not None and not slot.record.expired(now) for slot in before.values())
            rivals = [slot for slot in before.values() if slot is not None and isinstance(slot.record, Time)]
            assert victim.used_ns == min(slot.used_ns for slot in rivals)
    assert evicted > 100


def _fingerprint(slot: Slot | None) -> int:
    return 0 if slot is None else slot.fp
