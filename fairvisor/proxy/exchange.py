"""One request: decided, forwarded, answered, settled.

The client's connection (`front.py`) reports the request as it comes; the response goes back by `returning.py`. A
request that has reached an upstream is sent again only when a connection that had been idle turned out to be closed and
sending twice does no harm. Whatever happens, the exchange ends once, and what was reserved for it is settled then. It
knows order and consequences, neither framing nor policies.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fairvisor.codings import AT_ONCE, STEPS, Decoding
from fairvisor.errors import BadGateway, GatewayTimeout, RequestError
from fairvisor.http.kept import Gathered, gathered
from fairvisor.http.wire import CONTINUE
from fairvisor.proxy.backends import Backend
from fairvisor.proxy.bodies import chunk, last_chunk
from fairvisor.proxy.gate import Passage
from fairvisor.proxy.heads import CHUNKED, RequestHead, ResponseHead
from fairvisor.proxy.link import Link
from fairvisor.proxy.returning import Returning
from fairvisor.proxy.rewrite import request_head, response_head
from fairvisor.proxy.tunnel import Tunnel
from fairvisor.response import json_answer

if TYPE_CHECKING:
    from fairvisor.proxy.front import Front

MAX_PENDING: Final = 64 * 1024  # of a body, before there is a connection to write it to
MAX_REPLAY: Final = 64 * 1024  # of a body that is kept to be sent again
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})  # RFC 9110 9.2.2


class Exchange(Returning):
    """One request on `front`."""

    __slots__ = ("_continues", "_kept", "_length", "_replay", "_sent_ms", "_size", "_task", "_timer", "_tried",
                 "deciding", "sent_all", "to_head", "tunnel", "undecided", "upgrades")  # fmt: skip

    def __init__(self, front: Front, head: RequestHead) -> None:
        super().__init__(front, head)
        self.to_head = head.method == "HEAD"
        self.upgrades = head.upgrades
        self.tunnel: Tunnel | None = None
        # the request
        self.undecided = False  # its body is read before the decision
        self.deciding = False  # in slices: nothing more is read
        self._kept: Gathered | None = None  # of its body, before the decision and then until there is a link
        self._size = 0  # of its body, as far as it was read before the decision
        self._continues = False  # the client waits for the upstream's 100 (Continue)
        self.sent_all = False
        self._length = head.length
        self._replay: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        # the upstream
        self._tried: list[Backend] = []
        self._task: asyncio.Task[None] | None = None
        self._sent_ms = 0  # when it was sent on

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
            document = {"message": str(error), "type": "upstream_error", "param": None, "code": error.status}
            self._front.reply(json_answer(error.status, {"error": document}), close=not self._complete)

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

    def upstream_full(self, full: bool) -> None:
        """The upstream does not take more of the request for now, or does again."""
        if full:
            self._front.hold_reading()
        else:
            self._last_ms = self._front.hub.tick_ms
            self._front.let_read()

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
