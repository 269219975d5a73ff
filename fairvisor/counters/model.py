"""The table in plain Python: what every operation means, without the concurrency. The tests' oracle.

`ModelTable` takes the same calls as `_table.Table` and gives the same answers, eviction and full windows included. It
keeps its slots in a list and knows nothing of shared memory, reservations or compare-and-swap: how several processes
do the same at once is specified in `_slots.h`. `per` is ticks per millionth, the time in which a bucket regains one
millionth; the arithmetic of buckets is GCRA: a bucket is the moment at which it will be full again.
"""

from __future__ import annotations

from typing import Final

from fairvisor.counters._table import (
    ALLOWED,
    FULL,
    GROUP,
    REFUSED,
    SLOT_BYTES,
    WORD_CLAIM_EVICTIONS,
    WORD_CLAIM_STAMP,
    WORD_EVICTIONS,
    WORD_FULL,
    WORD_NONCE,
)
from fairvisor.counters.records import (
    CLAIM_BIT,
    MAX_COUNT,
    MAX_TOTAL_U,
    SLOT,
    TIME_WRAP,
    U64,
    UNIT_NS,
    UNIT_WRAP,
    Claim,
    Record,
    Slot,
    Time,
    Total,
    charged_more,
    count_of,
    fingerprint,
    ns_up,
    pack,
    shifted,
    time_at,
    unpack,
    window,
)

ROOMY: Final = 4  # free slots of its first group that keep a new key from its second
MAX_LIFE_NS: Final = 100 * 86_400 * 10**9


