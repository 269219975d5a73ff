"""A proxy in one process for tests: clients and upstreams are sockets, the clock and the loop are real.

    async with bench(policy(...)) as proxy:
        client = await proxy.connect()
        client.send(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        assert (await client.response()).status == 200

The upstream is a `Script`: for each connection a list of what it does. What it received is kept byte for byte.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import uvloop
from edge import SEGMENT_BYTES, bundle, identity_of

from fairvisor.bundle.compile import Options, compile_bundle
from fairvisor.bundle.load import parse
from fairvisor.clock import Now, read_now
from fairvisor.counters.segment import Segment
from fairvisor.decision import UNIT_U
from fairvisor.http.hub import Hub, Limits
from fairvisor.lookup import Lookup
from fairvisor.proxy.backends import Address, Backends
from fairvisor.proxy.front import Front
from fairvisor.proxy.gate import Gate
from fairvisor.proxy.pace import Timeouts
from fairvisor.settings import Settings

PATIENCE_S = 10
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def run(test: Awaitable[None], patience_s: int = PATIENCE_S) -> None:
    """Run a test's coroutine on the loop that workers use; it must not take long."""

    async def bounded() -> None:
        await asyncio.wait_for(test, patience_s)

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(bounded())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class Response:
    """A response as a client reads it."""

    def __init__(self, head: bytes, body: bytes, raw: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.pairs = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        self.headers = dict(self.pairs)
        self.body = body
        self.raw = raw

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A client that sends bytes and reads whole responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, data: bytes, *, to_head: bool = False) -> Response:
        self.send(data)
        return await self.response(to_head=to_head)

    async def response(self, *, to_head: bool = False) -> Response:
        head = await self.reader.readuntil(b"\r\n\r\n")
        headers = Response(head[:-4], b"", b"").headers
        status = int(head.split(b" ")[1])
        if to_head or status in (204, 304) or status < 200:
            return Response(head[:-4], b"", head)
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
            return Response(head[:-4], body, head + body)
        if headers.get("transfer-encoding") == "chunked":
            body, raw = await self._chunks()
            return Response(head[:-4], body, head + raw)
        body = await self.reader.read()
        return Response(head[:-4], body, head + body)

    async def _chunks(self) -> tuple[bytes, bytes]:
        body = raw = b""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            raw += line
            size = int(line, 16)
            if not size:
                break
            piece = await self.reader.readexactly(size + 2)
            raw += piece
            body += piece[:-2]
        while True:
            line = await self.reader.readuntil(b"\r\n")
            raw += line
            if line == b"\r\n":
                return body, raw

    async def rest(self) -> bytes:
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.transport.abort()


class Upstream:
    """A server on a port of its own. `received` holds what each connection sent."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler or self.answer_all
        self.received: list[bytes] = []
        self.server: asyncio.AbstractServer | None = None
        self.reply = OK
        self.port = 0
        self.open = 0

    async def start(self) -> Upstream:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index = len(self.received)
        self.received.append(b"")
        self.open += 1
        feed = reader.feed_data

        def tee(data: bytes) -> None:
            self.received[index] += bytes(data)
            feed(data)

        reader.feed_data = tee  # type: ignore[method-assign]
        if reader._buffer:  # type: ignore[attr-defined]
            self.received[index] += bytes(reader._buffer)  # type: ignore[attr-defined]
        try:
            await self.handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(self.reply)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """A request's head and body, as an upstream reads it."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"\r\ntransfer-encoding: chunked" in lower:
        body = b""
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            body += (await reader.readexactly(size + 2))[:-2] if size else b""
            if not size:
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                return head, body
    at = lower.find(b"\r\ncontent-length: ")
    if at < 0:
        return head, b""
    length = int(lower[at + 18 :].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


class Bench:
    """A running proxy before upstreams."""

    def __init__(
        self, segment: Segment, hub: Hub, port: int, backends: Backends, gate: Gate, lookup: Lookup
    ) -> None:
        self.segment = segment
        self.hub = hub
        self.port = port
        self.backends = backends
        self.gate = gate
        self.lookup = lookup
        self.upstream = Upstream()
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes, *, to_head: bool = False) -> Response:
        """One request on a connection of its own."""
        client = await self.connect()
        try:
            return await client.ask(data, to_head=to_head)
        finally:
            client.close()

    def taken(self, policy_id: str, rule: str) -> list[int]:
        """What the counters of a rule without limit keys hold, in whole units: of each, limit less what is left."""
        found = self.lookup.find(policy_id, rule, {}, read_now())
        return [-(-(each.quota.amount_u - each.remaining_u) // UNIT_U) for each in found.standings]

    def metric(self, name: str, **labels: str) -> int:
        return sum(
            value
            for series, pairs, value in self.segment.series_values()
            if series == f"fairvisor_{name}" and labels.items() <= dict(pairs).items()
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)


class Decides(NamedTuple):
    """What decides in a proxy, and what it counts in."""

    gate: Gate
    segment: Segment
    lookup: Lookup


def decides(
    *policies: Any,
    environ: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
    clock: Callable[[], Now] = read_now,
) -> Decides:
    """A gate with these policies; nobody is trusted unless `environ` says so."""
    environ = environ or {"FAIRVISOR_TRUSTED_PEERS": "none"}
    mode = {"FAIRVISOR_MODE": "reverse_proxy", "FAIRVISOR_BACKEND_URL": "http://x"}
    settings = Settings.load(mode | environ, {})
    segment = Segment.private(SEGMENT_BYTES)
    parsed = parse(
        json.dumps(bundle(*policies, **(more or {}))).encode(), wall_ns=clock().wall_ns, environ={}
    )
    compiled = compile_bundle(parsed.model, parsed.sha256, segment, Options())
    identity = identity_of(tuple((mode | environ).items()))
    active = SimpleNamespace(current=SimpleNamespace(bundle=compiled, identity=identity, about=None))
    gate = Gate(settings, segment, identity, cast(Any, active), clock)
    return Decides(gate, segment, Lookup(compiled, identity, segment.table))


@asynccontextmanager
async def bench(
    *policies: Any,
    handler: Handler | None = None,
    addresses: list[str] | None = None,
    timeouts: Timeouts | None = None,
    keep_ms: int = 30_000,
    connect_ms: int = 2_000,
    tls: Any = None,
    environ: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
) -> AsyncIterator[Bench]:
    """A proxy with these policies and an upstream served by `handler`."""
    loop = asyncio.get_running_loop()
    gate, segment, lookup = decides(*policies, environ=environ, more=more)
    hub = Hub(cast(Any, gate), Limits(2_000, 5_000, 100), read_now)
    hub.loop = loop
    upstream = await Upstream(handler).start()
    where = addresses or [f"http://127.0.0.1:{upstream.port}"]
    backends = Backends(tuple(map(Address.parse, where)), segment, tls, connect_ms, keep_ms)
    wait = timeouts or Timeouts(5_000, 5_000)
    server = await loop.create_server(lambda: Front(hub, gate, backends, wait), "127.0.0.1", 0)
    made = Bench(segment, hub, server.sockets[0].getsockname()[1], backends, gate, lookup)
    made.upstream = upstream

    def tick() -> None:
        nonlocal timer
        hub.tick()
        timer = loop.call_later(0.02, tick)

    timer = loop.call_later(0.02, tick)
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        timer.cancel()
        backends.close()
        server.close()
        assert upstream.server is not None
        upstream.server.close()
        for connection in tuple(hub.connections):
            connection.abort()
        await asyncio.sleep(0.02)
