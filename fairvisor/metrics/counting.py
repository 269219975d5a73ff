"""The objects that count: a series each, bound to a cell of the shared segment.

Compiled rules get theirs at load and add to them with one atomic operation, so any worker can answer for all. A series
is interned when it first counts, which keeps ten thousand idle policies from filling the segment. Gauges of what is
left are gathered in the process and written once a second. How the numbers are read and rendered is the business of
`exposition.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from fairvisor.decision import UNIT_U, Reason
from fairvisor.metrics.families import (
    DECISIONS,
    DURATION,
    LIMIT_RESULTS,
    TOKENS_CONSUMED,
    TOKENS_EXCESS,
    TOKENS_UNUSED,
    Family,
)

# Durations are counted by their bit length: a bucket holds the nanoseconds below its power of two.
LEAST_BITS: Final = 10  # 1.024 us
MOST_BITS: Final = 30  # 1.07 s; longer ones are beyond the last bound
BITS_LABEL: Final = "bits"
SUM_LABEL: Final = (("sum", "ns"),)

LOW_HELD_S: Final = 30  # how long a lowest amount is shown at least
_LOW_BITS: Final = 40
_LOW_MASK: Final = (1 << _LOW_BITS) - 1
_SECONDS_MASK: Final = (1 << 24) - 1
_OPEN_NUMBERS: Final = 1 << 24
_NOTHING_SEEN: Final = 1 << 63
_NEVER_LOWER: Final = -1

_MAX_METERS: Final = 4096  # rules whose reservations were settled lately, per process


class CellTable(Protocol):
    """The operations on cells."""

    def cell_add(self, index: int, amount: int, /) -> None: ...
    def cell_get(self, index: int, /) -> int: ...
    def cell_set(self, index: int, value: int, /) -> None: ...


class Cells(Protocol):
    """Where series are interned and counted: the shared segment.

    `postponed` is what this process has yet to write: functions of the wall clock in seconds, called once.
    """

    postponed: list[Callable[[int], None]]

    def series(self, name: str, labels: tuple[tuple[str, str], ...], /) -> int: ...

    @property
    def table(self) -> CellTable: ...


class Series:
    """A family with its label values. The cell is interned on first use."""

    __slots__ = ("_cells", "_family", "_index", "_values")

    def __init__(self, cells: Cells, family: Family, *values: str) -> None:
        assert len(values) == len(family.labels), "one value for each label"
        self._cells = cells
        self._family = family
        self._values = values
        self._index = -1

    def _cell(self) -> int:
        if self._index < 0:
            labels = tuple(zip(self._family.labels, self._values, strict=True))
            self._index = self._cells.series(self._family.name, labels)
        return self._index


class Counter(Series):
    """One series. `hit()` counts one and `add(amount)` more; both are atomic over all processes."""

    __slots__ = ("_add_one",)

    def __init__(self, cells: Cells, family: Family, *values: str) -> None:
        super().__init__(cells, family, *values)
        self._add_one: Callable[[], object] | None = (
            None  # once it is interned: the bare operation of the table
        )

    def hit(self) -> None:
        """Count one more."""
        if self._add_one is None:
            self._add_one = partial(self._cells.table.cell_add, self._cell(), 1)
        self._add_one()

    def add(self, amount: int = 1) -> None:
        """Count `amount` more."""
        self._cells.table.cell_add(self._cell(), amount)


class Open(Series):
    """Whether something that many have one of is open for any: breakers that close by themselves or by hand.

    Its cell holds when the last of them closes by itself (wall clock, 40 bits of seconds) and how many were opened
    and not closed by hand since none was open (24 bits). One that closed by itself is not noticed, so after another
    was closed by hand it may be shown until the last would have closed. Of two processes that write in the same
    microsecond one may be forgotten.
    """

    __slots__ = ()

    def opened(self, until_s: int, wall_s: int) -> None:
        """One more is open, until `until_s` unless it is closed before."""
        last_s, number = self._read()
        if last_s <= wall_s:
            last_s, number = until_s, 0
        self._write(max(last_s, until_s), number + 1)

    def prolonged(self, until_s: int) -> None:
        """One that is open stays so until `until_s`."""
        last_s, number = self._read()
        self._write(max(last_s, until_s), max(1, number))

    def closed(self) -> None:
        """One that was open was closed by hand."""
        last_s, number = self._read()
        self._write(last_s if number > 1 else 0, max(0, number - 1))

    def _read(self) -> tuple[int, int]:
        return divmod(self._cells.table.cell_get(self._cell()), _OPEN_NUMBERS)

    def _write(self, last_s: int, number: int) -> None:
        cell = last_s * _OPEN_NUMBERS + min(number, _OPEN_NUMBERS - 1)
        self._cells.table.cell_set(self._cell(), cell)


def read_open(cell: int, wall_s: int) -> bool:
    """Whether the cell of an `Open` says that something is open."""
    return cell // _OPEN_NUMBERS > wall_s


class Lowest(Series):
    """The least amount that was seen, over all processes, shown for at least 30 s after it was seen.

    Its cell holds the second in which it was seen (24 bits) and the amount in whole units (40 bits). A higher amount
    takes its place only after 30 s, so somebody who looks every 30 s misses no low. Two processes that write in the
    same microsecond may keep the higher of the two; the next second puts it right.
    """

    __slots__ = ()

    def see(self, amount_u: int, wall_s: int) -> None:
        """`amount_u` millionths were left at `wall_s`."""
        table, cell = self._cells.table, self._cell()
        amount = min(amount_u // UNIT_U, _LOW_MASK)
        shown = read_lowest(table.cell_get(cell), wall_s)
        if shown is None or amount <= shown:
            table.cell_set(cell, (wall_s & _SECONDS_MASK) << _LOW_BITS | amount)


def read_lowest(cell: int, wall_s: int) -> int | None:
    """The amount in a cell of `Lowest`; None when it was seen more than 30 s ago, or never."""
    age_s = (wall_s - (cell >> _LOW_BITS)) & _SECONDS_MASK
    return cell & _LOW_MASK if cell and age_s <= LOW_HELD_S else None


class Latest(Series):
    """When something happened last, over all processes, in seconds of the wall clock."""

    __slots__ = ()

    def see(self, wall_s: int) -> None:
        """It happens now."""
        self._cells.table.cell_set(self._cell(), wall_s)


class Latency:
    """The histogram of decision durations: one cell for each power of two, and one for the sum."""

    __slots__ = ("_add_sum", "_hits")

    def __init__(self, cells: Cells) -> None:
        add = cells.table.cell_add
        hits = {
            bits: partial(add, cells.series(DURATION.name, ((BITS_LABEL, str(bits)),)), 1)
            for bits in range(LEAST_BITS, MOST_BITS + 2)
        }
        self._hits = tuple(hits[max(LEAST_BITS, bits)] for bits in range(MOST_BITS + 2))
        self._add_sum = partial(add, cells.series(DURATION.name, SUM_LABEL))

    def observe(self, duration_ns: int) -> None:
        """A decision took so long."""
        self._hits[min(duration_ns.bit_length(), MOST_BITS + 1)]()
        self._add_sum(duration_ns)


class Tally:
    """What one limit of one policy counts. `allowed` and `admitted` are counted for most requests, the rest rarely.

    `lowest_u` is the least that was left since it was last written; for a limit that never has an amount left to show
    nothing is lower than it.
    """

    __slots__ = ("_cells", "_lowest", "_rare", "_rejected", "admitted", "allowed", "lowest_u", "mode", "policy_id",
                 "refused", "rule")  # fmt: skip

    def __init__(
        self, cells: Cells, policy_id: str, rule: str, mode: str, remaining: Family | None = None
    ) -> None:
        self._cells = cells
        self.policy_id = policy_id
        self.rule = rule
        self.mode = mode
        self.allowed = Counter(cells, LIMIT_RESULTS, policy_id, rule, mode, "allowed")
        self.refused = Counter(cells, LIMIT_RESULTS, policy_id, rule, mode, "refused")
        self.admitted = Counter(cells, DECISIONS, policy_id, rule, "allow", "")
        self._lowest = None if remaining is None else Lowest(cells, remaining, policy_id, rule, mode)
        self.lowest_u = _NEVER_LOWER if remaining is None else _NOTHING_SEEN
        self._rejected: dict[Reason, Counter] = {}
        self._rare: dict[tuple[str, ...], Counter] = {}

    def reject(self, reason: Reason) -> None:
        """A request was rejected by this limit."""
        counter = self._rejected.get(reason)
        if counter is None:
            counter = Counter(self._cells, DECISIONS, self.policy_id, self.rule, "reject", reason.value)
            self._rejected[reason] = counter
        counter.hit()

    def lower(self, remaining_u: int) -> None:
        """Less is left than was seen before (`remaining_u < lowest_u`)."""
        if self.lowest_u == _NOTHING_SEEN:
            self._cells.postponed.append(self._write_lowest)
        self.lowest_u = remaining_u

    def _write_lowest(self, wall_s: int) -> None:
        assert self._lowest is not None, "only a limit with amounts sees a lower one"
        lowest_u, self.lowest_u = self.lowest_u, _NOTHING_SEEN
        self._lowest.see(lowest_u, wall_s)

    def add(self, family: Family, *values: str, amount: int = 1) -> None:
        """Count in a family whose first labels are the policy and, where it has that label, the rule."""
        series = (family.name, *values)
        counter = self._rare.get(series)
        if counter is None:
            own = (self.policy_id, self.rule) if "rule" in family.labels else (self.policy_id,)
            counter = self._rare[series] = Counter(self._cells, family, *own, *values)
        counter.add(amount)

    def counter_of(self, family: Family) -> Counter:
        """The counter of this limit in a family whose labels are the policy and the rule, for what is counted often."""
        return Counter(self._cells, family, self.policy_id, self.rule)

    def open_of(self, family: Family) -> Open:
        """What tells how many are open, in a family whose labels are the policy and its mode."""
        return Open(self._cells, family, self.policy_id, self.mode)


class TokenMeter:
    """What settled reservations say about the tokens of a rule: used, given back, charged afterwards; in tokens."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._counters: dict[tuple[str, str], tuple[Counter, Counter, Counter]] = {}

    def settled(self, policy_id: str, rule: str, reserved_u: int, used_u: int) -> None:
        """`used_u` millionths of tokens were used where `reserved_u` were reserved."""
        counters = self._counters.get((policy_id, rule))
        if counters is None:
            if len(self._counters) >= _MAX_METERS:
                self._counters.clear()
            consumed, unused, excess = (
                Counter(self._cells, family, policy_id, rule)
                for family in (TOKENS_CONSUMED, TOKENS_UNUSED, TOKENS_EXCESS)
            )
            counters = self._counters[policy_id, rule] = (consumed, unused, excess)
        used, reserved = used_u // UNIT_U, reserved_u // UNIT_U
        counters[0].add(used)
        counters[1 if used <= reserved else 2].add(abs(reserved - used))
