"""What a large bundle costs: per decision, and while it takes the place of another one.

    python perf/reload.py [--policies 10000] [--rate 2000] [--workers 2] [--part decisions|delays] [--format table|json]

Decisions: the same request decided by a bundle with one policy (or kill switch) and by one with ten thousand, in turns
in one process; a share is computed within a round and its median is reported.

Delays: a client sends requests at a constant rate, whatever the answers do, and measures each from the moment at which
it was due. Reported are the requests that were due between the start of a reload and its acknowledgement, beside those
of quiet seconds before. Bundles are pushed to the admin listener, as `fairvisor connect --push` does it. `elsewhere`
is the share of the machine that processes outside this measurement had meanwhile, `stolen` what its host did not give
it: where they are not small, they are what was measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import select
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from contenders import bucket, edge, free_port, scratch
from rich.console import Console
from rich.table import Table

from fairvisor.bundle.compile import compile_bundle
from fairvisor.bundle.load import parse
from fairvisor.cli.edge import Edge
from fairvisor.clock import read_now
from fairvisor.context import Context
from fairvisor.counters.segment import SHM_DIR, Segment
from fairvisor.engine import Bundle, decide
from fairvisor.identity import Identity
from fairvisor.settings import Settings

QUIET_S = 4.0
ROUNDS = 15
DECISIONS = 20_000
TARGET = "/svc7/orders/17"
REQUEST = (
    f"GET /v1/decision HTTP/1.1\r\nHost: edge\r\nX-Original-Method: GET\r\nX-Original-URI: {TARGET}\r\n"
    "X-Original-Host: api.example.com\r\nX-Api-Key: key-1\r\n\r\n"
).encode()


def bundle(version: int, policies: int, switches: int = 0, rate: float = 1e9, wrong: str = "") -> bytes:
    """Policies on paths of their own with two rules each; the one for TARGET is always among them."""
    found = []
    for index in range(7, 7 + policies):
        budget = {
            "name": "day",
            "limit_keys": ["header:x-api-key"],
            "algorithm": "cost_based",
            "algorithm_config": {"budget": 9e12, "period": "1d"},
        }
        rules = [bucket("per-key", "header:x-api-key", tokens_per_second=rate), budget]
        selector = {"pathPrefix": f"/svc{index}/", "methods": ["GET", "POST"]}
        found.append({"id": f"policy-{index}", "spec": {"selector": selector, "rules": rules}})
    stopped = [
        {"scope_key": "header:x-api-key", "scope_value": f"{wrong}bad-{index}"} for index in range(switches)
    ]
    return json.dumps({"bundle_version": version, "policies": found, "kill_switches": stopped}).encode()


# Decisions


def decision_costs(policies: int) -> list[dict[str, Any]]:
    """Each large bundle's cost as a share of the small one's."""
    segment = Segment.private(48 << 20)
    identity = Identity.from_settings(Settings.load({}, {}))

    def load(*shape: int) -> Bundle:
        parsed = parse(bundle(1, *shape), wall_ns=time.time_ns(), environ={})
        return compile_bundle(parsed.model, parsed.sha256, segment)

    pairs = {
        f"{policies:,} policies : 1": (load(policies), load(1)),
        f"{policies:,} kill switches : 1": (load(1, policies), load(1, 1)),
    }
    gc.collect()
    gc.freeze()
    rows = []
    for name, (large, small) in pairs.items():
        times = [(spent(large, segment, identity), spent(small, segment, identity)) for _ in range(ROUNDS)]
        share = statistics.median(many / one for many, one in times)
        rows.append({
            "what": name,
            "large_ns": round(statistics.median(many for many, _ in times)),
            "small_ns": round(statistics.median(one for _, one in times)),
            "share": round(share, 3),
        })  # fmt: skip
    return rows


def spent(loaded: Bundle, segment: Segment, identity: Identity) -> float:
    """Nanoseconds of processor time for one decision."""
    headers = {"x-api-key": b"key-1"}
    began = time.process_time_ns()
    for _ in range(DECISIONS):
        now = read_now()
        context = Context("GET", "api.example.com", TARGET, headers, "127.0.0.1", identity, now)
        decide(loaded, segment.table, context, now)
    return (time.process_time_ns() - began) / DECISIONS


# Delays


class Window(NamedTuple):
    """A reload: when it began and was acknowledged (monotonic ns), who lagged, and what the machine did meanwhile."""

    name: str
    begin_ns: int
    end_ns: int
    lagging: int
    disturbed: Disturbed


class Disturbed(NamedTuple):
    """Shares of the machine, 0 to 1: what other processes had, and what its host did not give."""

    elsewhere: float
    stolen: float


class Machine:
    """What the processors have done since it was made, by all processes and by this process group (proc(5))."""

    def __init__(self) -> None:
        self._before = _processors()
        self._ours = _ticks_of_group(os.getpgrp())

    def disturbed(self) -> Disturbed:
        used, stolen, total = (now - before for now, before in zip(_processors(), self._before, strict=True))
        ours = _ticks_of_group(os.getpgrp()) - self._ours
        return Disturbed(max(0.0, round((used - ours) / total, 2)), round(stolen / total, 2))


def _processors() -> tuple[int, int, int]:
    """Clock ticks: used by processes, stolen, and all there are."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    *_, idle, waiting_for_disk, _, _, stolen = ticks
    return sum(ticks) - idle - waiting_for_disk - stolen, stolen, max(1, sum(ticks))


def _ticks_of_group(group: int) -> int:
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15])) if int(fields[2]) == group else 0
    return total


