"""A hundred reloads in a row under load: no request fails, none is decided by a mixture of two bundles.

    python perf/reloads.py [--rate 20000] [--reloads 100] [--workers 2] [--format table|json]

Processes of clients ask at a constant rate whatever the answers do, pipelined over a few connections each. Every
answer names the bundle that it was decided by twice, in the name of its rule and in its limit, and must name the same.
After each acknowledgement the next decision of every worker must be by the new bundle, its kill switch included. It is
what `tests/processes/test_reload.py` does with the clients that a test can afford.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "processes"))

from edge_server import Edge, ask, wait_until
from test_reload import EachWorker, marked, publisher, version_of

CLIENTS = 2
CONNECTIONS = 4
TICK_S = 0.002  # how often each client sends what is due
ANSWER = re.compile(rb'HTTP/1\.1 (\d+) .*?RateLimit-Policy: "[a-z]+-(\d+)";q=(\d+);', re.DOTALL)
OFFSET = 1_000_000_000  # `marked` adds it to the version for the limit


def client(address: tuple[str, int], rate: int, pipe: Connection) -> None:
    """Say that it is ready; ask until something comes through the pipe; then what was seen goes back."""
    gc.disable()
    connections = [_connect(address) for _ in range(CONNECTIONS)]
    seen: Counter[str] = Counter()
    pipe.send("ready")
    question, began, asked = ask(), time.monotonic(), 0
    while not pipe.poll():
        due = min(int((time.monotonic() - began) * rate) - asked, 2000)
        share = max(1, due // CONNECTIONS)
        for place, connection in enumerate(connections):
            connection.sendall(question * share)
            asked += share
            left = _read(connection, share, seen)
            if (
                left is not None
            ):  # asked to come again, to spread connections: what was not answered is asked anew
                connection.close()
                connections[place] = _connect(address)
                asked -= left
        time.sleep(max(0.0, TICK_S - (time.monotonic() - began) % TICK_S))
    pipe.send((seen, time.monotonic() - began))


def _connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _read(connection: socket.socket, expected: int, seen: Counter[str]) -> int | None:
    """Check so many answers; how many did not come because the edge said that the connection ends, else None."""
    data = b""
    while (answers := data.count(b"\r\n\r\n")) < expected:
        more = connection.recv(1 << 18)
        if not more:
            _check(data, seen)
            seen["cut off"] += b"Connection: close" not in data
            return expected - answers
        data += more
    _check(data, seen)
    return 0 if b"Connection: close" in data else None


def _check(data: bytes, seen: Counter[str]) -> None:
    found = ANSWER.findall(data)
    seen["failed"] += data.count(b"\r\n\r\n") - len(found) + sum(status != b"204" for status, _, _ in found)
    seen["mixed"] += sum(int(quota) - OFFSET != int(version) for _, version, quota in found)
    seen["answered"] += len(found)


def reload_often(edge: Edge, reloads: int, workers: int, console: Console) -> list[float]:
    """Push one version after the other and ask every worker after each; how long each push took, in milliseconds."""
    each, publish, took = EachWorker(edge, workers), publisher(edge).publish, []
    for version in track(range(2, 2 + reloads), "reloading", console=console):
        document = json.dumps(marked(version)).encode()
        began = time.monotonic()
        published = publish(document)
        took.append((time.monotonic() - began) * 1000)
        assert (published.version, published.lagging) == (version, ()), published
        answers = each.answers(ask("/", "GET", f"X-Version: {version - 1}"))
        assert [(status, version_of(headers)) for status, headers in answers] == [(204, version)] * workers
        answers = each.answers(ask("/", "GET", f"X-Version: {version}"))
        assert [status for status, _ in answers] == [429] * workers, "the kill switch is in force"
    return took


def run(rate: int, reloads: int, workers: int, console: Console) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="fairvisor-reloads-") as name:
        edge = Edge(Path(name), marked(1), {"FAIRVISOR_WORKER_PROCESSES": str(workers)})
        try:
            edge.wait_ready()
            wait_until(lambda: len(edge.workers()) >= workers)
            asking = []
            for _ in range(CLIENTS):
                here, there = spawn.Pipe()
                process = spawn.Process(target=client, args=(edge.bind, rate // CLIENTS, there))
                process.start()
                assert here.recv() == "ready"
                asking.append((process, here))
            time.sleep(1)
            took = reload_often(edge, reloads, workers, console)
            seen: Counter[str] = Counter()
            seconds = 0.0
            for process, here in asking:
                here.send("stop")
                found, seconds = here.recv()
                seen.update(found)
                process.join()
        finally:
            edge.clean_up()
    return {
        "reloads": reloads,
        "answered": seen["answered"],
        "per_second": round(seen["answered"] / seconds),
        "failed": seen["failed"],
        "mixed": seen["mixed"],
        "cut_off": seen["cut off"],
        "push_ms": round(sorted(took)[len(took) // 2], 1),
        "slowest_push_ms": round(max(took), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rate", type=int, default=20_000)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    row = run(options.rate, options.reloads, options.workers, Console(stderr=True))
    if options.format == "json":
        print(json.dumps(row))
    else:
        table = Table(*row)
        table.add_row(*map(str, row.values()))
        Console().print(table)
    if row["failed"] or row["mixed"] or row["cut_off"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
