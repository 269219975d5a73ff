"""One request and its response: decided, forwarded, answered, settled.

The client's connection (`front.py`) tells it of the request as it comes, the upstream's (`link.py`) of the response;
what one side cannot take makes it pause the other. A request that has reached an upstream is sent again only when a
connection that had been idle turned out to be closed and sending twice does no harm. Whatever happens, the exchange
ends once, and what was reserved for it is settled then. It knows order and consequences, neither framing nor policies.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fairvisor.codings import AT_ONCE, STEPS, Decoding
from fairvisor.errors import BadGateway, GatewayTimeout, RequestError
from fairvisor.http.kept import Gathered, gathered
from fairvisor.http.wire import CLOSE, CONTINUE, KEEP_ALIVE
from fairvisor.proxy.account import Account
from fairvisor.proxy.backends import Backend
from fairvisor.proxy.bodies import chunk, last_chunk
from fairvisor.proxy.gate import Passage
from fairvisor.proxy.heads import CHUNKED, UNTIL_CLOSE, RequestHead, ResponseHead
from fairvisor.proxy.lag import Lag
from fairvisor.proxy.link import Link
from fairvisor.proxy.rewrite import request_head, response_head
from fairvisor.proxy.tunnel import Tunnel

if TYPE_CHECKING:
    from fairvisor.proxy.front import Front

MAX_PENDING: Final = 64 * 1024  # of a body, before there is a connection to write it to
MAX_REPLAY: Final = 64 * 1024  # of a body that is kept to be sent again
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110 9.2.2
_CONTINUE_STATUS: Final = 100


class Exchange:
    """One request on `front`."""

    __slots__ = ("_account", "_backend", "_begun", "_chunked", "_close", "_complete", "_continues", "_dead", "_extra",
                 "_front", "_kept", "_lag", "_last_ms", "_length", "_link", "_out", "_replay", "_sent_ms", "_size",
                 "_task", "_timer", "_tried", "deciding", "head", "sent_all", "to_head", "tunnel", "undecided",
                 "upgrades")  # fmt: skip

    def __init__(self, front: Front, head: RequestHead) -> None:
        self._front = front
        self.head = head
        self.to_head = head.method == "HEAD"
        self.upgrades = head.upgrades
        self.tunnel: Tunnel | None = None
        self._dead = False
        # the request
        self.undecided = False  # its body is read before the decision
        self.deciding = False  # in slices: nothing more is read
        self._kept: Gathered | None = None  # of its body, before the decision and then until there is a link
        self._size = 0  # of its body, as far as it was read before the decision
        self._complete = head.length == 0
        self._continues = False  # the client waits for the upstream's 100 (Continue)
        self.sent_all = False
        self._length = head.length
        self._replay: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        # the upstream
        self._tried: list[Backend] = []
        self._backend: Backend | None = None
        self._task: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._sent_ms = 0  # when it was sent on
        self._last_ms = front.hub.tick_ms
        # the response
        self._account: Account | None = None
        self._lag: Lag | None = None
        self._extra = ""
        self._begun = False
        self._chunked = False
        self._close = False
        self._out: list[bytes] = []

    @property
    def has_begun(self) -> bool:
        """Whether the client has a part of the response."""
        return self._begun

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the request are kept because it cannot go on yet."""
        return 0 if self._kept is None else self._kept.size_bytes

    # the request comes

    def begin(self) -> None:
        """The head is here."""
        if self.head.length and self._front.gate.reads_body(self.head):
            self.undecided = True
            if self.head.continues:
                self._front.write(CONTINUE)
        else:
            self._decide()

    def request_content(self, data: bytes) -> None:
        """A piece of the body is here."""
        if self._dead:
            return
        if self.undecided:
            self._kept = gathered(self._kept, data)
            self._size += len(data)
            if self._size >= self._front.gate.max_body:
                self._decide()
            return
        self._send(chunk(data) if self._length == CHUNKED else data)

    def request_end(self, trailers: bytes) -> None:
        """The whole request is here."""
        self._complete = True
        if self._dead:
            return
        if self.undecided:
            self._decide()
        elif self._length == CHUNKED:
            self._send(last_chunk(trailers))
        if self._link is not None:
            self.sent_all = True

    def _decide(self) -> None:
        """Ask the gate, with what there is of the body if it was to be read.

        One that is encoded is decoded first: at once, or in slices between which others are served and nothing more of
        this request is read.
        """
        front, body = self._front, None
        if self.undecided:
            self.undecided = False
            body = b"" if self._kept is None else self._kept.joined()
        decoding = None
        if body and "content-encoding" in self.head.headers:
            decoding = front.gate.decoding(self.head, body, whole=self._complete)
        if decoding is None or decoding.runs_out(AT_ONCE):
            self._pass(body, decoding)
            return
        self.deciding = True
        front.hold_reading()
        front.hub.work(lambda: decoding.runs_out(STEPS), lambda: self._decoded(body, decoding))

    def _decoded(self, body: bytes | None, decoding: Decoding) -> None:
        """The body is decoded: decide, and read on."""
        if not self._dead:
            self.deciding = False
            self._pass(body, decoding)
            self._front.read_on(self)

    def _pass(self, body: bytes | None, decoding: Decoding | None) -> None:
        """Let the gate decide, and send the request on or answer it."""
        front = self._front
        self._kept = None
        outcome = front.gate.decide(self.head, front.peer, body, whole=self._complete, decoding=decoding)
        if not isinstance(outcome, Passage):
            self._dead = True
            front.reply(outcome, close=not self._complete)
            return
        self._extra = outcome.head
        account = self._account = outcome.account
        if account is not None and account.body is not None:
            body = account.body
        if self._complete and body is not None:
            self._length = len(body)
        self._continues = not self._complete and self._size == 0
        if body:
            self._kept = gathered(None, body if self._length != CHUNKED else chunk(body))
        if outcome.delay_ms:
            self._timer = front.hub.hold(outcome.delay_ms, self._forward)
        if self._timer is None:
            self._forward()

    def _forward(self) -> None:
        """The request may pass now."""
        self._timer = None
        self._sent_ms = self._front.hub.tick_ms
        if self._complete and self.head.method in _IDEMPOTENT and self._size <= MAX_REPLAY:
            self._replay = b"" if self._kept is None else self._kept.joined()
        self._reach()

    def _reach(self, *, fresh: bool = False) -> None:
        """Find a connection to an upstream."""
        front = self._front
        now_ms = front.hub.tick_ms
        backend = self._backend = front.backends.choose(now_ms, self._tried)
        backend.active += 1
        link = None if fresh else front.backends.idle(backend, now_ms)
        if link is not None:
            self._attach(link)
        else:
            self._task = front.backends.connect(backend, self._connected, self._unreachable)

    def _connected(self, link: Link) -> None:
        self._task = None
        if self._dead:
            link.close()
        elif link.is_closing():  # accepted and closed at once
            self._unreachable(True)
        else:
            self._attach(link)

    def _attach(self, link: Link) -> None:
        self._link = link
        link.attach(self)
        address = link.backend.address
        host = address.authority if address.tls or not self.head.host else self.head.host
        kept, self._kept = self._kept, None
        front, account = self._front, self._account
        self._last_ms = front.hub.tick_ms
        self.sent_all = self._complete
        coding = None if account is None else account.coding
        head = request_head(
            self.head, host, front.hop, length=self._length, continues=self._continues, coding=coding
        )
        link.write(head if kept is None else head + kept.joined())
        front.let_read()

    def _send(self, data: bytes) -> None:
        self._last_ms = self._front.hub.tick_ms
        if self._link is not None:
            self._link.write(data)
            return
        self._kept = gathered(self._kept, data)
        if self.kept_bytes > MAX_PENDING:
            self._front.hold_reading()

    # what goes wrong

    def _unreachable(self, in_time: bool) -> None:
        front, backend = self._front, self._backend
        self._task = None
        if self._dead or backend is None:
            return
        backend.failed("connect" if in_time else "timeout", front.hub.tick_ms)
        self._leave_backend()
        self._tried.append(backend)
        if len(self._tried) < front.backends.attempts:
            self._reach()
            return
        self._fail(
            BadGateway("no upstream can be reached")
            if in_time
            else GatewayTimeout("no upstream can be reached in time")
        )

    def broken(self, kind: str, message: str) -> None:
        """The link is gone before the response was whole."""
        link, backend = self._link, self._backend
        assert link is not None and backend is not None, "only a link can break"
        self._link = None
        self._leave_backend()
        if self.tunnel is not None:
            self._over()
            self._front.close()
            return
        if link.used and not link.heard and kind == "closed":  # it was closed while it was idle
            if self._replay is not None:
                self._kept = Gathered(self._replay) if self._replay else None
                self._replay = None
                self._reach(fresh=True)
                return
        else:
            backend.failed(kind, self._front.hub.tick_ms)
        self._fail(BadGateway(message))

    def _fail(self, error: RequestError) -> None:
        """There will be no whole response: say so, or break off, so that nobody takes what has come for whole."""
        account, self._account = self._account, None
        if account is not None:
            account.failed()
        self._over()
        if self._begun:
            self._front.cut(b"".join(self._out))
        else:
            self._front.refuse_upstream(error, close=not self._complete)

    def client_gone(self) -> None:
        """Nobody waits for the response any more."""
        account, self._account = self._account, None
        if self._lag is not None:
            self._lag.client_gone()
            self._lag = None
        elif account is not None:
            if self._begun or self.sent_all:
                account.client_gone()
            else:
                account.failed()
        self._over()

    def _over(self) -> None:
        """Nothing more happens: give back what is held."""
        self._dead = True
        self._kept = self._replay = None
        if self._lag is not None:
            self._lag.drop()
        if self._timer is not None:
            self._front.hub.leave(self._timer)
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        link, self._link = self._link, None
        if link is not None:
            link.abort()
        self._leave_backend()

    def _leave_backend(self) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.active -= 1

    def check(self, now_ms: int) -> None:
        """Act on a time limit that passed."""
        link, front, limits = self._link, self._front, self._front.timeouts
        if link is None or front.is_blocked() or self._lag is not None:
            return
        begun, tunnel = self._begun, self.tunnel
        silent_ms = now_ms - (self._last_ms if tunnel is None else tunnel.moved_ms)
        if limits.total_ms and begun and tunnel is None and now_ms - self._sent_ms > limits.total_ms:
            self.client_gone()  # what was streamed is paid: the upstream has not failed
            front.cut(b"")
        elif begun and silent_ms > limits.idle_ms:
            link.abort()
            self.broken("timeout", "the upstream stopped sending")
        elif not begun and (silent_ms > limits.first_byte_ms or 0 < limits.total_ms < now_ms - self._sent_ms):
            link.backend.failed("timeout", now_ms)
            self._fail(GatewayTimeout("the upstream did not answer in time"))

    # the response comes

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

    def upstream_full(self, full: bool) -> None:
        """The upstream does not take more of the request for now, or does again."""
        if full:
            self._front.hold_reading()
        else:
            self._last_ms = self._front.hub.tick_ms
            self._front.let_read()

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

    # another protocol

    def switched(self, head: ResponseHead, data: bytes) -> None:
        """Both sides agreed on another protocol: bytes pass as they are from now on."""
        assert self._link is not None, "a response comes on a link"
        self.tunnel = Tunnel(self._front, self._link)
        self._begun = True
        connection = f"Connection: Upgrade\r\nUpgrade: {head.special['upgrade'].decode('latin-1')}\r\n"
        self._out.append(response_head(head, self._extra, 0, connection, edited=False))
        if data:
            self._out.append(data)
        self.flush()
        self._front.switched()

    def upstream_eof(self) -> None:
        """The upstream says no more; the client may."""
        if self.tunnel is not None and not self.tunnel.upstream_eof():
            self._over()
            self._front.close()
