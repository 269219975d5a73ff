"""One client connection: bytes in, answers out, in the order of the requests.

An asyncio protocol on an httptools parser. A request that comes whole and alone, nearly every one that a gateway sends,
is read in one pass by `_head.c`; everything else (chunks, pipelining, closing, slow, oversized or malformed input) goes
through httptools and may cost more. Answers are written once per arrival of data.

This module knows HTTP/1.x framing (RFC 9112) and time limits. It knows nothing of endpoints, gateways or policies: the
service answers requests, and says how much of a body it wants. When is read and written is decided by `channel.py`.
"""

from __future__ import annotations

from typing import Final

import httptools

from fairvisor.errors import BodyTooLarge, Busy, HeadTooLarge, RequestError, RequestTimeout
from fairvisor.http._head import parse as parse_head
from fairvisor.http.arriving import Arriving
from fairvisor.http.channel import Channel
from fairvisor.http.hub import TURN_BYTES, Hub, Making
from fairvisor.http.partial_head import PartialHead
from fairvisor.http.request import Request
from fairvisor.http.wire import CLOSE, CONTINUE, KEEP_ALIVE, encode
from fairvisor.response import Answer

BODY_WAIT_S: Final = 1.0
MAX_TRAILERS: Final = 64
# What the parser gets at once, outside of a body. It cannot be stopped in between, and answers all that it finds: about
# 20 of the shortest requests.
_PIECE_BYTES: Final = 512
MAX_AT_ONCE: Final = (
    8  # requests answered in one turn of the loop, with those of a piece: then others have theirs
)


class Connection(Channel):
    """A connection of a worker's hub."""

    __slots__ = ("_answer", "_arriving", "_between", "_completed", "_head", "_head_done", "_kept_bytes", "_measured",
                 "_parser", "_read_now")  # fmt: skip

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        # per process
        self._answer = hub.service.answer
        self._read_now = hub.read_now
        # per connection
        self._parser = httptools.HttpRequestParser(self)
        self._between = True  # the parser holds no part of a request
        self._kept_bytes = 0  # as the hub knows it
        # per request
        self._head = PartialHead()
        self._head_done = False
        self._measured = False
        self._completed = 0  # requests, by the bytes that the parser got last
        self._arriving: Arriving | None = None

    # asyncio calls these

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
        if not isinstance(answer, Answer) or answer.delay_ms or self._queue or self._hub.ending:
            last = self._hub.is_last()
            self._put(answer, CLOSE if last else "", last=last, head_only=False)
            self._flush()
        else:
            self._transport.write(encode(self._hub.lines[answer.status], answer))

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
            not isinstance(answer, Answer)
            or answer.delay_ms
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

    def _send(self, answer: Answer | Making, headers: dict[str, bytes], method: str) -> None:
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
        target = self._arriving.target if self._arriving is not None else ""
        self._forget()
        self._unread = True
        answer = self._hub.service.refusal(error, self._peer, self._read_now(), target)
        self._put(answer, CLOSE, last=True, head_only=False)

    def _end_after_answers(self) -> None:
        """No further request is read (the client asked for another protocol)."""
        self._closing = True
        if not self._queue and not self._ready:
            self._shut()

    # closing

    def _is_idle(self) -> bool:
        return not (self._queue or self._head.has_parts() or self._arriving or self._rest or self._closing)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
