"""Server-sent events through a proxy: the provider that sends them and the clients that read them, in one process.

    python perf/events.py PORT BEHIND SECONDS PID...

The provider listens on port BEHIND, the proxy on PORT. A hundred streams get an event of 200 bytes every 10 ms, each
written alone. An event carries its time, so that a client sees how long it took. Written as JSON: the events that were
read, quantiles of their delay, and the processor time of the processes PID for each.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

import uvloop
from machine import processor_ns

STREAMS = 100
EVERY_S = 0.01
SETTLE_S = 0.5  # until all streams flow
TEXT = "x" * 150
SENT = re.compile(rb'"sent": (\d+),')


async def provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a request with events until the client leaves."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    due = time.monotonic()
    while not writer.is_closing():
        event = f'data: {{"sent": {time.monotonic_ns()}, "text": "{TEXT}"}}\n\n'.encode()
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        due += EVERY_S
        await asyncio.sleep(due - time.monotonic())


async def read(port: int, delays_ns: list[int]) -> None:
    """Read one stream, noting how long each event took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: a\r\nX-Api-Key: key-1\r\nAccept: text/event-stream\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    try:
        while data := await reader.read(65536):
            now_ns = time.monotonic_ns()
            delays_ns += [now_ns - int(sent) for sent in SENT.findall(data)]
    finally:
        writer.close()


async def main(port: int, behind: int, seconds: float, processes: list[int]) -> None:
    """Run all streams for so long and print what was seen."""
    server = await asyncio.start_server(provide, "127.0.0.1", behind, backlog=STREAMS)
    delays_ns: list[int] = []
    readers = [asyncio.create_task(read(port, delays_ns)) for _ in range(STREAMS)]
    await asyncio.sleep(SETTLE_S)
    delays_ns.clear()
    used_ns = processor_ns(processes)
    await asyncio.sleep(seconds)
    used_ns, found = processor_ns(processes) - used_ns, sorted(delays_ns)
    for each in readers:
        each.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    server.close()
    print(
        json.dumps({
            "events_per_s": round(len(found) / seconds),
            "cpu_us_per_event": round(used_ns / len(found) / 1e3, 2),
            "p50_us": found[len(found) // 2] / 1e3,
            "p99_us": found[len(found) * 99 // 100] / 1e3,
        })
    )  # fmt: skip


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(
        main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), [int(each) for each in sys.argv[4:]])
    )
