"""The records of the table in plain Python: their kinds, how they run out, where they stand, how they are packed.

This is the readable form of what `_slots.h` specifies for shared memory; `model.py` builds the operations on it. All
arithmetic is on integers, so nothing is lost: times in ticks of 2^-28 ns, amounts in millionths.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from fairvisor.counters._table import GROUP

TICKS_PER_NS: Final = 1 << 28
TIME_WRAP: Final = 1 << 83  # ticks: times repeat after 2^55 ns, 417 days
UNIT_NS: Final = 1 << 36  # 69 s: the life of a total is counted in these
UNIT_WRAP: Final = 1 << 19
MAX_COUNT: Final = TICKS_PER_NS - 1  # a count stands in the ticks below a nanosecond
MAX_TOTAL_U: Final = 2**63 - 1
CLAIM_BIT: Final = 1 << 63  # set in the state of a claim: above every total and every time of use
U64: Final = 2**64
TIME_KIND: Final = 2
TOTAL_KIND: Final = 3
SLOT: Final = struct.Struct("<QQQQ")  # b, a, used, key


class Time(NamedTuple):
    """A bucket: the moment at which it is full again. A count: the end of its window, plus the count in ticks."""

    ticks: int

    def expired(self, now_ns: int) -> bool:
        return self.after(now_ns) <= 0

    def after(self, now_ns: int) -> int:
        """Signed distance from now in ticks; times further apart than half the wrap are taken for the other side."""
        return signed(self.ticks - now_ns * TICKS_PER_NS, TIME_WRAP)


class Total(NamedTuple):
    """A sum that is never evicted; forgotten when the present unit is past `last_unit`."""

    total_u: int
    last_unit: int

    def expired(self, now_ns: int) -> bool:
        return signed(self.last_unit - now_ns // UNIT_NS, UNIT_WRAP) < 0

    def kept_to(self, unit: int) -> Total:
        """The same sum, not forgotten before this unit is past."""
        return self._replace(last_unit=unit) if signed(unit - self.last_unit, UNIT_WRAP) > 0 else self


class Claim(NamedTuple):
    """What may be done once was done; the last to be evicted, the least stamp first. Forgotten as a total is."""

    stamp: int
    last_unit: int

    def expired(self, now_ns: int) -> bool:
        return signed(self.last_unit - now_ns // UNIT_NS, UNIT_WRAP) < 0


Record = Time | Total | Claim


@dataclass
class Slot:
    """A slot in use: whose record it holds and when that was used last."""

    fp: int
    key: int
    record: Record
    used_ns: int


def signed(difference: int, wrap: int) -> int:
    """A difference modulo `wrap`, between -wrap/2 and wrap/2."""
    difference %= wrap
    return difference - wrap if difference >= wrap // 2 else difference


def ns_up(ticks: int) -> int:
    return -(-ticks // TICKS_PER_NS)


def time_at(now_ns: int, ticks_later: int) -> Time:
    return Time((now_ns * TICKS_PER_NS + ticks_later) % TIME_WRAP)


def mixed(key: int) -> int:
    """A bijection of 64-bit integers, which makes small keys as good as hashes."""
    x = (key ^ key >> 32) * 0x9E3779B97F4A7C15 % U64
    return x ^ x >> 29


def fingerprint(key: int) -> int:
    """43 bits, not 0. Two keys that share them and meet in one window are one counter."""
    return mixed(key) >> 21 or 1


def window(key: int, groups: int) -> list[list[int]]:
    """The slots in which the record of a key may stand: its two groups, each in the order in which it is searched."""
    spread = mixed(key) * 0xD6E8FEB86659FD93 % U64
    first = (spread >> 32) * groups >> 32
    second = (spread & 0xFFFFFFFF) * groups >> 32
    if second == first:
        second = (first + 1) % groups
    start = spread % GROUP
    chosen = [first, second] if groups > 1 else [first]
    return [[group * GROUP + (start + i) % GROUP for i in range(GROUP)] for group in chosen]


def count_of(record: Time | None, now_ns: int) -> int:
    """The count of a window that is running, else 0."""
    if record is None:
        return 0
    count = record.ticks % TICKS_PER_NS
    return count if Time(record.ticks - count).after(now_ns) > 0 else 0


def charged_more(record: Record, other: Record) -> bool:
    """Whether the first of two records of one kind has been charged as much as the other, or more."""
    if isinstance(record, Time) and isinstance(other, Time):
        return signed(record.ticks - other.ticks, TIME_WRAP) >= 0
    assert not isinstance(record, Time) and not isinstance(other, Time), "two kinds"
    return state_of(record) >= state_of(other)


def state_of(record: Total | Claim) -> int:
    """The 64 bits that say what was counted; those of a claim are above those of any total."""
    return record.total_u if isinstance(record, Total) else CLAIM_BIT | record.stamp


def shifted(record: Record, shift_ns: int) -> Record:
    """A record dated later; the life of a total or a claim is rounded up to units."""
    if isinstance(record, Time):
        return Time((record.ticks + shift_ns * TICKS_PER_NS) % TIME_WRAP)
    return record._replace(last_unit=(record.last_unit - (-shift_ns // UNIT_NS)) % UNIT_WRAP)


def pack(slot: Slot) -> bytes:
    """A slot as it stands in shared memory: see `_slots.h`."""
    if isinstance(slot.record, Time):
        kind, exp, b = TIME_KIND, slot.record.ticks >> 64, slot.record.ticks % U64
    else:
        kind, exp, b = TOTAL_KIND, slot.record.last_unit, state_of(slot.record)
    return SLOT.pack(b, slot.fp << 21 | kind << 19 | exp, slot.used_ns, slot.key)


def unpack(b: int, a: int, used_ns: int, key: int) -> Slot | None:
    """The slot that these four integers stand for; None: it is free or reserved."""
    kind, exp = a >> 19 & 3, a % UNIT_WRAP
    if kind == TIME_KIND:
        return Slot(a >> 21, key, Time(exp << 64 | b), used_ns)
    if kind == TOTAL_KIND:
        return Slot(a >> 21, key, Claim(b - CLAIM_BIT, exp) if b & CLAIM_BIT else Total(b, exp), used_ns)
    return None
