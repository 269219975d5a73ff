"""What an idle connection through the proxy costs one worker: thousands of WebSockets, or of event streams.

    python perf/idle.py [--connections 10000] [--kind websocket|events|both] [--format table|json]

The upstream switches protocols, or begins a stream of events, and then says nothing. Reported is the growth of the
worker's own memory, for each connection; the kernel's buffers come on top. A worker needs two open files for each:
where `ulimit -n` cannot be raised so far, fewer connections are made, and the report says how many.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import time
from typing import Any

from contenders import free_port, running, scratch
from rich.console import Console
from rich.progress import track
from streams import memory_kib, page, proxy, worker_of
from terminal import show

SPARE_FILES = 100  # what a worker has open besides connections
BATCH = 100
REQUESTS = {
    "websocket": b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "events": b"GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n",
}
ANSWERS = {
    "websocket": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"8\r\n: hello\n\r\n",
}


def serve_upstream(port: int) -> None:
    """The upstream, in a process of its own."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWERS["websocket" if head.startswith(b"GET /ws") else "events"])
        await reader.read()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024) as server:
            await server.serve_forever()

    asyncio.run(run())


async def measure(kind: str, port: int, connections: int) -> dict[str, Any]:
    """Open so many, one batch after the other, and let them rest."""
    worker = worker_of(port)
    before_kib = memory_kib(worker)
    kept = []
    for _ in track(range(connections // BATCH), kind, console=Console(stderr=True)):
        batch = await asyncio.gather(*[asyncio.open_connection("127.0.0.1", port) for _ in range(BATCH)])
        for _, writer in batch:
            writer.write(REQUESTS[kind])
        for reader, _ in batch:
            await reader.readuntil(b"\r\n\r\n")
        kept += batch
    await asyncio.sleep(2)
    grown_kib = memory_kib(worker) - before_kib
    still_open = sum(not reader.at_eof() for reader, _ in kept)
    for _, writer in kept:
        writer.close()
    return {"kind": kind, "connections": still_open, "kib_each": round(grown_kib / still_open, 1)}


def most_connections(wanted: int) -> int:
    """How many the limit on open files allows one worker."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        limit = max(hard, 2 * wanted + SPARE_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (OSError, ValueError):
        limit = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return min(wanted, (limit - SPARE_FILES) // 2) // BATCH * BATCH


def run_kind(kind: str, connections: int) -> dict[str, Any]:
    """One kind, on a worker of its own."""
    behind, health = free_port(), free_port()
    upstream = multiprocessing.get_context("spawn").Process(
        target=serve_upstream, args=(behind,), daemon=True
    )
    upstream.start()
    idle = {
        "FAIRVISOR_MAX_CONNECTIONS": str(connections + 10),
        "FAIRVISOR_BACKEND_IDLE_TIMEOUT_MS": "600000",
        "FAIRVISOR_IDLE_TIMEOUT_MS": "600000",
    }
    try:
        with scratch() as folder:
            contender = proxy(folder, behind, health, **idle)
            with running(contender):
                while '"ok"' not in page(health, "/readyz"):
                    time.sleep(0.1)
                return asyncio.run(measure(kind, contender.port, connections))
    finally:
        upstream.terminate()


def main() -> None:
    """Run both kinds and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--kind", choices=(*REQUESTS, "both"), default="both")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    connections = most_connections(options.connections)
    rows = [run_kind(kind, connections) for kind in REQUESTS if options.kind in (kind, "both")]
    show(rows, options.format)


if __name__ == "__main__":
    main()
