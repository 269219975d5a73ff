"""One client connection: bytes in, answers out, in the order of the requests.

An asyncio protocol on an httptools parser. A request that comes whole and alone, nearly every one that a gateway sends,
is read in one pass by `_head.c`; everything else (chunks, pipelining, closing, slow, oversized or malformed input) goes
through httptools and may cost more. Answers are written once per arrival of data.

This module knows HTTP/1.x framing (RFC 9112) and time limits. It knows nothing of endpoints, gateways or policies: the
service answers requests, and says how much of a body it wants.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

import httptools

from fairvisor.errors import BodyTooLarge, Busy, HeadTooLarge, RequestError, RequestTimeout
from fairvisor.http._head import parse as parse_head
from fairvisor.http.arriving import Arriving
from fairvisor.http.hub import HIGH_WATER_BYTES, LINGER_S, TURN_BYTES, Hub
from fairvisor.http.outbox import Outbox
from fairvisor.http.partial_head import PartialHead
from fairvisor.http.pieces import read_in_pieces
from fairvisor.http.request import Peer, Request
from fairvisor.http.wire import CLOSE, CONTINUE, KEEP_ALIVE, Making, Sendable, encode

BODY_WAIT_S: Final = 1.0
MAX_TRAILERS: Final = 64
MAX_QUEUED: Final = 64  # answers behind one that waits; then nothing more is read from this client
# What the parser gets at once, outside of a body. It cannot be stopped in between, and answers all that it finds: about
# 20 of the shortest requests.
_PIECE_BYTES: Final = 512
MAX_AT_ONCE: Final = (
    16  # requests answered in one turn of the loop, with those of a piece: then others have theirs
)


class Connection(asyncio.Protocol):
    """A connection of a worker's hub."""

    __slots__ = ("_answer", "_arriving", "_between", "_closing", "_completed", "_eof", "_head", "_head_done", "_hub",
                 "_kept_bytes", "_measured", "_outbox", "_parser", "_peer", "_queue", "_read_now", "_reading_paused",
                 "_ready", "_rest", "_seen_ms", "_transport", "_turn_asked", "_unread", "_write_blocked")  # fmt: skip

    _transport: asyncio.Transport
    _peer: Peer

    def __init__(self, hub: Hub) -> None:
        # per process
        self._hub = hub
        self._answer = hub.service.answer
        self._read_now = hub.read_now
        # per connection
        self._parser = httptools.HttpRequestParser(self)
        self._outbox = Outbox(hub, self._waited)
        self._ready = self._outbox.ready
        self._queue = self._outbox.queue
        self._between = True  # the parser holds no part of a request
        self._closing = False
        self._eof = False
        self._rest = b""  # what the parser gets when the client reads again, or in another turn of the loop
        self._turn_asked = False
        self._kept_bytes = 0  # as the hub knows it
        self._unread = False
        self._write_blocked = False
        self._reading_paused = False
        self._seen_ms = hub.tick_ms
        # per request
        self._head = PartialHead()
        self._head_done = False
        self._measured = False
        self._completed = 0  # requests, by the bytes that the parser got last
        self._arriving: Arriving | None = None

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class: one by its methods only
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        name = transport.get_extra_info("peername")
        self._peer = self._hub.service.peer(name[0] if isinstance(name, tuple) else "")
        self._hub.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._hub.closed(self)
        self._outbox.drop()
        self._forget()
        self._settle()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            if len(data) >= TURN_BYTES:  # thrown away, but not for as long as there is more
                self._await_turn()
            return
        self._seen_ms = self._hub.tick_ms
        if self._between:
            plain = parse_head(data)
            if plain is not None:
                method, target, headers, body = plain
                if body is None or len(body) <= self._hub.service.body_rule(target).limit_bytes:
                    self._answer_plain(Request(method, target, headers, self._peer, body))
                    return
        if len(data) >= TURN_BYTES:
            self._rest += data
            self._await_turn()
            self._settle()
        else:
            self._read(self._rest + data)

    def _answer_plain(self, request: Request) -> None:
        """A request that came whole and alone: the path of nearly all requests."""
        answer = self._answer(request, self._read_now())
        if answer.delay_ms or self._queue or self._hub.ending:
            last = self._hub.is_last()
            self._put(answer, CLOSE if last else "", last=last, head_only=False)
            self._flush()
        else:
            self._transport.write(encode(self._hub.lines[answer.status], answer))

    def eof_received(self) -> bool:
        self._eof = True
        return bool(self._queue)  # a half-closed client still gets the answers that wait

    def pause_writing(self) -> None:
        self._write_blocked = self._outbox.blocked = True
        self._update_reading()

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._seen_ms = self._hub.tick_ms
        self._outbox.unblock()
        self._go_on()

    # httptools calls these

    def on_url(self, url: bytes) -> None:
        self._head.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head.pairs.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_done = True
        if self._measured and self._head.parsed_bytes() > self._hub.limits.max_head_bytes:
            self._refuse_head()

    def on_body(self, chunk: bytes) -> None:
        if self._closing:
            return
        arriving = self._arriving or self._begin_body()
        arriving.take(chunk)
        if arriving.strict and arriving.size_bytes > arriving.limit_bytes:
            self._refuse_body(arriving)

    def on_message_complete(self) -> None:
        self._head_done = False
        self._completed += 1
        if self._closing:
            return
        if self._arriving is not None:
            self._answer_body(self._arriving)
            return
        target, headers, repeated = self._head.take()
        method = self._parser.get_method().decode("ascii")
        request = Request(method, target, headers, self._peer, repeated=repeated)
        answer = self._answer(request, self._read_now())
        if (
            answer.delay_ms
            or self._queue
            or self._hub.ending
            or "connection" in headers
            or method == "HEAD"
            or not self._parser.should_keep_alive()
        ):
            self._send(answer, headers, method)
        else:
            self._ready.append(encode(self._hub.lines[answer.status], answer))

    # the hub calls these

    def check(self) -> None:
        """Act on a time limit that passed."""
        now_ms, limits = self._hub.tick_ms, self._hub.limits
        if self._write_blocked or self._transport.is_closing():  # for want of a client that reads its answers
            if now_ms - self._seen_ms > limits.header_timeout_ms:
                self._transport.abort()
        elif self._head.started_ms:
            if now_ms - self._head.started_ms > limits.header_timeout_ms and not self._closing:
                self._refuse(RequestTimeout("the request did not arrive in time"))
                self._flush()
        elif self._is_idle() and now_ms - self._seen_ms > limits.idle_timeout_ms:
            self._transport.close()

    def finish(self) -> None:
        """The worker stops: an unused connection gets one more moment to ask, then it is closed."""
        self._hub.linger(self._close_if_idle)

    def abort(self) -> None:
        """Drop the connection as it is."""
        self._transport.abort()

    def give_up(self) -> None:
        """End: the worker keeps too much, and this connection most for longest."""
        if self._write_blocked:
            self._transport.abort()
            return
        self._refuse(Busy("too many unfinished requests are kept (FAIRVISOR_MAX_KEPT_BYTES)"))
        self._flush()
        self._settle()

    # reading

    def _read(self, data: bytes) -> None:
        """Read as far as the client reads its answers: the rest is kept."""
        self._rest = b""
        self._between, self._completed = False, 0
        self._measured = len(data) + self._head.size_bytes > self._hub.limits.max_head_bytes
        at = 0
        while at < len(data) and not (self._closing or self._is_full() or self._completed >= MAX_AT_ONCE):
            end = at + self._piece_bytes()
            self._parse(data[at:end])
            at = end
            if self._ready and at < len(data):
                self._flush()
        if not self._closing:
            self._rest = data[at:]
            self._await_more(data[:at])
            if self._rest:
                self._ask_turn()
        if self._ready:
            self._flush()
        self._update_reading()
        self._settle()

    def _piece_bytes(self) -> int:
        """Return how much the parser may get at once: as much as is still to come of a body that says so."""
        arriving = self._arriving
        left_bytes = 0 if arriving is None else arriving.declared_bytes() - arriving.size_bytes
        return max(_PIECE_BYTES, left_bytes)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_after_answers()
        except httptools.HttpParserCallbackError:  # a fault of ours: not to be taken for the client's
            self._transport.abort()
            raise
        except httptools.HttpParserError as error:
            self._refuse(RequestError(f"malformed HTTP: {_first_line(error)}"))

    def _await_more(self, data: bytes) -> None:
        """Bound the size and the time of what is not whole after `data`."""
        head = self._head
        if self._head_done:
            if not self._rest:
                self._await_body(data)
        elif self._completed and not head.has_parts():
            self._between = not self._rest and data.endswith(b"\r\n\r\n")
        else:  # without parts: empty lines, or a part of a method
            head.grow(data, self._hub.tick_ms)
            if head.size_bytes > self._hub.limits.max_head_bytes:
                self._refuse_head()

    def _ask_turn(self) -> None:
        """Read no more before others had their turn."""
        if not self._turn_asked:
            self._turn_asked = True
            self._hub.next_turn(self._take_turn)

    def _await_turn(self) -> None:
        """Read nothing before others had their turn, and then in pieces."""
        self._ask_turn()
        self._update_reading()
        if self._reading_paused:
            read_in_pieces(self._transport, self, self._hub.piece)

    def _take_turn(self) -> None:
        self._turn_asked = False
        self._update_reading() if self._closing else self._go_on()

    def _go_on(self) -> None:
        """The client reads again, or an answer that was waited for is made."""
        if self._rest and not (self._is_full() or self._turn_asked):
            if self._head.started_ms:
                self._head.started_ms = self._hub.tick_ms  # it was not the client who waited
            self._read(self._rest)
        else:
            self._update_reading()

    def _settle(self) -> None:
        """Tell the hub what is kept."""
        arriving = self._arriving
        kept_bytes = self._head.size_bytes + len(self._rest)
        if arriving is not None:
            kept_bytes += arriving.kept_bytes()
        if kept_bytes != self._kept_bytes:
            self._kept_bytes = kept_bytes
            self._hub.kept.note(self, kept_bytes, self._hub.tick_ms)  # may end this connection

    def _begin_body(self) -> Arriving:
        target, headers, repeated = self._head.take()
        arriving = self._arriving = Arriving(target, headers, repeated, self._hub.service.body_rule(target))
        if arriving.strict and arriving.declared_bytes() > arriving.limit_bytes:
            self._refuse_body(arriving)
        return arriving

    def _await_body(self, data: bytes) -> None:
        """The head is here and the body is not, or not whole: wait for it a moment, if anybody wants it."""
        if self._arriving is None:
            self._begin_body()
        arriving = self._arriving
        if arriving is None:  # refused at once
            return
        arriving.came(len(data))
        if not arriving.limit_bytes:
            self._answer_without_body(arriving)
        elif len(self._head.pairs) > MAX_TRAILERS or arriving.framing_bytes > self._hub.limits.max_head_bytes:
            self._refuse(
                HeadTooLarge(f"more than {MAX_TRAILERS} trailers, or larger ones than a head may be")
            )
        elif arriving.timer is None:
            if arriving.headers.get("expect", b"").lower() == b"100-continue" and not arriving.size_bytes:
                self._outbox.put(CONTINUE)
            arriving.timer = self._hub.later(BODY_WAIT_S, self._body_is_late, arriving)

    def _body_is_late(self, arriving: Arriving) -> None:
        if self._closing:
            return
        if arriving.strict:
            self._refuse(RequestTimeout(f"the body did not arrive within {BODY_WAIT_S:.0f} s"))
        else:
            self._answer_without_body(arriving)
        self._flush()
        self._settle()

    def _refuse_head(self) -> None:
        limit_bytes = self._hub.limits.max_head_bytes
        self._refuse(HeadTooLarge(f"the request head exceeds {limit_bytes} bytes (FAIRVISOR_MAX_HEAD)"))

    def _refuse_body(self, arriving: Arriving) -> None:
        self._refuse(BodyTooLarge(f"the body exceeds {arriving.limit_bytes} bytes"))

    def _forget_body(self) -> None:
        if self._arriving is not None:
            self._arriving.stop_waiting()
        self._arriving = None

    def _forget(self) -> None:
        """Drop what is not answered."""
        self._forget_body()
        self._head.forget()
        self._rest = b""

    # answering

    def _answer_body(self, arriving: Arriving) -> None:
        """The body is here: ask the service."""
        self._forget_body()
        self._head.pairs = []  # trailers
        method = self._parser.get_method().decode("ascii")
        request = arriving.whole(method, self._peer)
        self._send(self._answer(request, self._read_now()), arriving.headers, method)

    def _answer_without_body(self, arriving: Arriving) -> None:
        """Answer with what there is of the body, if anything. What may still come makes this the last answer."""
        self._forget_body()
        self._unread = True
        method = self._parser.get_method().decode("ascii")
        request = arriving.so_far(method, self._peer)
        self._put(self._answer(request, self._read_now()), CLOSE, last=True, head_only=method == "HEAD")

    def _send(self, answer: Sendable, headers: dict[str, bytes], method: str) -> None:
        """An answer off the plain path: held, queued, without its body, or the last of the connection."""
        parser = self._parser
        last = "upgrade" in headers or not parser.should_keep_alive() or self._hub.is_last()
        connection = CLOSE if last else ""
        if not last and "connection" in headers and parser.get_http_version() == "1.0":
            connection = KEEP_ALIVE
        self._put(answer, connection, last=last, head_only=method == "HEAD")

    def _refuse(self, error: RequestError) -> None:
        """Answer what cannot be read on from; the client may be sending still."""
        if self._closing:
            return
        self._forget()
        self._unread = True
        self._put(self._hub.service.refusal(error), CLOSE, last=True, head_only=False)

    def _put(self, answer: Sendable, connection: str, *, last: bool, head_only: bool) -> None:
        """The next answer; one that is not made yet takes its place."""
        self._closing = self._closing or last
        lines = self._hub.lines
        if answer.delay_ms < 0:
            making = cast(Making, answer)
            self._outbox.make(
                making.advance,
                lambda: encode(lines[making.status], making, connection, head_only=head_only),
                lambda: making.delay_ms,
            )
        else:
            payload = encode(lines[answer.status], answer, connection, head_only=head_only)
            self._outbox.put(payload, answer.delay_ms)
        self._update_reading()

    def _waited(self) -> None:
        """Answers that waited are ready."""
        self._flush()
        self._go_on()
        if self._hub.stopping:
            self._close_if_idle()

    def _flush(self) -> None:
        if self._ready:
            self._transport.write(self._outbox.take())
        if not self._queue and (self._closing or self._eof):
            self._shut()

    def _end_after_answers(self) -> None:
        """No further request is read (the client asked for another protocol)."""
        self._closing = True
        if not self._queue and not self._ready:
            self._shut()

    # closing

    def _shut(self) -> None:
        """Every answer is written. Closing with unread input would reset the connection and could destroy the last
        answer on its way (RFC 9112 9.6), so a client that may be sending still gets a moment."""
        self._closing = True
        self._seen_ms = self._hub.tick_ms
        transport = self._transport
        if self._unread and not self._eof and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
            self._hub.later(LINGER_S, transport.close)
        else:
            transport.close()

    def _is_idle(self) -> bool:
        return not (self._queue or self._head.has_parts() or self._arriving or self._rest or self._closing)

    def _is_full(self) -> bool:
        """Whether the client does not read its answers, too many of them wait, or one that takes long to make."""
        return self._write_blocked or len(self._queue) >= MAX_QUEUED or self._outbox.unmade > 0

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self._transport.close()

    def _update_reading(self) -> None:
        """Read on, unless what was read cannot go on yet."""
        pause = self._turn_asked or bool(self._rest) or self._is_full()
        if pause == self._reading_paused or self._transport.is_closing():
            return
        self._reading_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
