"""What all connections of one worker share: the service, the limits, the tick and the seats of those that wait.

One timer serves every connection: it moves `tick_ms`, renews the Date header and looks for connections that are too
slow or unused, so that a request arms no timer of its own. The hub knows that connections can be checked and asked
to finish; how they do it is their business (`connection.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from fairvisor.clock import NS_PER_S, Now
from fairvisor.errors import RequestError
from fairvisor.http.kept import Kept
from fairvisor.http.request import Peer, Request
from fairvisor.http.wire import StatusLines
from fairvisor.response import Answer

# What is read at once and is as large waits for its turn: of five hundred such reads one is looked into in each turn of
# the loop, and those who send a request or two are answered in between. Later reads are no larger (`pieces.py`).
TURN_BYTES: Final = 16 * 1024
# Above so much that a client has not taken, nothing more is begun for it. The kernel's buffer comes before it, so fast
# clients do not notice: it is what each slow one costs.
HIGH_WATER_BYTES: Final = 16 * 1024
LINGER_S: Final = 1.0  # how long a connection is still read before it is closed
_TURN_S: Final = 0.001  # with 0, what is due is called before the loop reads
_SLICES_IN_A_ROW: Final = 16  # of one work: some milliseconds
_NS_PER_MS = NS_PER_S // 1000


class BodyRule(NamedTuple):
    """How much of a body an endpoint reads (0: none), and whether a longer one is refused or cut."""

    limit_bytes: int
    strict: bool = False


class Making(Protocol):
    """An answer that is not made yet: it is whole when `advance` was true."""

    def advance(self) -> bool: ...
    def whole(self) -> Answer: ...


class Answering(Protocol):
    """What connections need of the service."""

    def answer(self, request: Request, now: Now, /) -> Answer | Making: ...
    def refusal(self, error: RequestError, peer: Peer, now: Now, target: str, /) -> Answer: ...
    def peer(self, address: str, /) -> Peer: ...
    def body_rule(self, target: str, /) -> BodyRule: ...


class Checked(Protocol):
    """What the hub may ask of a connection."""

    def check(self) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class Limits(NamedTuple):
    """What one worker bears. Times in milliseconds.

    `body_min_rate` is in bytes a second, 0 for none: how fast a body must come that a proxy forwards.
    """

    header_timeout_ms: int
    idle_timeout_ms: int
    max_waiting: int
    max_head_bytes: int = 64 * 1024
    max_kept_bytes: int = 24 * 1024 * 1024
    body_min_rate: int = 500


class Hub:
    """The shared state of a worker's connections. `tick_ms` is the coarse time by which they measure idleness."""

    def __init__(self, service: Answering, limits: Limits, read_now: Callable[[], Now]) -> None:
        # per process
        self.service = service
        self.limits = limits
        self.read_now = read_now
        self.lines = StatusLines()
        self.kept = Kept(limits.max_kept_bytes)
        self.piece = memoryview(bytearray(TURN_BYTES))  # what is read of a client that sends much
        self.loop: asyncio.AbstractEventLoop | None = None
        self.on_close: Callable[[], None] = _nobody_cares
        self.on_no_seat: Callable[[], None] = _nobody_cares
        self.on_tick: Callable[[], None] = _nobody_cares
        self.interval_ms = max(10, min(1000, limits.header_timeout_ms // 4, limits.idle_timeout_ms // 4))
        # what changes while it runs
        self.connections: set[Checked] = set()
        self.tick_ms = 0
        self.waiting = 0
        self._works: deque[tuple[Callable[[], bool], Callable[[], None]]] = deque()
        self._slices = 0  # of the first of them, in a row
        self.stopping = False
        self.shedding = 0  # connections to be told to come again; their next answers carry Connection: close
        self.ending = False  # stopping or shedding: what the plain path looks at
        self.set_time(read_now())

    def set_time(self, now: Now) -> None:
        """Move the tick and the Date."""
        self.tick_ms = now.mono_ns // _NS_PER_MS
        self.lines.set_time(now)

    def tick(self) -> None:
        """The timer's work: called every `interval_ms`."""
        self.set_time(self.read_now())
        for connection in tuple(self.connections):
            connection.check()
        self.on_tick()

    def stop(self) -> None:
        """From now on every answer is the last of its connection."""
        self.stopping = self.ending = True
        for connection in tuple(self.connections):
            connection.finish()

    def shed(self, connections: int) -> None:
        """Tell so many connections to come again, each with its next answer; a new number replaces the old one."""
        self.shedding = connections
        self.ending = self.stopping or connections > 0

    def is_last(self) -> bool:
        """Whether the answer that is just being made is to be the last of its connection."""
        if self.shedding and not self.stopping:
            self.shed(self.shedding - 1)
            return True
        return self.stopping

    def closed(self, connection: Checked) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        self.on_close()

    def later(self, delay_s: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """The loop's timer; connections live in a running loop."""
        assert self.loop is not None, "connections live in a running loop"
        return self.loop.call_later(delay_s, callback, *args)

    def linger(self, close: Callable[[], object]) -> None:
        """Call `close` after the moment in which an unused connection may still ask: when what came in it was read.

        A loop that had no processor meanwhile calls what is due before it reads, so it is given a turn to read.
        """
        self.later(LINGER_S, self.later, _TURN_S, close)

    def hold(self, delay_ms: int, release: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Call `release` after the delay; None when every seat is taken and the answer must go at once."""
        if self.waiting >= self.limits.max_waiting or self.loop is None:
            self.on_no_seat()
            return None
        self.waiting += 1
        return self.loop.call_later(delay_ms / 1000, self._let_go, release)

    def _let_go(self, release: Callable[[], None]) -> None:
        self.waiting -= 1
        release()

    def work(self, advance: Callable[[], bool], done: Callable[[], None]) -> None:
        """Call `advance` once in each turn of the loop until it is true, then `done`.

        One such work at a time, and one that takes long lets the others go first now and then.
        """
        self._works.append((advance, done))
        if len(self._works) == 1:
            self._call_turn()

    def next_turn(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in a later turn of the loop, in which no other such work is done."""
        self.work(_is_ready, go_on)

    def _turn(self) -> None:
        advance, done = self._works[0]
        is_over = True
        try:
            is_over = advance()
            if is_over:
                done()
        finally:  # a work that fails takes no other with it
            self._slices += 1
            if is_over:
                self._works.popleft()
                self._slices = 0
            elif self._slices >= _SLICES_IN_A_ROW:
                self._works.rotate(-1)
                self._slices = 0
            if self._works:
                self._call_turn()

    def _call_turn(self) -> None:
        self.later(0, self._turn)

    def leave(self, timer: asyncio.TimerHandle) -> None:
        """Give the seat of a wait back that nobody waits for any more."""
        timer.cancel()
        self.waiting -= 1


def _is_ready() -> bool:
    """What waits for its turn only needs no work before it."""
    return True


def _nobody_cares() -> None:
    """What a hub calls when nobody wants to know."""
