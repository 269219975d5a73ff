"""The head of a request that is just arriving: its parts as the parser gives them, its size, and since when.

It measures what the parser alone does not: a head that never ends, or comes a byte at a time. Whether a limit is
exceeded, and what follows from it, is the connection's business.
"""

from __future__ import annotations

from fairvisor.http.headers import read_headers
from fairvisor.reading import Repeated


class PartialHead:
    """`size_bytes` is what came of the head in earlier reads, `started_ms` when its first byte came (0: none did)."""

    __slots__ = ("pairs", "size_bytes", "started_ms", "url")

    def __init__(self) -> None:
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.size_bytes = 0
        self.started_ms = 0

    def has_parts(self) -> bool:
        """Whether the parser has given a part of it."""
        return bool(self.url or self.pairs)

    def take(self) -> tuple[str, dict[str, bytes], Repeated | None]:
        """Return the target, the headers and the repeated ones of the whole head, and begin anew."""
        target = self.url.decode("latin-1")
        headers, repeated = read_headers(self.pairs)
        self.forget()
        return target, headers, repeated

    def forget(self) -> None:
        """Begin anew."""
        self.url, self.pairs = b"", []
        self.size_bytes = self.started_ms = 0

    def grow(self, data: bytes, now_ms: int) -> None:
        """Count what was read and left the head unfinished."""
        if self.started_ms:
            self.size_bytes += len(data)
            return
        self.started_ms = now_ms
        end = data.rfind(b"\r\n\r\n")  # what is before belongs to requests that are complete
        self.size_bytes = len(data) - (end + 4 if end >= 0 else 0)

    def parsed_bytes(self) -> int:
        """Return what its parts took on the wire, less the fixed parts of the request line."""
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.pairs)
