"""The log's own time as the engine's: every request is decided at the moment that the log gives it.

The monotonic clock starts at a fixed height, on the same second of the minute as the wall clock, and both move only
forward. A log is written when requests end, or by several processes, so neighbouring lines may be out of order: they
are put in order within a window, and what is still late gets the time of the latest before it, counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import Final

from fairvisor.clock import NS_PER_S, Now
from fairvisor.replay.fields import Logged

WINDOW: Final = 4096  # lines among which they are put in order
_BY_TIME: Final = attrgetter("wall_ns")
_MINUTE_NS: Final = 60 * NS_PER_S
_START_NS: Final = 10_000 * _MINUTE_NS


class LogClock:
    """`at` gives the moment of a request; `late` counts those that came after their time."""

    __slots__ = ("_latest_ns", "_offset_ns", "first_ns", "late")

    def __init__(self) -> None:
        self.first_ns = -1
        self.late = 0
        self._latest_ns = 0
        self._offset_ns = 0

    def at(self, wall_ns: int) -> Now:
        """The moment of a request that the log dates `wall_ns`."""
        if self.first_ns < 0:
            self.first_ns = self._latest_ns = wall_ns
            self._offset_ns = _START_NS + wall_ns % _MINUTE_NS - wall_ns
        elif wall_ns < self._latest_ns:
            self.late += 1
            wall_ns = self._latest_ns
        else:
            self._latest_ns = wall_ns
        return Now(wall_ns + self._offset_ns, wall_ns)

    @property
    def last_ns(self) -> int:
        """The latest moment given out, wall clock."""
        return self._latest_ns


def in_order(requests: Iterable[Logged], window: int = WINDOW) -> Iterator[Logged]:
    """The requests by time, as far as they are out of order by less than `window`; equal times keep their order."""
    source = iter(requests)
    held: list[Logged] = []
    while batch := list(islice(source, window)):
        held += batch
        held.sort(key=_BY_TIME)
        yield from held[:-window]
        del held[:-window]
    yield from held
