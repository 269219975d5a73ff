"""The gunicorn worker class `edge`: a uvloop loop that serves connections until it is told to stop.

gunicorn starts it, watches its heartbeat and stops it with signals; in between it has no part in a request. This
module joins the pieces: sockets (`accept.py`), connections (`connection.py`), what they share (`hub.py`), and the
service, which the application of the master makes in each worker after the fork.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import os
import signal
import sys
from functools import partial
from typing import Any, Final

import uvloop
from gunicorn.workers.base import Worker

from fairvisor.clock import read_now
from fairvisor.http.accept import Acceptor, Board
from fairvisor.http.connection import Connection
from fairvisor.http.hub import Hub, Limits
from fairvisor.http.side import SideListener
from fairvisor.metrics import Counter
from fairvisor.metrics.families import GIVEN_UP, THROTTLES_NOT_HELD
from fairvisor.outlet import unblocked_stderr
from fairvisor.proxy.start import Proxy
from fairvisor.settings import Settings

_HEARTBEAT_S: Final = 1.0
_STOP_POLL_S: Final = 0.02
STOPS: Final = (signal.SIGTERM, signal.SIGQUIT)
# A terminal, `pkill` and `systemctl kill` send these to every process: what follows from them is the master's decision.
FOR_THE_MASTER: Final = (signal.SIGINT, signal.SIGWINCH, signal.SIGHUP, signal.SIGUSR2)
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def stop_at_once(*_: object) -> None:
    """End this process; a signal handler, too."""
    _heed_no_other_stop()
    sys.exit(0)


def _heed_no_other_stop() -> None:
    """It stops: being told so once more must not look like a violent end."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def limits_of(settings: Settings) -> Limits:
    """What the settings say a worker bears."""
    return Limits(
        settings.header_timeout_ms,
        settings.idle_timeout_ms,
        settings.max_waiting,
        settings.max_head,
        settings.max_kept_bytes,
        settings.body_min_rate,
    )


class EdgeWorker(Worker):  # type: ignore[misc]
    """Serves on the sockets it inherits. The application it is given has `settings`, `board` and makes the service."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # in the master, before the fork
        self.settings: Settings = self.app.settings
        self.board: Board = self.app.board
        self.seat = self.board.claim()
        # in the worker
        self.loop: asyncio.AbstractEventLoop
        self.hub: Hub
        self.acceptor: Acceptor
        self.stop_asked: asyncio.Event

    def init_signals(self) -> None:
        """Only what must work when the loop is stuck; the loop handles the rest.

        None has its default for a moment where it gets something else: a worker that just starts would end violently.
        """
        handlers: dict[int, Any] = dict.fromkeys(self.SIGNALS, signal.SIG_DFL)
        handlers |= dict.fromkeys(FOR_THE_MASTER, signal.SIG_IGN)
        handlers[signal.SIGUSR1] = signal.SIG_IGN  # until the loop is there
        handlers |= dict.fromkeys(STOPS, stop_at_once)  # until the loop is there
        for number, handler in handlers.items():
            signal.signal(number, handler)
        # A worker that hangs before it has a loop, for want of memory, must not keep the port of a master that is gone.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self.ppid:  # the master went before the kernel was asked to tell
            stop_at_once()
        # The master ends a worker without heartbeat by SIGABRT: show where it hung.
        faulthandler.enable(unblocked_stderr())

    def run(self) -> None:
        """Serve until a signal or the end of the master."""
        self.loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self.loop.close()
            _heed_no_other_stop()

    async def _serve(self) -> None:
        settings = self.settings
        limits = limits_of(settings)
        self.stop_asked = asyncio.Event()
        proxy = self.wsgi if isinstance(self.wsgi, Proxy) else None
        hub = self.hub = Hub(self.wsgi if proxy is None else proxy.health, limits, read_now)
        hub.loop = self.loop
        sockets = [listener.sock for listener in self.sockets]
        make = partial(Connection, hub) if proxy is None else proxy.connections(hub)
        acceptor = self.acceptor = Acceptor(
            self.loop, sockets, self.board, self.seat, make, settings.max_connections
        )
        hub.on_close = acceptor.closed
        hub.on_no_seat = Counter(self.app.segment, THROTTLES_NOT_HELD).add
        hub.kept.on_given_up = Counter(self.app.segment, GIVEN_UP).add
        for number in STOPS:
            self.loop.add_signal_handler(number, self._asked_to_stop, number)
        self.loop.add_signal_handler(signal.SIGUSR1, self.log.reopen_files)
        gc.collect()
        gc.freeze()  # what is loaded now never dies: keep the collector from walking it
        acceptor.start()
        side = None
        if self.app.side_sockets:
            side = SideListener(self.loop, self.app.side_sockets, self.wsgi.health, limits, read_now)
            side.start()
        self._tick()
        self._beat()
        await self.stop_asked.wait()
        self.app.beside.resign()
        acceptor.stop()
        if side is not None:
            side.stop()
        await acceptor.settle()
        await self._finish(hub)

    def _asked_to_stop(self, number: int) -> None:
        if number != signal.SIGTERM:  # a quick stop drops what is in flight
            for connection in tuple(self.hub.connections):
                connection.abort()
        self.alive = False
        self.stop_asked.set()

    # Each calls for its next time first: what fails afterwards, for want of memory, must not be the end of it.

    def _tick(self) -> None:
        self.loop.call_later(self.hub.interval_ms / 1000, self._tick)
        self.hub.tick()
        self.app.beside.tell(len(self.hub.connections), self.hub.waiting)

    def _beat(self) -> None:
        """The sign of life the master waits for; and the other way round."""
        self.loop.call_later(_HEARTBEAT_S, self._beat)
        self.notify()
        if os.getppid() != self.ppid and not self.stop_asked.is_set():
            self.log.warning("the master is gone: stopping")
            self._asked_to_stop(signal.SIGTERM)
        self.hub.shed(self.acceptor.excess())

    async def _finish(self, hub: Hub) -> None:
        """Answer what is in flight, at most as long as the master waits."""
        hub.stop()
        end = self.loop.time() + self.cfg.graceful_timeout - 1
        while hub.connections and self.loop.time() < end:
            await asyncio.sleep(_STOP_POLL_S)
        for connection in tuple(hub.connections):
            connection.abort()
        await asyncio.sleep(0)
