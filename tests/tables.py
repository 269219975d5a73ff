"""Tables for tests: the C table and its model with the same geometry, and what a test may do to their memory.

The C table gets anonymous memory that forked children share: words at 0, slots after them, cells at the end.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from fractions import Fraction

from fairvisor.counters._table import GROUP, SLOT_BYTES, Table
from fairvisor.counters.model import ModelTable
from fairvisor.counters.records import fingerprint, window

WORDS = 64
CELLS = 64
SLOTS_AT = 8 * WORDS

NOW = 1 << 50  # ns: about 13 days after boot
SECOND = 10**9
TOKEN = 10**6  # one unit in millionths

MakeTable = Callable[[int], "Table | ModelTable"]


def per_of(rate: Fraction | int) -> int:
    """Ticks per millionth at `rate` per second, rounded up once, as bundles do at load."""
    return -(-1000 * 2**28 // Fraction(rate))


def table_over(memory: mmap.mmap, slots: int) -> Table:
    return Table(
        memory,
        seed=7,
        words_at=0,
        words=WORDS,
        slots_at=SLOTS_AT,
        slots=slots,
        cells_at=SLOTS_AT + SLOT_BYTES * slots,
        cells=CELLS,
    )


def table_memory(slots: int) -> mmap.mmap:
    return mmap.mmap(-1, SLOTS_AT + SLOT_BYTES * slots + 8 * CELLS)


def c_table(slots: int) -> Table:
    return table_over(table_memory(slots), slots)


def model_table(slots: int) -> ModelTable:
    return ModelTable(seed=7, slots=slots, words=WORDS, cells=CELLS)


def slot_of(memory: mmap.mmap, index: int) -> tuple[int, int, int, int]:
    """(b, a, used, key) of a slot of the C table."""
    return struct.unpack_from("<QQQQ", memory, SLOTS_AT + SLOT_BYTES * index)


def put_slot(memory: mmap.mmap, index: int, b: int, a: int, used_ns: int = 0, key: int = 0) -> None:
    """Write a slot behind the table's back, as a killed process might have left it."""
    struct.pack_into("<QQQQ", memory, SLOTS_AT + SLOT_BYTES * index, b, a, used_ns, key)


def keys_in_one_window(count: int, groups: int) -> list[int]:
    """Keys with different fingerprints whose windows are the same two groups, in the same order."""
    wanted = {tuple(slot // GROUP for slot in part) for part in window(1, groups)}
    keys, key = [], 0
    while len(keys) < count:
        key += 1
        if {tuple(slot // GROUP for slot in part) for part in window(key, groups)} == wanted:
            keys.append(key)
    assert len({fingerprint(key) for key in keys}) == count
    return keys


def colliding_keys(groups: int) -> tuple[int, int]:
    """Two keys that the table cannot tell apart: the same fingerprint and the same groups."""
    seen: dict[tuple[int, int], int] = {}
    fp = fingerprint(12345)
    for low in range(2**21):
        key = unmixed(fp << 21 | low)
        places = tuple(part[0] // GROUP for part in window(key, groups))
        if places in seen:
            return seen[places], key
        seen[places] = key
    raise AssertionError("2^21 keys and no two in the same groups")


def unmixed(x: int) -> int:
    """The key that is mixed to `x`: the inverse of `records.mixed`."""
    x ^= x >> 29 ^ x >> 58
    x = x * pow(0x9E3779B97F4A7C15, -1, 2**64) % 2**64
    return x ^ x >> 32
