"""The C table and its model agree, answer by answer and slot by slot, on whatever sequence of operations.

Two drivers: hypothesis, which finds and shrinks short sequences, and a seeded random one, which reaches 120,000
operations. Both use few keys in a small table, two of which collide, so that windows fill, buckets are evicted and
records run out, and a clock that creeps, leaps, steps back and wraps.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import NOW, SECOND, SLOTS_AT, TOKEN, colliding_keys, model_table, per_of, table_memory, table_over

from fairvisor.counters import FULL
from fairvisor.counters._table import (
    SLOT_BYTES,
    WORD_CLAIM_EVICTIONS,
    WORD_CLAIM_STAMP,
    WORD_EVICTIONS,
    WORD_FULL,
    WORD_NONCE,
)
from fairvisor.counters.records import UNIT_NS, pack

DAY = 86_400 * SECOND
Call = tuple[str, tuple[int, ...]]

SLOTS = [8, 16, 24, 64]
PERS = [1, 269, per_of(1), per_of(7), per_of(1000)]
BURSTS_U = [0, 1, TOKEN, 5 * TOKEN, 1000 * TOKEN]
COSTS_U = [0, 1, TOKEN // 3, TOKEN, 5 * TOKEN, 2**63 - 1]
AMOUNTS_U = [0, 1, 7, TOKEN, 2**62, 2**63 - 1]
LIVES_NS = [1, SECOND, UNIT_NS, 3 * UNIT_NS, DAY, 100 * DAY]
STEPS_NS = [0, 0, 1, SECOND // 7, SECOND, UNIT_NS, DAY, 90 * DAY, -1, -SECOND, -UNIT_NS, -DAY]


@cache
def keys_for(slots: int) -> tuple[int, ...]:
    """Enough to fill the table twice over; the first two collide."""
    return (*colliding_keys(slots // 8), *range(2 * slots))


class Pair:
    """A C table and a model that get the same calls."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.memory = table_memory(slots)
        self.table = table_over(self.memory, slots)
        self.model = model_table(slots)

    def call(self, name: str, *arguments: int) -> object:
        got, expected = getattr(self.table, name)(*arguments), getattr(self.model, name)(*arguments)
        assert got == expected, f"{name}{arguments}: the table says {got}, the model {expected}"
        return got

    def compare_slots(self) -> None:
        """Every slot in use is the same 32 bytes; counters of the table itself are the same."""
        for at, slot in enumerate(self.model._slots):
            start = SLOTS_AT + SLOT_BYTES * at
            expected = pack(slot)[:16] if slot is not None else bytes(16)
            assert self.memory[start : start + 16] == expected, f"slot {at}"
            if slot is not None:
                assert self.memory[start + 16 : start + 32] == pack(slot)[16:], f"used or key of slot {at}"
        for word in (WORD_NONCE, WORD_EVICTIONS, WORD_FULL, WORD_CLAIM_EVICTIONS, WORD_CLAIM_STAMP):
            self.call("word_get", word)

    def move(self, slots: int, shift_ns: int, now_ns: int) -> Pair:
        """Both, in tables of another size."""
        target = Pair(slots)
        dump = self.table.dump(0, self.slots, now_ns)
        assert dump == self.model.dump(0, self.slots, now_ns)
        target.call("merge", dump, shift_ns, now_ns + shift_ns)  # type: ignore[arg-type]
        return target


def arguments_of(
    name: str, chance: random.Random, keys: Sequence[int], now_ns: int, slots: int
) -> tuple[int, ...]:
    """Arguments that make sense for an operation, with the odd extreme."""
    pick = chance.choice
    start = (pick(keys), now_ns)
    match name:
        case "take" | "overdraw":
            return (*start, pick(COSTS_U), pick(BURSTS_U), pick(PERS))
        case "give":
            return (*start, pick(COSTS_U), pick(PERS))
        case "peek_bucket":
            return (*start, pick(BURSTS_U), pick(PERS))
        case "add":
            return (*start, pick(AMOUNTS_U), pick(AMOUNTS_U), pick(LIVES_NS))
        case "sub" | "charge":
            return (*start, pick(AMOUNTS_U))
        case "count":
            return (*start, pick(LIVES_NS))
        case "once":
            return (*start, pick(LIVES_NS), chance.randrange(100))
        case "peek_total" | "peek_count" | "delete":
            return start
        case "sweep" | "census":
            return (chance.randrange(slots), chance.randrange(2 * slots), now_ns)
        case _:
            raise AssertionError(name)


