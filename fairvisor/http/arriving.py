"""A request whose head is here and whose body is on its way: what is kept of the body, and what is only counted.

An endpoint says how much of a body it wants. What goes beyond is counted and dropped; whether that is an error is
decided by the connection, which also waits and answers.
"""

from __future__ import annotations

import asyncio

from fairvisor.http.hub import BodyRule
from fairvisor.http.kept import Gathered
from fairvisor.http.request import Peer, Request
from fairvisor.reading import Repeated


class Arriving:
    """The head, and the first `limit_bytes` of the body so far. Sizes in bytes.

    `framing_bytes` is what came since the last piece of content: the extension of a chunk, or trailers.
    """

    __slots__ = ("_came_bytes", "_gathered", "framing_bytes", "headers", "limit_bytes", "repeated", "size_bytes",
                 "strict", "target", "timer")  # fmt: skip

    def __init__(
        self, target: str, headers: dict[str, bytes], repeated: Repeated | None, rule: BodyRule
    ) -> None:
        self.target = target
        self.headers = headers
        self.repeated = repeated
        self.limit_bytes, self.strict = rule
        self.size_bytes = 0
        self.framing_bytes = 0
        self._came_bytes = 0  # of content, before the read that is under way
        self.timer: asyncio.TimerHandle | None = None
        self._gathered = Gathered()

    def take(self, chunk: bytes) -> None:
        """The next piece of the body."""
        room = self.limit_bytes - self.size_bytes
        self.size_bytes += len(chunk)
        if room > 0:
            self._gathered.add(chunk if len(chunk) <= room else chunk[:room])

    def came(self, data_bytes: int) -> None:
        """Count a read of so many bytes that left the body unfinished."""
        self.framing_bytes = self.framing_bytes + data_bytes if self.size_bytes == self._came_bytes else 0
        self._came_bytes = self.size_bytes

    def kept_bytes(self) -> int:
        """Return how much of the body is kept."""
        return min(self.size_bytes, self.limit_bytes) + self.framing_bytes

    def declared_bytes(self) -> int:
        """What Content-Length says; 0 without one."""
        declared = self.headers.get("content-length", b"")
        return int(declared) if declared.isdigit() else 0

    def whole(self, method: str, peer: Peer) -> Request:
        """The request, now that its body has ended."""
        if not self.limit_bytes:
            return Request(method, self.target, self.headers, peer, repeated=self.repeated)
        cut_bytes = max(0, self.size_bytes - self.limit_bytes)
        body = self._gathered.joined()
        return Request(method, self.target, self.headers, peer, body, cut_bytes, self.repeated)

    def so_far(self, method: str, peer: Peer) -> Request:
        """The request with what is here of a body that has not ended; of the rest at least 1 byte is missing."""
        body = self._gathered.joined() or None
        whole_bytes = max(self.declared_bytes(), self.size_bytes + 1)
        missing_bytes = whole_bytes - min(self.size_bytes, self.limit_bytes) if body else 0
        return Request(method, self.target, self.headers, peer, body, missing_bytes, self.repeated)

    def stop_waiting(self) -> None:
        """Cancel the timer, if one runs."""
        if self.timer is not None:
            self.timer.cancel()
