"""Answers as bytes: status line, Date, Cache-Control, framing. The rest comes ready from the answer.

The transport's half of a response: `response.py` says which status, which headers and which body, this module adds
what depends on the connection (RFC 9112). It knows nothing of requests or policies.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from fairvisor.clock import NS_PER_S, Now
from fairvisor.response import Answer

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_CONTENT: Final = 204  # as a plain number: reading it off the enum costs a call

# Of every answer that the edge makes itself (RFC 9111 5.2.2.5): a cache that kept a reject would go on giving it, and
# one that kept an allow would let requests pass uncounted.
NO_STORE: Final = "Cache-Control: no-store\r\n"
CLOSE: Final = "Connection: close\r\n"
KEEP_ALIVE: Final = "Connection: keep-alive\r\n"  # an HTTP/1.0 client asks for it and waits to be told


class StatusLines(dict[int, str]):
    """What answers of a status begin with, in the current second: made on first use, forgotten when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._second = -1
        self._date = ""

    def set_time(self, now: Now) -> None:
        """Go on to the second of `now` (RFC 9110 6.6.1: Date has a resolution of one second)."""
        second = now.wall_ns // NS_PER_S
        if second != self._second:
            self._second = second
            self._date = formatdate(second, usegmt=True)
            self.clear()

    def __missing__(self, status: int) -> str:
        phrase = HTTPStatus(status).phrase
        line = self[status] = f"HTTP/1.1 {status} {phrase}\r\nDate: {self._date}\r\n{NO_STORE}"
        return line


def encode(line: str, answer: Answer, connection: str = "", *, head_only: bool = False) -> bytes:
    """The bytes of an answer. `connection` is a Connection line or nothing; `head_only` answers a HEAD request."""
    if answer.status == _NO_CONTENT:  # has no body and says no length (RFC 9110 8.6)
        return f"{line}{answer.head}{connection}\r\n".encode("latin-1")
    body = answer.body
    head = f"{line}{answer.head}{connection}Content-Length: {len(body)}\r\n\r\n".encode("latin-1")
    return head if head_only else head + body
