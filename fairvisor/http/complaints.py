"""What goes wrong on requests, said in the log without flooding it.

A fault is told by its place: the first time in full, then at most once a minute with the number of times it happened.
It knows nothing of requests or answers.
"""

from __future__ import annotations

import logging
from typing import Final

from fairvisor.clock import NS_PER_S, Now

_REPEAT_NS: Final = 60 * NS_PER_S
_PLACES: Final = 256  # places come from the code, and peers that are not trusted
_OTHERS: Final = "others"  # the place of all for which there is no room within a minute

_log = logging.getLogger(__name__)


class Complaints:
    """The faults of this process that were told lately."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, int]] = {}

    def failure(self, error: Exception, now: Now) -> None:
        """The engine failed: its place is where the exception was raised."""
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback else "unknown"
        times = self._due(f"{type(error).__name__} at {place}", now)
        if times:
            _log.error("a decision failed (%d times since last told)", times, exc_info=error)

    def stranger(self, address: str, now: Now) -> None:
        """A peer that may not describe requests tried to."""
        times = self._due(f"peer {address}", now)
        if times:
            _log.warning(
                "peer %s is not in FAIRVISOR_TRUSTED_PEERS (%d times since last told)", address, times
            )

    def wrong_secret(self, address: str, now: Now) -> None:
        """Log that a debug session was asked for with a wrong secret: one line a minute for all peers together."""
        times = self._due("debug secret", now)
        if times:
            _log.warning(
                "peer %s gave a wrong debug secret (%d times since last told, by any peer)", address, times
            )

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
