"""The response of one request on its way from the upstream to the client.

The upstream's connection (`link.py`) reports what has come of it. It is passed on in one write per arrival of data,
through the account of the request if there is one. What the client does not take pauses the upstream. It knows when the
response is over and whether the connections can be used again. How the request came to the upstream, and what follows
when there is no response, is the business of the exchange (`exchange.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fairvisor.http.wire import CLOSE, KEEP_ALIVE
from fairvisor.proxy.bodies import chunk, last_chunk
from fairvisor.proxy.heads import CHUNKED, UNTIL_CLOSE, RequestHead, ResponseHead
from fairvisor.proxy.lag import Lag
from fairvisor.proxy.rewrite import response_head

if TYPE_CHECKING:
    from fairvisor.proxy.account import Account
    from fairvisor.proxy.backends import Backend
    from fairvisor.proxy.front import Front
    from fairvisor.proxy.link import Link

_CONTINUE_STATUS: Final = 100


class Returning:
    """The response to the request with `head`, on `front`."""

    __slots__ = ("_account", "_backend", "_begun", "_chunked", "_close", "_complete", "_dead", "_extra", "_front",
                 "_lag", "_last_ms", "_link", "_out", "head")  # fmt: skip

    def __init__(self, front: Front, head: RequestHead) -> None:
        self._front = front
        self.head = head
        self._dead = False
        self._complete = head.length == 0  # the request has come as a whole
        # the upstream
        self._backend: Backend | None = None
        self._link: Link | None = None
        self._last_ms = front.hub.tick_ms  # when something moved
        # the response
        self._account: Account | None = None
        self._lag: Lag | None = None
        self._extra = ""  # lines for its head
        self._begun = False
        self._chunked = False
        self._close = False
        self._out: list[bytes] = []

    @property
    def has_begun(self) -> bool:
        """Whether the client has a part of the response."""
        return self._begun

    def interim(self, head: ResponseHead) -> None:
        """A response with 1xx: passed on to a client that can read it."""
        if self.head.version != b"1.1" or (head.status == _CONTINUE_STATUS and not self.head.continues):
            return
        self._out.append(response_head(head, "", 0, "", edited=False))

    def begun(self, head: ResponseHead) -> None:
        """The head of the response is here."""
        self._begun = True
        front = self._front
        assert self._link is not None, "a response comes on a link"
        self._link.backend.worked()
        self._last_ms = front.hub.tick_ms
        edited = self._account is not None and self._account.begun(head)
        length = head.length
        self._close = (
            not self.head.keep_alive or not self._complete or (front.hub.ending and front.hub.is_last())
        )
        if edited or length in (CHUNKED, UNTIL_CLOSE):
            self._chunked = self.head.version == b"1.1"
            length = CHUNKED if self._chunked else UNTIL_CLOSE
            self._close = self._close or not self._chunked
        connection = CLOSE if self._close else KEEP_ALIVE if self.head.version == b"1.0" else ""
        self._out.append(response_head(head, self._extra, length, connection, edited=edited))

    def content(self, data: bytes) -> None:
        """A piece of the response's body."""
        self._last_ms = self._front.hub.tick_ms
        account = self._account
        if account is None:
            self._out.append(chunk(data) if self._chunked else data)
            return
        data = account.content(data)
        if data:
            self._out.append(chunk(data) if self._chunked else data)
        if account.stopped:
            self._finish(b"", False)
        elif self._lag is None and account.behind:
            assert self._link is not None, "a response comes on a link"
            self._link.transport.pause_reading()
            self._lag = Lag(self, account, self._front.hub)

    def pass_on(self, data: bytes) -> None:
        """Send on what the account has read of the response by and by."""
        self._last_ms = self._front.hub.tick_ms
        self._out.append(chunk(data) if self._chunked else data)
        self.flush()

    def caught_up(self, trailers: bytes | None) -> None:
        """All that has come of the response was read; with trailers it is whole."""
        self._lag = None
        assert self._account is not None and self._link is not None, "a response is read while it comes"
        if self._account.stopped:
            self._finish(b"", False)
        elif trailers is not None:
            self.ended(trailers, False)
        elif not self._front.is_blocked():
            self._link.transport.resume_reading()

    def ended(self, trailers: bytes, reusable: bool) -> None:
        """The response is whole."""
        if self._lag is not None:
            self._lag.end(trailers)
            return
        account = self._account
        if account is not None:
            rest = account.ended()
            if rest:
                self._out.append(chunk(rest) if self._chunked else rest)
        self._finish(trailers, reusable)

    def _finish(self, trailers: bytes, reusable: bool) -> None:
        front, link = self._front, self._link
        assert link is not None, "a response comes on a link"
        self._account = None
        if self._chunked:
            self._out.append(last_chunk(trailers))
        self._link = None
        self._leave_backend()
        self._dead = True
        if reusable:
            front.backends.release(link, front.hub.tick_ms)
        else:
            link.abort()
        if front.is_blocked() and not link.is_closing():
            link.transport.resume_reading()
        self.flush()
        front.done(self, close=self._close)

    def flush(self) -> None:
        """Write what has come in one piece."""
        out = self._out
        if out:
            payload = out[0] if len(out) == 1 else b"".join(out)
            self._out = []
            self._front.write(payload)

    def client_full(self, full: bool) -> None:
        """The client does not take more of the response for now, or does again."""
        link = self._link
        if link is None or link.is_closing():
            return
        if full:
            link.transport.pause_reading()
        elif self._lag is None:
            self._last_ms = self._front.hub.tick_ms
            link.transport.resume_reading()

    def _leave_backend(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.active -= 1
