"""The answers of one connection, in the order of its requests: ready to be written, or behind one that waits.

It knows payloads and timers. It knows nothing of HTTP or of transports; the connection writes what is ready.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from fairvisor.http.hub import Hub


def _at_once() -> int:
    """The delay of an answer that is sent when it is made."""
    return 0


class Queued:
    """An answer in the queue: held until its timer rings or it is made, or only behind one that is.

    `make` begins to make it, None for one that is made or being made.
    """

    __slots__ = ("held", "make", "payload", "timer")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.held = False
        self.make: Callable[[], None] | None = None
        self.timer: asyncio.TimerHandle | None = None


class Outbox:
    """`ready` is what can be written now, `queue` what must wait; `on_ready` is called when a wait is over.

    While it is `blocked`, because the client does not read, no answer is made; `unmade` is how many are still to be.
    """

    __slots__ = ("_hub", "_on_ready", "blocked", "queue", "ready", "unmade")

    def __init__(self, hub: Hub, on_ready: Callable[[], None]) -> None:
        self._hub = hub
        self._on_ready = on_ready
        self.blocked = False
        self.unmade = 0
        self.ready: list[bytes] = []
        self.queue: deque[Queued] = deque()

    def put(self, payload: bytes, delay_ms: int = 0) -> None:
        """The next answer. It is held for `delay_ms` if there is a seat, and in any case behind those before it."""
        queued = Queued(payload)
        if delay_ms:
            queued.timer = self._hub.hold(delay_ms, lambda: self._release(queued))
        queued.held = queued.timer is not None
        if not queued.held and not self.queue:
            self.ready.append(payload)
        else:
            self.queue.append(queued)

    def make(
        self, advance: Callable[[], bool], finish: Callable[[], bytes], delay_ms: Callable[[], int] = _at_once
    ) -> None:
        """The next answer is made a slice at a time, until `advance` is true; `finish` gives its payload.

        Then it is held for what `delay_ms` gives. It is begun when those before it are on their way: a client is owed
        one such answer at a time.
        """
        queued = Queued(b"")
        queued.held = True
        queued.make = lambda: self._hub.work(advance, lambda: self._made(queued, finish, delay_ms))
        self.queue.append(queued)
        self.unmade += 1
        self._make_next()

    def unblock(self) -> None:
        """The client reads again."""
        self.blocked = False
        self._make_next()

    def _make_next(self) -> None:
        first = self.queue[0] if self.queue else None
        if first is not None and first.make is not None and not self.blocked:
            make, first.make = first.make, None
            make()

    def _made(self, queued: Queued, finish: Callable[[], bytes], delay_ms: Callable[[], int]) -> None:
        if queued not in self.queue:  # the client is gone
            return
        self.unmade -= 1
        queued.payload = finish()
        held_ms = delay_ms()
        if held_ms > 0:
            queued.timer = self._hub.hold(held_ms, lambda: self._release(queued))
        if queued.timer is None:
            self._release(queued)

    def take(self) -> bytes:
        """What is ready, joined, so that it is written at once."""
        ready = self.ready
        payload = ready[0] if len(ready) == 1 else b"".join(ready)
        ready.clear()
        return payload

    def drop(self) -> None:
        """Nobody is there to read: give the seats of those that wait back."""
        for queued in self.queue:
            if queued.timer is not None:
                self._hub.leave(queued.timer)
        self.queue.clear()
        self.ready.clear()

    def _release(self, queued: Queued) -> None:
        """An answer has waited long enough: it is ready, and with it those that waited only for it."""
        queued.timer = None
        queued.held = False
        queue = self.queue
        while queue and not queue[0].held:
            self.ready.append(queue.popleft().payload)
        self._on_ready()
        self._make_next()
