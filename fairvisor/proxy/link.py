"""One connection to an upstream: responses are read here, requests written.

At most one request is under way on a link; its exchange is told of the response as it comes. Between requests a link
rests in its upstream's list; an upstream that speaks then, or closes, ends it. It knows the framing of responses
(RFC 9112), nothing of clients or policies.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, cast

from fairvisor.proxy.bodies import BadBody, Body, OpenBody, body_of
from fairvisor.proxy.heads import (
    UPGRADE,
    BadResponse,
    ResponseHead,
    plain_response_head,
    read_response_head,
)

if TYPE_CHECKING:
    from fairvisor.proxy.backends import Backend
    from fairvisor.proxy.exchange import Exchange

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_INTERIM: Final = 16  # responses with 1xx before the real one
_SWITCHED: Final = 101
_KEEP_ALIVE: Final = re.compile(rb"(?:^|[,;\s])timeout=([0-9]{1,6})", re.IGNORECASE)


class Link(asyncio.Protocol):
    """A connection to `backend`. `used` says whether it has carried a request before."""

    __slots__ = (
        "_body",
        "_exchange",
        "_head",
        "_held",
        "_interims",
        "backend",
        "heard",
        "keep_s",
        "keep_until_ms",
        "transport",
        "used",
    )

    transport: asyncio.Transport

    def __init__(self, backend: Backend) -> None:
        # per connection
        self.backend = backend
        self.used = False
        self.keep_s: int | None = None  # how long the upstream says it keeps an idle connection
        self.keep_until_ms = 0
        # per request
        self._exchange: Exchange | None = None
        self._held = b""
        self._head: ResponseHead | None = None
        self._body: Body | None = None
        self._interims = 0
        self.heard = False  # something of the response has come

    def attach(self, exchange: Exchange) -> None:
        """The next request is this exchange's."""
        self._exchange = exchange
        self._held, self._body, self._head = b"", None, None
        self._interims = 0
        self.heard = False

    def write(self, data: bytes) -> None:
        """Send to the upstream."""
        self.transport.write(data)

    def is_closing(self) -> bool:
        """Whether it cannot be used any more."""
        return self.transport.is_closing()

    def close(self) -> None:
        """Nobody needs it any more."""
        self._exchange = None
        self.transport.close()

    def abort(self) -> None:
        """Drop it as it is: what comes now is of no interest."""
        self._exchange = None
        self.transport.abort()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # nobody has asked for this
            self.transport.abort()
            return
        self.heard = True
        if exchange.tunnel is not None:
            exchange.tunnel.from_upstream(data)
            return
        try:
            self._read(exchange, data)
        except (BadResponse, BadBody) as error:
            self.abort()
            exchange.broken("malformed", str(error))
            return
        exchange.flush()

    def eof_received(self) -> bool:
        if self._exchange is not None and self._exchange.tunnel is not None:
            self._exchange.upstream_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            if self in self.backend.idle:
                self.backend.idle.remove(self)
            return
        if isinstance(self._body, OpenBody) and exc is None:
            exchange.ended(b"", False)
        else:
            exchange.broken("closed", "the upstream closed the connection")

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.upstream_full(True)

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.upstream_full(False)

    # responses

    def _read(self, exchange: Exchange, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        while data and self._exchange is exchange:
            if self._body is None:
                head = self._next_head(exchange, data)
                if head is None:
                    self._held = data
                    return
                data = data[head.size_bytes :]
                if head.status < 200:
                    self._interim(exchange, head, data)
                    if exchange.tunnel is not None:
                        return
                    continue
                self._begin(exchange, head)
            assert self._body is not None, "a head stands before its body"
            if not self._body.done:
                content, data = self._body.feed(data)
                if content:
                    exchange.content(content)
            if self._body.done and self._exchange is exchange:
                self._end(exchange, self._body, data)
                return

    def _next_head(self, exchange: Exchange, data: bytes) -> ResponseHead | None:
        """The head that `data` begins with, None when it is not whole."""
        head = plain_response_head(data, to_head=exchange.to_head)
        if head is None:
            end = data.find(b"\r\n\r\n")
            if end > MAX_HEAD_BYTES or (end < 0 and len(data) > MAX_HEAD_BYTES):
                raise BadResponse(f"the head of the upstream's response exceeds {MAX_HEAD_BYTES} bytes")
            if end >= 0:
                head = read_response_head(data[:end], to_head=exchange.to_head)
                head.size_bytes = end + 4
        return head

    def _interim(self, exchange: Exchange, head: ResponseHead, data: bytes) -> None:
        self._interims += 1
        if self._interims > MAX_INTERIM:
            raise BadResponse("the upstream sends 1xx without end")
        if head.status != _SWITCHED:
            exchange.interim(head)
            return
        if not exchange.upgrades or not head.flags & UPGRADE:
            raise BadResponse("the upstream switches protocols unasked")
        exchange.switched(head, data)

    def _begin(self, exchange: Exchange, head: ResponseHead) -> None:
        self._head = head
        self._body = body_of(head.length)
        promise = head.special.get("keep-alive")
        found = _KEEP_ALIVE.search(promise) if promise else None
        self.keep_s = int(found[1]) if found else None
        exchange.begun(head)

    def _end(self, exchange: Exchange, body: Body, surplus: bytes) -> None:
        """The response is whole. A link whose upstream says more than it was asked for is not used again."""
        assert self._head is not None, "a body has a head"
        reusable = self._head.keep_alive and not surplus and exchange.sent_all
        self._exchange = None
        self.used = True
        exchange.ended(body.trailers, reusable)
