"""A listener beside the one for decisions, with a service of its own.

The master opens its socket with the others; each worker serves it, in its own loop or, where the worker class has none,
in a thread with a loop. Few clients come here (probes, a scraper), so connections are not spread over the workers.
It knows nothing of what the service answers.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Final

import uvloop

from fairvisor.clock import Now
from fairvisor.http.accept import Acceptor, Board
from fairvisor.http.connection import Connection
from fairvisor.http.hub import Answering, Hub, Limits

MAX_CONNECTIONS: Final = 256


class SideListener:
    """Serves `sockets` in `loop` from `start` to `stop`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: list[socket.socket],
        service: Answering,
        limits: Limits,
        read_now: Callable[[], Now],
    ) -> None:
        self._loop = loop
        self._hub = hub = Hub(service, limits, read_now)
        hub.loop = loop
        board = Board()
        self._acceptor = Acceptor(
            loop, sockets, board, board.claim(), lambda: Connection(hub), MAX_CONNECTIONS
        )
        hub.on_close = self._acceptor.closed

    def start(self) -> None:
        """Begin to take connections."""
        self._acceptor.start()
        self._tick()

    def stop(self) -> None:
        """Take no more, drop what is idle."""
        self._acceptor.stop()
        self._hub.stop()

    def _tick(self) -> None:
        self._hub.tick()
        self._loop.call_later(self._hub.interval_ms / 1000, self._tick)


def serve_in_thread(
    sockets: list[socket.socket], service: Answering, limits: Limits, read_now: Callable[[], Now]
) -> None:
    """Serve `sockets` in a thread that ends with the process."""

    def run() -> None:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        SideListener(loop, sockets, service, limits, read_now).start()
        loop.run_forever()

    threading.Thread(target=run, name="side-listener", daemon=True).start()
