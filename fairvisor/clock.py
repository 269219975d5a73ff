"""The one place that reads a clock.

Time is an argument everywhere else: a decision gets one `Now`, read once per request at the edge, so that tests
and the replay of access logs run on a clock of their own. Two readings are needed: the monotonic one dates every
counter (it never steps back), the wall clock names calendar windows (days, months) and expiry dates.
"""

from __future__ import annotations

import time
from typing import Final

NS_PER_S: Final = 1_000_000_000

_monotonic_ns: Final = time.monotonic_ns
_wall_ns: Final = time.time_ns


class Now:
    """One moment: `mono_ns` on CLOCK_MONOTONIC, `wall_ns` since the Unix epoch in UTC; both in nanoseconds."""

    __slots__ = ("mono_ns", "wall_ns")

    def __init__(self, mono_ns: int, wall_ns: int) -> None:
        self.mono_ns = mono_ns
        self.wall_ns = wall_ns

    def __repr__(self) -> str:
        return f"Now(mono_ns={self.mono_ns}, wall_ns={self.wall_ns})"


def read_now() -> Now:
    """The present moment of this machine."""
    return Now(_monotonic_ns(), _wall_ns())