class Steady:
    """Requests at a constant rate over some connections; each answer is dated from when its request was due."""

    def __init__(self, port: int, rate: int, connections: int = 8) -> None:
        self._every_ns = 1_000_000_000 // rate
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
        self._due: dict[int, deque[int]] = {each.fileno(): deque() for each in self._sockets}
        self._tail: dict[int, bytes] = {each.fileno(): b"" for each in self._sockets}
        self._port = port
        self._stop = threading.Event()
        self.seen: list[tuple[int, int]] = []  # due, delay in ns
        self.failed = 0

    def run(self) -> None:
        """Until `stop`. `select` and not `epoll`, whose time-outs are whole milliseconds."""
        for each in self._sockets:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        next_ns, turn = time.monotonic_ns(), 0
        while not self._stop.is_set():
            while next_ns <= time.monotonic_ns():
                each = self._sockets[turn % len(self._sockets)]
                each.send(REQUEST)
                self._due[each.fileno()].append(next_ns)
                next_ns, turn = next_ns + self._every_ns, turn + 1
            wait_s = (next_ns - time.monotonic_ns()) / 1e9
            for each in select.select(self._sockets, [], [], max(0.0, wait_s))[0]:
                self._read(each)

    def _read(self, connection: socket.socket) -> None:
        data = self._tail[connection.fileno()] + connection.recv(1 << 16)
        *answers, self._tail[connection.fileno()] = data.split(b"\r\n\r\n")
        now_ns = time.monotonic_ns()
        due = self._due[connection.fileno()]
        for answer in answers:
            self.failed += not answer.startswith(b"HTTP/1.1 204")
            due_ns = due.popleft()
            self.seen.append((due_ns, now_ns - due_ns))

    def stop(self) -> None:
        self._stop.set()


def client(port: int, rate: int, pipe: Any) -> None:
    """The process of the client: until something comes through the pipe, then everything seen goes back."""
    gc.disable()
    steady = Steady(port, rate)
    thread = threading.Thread(target=steady.run)
    thread.start()
    pipe.recv()
    steady.stop()
    thread.join()
    pipe.send((steady.seen, steady.failed))


@contextmanager
def serving(folder: Path, workers: int, first: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """An edge on a port; its environment."""
    port = free_port()
    contender = edge(
        folder, port, "reload", json.loads(first), environ={"FAIRVISOR_WORKER_PROCESSES": str(workers)}
    )
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(contender.argv, contender.environ)
    )
    process.start()
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(1.5)
        yield port, contender.environ
    finally:
        process.terminate()
        process.join()
        for path in SHM_DIR.glob(f"fairvisor-perf-{port}*"):
            path.unlink()


def _serve(argv: list[str], environ: dict[str, str]) -> None:
    os.execvpe(argv[0], argv, {**os.environ, **environ})


def delays(policies: int, rate: int, workers: int) -> list[dict[str, Any]]:
    """The delays of quiet seconds and of each kind of reload."""
    one = bundle(1, 1)
    steps = [
        ("a small bundle", bundle(2, 2)),
        (f"{policies:,} new policies", bundle(3, policies)),
        ("one policy more", bundle(4, policies + 1)),
        ("every policy changed", bundle(5, policies, rate=1e8)),
        (f"{policies:,} new kill switches", bundle(6, policies, policies, rate=1e8)),
        ("every kill switch changed", bundle(7, policies, policies, rate=1e8, wrong="very-")),
        ("back to a small bundle", bundle(8, 1)),
    ]
    with scratch() as folder, serving(folder, workers, one) as (port, environ):
        admin = Edge(f"unix:{folder}/{environ['FAIRVISOR_INSTANCE']}.admin", None)
        here, there = multiprocessing.Pipe()
        asking = multiprocessing.get_context("spawn").Process(target=client, args=(port, rate, there))
        asking.start()
        time.sleep(2)
        machine, begin_ns = Machine(), time.monotonic_ns()
        time.sleep(QUIET_S)
        windows = [Window("quiet", begin_ns, time.monotonic_ns(), 0, machine.disturbed())]
        for name, data in steps:
            machine, begin_ns = Machine(), time.monotonic_ns()
            published = admin.ask("PUT", "bundle", body=data)
            end_ns = time.monotonic_ns()
            lagging = len(published["lagging"])
            windows.append(Window(name, begin_ns, end_ns, lagging, machine.disturbed()))
            time.sleep(1.5)
        here.send("stop")
        seen, failed = here.recv()
        asking.join()
    if failed:
        sys.exit(f"{failed} requests were not allowed")
    return [summary(window, seen) for window in windows]


def summary(window: Window, seen: list[tuple[int, int]]) -> dict[str, Any]:
    found = sorted(delay_ns for due_ns, delay_ns in seen if window.begin_ns <= due_ns <= window.end_ns)
    p50, p99, most = (
        found[min(len(found) - 1, len(found) * part // 1000)] / 1e6 for part in (500, 990, 1000)
    )
    return {
        "what": window.name,
        "took_ms": round((window.end_ns - window.begin_ns) / 1e6),
        "lagging": window.lagging,
        "requests": len(found),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "max_ms": round(most, 3),
        **window.disturbed._asdict(),
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--policies", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part", choices=["decisions", "delays"])
    parser.add_argument("--format", choices=["table", "json"], default="table")
    chosen = parser.parse_args()
    results = {}
    if chosen.part != "delays":
        results["decisions"] = decision_costs(chosen.policies)
    if chosen.part != "decisions":
        results["delays"] = delays(chosen.policies, chosen.rate, chosen.workers)
    if chosen.format == "json":
        print(json.dumps(results))
    else:
        for title, rows in results.items():
            show(title, rows)


if __name__ == "__main__":
    main()
