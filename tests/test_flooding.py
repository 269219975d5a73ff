"""A flood of new keys: whom it may push out of the table, and whom never. `perf/flood.py` does it with a million."""

from __future__ import annotations

import random

import pytest
from tables import NOW, SECOND, TOKEN, c_table, per_of, slot_of, table_memory, table_over

from fairvisor.counters import ALLOWED
from fairvisor.counters._table import WORD_EVICTIONS, WORD_FULL
from fairvisor.counters.records import Slot, Time, unpack, window

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
