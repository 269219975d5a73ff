"""What each limit did in a replay: how much, for whom, when.

One `Finding` for each (policy, rule); kill switches are the rule `kill_switch` of no policy. Memory is bounded whatever
the log holds: the most frequent keys are kept by Space-Saving, and time in cells that grow with the log.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from fairvisor.clock import NS_PER_S
from fairvisor.counters.sketch import Frequent, SpaceSaving
from fairvisor.rules.limit import Described

KEPT_KEYS: Final = 2000
CELLS: Final = 480


class Timeline:
    """How many in each stretch of time; when it has more than CELLS stretches they become twice as long."""

    __slots__ = ("cells", "width_s")

    def __init__(self) -> None:
        self.width_s = 1
        self.cells: dict[int, int] = {}  # by number since the epoch, in units of `width_s`

    def add(self, wall_s: int) -> None:
        cell = wall_s // self.width_s
        if cell in self.cells:
            self.cells[cell] += 1
            return
        self.cells[cell] = 1
        while max(self.cells) - min(self.cells) >= CELLS:
            self._coarsen()

    def _coarsen(self) -> None:
        self.width_s *= 2
        wider: dict[int, int] = {}
        for cell, count in self.cells.items():
            wider[cell // 2] = wider.get(cell // 2, 0) + count
        self.cells = wider

    def spread(self, start_s: int, end_s: int, columns: int) -> list[int]:
        """The counts in so many equal columns from `start_s` to `end_s`."""
        counts = [0] * columns
        width_s = max(1, end_s + 1 - start_s)
        for cell, count in self.cells.items():
            column = (cell * self.width_s - start_s) * columns // width_s
            counts[max(0, min(columns - 1, column))] += count
        return counts


class Rejects:
    """The rejects of one limit."""

    __slots__ = (
        "_minute",
        "_minute_count",
        "first_ns",
        "keys",
        "last_ns",
        "reasons",
        "timeline",
        "worst",
        "worst_minute",
    )

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.keys: SpaceSaving[Described] = SpaceSaving(KEPT_KEYS)
        self.timeline = Timeline()
        self.first_ns = 0
        self.last_ns = 0
        self.worst = 0
        self.worst_minute = 0  # minutes since the epoch
        self._minute = -1
        self._minute_count = 0

    def add(self, reason: str, described: Described, wall_ns: int) -> None:
        """One more, at a time not before the last one's."""
        if not self.reasons:
            self.first_ns = wall_ns
        self.last_ns = wall_ns
        self.reasons[reason] += 1
        self.keys.hit(described)
        wall_s = wall_ns // NS_PER_S
        self.timeline.add(wall_s)
        minute = wall_s // 60
        if minute != self._minute:
            self._minute, self._minute_count = minute, 0
        self._minute_count += 1
        if self._minute_count > self.worst:
            self.worst, self.worst_minute = self._minute_count, minute

    @property
    def total(self) -> int:
        return sum(self.reasons.values())

    def top(self, most: int) -> list[Frequent[Described]]:
        """For whom, most first."""
        return self.keys.top(most)


class Finding:
    """One limit. `asked` requests it was asked about, `lacking` descriptors that no request of its policy had, `blind`
    requests whose body it would have needed."""

    __slots__ = (
        "asked",
        "blind",
        "kind",
        "lacking",
        "marked",
        "missing",
        "on_missing",
        "policy",
        "rejects",
        "rule",
        "shadow",
    )

    def __init__(self, policy: str, rule: str, kind: str, shadow: bool, on_missing: str = "") -> None:
        self.policy = policy
        self.rule = rule
        self.kind = kind
        self.shadow = shadow
        self.on_missing = on_missing
        self.asked = 0
        self.blind = 0
        self.marked: Counter[str] = Counter()  # warned and throttled
        self.missing: Counter[str] = Counter()  # requests without a descriptor that the rule counts by
        self.lacking: tuple[str, ...] = ()
        self.rejects = Rejects()
