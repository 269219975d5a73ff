"""One client connection of the proxy: requests in, responses out, one at a time.

Requests are read strictly (`heads.py`, `bodies.py`); the first thing that is not clear ends the connection with a 400.
While a response is on its way further requests wait in the buffer, and when that is full, in the client's socket. The
module knows framing, order and time limits; what a request means and where it goes is its exchange's business.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from fairvisor.errors import Busy, LoopDetected, RequestError, RequestTimeout
from fairvisor.http.hub import HIGH_WATER_BYTES, LINGER_S, TURN_BYTES, Hub
from fairvisor.http.request import Peer
from fairvisor.http.wire import CLOSE, KEEP_ALIVE, encode
from fairvisor.proxy.bodies import BadBody, Body, SizedBody, body_of
from fairvisor.proxy.exchange import Exchange
from fairvisor.proxy.heads import VIA, RequestHead
from fairvisor.proxy.inbox import Inbox
from fairvisor.proxy.pace import Pace, Timeouts
from fairvisor.proxy.rewrite import Hop
from fairvisor.response import Answer

if TYPE_CHECKING:
    from fairvisor.proxy.backends import Backends
    from fairvisor.proxy.gate import Gate
    from fairvisor.proxy.returning import Returning

MAX_BUFFERED: Final = 64 * 1024  # of requests that come before the one before them is answered
MAX_AT_ONCE: Final = 4  # requests begun in one turn of the loop, so that others are answered in between

_NO_BODY: Final[Body] = SizedBody(0)


class Front(asyncio.Protocol):
    """A connection of a worker's hub."""

    __slots__ = ("_blocked_ms", "_body", "_closing", "_consuming", "_exchange", "_inbox", "_kept_bytes", "_pace",
                 "_seen_ms", "_transport", "_turn_asked", "_upstream_full", "_write_blocked", "backends", "gate",
                 "hop", "hub", "peer", "reading_held", "timeouts")  # fmt: skip

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
        self._inbox = Inbox()
        self._closing = False
        self._consuming = False
        self._write_blocked = False
        self._blocked_ms = 0  # since when
        self._turn_asked = False  # to look into what is in the inbox
        self._kept_bytes = 0  # as the hub knows it
        self._upstream_full = False  # the exchange wants no more to be read
        self.reading_held = False
        self._seen_ms = hub.tick_ms
        # per request
        self._exchange: Exchange | None = None
        self._body: Body = _NO_BODY
        self._pace: Pace | None = None  # of the latest body

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class: one by its methods only
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = self.gate.peer(name[0] if isinstance(name, tuple) else "")
        self.hop = Hop(self.peer, self.gate.pseudonym)
        self.hub.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()
        self._drop_rest()
        self.hub.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            if len(data) >= TURN_BYTES:  # thrown away, but not for as long as there is more
                self._await_turn()
            return
        self._seen_ms = self.hub.tick_ms
        exchange = self._exchange
        if exchange is not None and exchange.tunnel is not None:
            exchange.tunnel.from_client(data)
            return
        if len(data) >= TURN_BYTES and (exchange is None or exchange.undecided):
            self._inbox.add(data)
            self._await_turn()
        else:
            self._inbox.add(data)
            self._consume()

    def eof_received(self) -> bool:
        """A client that says no more before it has its response is gone, as for nginx; a tunnel has two directions."""
        exchange = self._exchange
        return exchange is not None and exchange.tunnel is not None and exchange.tunnel.client_eof()

    def pause_writing(self) -> None:
        self._write_blocked = True
        self._blocked_ms = self.hub.tick_ms
        if self._exchange is not None:
            self._exchange.client_full(True)

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._seen_ms = self.hub.tick_ms
        if self._exchange is not None:
            self._exchange.client_full(False)
        elif not self._closing:
            self._go_on()

    # reading

    def _consume(self) -> None:
        """Read as far as it goes: heads, bodies, and what belongs to later requests is kept."""
        self._consuming = True
        inbox, begun = self._inbox, 0
        try:
            while inbox.size_bytes and not self._closing:
                if self._exchange is None:
                    if self._write_blocked or begun == MAX_AT_ONCE:
                        break  # what is begun would be answered into memory, or keep others waiting
                    head = inbox.next_head(self.hub.limits.max_head_bytes, self.hub.tick_ms)
                    if head is None:
                        break
                    self._begin(head)
                    begun += 1
                elif self._exchange.tunnel is not None:
                    self._exchange.tunnel.from_client(inbox.take())
                elif self._body.done or self._exchange.deciding:
                    break
                else:
                    self._pass_body(self._exchange, inbox.feed(self._body))
        except RequestError as error:
            self._refuse(error)
        except BadBody as error:
            self._bad_body(RequestError(f"malformed HTTP: {error}"))
        finally:
            self._consuming = False
        if begun == MAX_AT_ONCE and inbox.size_bytes and self._exchange is None:
            self._ask_turn()
        if inbox.size_bytes or self._kept_bytes or self.reading_held or self._keeps():
            self.settle()

    def _keeps(self) -> bool:
        return self._exchange is not None and self._exchange.kept_bytes > 0

    def _begin(self, head: RequestHead) -> None:
        if head.flags & VIA and self.hop.has_passed(head):
            raise LoopDetected("the request has passed this proxy before (Via): an upstream leads back to it")
        if head.length:
            self._body = body_of(head.length)
            self._pace = Pace(self.hub.tick_ms)
        else:
            self._body = _NO_BODY
        exchange = self._exchange = Exchange(self, head)
        exchange.begin()

    def _pass_body(self, exchange: Exchange, content: bytes) -> None:
        if content:
            if self._pace is not None:
                self._pace.size_bytes += len(content)
            exchange.request_content(content)
        if self._body.done and self._exchange is exchange and not exchange.deciding:
            exchange.request_end(self._body.trailers)

    def hold_reading(self) -> None:
        """Read no more from the client until the exchange has ended or lets it."""
        self._upstream_full = True
        if not self._consuming:
            self.settle()

    def let_read(self) -> None:
        """Read on, as far as the exchange is concerned."""
        self._upstream_full = False
        if (self._kept_bytes or self.reading_held) and not self._consuming:
            self.settle()

    def read_on(self, exchange: Exchange) -> None:
        """Go on with what came while the exchange was being decided."""
        if self._exchange is not exchange:
            return  # it is answered
        if self._body.done:
            exchange.request_end(self._body.trailers)
        if not self._closing:
            self._upstream_full = False
            self._go_on()

    def settle(self) -> None:
        """Tell the hub what is kept, and read on from the client or hold."""
        exchange = self._exchange
        kept_bytes = self._inbox.size_bytes + (0 if exchange is None else exchange.kept_bytes)
        if kept_bytes != self._kept_bytes:
            self._kept_bytes = kept_bytes
            self.hub.kept.note(self, kept_bytes, self.hub.tick_ms)  # may end this connection
        waits = self._write_blocked if self._exchange is None else self._inbox.size_bytes > MAX_BUFFERED
        hold = self._turn_asked or (not self._closing and (self._upstream_full or waits))
        if hold == self.reading_held or self._transport.is_closing():
            return
        self.reading_held = hold
        now_ms, pace = self.hub.tick_ms, self._pace
        if hold:
            self._transport.pause_reading()
        else:
            self._seen_ms = now_ms
            self._transport.resume_reading()
        if pace is not None:
            pace.hold(now_ms) if hold else pace.go_on(now_ms)

    def give_up(self) -> None:
        """End: the worker keeps too much, and this connection most for longest."""
        error = Busy("too many unfinished requests are kept (FAIRVISOR_MAX_KEPT_BYTES)")
        if self._write_blocked:
            self.abort()
        elif self._exchange is not None:
            self._bad_body(error)
        else:
            self._refuse(error)

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

    def reply(self, answer: Answer, *, close: bool) -> None:
        """Answer a request that is not forwarded."""
        exchange = self._exchange
        assert exchange is not None, "a reply is to a request"
        head = exchange.head
        close = close or not head.keep_alive or (self.hub.ending and self.hub.is_last())
        connection = CLOSE if close else KEEP_ALIVE if head.version == b"1.0" else ""
        line = self.hub.lines[answer.status]
        self.write(encode(line, answer, connection, head_only=head.method == "HEAD"))
        self.done(exchange, close=close)

    def switched(self) -> None:
        """The connection is a tunnel now."""
        if self._inbox.size_bytes and self._exchange is not None and self._exchange.tunnel is not None:
            self._exchange.tunnel.from_client(self._inbox.take())

    def done(self, exchange: Returning, *, close: bool) -> None:
        """The response of this exchange is written."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        self._seen_ms = self.hub.tick_ms
        if close:
            self._shut(unread=not self._body.done)
            return
        self._body = _NO_BODY
        self._upstream_full = False
        if self._inbox.size_bytes and not self._consuming and not self.hub.stopping:
            self._await_turn()  # what waits is begun in one turn after the other, or 500 responses come in one
        else:
            self._go_on()
        if self.hub.stopping and self._exchange is None:
            self._shut(unread=False)

    def _ask_turn(self) -> None:
        """Begin no more before others had their turn."""
        if not self._turn_asked:
            self._turn_asked = True
            self.hub.next_turn(self._take_turn)

    def _await_turn(self) -> None:
        """Read nothing before others had their turn."""
        self._ask_turn()
        self.settle()

    def _take_turn(self) -> None:
        self._turn_asked = False
        self.settle() if self._closing else self._go_on()

    def _go_on(self) -> None:
        """Begin what waits, unless the client does not read."""
        if self._consuming or self._turn_asked:
            return
        if self._inbox.size_bytes and not (self._write_blocked and self._exchange is None):
            self._consume()
        elif self._kept_bytes or self.reading_held or self._write_blocked:
            self.settle()

    def cut(self, rest: bytes) -> None:
        """The response cannot be completed: end so that the client knows."""
        self._exchange = None
        self._drop_rest()
        if rest:
            self.write(rest)
        self._transport.close()

    def close(self) -> None:
        """A tunnel has ended."""
        self._exchange = None
        self._drop_rest()
        self._transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answer what is no request; nothing after it is read."""
        answer = self.gate.refusal(error, self.peer)
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
        self._drop_rest()
        transport = self._transport
        if unread and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
            self.hub.later(LINGER_S, transport.close)
        else:
            transport.close()

    def _drop_rest(self) -> None:
        """Nothing more is taken from the client."""
        self._closing = True
        self._inbox.drop()
        if self._kept_bytes or self.reading_held:
            self.settle()

    # the hub calls these

    def check(self) -> None:
        """Act on a time limit that passed."""
        now_ms, limits = self.hub.tick_ms, self.hub.limits
        if self._closing or self._write_blocked:
            since_ms = self._seen_ms if self._closing else self._blocked_ms
            if now_ms - since_ms > max(limits.header_timeout_ms, self.timeouts.idle_ms):
                self._transport.abort()
        elif self._exchange is not None:
            pace = None if self._body.done or self.reading_held else self._pace
            late = "" if pace is None else pace.lateness(limits, self._seen_ms, now_ms)
            if late:
                self._bad_body(RequestTimeout(late))
            else:
                self._exchange.check(now_ms)
        elif self._inbox.started_ms:
            if now_ms - self._inbox.started_ms > limits.header_timeout_ms:
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
        if self._exchange is None and not self._inbox.size_bytes:
            self._transport.close()
