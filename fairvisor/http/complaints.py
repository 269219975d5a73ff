"""What goes wrong on requests: counted, and said in the log without flooding it.

A fault is told by its place: the first time in full, then at most once a minute with the number of times it happened.
It knows nothing of answers.
"""

from __future__ import annotations

import logging
from typing import Final

from fairvisor.clock import NS_PER_S, Now
from fairvisor.errors import RequestError
from fairvisor.metrics import Cells, Counter, Latest
from fairvisor.metrics.families import UNDECIDED, UNDECIDED_LAST

_REPEAT_NS: Final = 60 * NS_PER_S
_PLACES: Final = 256  # more than there are: places come from the code
_OTHERS: Final = "others"  # the place of all for which there is no room within a minute

_log = logging.getLogger(__name__)


class Complaints:
    """The faults of this process that were told lately."""

    def __init__(self, cells: Cells) -> None:
        # per process
        self._cells = cells
        self._undecided: dict[tuple[str, str], tuple[Counter, Latest]] = {}
        # what changes
        self._told: dict[str, tuple[int, int]] = {}

    def failure(self, error: Exception, now: Now) -> None:
        """The engine failed: its place is where the exception was raised."""
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback else "unknown"
        times = self._due(f"{type(error).__name__} at {place}", now)
        if times:
            _log.error("a decision failed (%d times since the last such line)", times, exc_info=error)

    def undecided(self, endpoint: str, error: RequestError, address: str, now: Now) -> None:
        """Count a request that got an error instead of a decision, and log it: one line a minute for all peers.

        `endpoint` is one that `UNDECIDED` knows, `address` that of the peer, "" on a unix socket.
        """
        reason = error.reason
        if not reason:
            return
        counter, last = self._counters(endpoint, reason)
        counter.add()
        last.see(now.wall_ns // NS_PER_S)
        times = self._due(f"{endpoint} {reason}", now)
        if times:
            _log.warning(
                "%s answered %d without a decision: %s, from %s (%d times since the last such line, by any peer)",
                endpoint,
                error.status,
                reason if error.quotes else f"{reason} ({error})",
                address or "a unix socket",
                times,
            )

    def _counters(self, endpoint: str, reason: str) -> tuple[Counter, Latest]:
        found = self._undecided.get((endpoint, reason))
        if found is None:
            counter = Counter(self._cells, UNDECIDED, endpoint, reason)
            found = self._undecided[endpoint, reason] = (
                counter,
                Latest(self._cells, UNDECIDED_LAST, endpoint, reason),
            )
        return found

    def _due(self, place: str, now: Now) -> int:
        """How often it happened since it was told last, 0 when it is too early to tell again."""
        if len(self._told) >= _PLACES and place not in self._told:
            end_ns = now.mono_ns - _REPEAT_NS
            self._told = {known: last for known, last in self._told.items() if last[0] > end_ns}
            if len(self._told) >= _PLACES:
                place = _OTHERS
        last_ns, times = self._told.get(place, (now.mono_ns - _REPEAT_NS, 0))
        times += 1
        if now.mono_ns - last_ns < _REPEAT_NS:
            self._told[place] = (last_ns, times)
            return 0
        self._told[place] = (now.mono_ns, 0)
        return times
