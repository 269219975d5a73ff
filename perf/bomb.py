"""How long another client waits while a body passes that decodes to a thousand times its size.

    python perf/bomb.py [--seconds 8] [--record] [--format table|json]

One proxying worker stands before an upstream in a process of its own. A client asks again and again for what the worker
rejects by itself; meanwhile answers or requests pass that are made to hold the event loop. The longest wait of that
client is the longest time that the loop was held, with what the machine takes besides: "nothing" is the same with
ordinary traffic. `--record` writes `perf/results/bomb.json`. Ends with 1 when any of them delays the client by more
than 10 ms beyond what "nothing" does.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import socket
import sys
import time
import zlib
from pathlib import Path
from typing import Any, Final

from contenders import Contender, edge, free_port, running, scratch
from machine import described
from terminal import show

RESULT: Final = Path(__file__).parent / "results" / "bomb.json"
MOST_MS: Final = 10.0
MIB: Final = 1 << 20
TOKENS: Final = {"algorithm": "token_bucket_llm", "algorithm_config": {"tokens_per_minute": 1e9}}
NOTHING_LEFT: Final = {
    "algorithm": "token_bucket",
    "algorithm_config": {"tokens_per_second": 0.001, "burst": 1},
}
BUNDLE: Final = {
    "bundle_version": 1,
    "policies": [
        {
            "id": "llm",
            "spec": {"selector": {"pathPrefix": "/v1"}, "rules": [{"name": "t", "limit_keys": [], **TOKENS}]},
        },
        {
            "id": "probe",
            "spec": {
                "selector": {"pathPrefix": "/probe"},
                "rules": [{"name": "r", "limit_keys": [], **NOTHING_LEFT}],
            },
        },
    ],
}
PROBE: Final = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"


def swelling(compressed_bytes: int, unit: bytes) -> bytes:
    """About so many bytes of gzip that decode to `unit` again and again."""
    encoder = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = encoder.compress(unit * (64 * MIB // len(unit))) + encoder.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + block * max(1, compressed_bytes // len(block)) + b"\x03\x00" + bytes(8)


def answer(body: bytes, kind: str, coding: str = "") -> bytes:
    """A response of the upstream."""
    line = f"Content-Encoding: {coding}\r\n" if coding else ""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{line}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def request(body: bytes, path: str, coding: str = "") -> bytes:
    """A request to the proxy; its path says what the upstream answers."""
    line = f"Content-Encoding: {coding}\r\n" if coding else ""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{line}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answers() -> dict[str, bytes]:
    """What the upstream answers, by the last part of the path."""
    usage = b'{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
    return {
        "probe": answer(b"", "text/plain"),  # the first one passes
        "completions": answer(usage, "application/json"),
        "zeros-1.5": answer(swelling(1_500_000, b"\0"), "application/json", "gzip"),
        "zeros-9": answer(swelling(9_000_000, b"\0"), "application/json", "gzip"),
        "brackets-9": answer(swelling(9_000_000, b"["), "application/json", "gzip"),
        "events-9": answer(swelling(9_000_000, b"data: {}\n\n"), "text/event-stream", "gzip"),
    }


def hostile() -> dict[str, tuple[str, bytes]]:
    """What the hostile client sends, by what it is called: the path's end, and the request."""
    ask = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}).encode()
    chat = "/v1/chat/completions"
    lists = b'{"messages":[' + b"[]," * 340_000 + b"[]]}"
    deep = b'{"messages":[' + b",".join([b"[" * 900 + b"]" * 900] * 580) + b"]}"
    return {
        "nothing": (chat, request(ask, chat)),
        "answer, gzip, 1.5 MB for 1.5 GB": ("zeros-1.5", request(ask, "/v1/zeros-1.5")),
        "answer, gzip, 9 MB for 9 GB": ("zeros-9", request(ask, "/v1/zeros-9")),
        "answer, gzip, 9 MB of brackets": ("brackets-9", request(ask, "/v1/brackets-9")),
        "answer, gzip, 9 MB of events": ("events-9", request(ask, "/v1/events-9")),
        "request, gzip, 1 MB for 1 GB": (chat, request(swelling(1_000_000, b"\0"), chat, "gzip")),
        "request, 340,000 empty lists": (chat, request(lists, chat)),
        "request, lists 900 deep": (chat, request(deep, chat)),
    }


def serve_upstream(port: int) -> None:
    """The upstream's process."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
                await reader.readexactly(length)
                writer.write(known[head.split(b" ")[1].rpartition(b"/")[2].decode()])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port, limit=1 << 24)
        await server.serve_forever()

    known = answers()
    asyncio.run(run())


async def read_response(reader: asyncio.StreamReader) -> int:
    """The size of one response's body."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"chunked" not in head:
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        left = length
        while left:
            left -= len(await reader.read(min(left, MIB)))
        return length
    total = 0
    while size := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(size + 2)
        total += size
    await reader.readuntil(b"\r\n")
    return total


def probe(port: int, seconds: float, result: Any) -> None:
    """The other client, in a process of its own: how long it waited for each answer, in milliseconds."""

    async def run() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        waits, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.monotonic()
            writer.write(PROBE)
            await read_response(reader)
            waits.append(1000 * (time.monotonic() - start))
            await asyncio.sleep(0.001)
        return waits

    result.put(sorted(asyncio.run(run())))


async def attack(port: int, sent: bytes, seconds: float) -> int:
    """Send one hostile request after the other; how many were answered."""
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        writer.write(sent)
        await read_response(reader)
        writer.close()
        done += 1
    return done


def measure(port: int, name: str, sent: bytes, seconds: float) -> dict[str, Any]:
    """One row."""
    result: Any = multiprocessing.Queue()
    other = multiprocessing.Process(target=probe, args=(port, seconds, result))
    other.start()
    done = asyncio.run(attack(port, sent, seconds - 0.5))
    waits = result.get()
    other.join()
    return {
        "passes": name,
        "times": done,
        "probes": len(waits),
        "p50_ms": round(waits[len(waits) // 2], 2),
        "p99_ms": round(waits[len(waits) * 99 // 100], 2),
        "longest_ms": round(waits[-1], 2),
    }


def await_upstream(port: int) -> None:
    """Wait until the upstream has made its answers and listens."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.1)


def proxy(folder: Path, behind: int) -> Contender:
    """One proxying worker."""
    environ = {
        "FAIRVISOR_MODE": "reverse_proxy",
        "FAIRVISOR_BACKEND_URL": f"http://127.0.0.1:{behind}",
        "FAIRVISOR_HEALTH_BIND": f"127.0.0.1:{free_port()}",
    }
    return edge(folder, "proxy", BUNDLE, environ=environ)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    behind = free_port()
    upstream = multiprocessing.Process(target=serve_upstream, args=(behind,), daemon=True)
    upstream.start()
    with scratch() as folder:
        contender = proxy(folder, behind)
        with running(contender):
            await_upstream(behind)
            rows = [
                measure(contender.port, name, sent, options.seconds) for name, (_, sent) in hostile().items()
            ]
    upstream.terminate()
    show(rows, options.format)
    if options.record:
        RESULT.write_text(json.dumps({"machine": described(), "rows": rows}, indent=2) + "\n")
    quiet_ms = rows[0]["longest_ms"]
    sys.exit(1 if any(row["longest_ms"] > quiet_ms + MOST_MS for row in rows) else 0)


if __name__ == "__main__":
    main()
