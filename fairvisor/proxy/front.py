"""One client connection of the proxy: requests in, responses out, one at a time.

Requests are read strictly (`heads.py`, `bodies.py`); the first thing that is not clear ends the connection with a 400.
While a response is on its way further requests wait in the buffer, and when that is full, in the client's socket. The
module knows framing, order and time limits; what a request means and where it goes is its exchange's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from fairvisor.errors import HeadTooLarge, RequestError, RequestTimeout
from fairvisor.http.hub import LINGER_S, Hub
from fairvisor.http.request import Peer
from fairvisor.http.wire import CLOSE, KEEP_ALIVE, Sendable, encode
from fairvisor.proxy.bodies import BadBody, Body, SizedBody, body_of
from fairvisor.proxy.exchange import Exchange
from fairvisor.proxy.heads import RequestHead, plain_request_head, read_request_head
from fairvisor.proxy.rewrite import Hop
from fairvisor.response import json_answer

if TYPE_CHECKING:
    from fairvisor.proxy.backends import Backends
    from fairvisor.proxy.gate import Gate

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_BUFFERED: Final = 64 * 1024  # of requests that come before the one before them is answered

_NO_BODY: Final[Body] = SizedBody(0)
_TOO_LARGE: Final = HeadTooLarge(f"the request head exceeds {MAX_HEAD_BYTES} bytes")


class Timeouts(NamedTuple):
    """How long an upstream may keep silent, and how long it may take in all (0: no limit), in milliseconds."""

    first_byte_ms: int
    idle_ms: int
    total_ms: int = 0


class Front(asyncio.Protocol):
    """A connection of a worker's hub."""

    __slots__ = ("_body", "_buffer", "_closing", "_consuming", "_exchange", "_seen_ms", "_started_ms", "_transport",
                 "_write_blocked", "backends", "gate", "hop", "hub", "peer", "reading_held", "timeouts")  # fmt: skip

    _transport: asyncio.Transport
    peer: Peer
    hop: Hop

    def __init__(self, hub: Hub, gate: Gate, backends: Backends, timeouts: Timeouts) -> None:
        # per process
        self.hub = hub
        self.gate = gate
        self.backends = backends
        self.timeouts = timeouts
        # per connection
        self._buffer = b""
        self._closing = False
        self._consuming = False
        self._write_blocked = False
        self.reading_held = False
        self._seen_ms = hub.tick_ms
        # per request
        self._started_ms = 0
        self._exchange: Exchange | None = None
        self._body: Body = _NO_BODY

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class: one by its methods only
        name = transport.get_extra_info("peername")
        self.peer = self.gate.peer(name[0] if isinstance(name, tuple) else "")
        self.hop = Hop(self.peer)
        self.hub.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
        self.hub.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._seen_ms = self.hub.tick_ms
        exchange = self._exchange
        if exchange is not None and exchange.tunnel is not None:
            exchange.tunnel.from_client(data)
            return
        self._consume(self._buffer + data if self._buffer else data)

    def eof_received(self) -> bool:
        """A client that says no more before it has its response is gone, as for nginx; a tunnel has two directions."""
        exchange = self._exchange
        return exchange is not None and exchange.tunnel is not None and exchange.tunnel.client_eof()

    def pause_writing(self) -> None:
        self._write_blocked = True
        self._seen_ms = self.hub.tick_ms
        if self._exchange is not None:
            self._exchange.client_full(True)

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._seen_ms = self.hub.tick_ms
        if self._exchange is not None:
            self._exchange.client_full(False)

    # reading

    def _consume(self, data: bytes) -> None:
        """Read as far as it goes: heads, bodies, and what belongs to later requests is kept."""
        self._consuming = True
        try:
            while data and not self._closing:
                if self._exchange is None:
                    rest = self._next_head(data)
                    if rest is None:
                        break
                    data = rest
                elif not self._body.done:
                    content, data = self._body.feed(data)
                    self._pass_body(self._exchange, content)
                elif self._exchange.tunnel is not None:
                    self._exchange.tunnel.from_client(data)
                    data = b""
                else:
                    break
        except RequestError as error:
            self._refuse(error)
        except BadBody as error:
            self._bad_body(RequestError(f"malformed HTTP: {error}"))
        finally:
            self._consuming = False
        self._buffer = b"" if self._closing else data
        if len(self._buffer) > MAX_BUFFERED and self._exchange is not None:
            self.hold_reading()

    def _next_head(self, data: bytes) -> bytes | None:
        """Begin the next request, if its head is whole: what comes after it, else None."""
        head = plain_request_head(data)
        if head is not None:
            self._started_ms = 0
            self._begin(head)
            return data[head.size_bytes :]
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD_BYTES:
            if len(data) > MAX_HEAD_BYTES:
                raise _TOO_LARGE
            if data == b"\r\n":
                return b""
            self._started_ms = self._started_ms or self.hub.tick_ms
            return None
        self._started_ms = 0
        raw = data[:end]
        if raw[:2] == b"\r\n":  # an empty line before the request line (RFC 9112 2.2)
            raw = raw[2:]
        self._begin(read_request_head(raw))
        return data[end + 4 :]

    def _begin(self, head: RequestHead) -> None:
        self._body = body_of(head.length) if head.length else _NO_BODY
        exchange = self._exchange = Exchange(self, head)
        exchange.begin()

    def _pass_body(self, exchange: Exchange, content: bytes) -> None:
        if content:
            exchange.request_content(content)
        if self._body.done and self._exchange is exchange:
            exchange.request_end(self._body.trailers)

    def hold_reading(self) -> None:
        """Read no more from the client for now."""
        if not self.reading_held and not self._transport.is_closing():
            self.reading_held = True
            self._transport.pause_reading()

    def let_read(self) -> None:
        """Read on."""
        if self.reading_held and not self._transport.is_closing():
            self.reading_held = False
            self._transport.resume_reading()

    def is_blocked(self) -> bool:
        """Whether the client does not take what is written."""
        return self._write_blocked

    # writing

    def write(self, data: bytes) -> None:
        """Send to the client."""
        self._transport.write(data)

    def write_eof(self) -> bool:
        """Say no more to the client; gives whether it may still speak."""
        if not self._transport.can_write_eof() or self._transport.is_closing():
            return False
        self._transport.write_eof()
        return True

    def reply(self, answer: Sendable, *, close: bool) -> None:
        """Answer a request that is not forwarded."""
        exchange = self._exchange
        assert exchange is not None, "a reply is to a request"
        head = exchange.head
        close = close or not head.keep_alive or (self.hub.ending and self.hub.is_last())
        connection = CLOSE if close else KEEP_ALIVE if head.version == b"1.0" else ""
        line = self.hub.lines[answer.status]
        self.write(encode(line, answer, connection, head_only=head.method == "HEAD"))
        self.done(exchange, close=close)

    def refuse_upstream(self, error: RequestError, *, close: bool) -> None:
        """The upstream has failed the request."""
        document = {"message": str(error), "type": "upstream_error", "param": None, "code": error.status}
        self.reply(json_answer(error.status, {"error": document}), close=close)

    def switched(self) -> None:
        """The connection is a tunnel now."""
        data, self._buffer = self._buffer, b""
        if data and self._exchange is not None and self._exchange.tunnel is not None:
            self._exchange.tunnel.from_client(data)

    def done(self, exchange: Exchange, *, close: bool) -> None:
        """The response of this exchange is written."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        self._seen_ms = self.hub.tick_ms
        if close:
            self._shut(unread=not self._body.done)
            return
        self.let_read()
        self._body = _NO_BODY
        if self._buffer and not self._consuming:
            data, self._buffer = self._buffer, b""
            self._consume(data)
        if self.hub.stopping and self._exchange is None:
            self._shut(unread=False)

    def cut(self, rest: bytes) -> None:
        """The response cannot be completed: end so that the client knows."""
        self._exchange = None
        self._closing = True
        if rest:
            self.write(rest)
        self._transport.close()

    def close(self) -> None:
        """A tunnel has ended."""
        self._exchange = None
        self._closing = True
        self._transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request; nothing after it is read."""
        answer = self.gate.refusal(error)
        self.write(encode(self.hub.lines[answer.status], answer, CLOSE))
        self._shut(unread=True)

    def _bad_body(self, error: RequestError) -> None:
        """The body is malformed: the upstream gets no end of it, the client a 400 unless it has its response."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        begun = exchange.has_begun
        exchange.client_gone()
        if begun:
            self.cut(b"")
        else:
            self._refuse(error)

    # closing

    def _shut(self, *, unread: bool) -> None:
        """Close; a client that may still be sending gets a moment, or a reset could destroy the answer on its way."""
        self._closing = True
        transport = self._transport
        if unread and transport.can_write_eof() and not transport.is_closing():
            if self.reading_held:
                transport.resume_reading()
            transport.write_eof()
            self.hub.later(LINGER_S, transport.close)
        else:
            transport.close()

    # the hub calls these

    def check(self) -> None:
        """Act on a time limit that passed."""
        now_ms, limits = self.hub.tick_ms, self.hub.limits
        if self._closing or self._write_blocked:
            if now_ms - self._seen_ms > max(limits.header_timeout_ms, self.timeouts.idle_ms):
                self._transport.abort()
        elif self._exchange is not None:
            if (
                not self._body.done
                and not self.reading_held
                and now_ms - self._seen_ms > limits.header_timeout_ms
            ):
                self._bad_body(RequestTimeout("the request body stopped coming"))
            else:
                self._exchange.check(now_ms)
        elif self._started_ms:
            if now_ms - self._started_ms > limits.header_timeout_ms:
                self._refuse(RequestTimeout("the request did not arrive in time"))
        elif now_ms - self._seen_ms > limits.idle_timeout_ms:
            self._transport.close()

    def finish(self) -> None:
        """The worker stops: an unused connection gets one more moment to ask, then it is closed."""
        self.hub.linger(self._close_if_idle)

    def abort(self) -> None:
        """Drop the connection as it is."""
        self._transport.abort()

    def _close_if_idle(self) -> None:
        if self._exchange is None and not self._buffer:
            self._transport.close()