def checked(value: int, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")
    return value


def life_checked(ns: int, name: str) -> int:
    return checked(ns, name, low=1, high=MAX_LIFE_NS)


class ModelTable:
    """See `_table.pyi` for each operation. `slots` is a positive multiple of GROUP."""

    def __init__(self, *, seed: int = 0, slots: int, words: int = 64, cells: int = 64) -> None:
        if slots <= 0 or slots % GROUP:
            raise ValueError(f"slots: {slots} is not a positive multiple of {GROUP}")
        self.seed = seed
        self.slots, self.words, self.cells = slots, words, cells
        self._slots: list[Slot | None] = [None] * slots
        self._words = [0] * words
        self._cells = [0] * cells

    # ---- token buckets

    def take(self, key: int, now_ns: int, cost_u: int, burst_u: int, per: int, /) -> tuple[int, int, int]:
        checked(cost_u, "cost_u")
        burst, cost = self._bucket(burst_u, per), cost_u * per
        found = Found(self, key, now_ns)
        if found.record is not None and not isinstance(found.record, Time):
            return self._full(), burst_u, 0
        true_debt = found.record.after(now_ns) if found.record else 0
        debt = min(true_debt, burst)  # more only if the burst was lowered
        if cost_u > burst_u or debt + cost > burst:
            if true_debt > burst:
                found.put(time_at(now_ns, burst))
            wait_ns = -1 if cost_u > burst_u else ns_up(debt + cost - burst)
            return REFUSED, (burst - debt) // per, wait_ns
        debt += cost
        if (found.record or debt) and not found.put(time_at(now_ns, debt)):
            return self._full(), burst_u, 0
        return ALLOWED, (burst - debt) // per, ns_up(debt)

    def give(self, key: int, now_ns: int, cost_u: int, per: int, /) -> None:
        checked(cost_u, "cost_u")
        checked(per, "per", low=1)
        found = Found(self, key, now_ns)
        if isinstance(found.record, Time):
            found.put(time_at(now_ns, max(0, found.record.after(now_ns) - cost_u * per)))

    def overdraw(self, key: int, now_ns: int, cost_u: int, burst_u: int, per: int, /) -> None:
        checked(cost_u, "cost_u")
        burst = self._bucket(burst_u, per)
        found = Found(self, key, now_ns)
        if cost_u == 0 or isinstance(found.record, (Total, Claim)):
            return
        debt = found.record.after(now_ns) if found.record else 0
        if not found.put(time_at(now_ns, min(burst, debt + cost_u * per))):
            self._full()

    def peek_bucket(self, key: int, now_ns: int, burst_u: int, per: int, /) -> tuple[int, int]:
        record = self._peek(key, now_ns)
        burst = self._bucket(burst_u, per)
        debt = min(burst, record.after(now_ns)) if isinstance(record, Time) else 0
        return (burst - debt) // per, ns_up(debt)

    # ---- totals

    def add(self, key: int, now_ns: int, amount_u: int, limit_u: int, ttl_ns: int, /) -> tuple[int, int]:
        checked(amount_u, "amount_u")
        checked(limit_u, "limit_u")
        life_checked(ttl_ns, "ttl_ns")
        found = Found(self, key, now_ns)
        if isinstance(found.record, (Time, Claim)):
            return self._full(), 0
        unit = ((now_ns + ttl_ns) // UNIT_NS + 1) % UNIT_WRAP
        total = (found.record or Total(0, unit)).kept_to(unit)
        if total.total_u + amount_u > limit_u:
            if found.record:
                found.put(total)
            return REFUSED, total.total_u
        total = total._replace(total_u=total.total_u + amount_u)
        if (found.record or amount_u) and not found.put(total):
            return self._full(), 0
        return ALLOWED, total.total_u

    def sub(self, key: int, now_ns: int, amount_u: int, /) -> None:
        checked(amount_u, "amount_u")
        found = Found(self, key, now_ns)
        if isinstance(found.record, Total):
            found.put(found.record._replace(total_u=max(0, found.record.total_u - amount_u)))

    def charge(self, key: int, now_ns: int, amount_u: int, /) -> None:
        checked(amount_u, "amount_u")
        found = Found(self, key, now_ns)
        if isinstance(found.record, Total):
            found.put(found.record._replace(total_u=min(MAX_TOTAL_U, found.record.total_u + amount_u)))

    def peek_total(self, key: int, now_ns: int, /) -> int:
        record = self._peek(key, now_ns)
        return record.total_u if isinstance(record, Total) else 0

    # ---- counts and claims

    def count(self, key: int, now_ns: int, window_ns: int, /) -> int:
        life_checked(window_ns, "window_ns")
        found = Found(self, key, now_ns)
        if isinstance(found.record, (Total, Claim)):
            self._full()
            return 0
        count = count_of(found.record, now_ns)
        if found.record and count:
            end = found.record.ticks - count
        else:
            end = time_at(now_ns + window_ns, 0).ticks
        count = min(count + 1, MAX_COUNT)
        if not found.put(Time(end + count)):
            self._full()
            return 0
        return count

    def peek_count(self, key: int, now_ns: int, /) -> int:
        record = self._peek(key, now_ns)
        return count_of(record, now_ns) if isinstance(record, Time) else 0

    def once(self, key: int, now_ns: int, ttl_ns: int, stamp: int, /) -> tuple[int, int]:
        life_checked(ttl_ns, "ttl_ns")
        checked(stamp, "stamp")
        found = Found(self, key, now_ns)
        if isinstance(found.record, Time):
            outcome = self._full()
        elif found.record is not None:
            outcome = REFUSED
        elif found.put(Claim(stamp, ((now_ns + ttl_ns) // UNIT_NS + 1) % UNIT_WRAP)):
            outcome = ALLOWED
        else:
            outcome = self._full()
        return outcome, self._words[WORD_CLAIM_STAMP]

    # ---- any record

    def delete(self, key: int, now_ns: int, /) -> bool:
        found = Found(self, key, now_ns)
        if found.at is not None:
            self._slots[found.at] = None
        return found.record is not None

    def sweep(self, start: int, slots: int, now_ns: int, /) -> int:
        used = self._used(start, slots, now_ns)
        ended = [at for at, slot in used if slot.record.expired(now_ns)]
        for at in ended:
            self._slots[at] = None
        return len(ended)

    def census(self, start: int, slots: int, now_ns: int, /) -> tuple[int, int, int, int, int]:
        used = self._used(start, slots, now_ns)
        live = [slot.record for _, slot in used if not slot.record.expired(now_ns)]
        times = sum(isinstance(record, Time) for record in live)
        size = max(0, min(self.slots - start, slots))
        return size - len(used), 0, times, len(live) - times, len(used) - len(live)

    def dump(self, start: int, slots: int, now_ns: int, /) -> bytes:
        used = self._used(start, slots, now_ns)
        return b"".join(pack(slot) for _, slot in used if not slot.record.expired(now_ns))

    def merge(self, records: bytes, shift_ns: int, now_ns: int, /) -> tuple[int, int]:
        given = [SLOT.unpack_from(records, at) for at in range(0, len(records) - SLOT_BYTES + 1, SLOT_BYTES)]
        slots = [slot for values in given if (slot := unpack(*values)) is not None]
        slots.sort(key=lambda slot: isinstance(slot.record, Time))  # those first that are evicted last
        kept = sum(self._merge_slot(slot, shift_ns, now_ns) for slot in slots)
        return kept, len(slots) - kept

    # ---- words and cells

    def word_get(self, index: int, /) -> int:
        return self._words[self._index(index, self.words, "word")]

    def word_set(self, index: int, value: int, /) -> None:
        self._words[self._index(index, self.words, "word")] = checked(value, "value", high=U64 - 1)

    def word_add(self, index: int, amount: int, /) -> int:
        self._words[index] = (self.word_get(index) + amount) % U64
        return self._words[index]

    def word_cas(self, index: int, old: int, value: int, /) -> bool:
        if self.word_get(index) != checked(old, "old", high=U64 - 1):
            return False
        self.word_set(index, value)
        return True

    def cell_add(self, index: int, amount: int, /) -> None:
        self._cells[index] = (self.cell_get(index) + amount) % U64

    def cell_get(self, index: int, /) -> int:
        return self._cells[self._index(index, self.cells, "cell")]

    def cell_set(self, index: int, value: int, /) -> None:
        self._cells[self._index(index, self.cells, "cell")] = checked(value, "value", high=U64 - 1)

    # ---- parts

    def _bucket(self, burst_u: int, per: int) -> int:
        """The time that an empty bucket takes to fill, in ticks."""
        checked(burst_u, "burst_u")
        checked(per, "per", low=1)
        if burst_u * per >= TIME_WRAP // 2:
            raise ValueError("burst_u * per must be below 2**82: the bucket would take 208 days to fill")
        return burst_u * per

    def _full(self) -> int:
        self._words[WORD_FULL] += 1
        return FULL

    def _find(self, key: int) -> int | None:
        fp = fingerprint(checked(key, "key", high=U64 - 1))
        for group in window(key, self.slots // GROUP):
            for at in group:
                slot = self._slots[at]
                if slot is not None and slot.fp == fp:
                    return at
        return None

    def _peek(self, key: int, now_ns: int) -> Record | None:
        """The record of a key that has not run out, without counting as a use."""
        at = self._find(key)
        slot = None if at is None else self._slots[at]
        checked(now_ns, "now_ns")
        return None if slot is None or slot.record.expired(now_ns) else slot.record

    def _room(self, key: int, now_ns: int) -> int | None:
        """Where a new key goes: a free or expired slot, else that of the bucket or count least recently used, else
        that of the claim with the least stamp; or nowhere."""
        spare: list[list[int]] = []
        evictable: list[tuple[int, int]] = []
        for group in window(key, self.slots // GROUP):
            spare.append([])
            for at in group:
                slot = self._slots[at]
                if slot is None or slot.record.expired(now_ns):
                    spare[-1].append(at)
                elif isinstance(slot.record, Time):
                    evictable.append((slot.used_ns, at))
                elif isinstance(slot.record, Claim):
                    evictable.append((CLAIM_BIT | slot.record.stamp, at))
        roomy = len(spare) == 1 or len(spare[0]) >= ROOMY or len(spare[0]) >= len(spare[1])
        chosen = spare[0 if roomy else 1]
        if chosen:
            return chosen[0]
        if not evictable:
            return None
        since, victim = min(evictable, key=lambda pair: pair[0])
        if since < CLAIM_BIT:
            self._words[WORD_EVICTIONS] += 1
        else:
            self._forget(since - CLAIM_BIT)
        return victim

    def _forget(self, stamp: int) -> None:
        """A claim is forgotten before it has run out."""
        self._words[WORD_CLAIM_EVICTIONS] += 1
        self._words[WORD_CLAIM_STAMP] = max(self._words[WORD_CLAIM_STAMP], stamp)

    def _merge_slot(self, given: Slot, shift_ns: int, now_ns: int) -> bool:
        """Take over one slot; False: its key is not known, or there is no room. A claim counts as evicted then."""
        record = shifted(given.record, shift_ns)
        kept = record.expired(now_ns) or (
            fingerprint(given.key) == given.fp
            and self._merge_record(given.key, record, max(0, given.used_ns + shift_ns), now_ns)
        )
        if not kept and isinstance(record, Claim):
            self._forget(record.stamp)
        return kept

    def _merge_record(self, key: int, record: Record, used_ns: int, now_ns: int) -> bool:
        found = Found(self, key, now_ns, used_ns=used_ns)
        if found.record is not None and isinstance(found.record, Time) is not isinstance(record, Time):
            self._full()
            return False
        if found.record is not None and charged_more(found.record, record):
            return True
        if not found.put(record):
            self._full()
            return False
        return True

    def _used(self, start: int, slots: int, now_ns: int) -> list[tuple[int, Slot]]:
        """The slots in use within a range, which is clipped to the table."""
        checked(now_ns, "now_ns")
        end = min(self.slots, checked(start, "start") + checked(slots, "slots"))
        slots_here = ((at, self._slots[at]) for at in range(start, end))
        return [(at, slot) for at, slot in slots_here if slot is not None]

    @staticmethod
    def _index(index: int, count: int, what: str) -> int:
        if not 0 <= index < count:
            raise IndexError(f"no {what} {index}: there are {count}")
        return index


class Found:
    """The slot of a key and its record, which is None when it has run out. Looking it up is a use of the slot."""

    def __init__(self, table: ModelTable, key: int, now_ns: int, used_ns: int | None = None) -> None:
        self._table = table
        self._key = key
        self._now_ns = checked(now_ns, "now_ns")
        self._used_ns = now_ns if used_ns is None else used_ns
        self.at = table._find(key)
        self.record: Record | None = None
        slot = None if self.at is None else table._slots[self.at]
        if slot is not None:
            slot.used_ns, slot.key = self._used_ns, key
            self.record = None if slot.record.expired(now_ns) else slot.record

    def put(self, record: Record) -> bool:
        """Store the next record of the key; False: there is no room for it."""
        at = self.at
        if at is None:
            at = self._table._room(self._key, self._now_ns)
            if at is None:
                return False
            self._table._words[WORD_NONCE] += 1
        self._table._slots[at] = Slot(fingerprint(self._key), self._key, record, self._used_ns)
        return True