WEIGHTS = {
    "take": 12, "give": 4, "overdraw": 3, "peek_bucket": 2, "add": 8, "sub": 2, "charge": 2, "peek_total": 2,
    "count": 6, "peek_count": 2, "once": 6, "delete": 2, "sweep": 1, "census": 1,
}  # fmt: skip


@given(data=st.data(), slots=st.sampled_from(SLOTS), steps=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_hypothesis_finds_no_difference(data: st.DataObject, slots: int, steps: int) -> None:
    pair = Pair(slots)
    now_ns = data.draw(st.sampled_from([0, NOW, (1 << 55) - DAY, (1 << 62)]))
    seed = data.draw(st.integers(0, 2**32))
    names = data.draw(st.lists(st.sampled_from(sorted(WEIGHTS)), min_size=steps, max_size=steps))
    chance = random.Random(seed)
    for name in names:
        now_ns = max(0, now_ns + chance.choice(STEPS_NS))
        pair.call(name, *arguments_of(name, chance, keys_for(slots), now_ns, slots))
    pair.compare_slots()


ANY = st.integers(0, 2**63 - 1)
LIFE = st.integers(1, 100 * DAY)
PER = st.sampled_from(PERS)
OPERATIONS = st.one_of(
    st.tuples(st.just("take"), st.tuples(st.sampled_from(COSTS_U), st.sampled_from(BURSTS_U), PER)),
    st.tuples(st.just("overdraw"), st.tuples(ANY, st.integers(0, 10**12), PER)),
    st.tuples(st.just("give"), st.tuples(ANY, st.integers(1, 2**63 - 1))),
    st.tuples(st.just("add"), st.tuples(ANY, ANY, LIFE)),
    st.tuples(st.sampled_from(["sub", "charge"]), st.tuples(ANY)),
    st.tuples(st.just("count"), st.tuples(LIFE)),
    st.tuples(st.just("once"), st.tuples(LIFE, ANY)),
    st.tuples(st.sampled_from(["peek_total", "peek_count", "delete"]), st.just(())),
)


@given(
    calls=st.lists(st.tuples(st.integers(0, 20), st.integers(-(2**40), 2**56), OPERATIONS), max_size=60),
    start_ns=st.integers(0, 2**61),
)
@settings(max_examples=250, deadline=None)
def test_hypothesis_finds_no_difference_at_any_time_and_amount(
    calls: list[tuple[int, int, Call]], start_ns: int
) -> None:
    pair, now_ns = Pair(16), start_ns
    for key, step_ns, (name, arguments) in calls:
        now_ns = min(2**62, max(0, now_ns + step_ns))
        pair.call(name, key, now_ns, *arguments)
    pair.compare_slots()


@pytest.mark.parametrize("seed", range(8))
def test_120000_random_operations_agree(seed: int) -> None:
    """15,000 operations each; the assertions at the end say that the sequence met what it is there to meet."""
    chance = random.Random(seed)
    slots = SLOTS[seed % len(SLOTS)]
    keys = keys_for(slots)
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    pair, now_ns, seen = Pair(slots), NOW, Counter[object]()
    for step in range(15_000):
        if chance.random() < 0.2:
            now_ns = max(0, now_ns + chance.choice(STEPS_NS))
        name = chance.choices(names, weights)[0]
        answer = pair.call(name, *arguments_of(name, chance, keys, now_ns, slots))
        seen[name] += 1
        seen[name, answer[0] if isinstance(answer, tuple) else answer] += 1
        if step % 500 == 0:
            pair.compare_slots()
        if step % 3000 == 2999:
            pair = pair.move(chance.choice(SLOTS), chance.choice([0, DAY, -SECOND, 1]), now_ns)
            slots, keys = pair.slots, keys_for(pair.slots)
        if step % 1000 == 0:
            seen["evicted"] += pair.model.word_get(WORD_EVICTIONS)
            seen["claims evicted"] += pair.model.word_get(WORD_CLAIM_EVICTIONS)
    assert set(names) <= set(seen)
    assert seen["evicted"]
    assert seen["claims evicted"]
    assert seen["take", FULL]
    assert seen["add", FULL]
