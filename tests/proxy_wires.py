"""A proxy without sockets or time: clients and upstreams are wires that remember, the clock goes on when it is told to.

    proxy = Wired(policy(...))
    client = proxy.connect()
    client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    proxy.answer(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
    assert client.received.startswith(b"HTTP/1.1 204")

A client that does not read is one with `reads = False`: what is written to it stays with the proxy, as in a transport
whose socket is full.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from proxy_bench import decides

from fairvisor.clock import Now
from fairvisor.http.hub import Hub, Limits
from fairvisor.http.request import Peer
from fairvisor.proxy.backends import Address, Backends
from fairvisor.proxy.front import Front
from fairvisor.proxy.link import Link
from fairvisor.proxy.pace import Timeouts

LIMITS = Limits(10_000, 300_000, 100)
UPSTREAM_MS = 60_000


class Timer:
    """A call that is to come."""

    def __init__(self, at: float, call: Callable[[], object]) -> None:
        self.at = at
        self.call = call
        self.done = False

    def cancel(self) -> None:
        self.done = True


class Clock:
    """The loop as far as connections use one, and the time."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> Timer:
        timer = Timer(self.seconds + delay, lambda: call(*args))
        self.timers.append(timer)
        return timer

    def go_on(self, seconds: float) -> None:
        self.seconds += seconds
        for timer in sorted(self.timers, key=lambda each: each.at):
            if timer.at <= self.seconds and not timer.done:
                timer.done = True
                timer.call()
        self.timers = [timer for timer in self.timers if not timer.done]

    def turns(self) -> None:
        """What is to be done at once is done."""
        while any(timer.at <= self.seconds for timer in self.timers):
            self.go_on(0)

    def now(self) -> Now:
        return Now(int(self.seconds * 1e9), 1_700_000_000 * 10**9 + int(self.seconds * 1e9))


class Wire(asyncio.Transport):
    """One side of a connection: what is written is in `written`, and what was not read yet counts as `unread`."""

    def __init__(self, peer: str = "") -> None:
        super().__init__({"peername": (peer, 4711) if peer else ""})
        self.protocol: asyncio.Protocol | None = None
        self.written = bytearray()
        self.unread = self.most_unread = 0
        self.answers = 0  # of an upstream, as the test counts them
        self.switched = False  # an upstream speaks another protocol
        self.reads = True
        self._high_water = 64 * 1024  # as asyncio's transports: above it the protocol is told to pause
        self.closed = self.aborted = self.held = self._paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self._high_water = high

    def write(self, data: Any) -> None:
        assert not self.aborted, "nothing is written after the end"
        self.written += data
        if self.reads:
            return
        self.unread += len(data)
        self.most_unread = max(self.most_unread, self.unread)
        if self.unread > self._high_water and not self._paused:
            self._paused = True
            assert self.protocol is not None
            self.protocol.pause_writing()

    def read_all(self) -> None:
        """The other side takes what there is."""
        self.unread = 0
        if self._paused:
            self._paused = False
            assert self.protocol is not None
            self.protocol.resume_writing()

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def close(self) -> None:
        self._end()

    def abort(self) -> None:
        self.aborted = True
        self._end()

    def _end(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        assert not self.held
        self.held = True

    def resume_reading(self) -> None:
        assert self.held or self.closed
        self.held = False


class Client:
    """A client of the proxy; what it sends while it is not read from stays in the network."""

    def __init__(self, proxy: Wired, peer: str) -> None:
        self._proxy = proxy
        self.wire = Wire(peer)
        self.front = Front(proxy.hub, proxy.gate, proxy.backends, proxy.timeouts)
        self.wire.protocol = self.front
        self.front.connection_made(self.wire)
        self.in_flight = b""

    def send(self, data: bytes, piece_bytes: int = 256_000) -> None:
        """As a loop delivers it: in pieces, none while reading is paused."""
        self.in_flight += data
        self.deliver(piece_bytes)

    def deliver(self, piece_bytes: int = 256_000) -> None:
        """What is in the network arrives, as far as it is read."""
        while self.in_flight and not self.wire.held and not self.wire.closed:
            self._proxy.offer_link()
            piece, self.in_flight = self.in_flight[:piece_bytes], self.in_flight[piece_bytes:]
            self.front.data_received(piece)
            self._proxy.clock.turns()

    def leave(self) -> None:
        """The connection is gone."""
        self.wire.closed = True
        self.front.connection_lost(None)

    @property
    def received(self) -> bytes:
        return bytes(self.wire.written)

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.received)]


class Wired:
    """A proxying worker. `links` are its connections to the upstream, `requests` what was written to them."""

    def __init__(
        self, *policies: Any, limits: Limits = LIMITS, environ: dict[str, str] | None = None, **more: Any
    ) -> None:
        self.clock = Clock()
        self.gate, self.segment, self.lookup = decides(
            *policies, environ=environ, more=more, clock=self.clock.now
        )
        self.hub = Hub(self.gate, limits, self.clock.now)
        self.hub.loop = self.clock  # type: ignore[assignment]
        self.given_up = 0
        self.hub.kept.on_given_up = self._gave_up
        self.backends = Backends((Address("upstream", 80, False),), self.segment, None, 1000, 3_600_000)
        self.timeouts = Timeouts(UPSTREAM_MS, UPSTREAM_MS)
        self.links: list[tuple[Link, Wire]] = []
        self.offer_link()

    def _gave_up(self) -> None:
        self.given_up += 1

    def peer(self, address: str) -> Peer:
        return self.gate.peer(address)

    def connect(self, peer: str = "192.0.2.1", *, reads: bool = True) -> Client:
        """A new client; `peer` is "" for one on a unix socket."""
        client = Client(self, peer)
        client.wire.reads = reads
        self.offer_link()
        return client

    def offer_link(self) -> None:
        """An idle link for the next request: nothing here connects."""
        backend = self.backends.choose(0, [])
        if backend.idle:
            return
        link, wire = Link(backend), Wire()
        wire.protocol = link
        link.connection_made(wire)
        link.keep_until_ms = 1 << 60
        backend.idle.append(link)
        self.links.append((link, wire))

    def forget_links(self) -> None:
        """Begin with new connections to the upstream."""
        self.backends.choose(0, []).idle.clear()
        self.links.clear()

    @property
    def busy(self) -> list[tuple[Link, Wire]]:
        """The links that carry a request."""
        idle = self.backends.choose(0, []).idle
        return [(link, wire) for link, wire in self.links if link not in idle and not wire.closed]

    @property
    def requests(self) -> bytes:
        return b"".join(bytes(wire.written) for _, wire in self.links)

    def answer(self, response: bytes) -> int:
        """Every request that is under way gets this response, unless its link is not read; gives how many did."""
        self.offer_link()
        ready = [(link, wire) for link, wire in self.busy if not wire.held]
        for link, _ in ready:
            link.data_received(response)
            self.clock.turns()
            self.offer_link()
        return len(ready)

    def later(self, seconds: float) -> None:
        """Time passes."""
        self.clock.go_on(seconds)
        self.clock.turns()
        self.hub.tick()
