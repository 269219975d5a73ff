"""What a client has sent and the proxy has not read on yet.

Requests may come in one piece with hundreds of others behind them. They are cut out of it through a window, so that one
request costs no more when much comes after it. The module knows where heads and bodies end; what they mean is read by
`heads.py` and `bodies.py`.
"""

from __future__ import annotations

from typing import Final

from fairvisor.errors import HeadTooLarge
from fairvisor.proxy.bodies import Body
from fairvisor.proxy.heads import RequestHead, plain_request_head, read_request_head

WINDOW_BYTES: Final = 8 * 1024  # of what is there, looked at for one request; nearly all heads are smaller
_HEAD_END: Final = b"\r\n\r\n"


class Inbox:
    """The bytes of one client. `started_ms` is when a head began that is not whole, 0 for none."""

    __slots__ = ("_at", "_data", "size_bytes", "started_ms")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0  # what comes before it is read
        self.size_bytes = 0  # what is not read
        self.started_ms = 0

    def add(self, data: bytes) -> None:
        """Append what has come."""
        if self.size_bytes:
            self._data = self._data[self._at :] + data
        else:
            self._data = data
        self._at = 0
        self.size_bytes = len(self._data)

    def take(self) -> bytes:
        """Return all that is there."""
        data = self._data[self._at :]
        self.drop()
        return data

    def drop(self) -> None:
        """Forget what is there."""
        self._data = b""
        self._at = self.size_bytes = 0

    def next_head(self, limit_bytes: int, now_ms: int) -> RequestHead | None:
        """Return the head that comes next, None when it is not whole. Raises RequestError."""
        if not self.started_ms:
            head = plain_request_head(self._window())
            if head is not None:
                self._skip(head.size_bytes)
                return head
        # A head that comes in many pieces is not read anew with each of them.
        at, end = self._at, self._data.find(_HEAD_END, self._at)
        if end < 0 or end - at > limit_bytes:
            if self.size_bytes > limit_bytes:
                raise HeadTooLarge(f"the request head exceeds {limit_bytes} bytes (FAIRVISOR_MAX_HEAD)")
            self.started_ms = self.started_ms or now_ms
            return None
        self.started_ms = 0
        raw = self._data[at : end + 4]
        self._skip(len(raw))
        head = plain_request_head(raw)
        if head is None:
            # An empty line may come before the request line (RFC 9112 2.2). It may be all that there is, and compiled
            # code cannot cut a negative number of bytes.
            start, stop = 2 if raw[:2] == b"\r\n" else 0, len(raw) - len(_HEAD_END)
            head = read_request_head(raw[start:stop] if start < stop else b"")
        return head

    def feed(self, body: Body) -> bytes:
        """Return the content of a body that is there, as far as the window goes."""
        window = self._window() if self._at else self._data
        content, rest = body.feed(window)
        self._skip(len(window) - len(rest))
        return content

    def _window(self) -> bytes:
        at = self._at
        if at == 0 and self.size_bytes <= WINDOW_BYTES:
            return self._data
        return self._data[at : at + WINDOW_BYTES]

    def _skip(self, size_bytes: int) -> None:
        self.size_bytes -= size_bytes
        if self.size_bytes:
            self._at += size_bytes
        else:
            self._data = b""
            self._at = 0
