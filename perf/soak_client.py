"""The client of soak.py: it asks at a constant rate whatever the answers do, and goes on when a worker is killed.

Each question has a time at which it is due, and its latency counts from then: a server that stands still is charged
with all that should have been asked meanwhile. Questions go out on free connections, one at a time on each. Most are
for keys that come again, some for keys that never do. What it saw goes back through a pipe as often as it is asked.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import cast

import uvloop

CONNECTIONS = 32
TICK_S = 0.001
KEYS = 1000
NEW_EVERY = 10  # of so many questions one is for a new key
AGAIN_S = 0.05
LATEST_S = 60.0  # what is said where nothing was answered
SHARES = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999, "worst_us": 1}


class Asker(asyncio.Protocol):
    """One connection: the question that is under way, and when it was due."""

    def __init__(self, client: Client) -> None:
        self.due_s = 0.0
        self.transport: asyncio.Transport
        self._client = client
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._client.free.append(self)

    def ask(self, question: bytes, due_s: float) -> None:
        self.due_s = due_s
        self.transport.write(question)

    def data_received(self, data: bytes) -> None:
        """Every answer is an allow, and has no body."""
        self._read += data
        if self._read.endswith(b"\r\n\r\n"):
            answer, due_s = self._read, self.due_s
            self._read, self.due_s = b"", 0.0
            if b"\r\nConnection: close\r\n" in answer:
                self.transport.close()
            else:
                self._client.free.append(self)
            self._client.answered(answer[9:12], time.monotonic() - due_s)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.lost(self)


class Client:
    """`rate` a second; None: as fast as the connections get answers."""

    def __init__(self, port: int, rate: float | None) -> None:
        self.free: deque[Asker] = deque()
        self._port = port
        self._rate = rate
        self._due: deque[float] = deque()
        self._number = itertools.count()
        self._latencies: list[float] = []
        self._unanswered = self._refused = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, pipe: Connection) -> None:
        """Until None comes through the pipe; anything else is answered with what was seen since."""
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._told, pipe)
        for _ in range(CONNECTIONS):
            self._connect()
        self._ended = asyncio.Event()
        began, made = time.monotonic(), 0
        while not self._ended.is_set():
            now = time.monotonic()
            if self._rate is None:
                self._due.extend([now] * len(self.free))
            else:
                wanted = int((now - began) * self._rate)
                self._due.extend(began + number / self._rate for number in range(made, wanted))
                made = wanted
            self._send()
            await asyncio.sleep(TICK_S if self._rate else 0)

    def answered(self, status: bytes, latency_s: float) -> None:
        self._latencies.append(latency_s)
        self._refused += status != b"204"
        self._send()

    def lost(self, asker: Asker) -> None:
        """Another connection takes its place; what it owed was lost."""
        self._unanswered += asker.due_s != 0
        if asker in self.free:
            self.free.remove(asker)
        self._connect()

    def _send(self) -> None:
        while self._due and self.free:
            asker = self.free.popleft()
            if not asker.transport.is_closing():  # else it is lost in a moment
                asker.ask(self._question(), self._due.popleft())

    def _question(self) -> bytes:
        number = next(self._number)
        key = f"new-{number}" if number % NEW_EVERY == 0 else f"key-{number % KEYS}"
        return (
            "GET /v1/decision HTTP/1.1\r\nHost: edge\r\nX-Original-Method: GET\r\nX-Original-URI: /\r\n"
            f"X-Original-Host: example.com\r\nX-Key: {key}\r\n\r\n"
        ).encode()

    def _connect(self) -> None:
        task = asyncio.ensure_future(self._connected())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self) -> None:
        while True:
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: Asker(self), "127.0.0.1", self._port
                )
                return
            except OSError:
                await asyncio.sleep(AGAIN_S)

    def _told(self, pipe: Connection) -> None:
        try:
            wanted = pipe.recv()
        except EOFError:  # whoever asked is gone
            wanted = None
        if wanted is None:
            self._ended.set()
            return
        in_order = sorted(self._latencies) or [LATEST_S]
        last = len(in_order) - 1
        pipe.send({
            "answered": len(self._latencies),
            **{name: round(1e6 * in_order[int(share * last)]) for name, share in SHARES.items()},
            "unanswered": self._unanswered,
            "refused": self._refused,
        })  # fmt: skip
        self._latencies, self._unanswered, self._refused = [], 0, 0
        gc.collect()


def run_client(port: int, rate: float | None, pipe: Connection) -> None:
    """The process. It collects no garbage while it asks, lest it times itself."""
    gc.disable()
    uvloop.install()
    asyncio.run(Client(port, rate).run(pipe))


def seen(pipe: Connection) -> dict[str, int]:
    """What the client at the other end of the pipe saw since it was asked last."""
    pipe.send("so far?")
    found: dict[str, int] = pipe.recv()
    return found
