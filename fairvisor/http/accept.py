"""Which worker takes the next connection, and taking it.

Gateways keep few, long connections, and the kernel hands them out blindly: of 32 connections on two workers that share
a socket, one may get 27. So each worker writes the number of its connections on a board that all share, and one that
has more than the least busy holds back for a moment. If nobody else takes the connection in that time (a stopped or
busy worker counts few), it takes it after all: nobody waits long for a worker that does not come.

This module knows sockets and counts. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable
from typing import Final

_SEATS: Final = 1024  # one page of 4-byte counts: twice the number of workers allowed, for restarts
_ABSENT: Final = 0xFFFFFFFF

HOLD_BACK_S: Final = 0.002
HOLD_BACK_TIMES: Final = 3
_BATCH: Final = 16  # connections taken per readiness, so that requests of others are not kept waiting
_EXHAUSTED_S: Final = 1.0  # pause when the process has no descriptor left

# What the kernel takes for a client beyond what is on its way to it (tcp(7)): without a bound it is megabytes where the
# segments may be large (on loopback 2.6), and a client that reads nothing is answered until they are full.
UNSENT_BYTES: Final = 64 * 1024

_log = logging.getLogger(__name__)


class Board:
    """The number of connections of each worker, in memory that the workers inherit from the master.

    The master gives out seats before it forks; each worker writes only its own. The counts are advice: reading one
    that is just changing costs at most an uneven share.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SEATS * 4)
        self._counts = memoryview(self._memory).cast("I")
        self._taken: set[int] = set()
        for seat in range(_SEATS):
            self._counts[seat] = _ABSENT

    def claim(self) -> int:
        """A free seat; called in the master."""
        seat = next(seat for seat in range(_SEATS) if seat not in self._taken)
        self._taken.add(seat)
        return seat

    def give_back(self, seat: int) -> None:
        """The worker of this seat is gone; called in the master."""
        self._taken.discard(seat)
        self._counts[seat] = _ABSENT

    def write(self, seat: int, connections: int) -> None:
        """This worker has so many connections."""
        self._counts[seat] = connections

    def leave(self, seat: int) -> None:
        """This worker takes no more connections."""
        self._counts[seat] = _ABSENT

    def share(self) -> int:
        """The number of connections each worker would have if they were spread evenly, rounded up."""
        counts = [count for count in self._counts if count != _ABSENT]
        return -(-sum(counts) // len(counts)) if counts else 0

    def least(self) -> int:
        """The number of connections of the least busy worker."""
        return min(self._counts)


class Acceptor:
    """Takes connections from the listening sockets of one worker and counts those that are open."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: list[socket.socket],
        board: Board,
        seat: int,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        max_connections: int,
    ) -> None:
        self._loop = loop
        self._sockets = sockets
        self._board = board
        self._seat = seat
        self._make_protocol = make_protocol
        self._max_connections = max_connections
        # what changes
        self._open = 0
        self._held_back: dict[socket.socket, tuple[int, float]] = {}
        self._listening: set[socket.socket] = set()
        self._adopting: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self) -> None:
        """Begin to take connections."""
        self._board.write(self._seat, 0)
        for listener in self._sockets:
            self._listen(listener)

    def stop(self) -> None:
        """Take what has connected already, then no more."""
        if self._stopped:
            return
        for listener in self._sockets:
            self._rest(listener)
            while self._take(listener):
                pass
            listener.close()
        self._stopped = True
        self._board.leave(self._seat)

    async def settle(self) -> None:
        """Return when every connection that was taken is there."""
        await asyncio.gather(*self._adopting)

    def excess(self) -> int:
        """How many connections should come again to find a less busy worker; 0 when they are spread well enough.

        A worker that came late, or after another died, starts with none, and long connections would stay where they
        are. A quarter more than the share (and one) is left alone: moving a connection costs its client a new one.
        """
        share = self._board.share()
        return self._open - share if self._open > share + share // 4 + 1 else 0

    def closed(self) -> None:
        """A connection that was taken is closed."""
        self._open -= 1
        if not self._stopped:
            self._board.write(self._seat, self._open)
            if self._open == self._max_connections - 1:
                for listener in self._sockets:
                    self._listen(listener)

    def _listen(self, listener: socket.socket) -> None:
        if not self._stopped and listener not in self._listening:
            self._listening.add(listener)
            self._loop.add_reader(listener.fileno(), self._ready, listener)

    def _rest(self, listener: socket.socket) -> None:
        if listener in self._listening:
            self._listening.discard(listener)
            self._loop.remove_reader(listener.fileno())

    def _ready(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            if self._open >= self._max_connections:
                self._rest(listener)
                return
            if self._open > self._board.least() and self._hold_back(listener):
                return
            if not self._take(listener):
                return

    def _hold_back(self, listener: socket.socket) -> bool:
        """Leave the connection to a less busy worker, unless it was left to them often enough."""
        now = self._loop.time()
        times, since = self._held_back.get(listener, (0, now))
        if now - since > HOLD_BACK_S * (HOLD_BACK_TIMES + 2):
            times, since = 0, now  # that was about another connection
        if times >= HOLD_BACK_TIMES:
            self._held_back.pop(listener, None)
            return False
        self._held_back[listener] = (times + 1, since)
        self._rest(listener)
        self._loop.call_later(HOLD_BACK_S, self._listen, listener)
        return True

    def _take(self, listener: socket.socket) -> bool:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            _log.warning("cannot take a connection: %s", error)
            self._rest(listener)
            self._loop.call_later(_EXHAUSTED_S, self._listen, listener)
            return False
        self._open += 1
        if not self._stopped:
            self._board.write(self._seat, self._open)
        task = self._loop.create_task(self._adopt(client))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)
        return True

    async def _adopt(self, client: socket.socket) -> None:
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, client)
        except OSError as error:  # gone before it was ours
            _log.debug("lost a connection while taking it: %s", error)
            client.close()
            self.closed()
