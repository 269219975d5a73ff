"""How fast the body of a request comes, and whether that is fast enough.

A client may be silent for as long as a head may take. After that time a body must also have come at a least rate, or
one that sends a byte now and then would stay for ever. What is content counts, not what frames it. The time in which
the proxy does not read is not the client's.
"""

from __future__ import annotations

from typing import NamedTuple

from fairvisor.http.hub import Limits


class Timeouts(NamedTuple):
    """How long an upstream may keep silent, and how long it may take in all (0: no limit), in milliseconds."""

    first_byte_ms: int
    idle_ms: int
    total_ms: int = 0


class Pace:
    """Of one body. Times in milliseconds of the hub's tick."""

    __slots__ = ("_begun_ms", "_held_ms", "size_bytes")

    def __init__(self, now_ms: int) -> None:
        self._begun_ms = now_ms
        self._held_ms = 0  # since when nothing is read
        self.size_bytes = 0

    def hold(self, now_ms: int) -> None:
        """Nothing is read from now on."""
        self._held_ms = now_ms

    def go_on(self, now_ms: int) -> None:
        """It is read again."""
        self._begun_ms += now_ms - self._held_ms

    def lateness(self, limits: Limits, seen_ms: int, now_ms: int) -> str:
        """What is wrong with it, "" for nothing; `seen_ms` is when the client sent something, or could again."""
        if now_ms - seen_ms > limits.header_timeout_ms:
            return "the request body stopped coming"
        rate = limits.body_min_rate
        if rate and now_ms - self._begun_ms > limits.header_timeout_ms + self.size_bytes * 1000 // rate:
            return f"the request body comes at less than {rate} bytes a second (FAIRVISOR_BODY_MIN_RATE)"
        return ""
