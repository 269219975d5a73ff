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

from fairvisor.errors import BodyTooLarge, HeadTooLarge, RequestError, RequestTimeout
from fairvisor.http._head import parse as parse_head
from fairvisor.http.arriving import Arriving
from fairvisor.http.headers import read_headers
from fairvisor.http.hub import LINGER_S, Hub
from fairvisor.http.outbox import Outbox
from fairvisor.http.request import Peer, Request
from fairvisor.http.wire import CLOSE, CONTINUE, KEEP_ALIVE, Making, Sendable, encode
from fairvisor.reading import Repeated

MAX_HEAD_BYTES: Final = 16 * 1024
BODY_WAIT_S: Final = 1.0
MAX_TRAILERS: Final = 64
MAX_QUEUED: Final = 64  # answers behind one that waits; then nothing more is read from this client

_TOO_LARGE: Final = HeadTooLarge(f"the request head exceeds {MAX_HEAD_BYTES} bytes")


class Connection(asyncio.Protocol):
    """A connection of a worker's hub."""

    __slots__ = (
        "_answer",
        "_arriving",
        "_between",
        "_closing",
        "_eof",
        "_head_bytes",
        "_head_done",
        "_hub",
        "_measured",
        "_outbox",
        "_pairs",
        "_parser",
        "_peer",
        "_queue",
        "_read_now",
        "_reading_paused",
        "_ready",
        "_seen_ms",
        "_started_ms",
        "_transport",
        "_unread",
        "_url",
        "_write_blocked",
    )

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
        self._unread = False
        self._write_blocked = False
        self._reading_paused = False
        self._seen_ms = hub.tick_ms
        # per request
        self._url = b""
        self._pairs: list[tuple[bytes, bytes]] = []
        self._head_done = False
        self._head_bytes = 0
        self._measured = False
        self._started_ms = 0
        self._arriving: Arriving | None = None

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class: one by its methods only
        name = transport.get_extra_info("peername")
        self._peer = self._hub.service.peer(name[0] if isinstance(name, tuple) else "")
        self._hub.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._hub.closed(self)
        self._outbox.drop()
        self._forget_body()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._seen_ms = self._hub.tick_ms
        if self._between:
            plain = parse_head(data)
            if plain is not None:
                method, target, headers, body = plain
                if body is None or len(body) <= self._hub.service.body_rule(target).limit_bytes:
                    self._answer_plain(Request(method, target, headers, self._peer, body))
                    return
        self._between = False
        self._measured = len(data) + self._head_bytes > MAX_HEAD_BYTES
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_after_answers()
        except httptools.HttpParserCallbackError:  # a fault of ours: not to be taken for the client's
            self._transport.abort()
            raise
        except httptools.HttpParserError as error:
            self._refuse(RequestError(f"malformed HTTP: {_first_line(error)}"))
        if self._head_done:
            self._await_body()
        elif self._url or self._pairs:
            self._await_head(data)
        else:
            self._between = data.endswith(b"\r\n\r\n")
        if self._ready:
            self._flush()

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
        self._write_blocked = True
        self._update_reading()

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._seen_ms = self._hub.tick_ms
        self._update_reading()

    # httptools calls these

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        self._head_done = True
        if self._measured and self._head_size() > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)

    def on_body(self, chunk: bytes) -> None:
        if self._closing:
            return
        arriving = self._arriving or self._begin_body()
        arriving.take(chunk)
        if arriving.strict and arriving.size_bytes > arriving.limit_bytes:
            self._refuse_body(arriving)

    def on_message_complete(self) -> None:
        self._head_done = False
        if self._closing:
            return
        if self._arriving is not None:
            self._answer_body(self._arriving)
            return
        headers, repeated = self._take_headers()
        method = self._parser.get_method().decode("ascii")
        target = self._url.decode("latin-1")
        self._url = b""
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
        elif self._started_ms:
            if now_ms - self._started_ms > limits.header_timeout_ms and not self._closing:
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

    # reading

    def _take_headers(self) -> tuple[dict[str, bytes], Repeated | None]:
        fields = read_headers(self._pairs)
        self._pairs = []
        self._head_bytes = self._started_ms = 0
        return fields

    def _await_head(self, data: bytes) -> None:
        """A part of a head is here: bound its size and its time."""
        if self._closing:
            return
        if not self._started_ms:
            self._started_ms = self._hub.tick_ms
            end = data.rfind(b"\r\n\r\n")  # what stands before belongs to requests that are complete
            self._head_bytes = len(data) - (end + 4 if end >= 0 else 0)
        else:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)

    def _head_size(self) -> int:
        """What the head took on the wire, less the request line's fixed parts: for chunks that may hold too much."""
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._pairs)

    def _begin_body(self) -> Arriving:
        headers, repeated = self._take_headers()
        target = self._url.decode("latin-1")
        self._url = b""
        arriving = self._arriving = Arriving(target, headers, repeated, self._hub.service.body_rule(target))
        if arriving.strict and arriving.declared_bytes() > arriving.limit_bytes:
            self._refuse_body(arriving)
        return arriving

    def _await_body(self) -> None:
        """The head is here and the body is not, or not whole: wait for it a moment, if anybody wants it."""
        if self._closing:
            return
        if self._arriving is None:
            self._begin_body()
        arriving = self._arriving
        if arriving is None:  # refused at once
            return
        if not arriving.limit_bytes:
            self._answer_without_body(arriving)
        elif len(self._pairs) > MAX_TRAILERS:
            self._refuse(HeadTooLarge(f"more than {MAX_TRAILERS} trailers"))
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

    def _refuse_body(self, arriving: Arriving) -> None:
        self._refuse(BodyTooLarge(f"the body exceeds {arriving.limit_bytes} bytes"))

    def _forget_body(self) -> None:
        if self._arriving is not None:
            self._arriving.stop_waiting()
        self._arriving = None

    # answering

    def _answer_body(self, arriving: Arriving) -> None:
        """The body is here: ask the service."""
        self._forget_body()
        self._pairs = []  # trailers
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
        self._forget_body()
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
        self._update_reading()
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
        return not (self._queue or self._url or self._pairs or self._arriving or self._closing)

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self._transport.close()

    def _update_reading(self) -> None:
        """Read on unless the client does not read its answers, or too many of them wait."""
        pause = self._write_blocked or len(self._queue) >= MAX_QUEUED
        if pause == self._reading_paused or self._transport.is_closing():
            return
        self._reading_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
