"""The bytes of requests that cannot go on yet, bounded for a whole worker.

A connection keeps bytes when a head or a body is not whole, when a request waits behind another one, or for a link to
its upstream. Each alone is small; five hundred clients that send almost a whole body and then wait are not. So
connections report what they keep, and when the sum exceeds the bound, those that keep most for longest end (bytes times
age): an attacker who holds large bodies ends before a client that is merely slow. The module knows neither HTTP nor
sockets; how a connection ends is the connection's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

# The tick by which ages are measured comes once a second or more often: what is younger counts as this old, or a body
# that began just before a tick would weigh a thousand times more than one that began just after it.
_LEAST_AGE_MS: Final = 1000
# How much of the bound is left in use when room is made: one look at all connections makes room for many.
_LEFT_EIGHTHS: Final = 7


class Gathered:
    """Bytes that come in pieces. The first one is kept as it is; more become one buffer, so that many tiny pieces cost
    no more memory than their bytes."""

    __slots__ = ("_buffer", "_first", "size_bytes")

    def __init__(self, first: bytes = b"") -> None:
        self._first = first
        self._buffer: bytearray | None = None
        self.size_bytes = len(first)

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        if not self.size_bytes:
            self._first = piece
        else:
            if self._buffer is None:
                self._buffer = bytearray(self._first)
                self._first = b""
            self._buffer += piece
        self.size_bytes += len(piece)

    def joined(self) -> bytes:
        """Return all pieces as one."""
        return self._first if self._buffer is None else bytes(self._buffer)


def gathered(before: Gathered | None, piece: bytes) -> Gathered:
    """Return what there is with one more piece."""
    if before is None:
        return Gathered(piece)
    before.add(piece)
    return before


class Keeper(Protocol):
    """What the bound may do with a connection."""

    def give_up(self) -> None:
        """End, and keep nothing any more."""


class Kept:
    """The bytes that the connections of one worker keep, at most `most_bytes` together."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._by_keeper: dict[Keeper, tuple[int, int]] = {}  # bytes, and since when, in ms of the hub's tick
        self.total_bytes = 0
        self.on_given_up: Callable[[], None] = _not_counted

    def note(self, keeper: Keeper, size_bytes: int, now_ms: int) -> None:
        """Record what a connection keeps from now on. May end connections, also this one."""
        before_bytes, since_ms = self._by_keeper.get(keeper, (0, now_ms))
        self.total_bytes += size_bytes - before_bytes
        if size_bytes:
            self._by_keeper[keeper] = (size_bytes, since_ms)
        else:
            self._by_keeper.pop(keeper, None)
        if self.total_bytes > self._most_bytes and size_bytes > before_bytes:
            self._make_room(now_ms)

    def _make_room(self, now_ms: int) -> None:
        """End connections, those that keep most for longest first."""
        costs = [
            (size_bytes * (now_ms - since_ms + _LEAST_AGE_MS), number, keeper)
            for number, (keeper, (size_bytes, since_ms)) in enumerate(self._by_keeper.items())
        ]
        costs.sort(reverse=True)
        for _, _, keeper in costs:
            if self.total_bytes <= self._most_bytes * _LEFT_EIGHTHS // 8:
                return
            self.total_bytes -= self._by_keeper.pop(keeper)[0]
            self.on_given_up()
            keeper.give_up()


def _not_counted() -> None:
    """Count nothing: no metric is attached."""
