"""What hostile clients cost one worker and its other clients: memory, and the latency of one at a constant rate.

    python perf/hostile.py [KIND...] [--connections 1,10,500] [--seconds 8] [--format table|json] [--output FILE]

Each kind of client does what one did in an adversarial review: it asks without reading, or sends almost everything and
then a byte now and then. So many of them are connected within two seconds, and again five seconds after the worker has
ended a connection, while another client asks 1,000 times a second. The worker has one core; the other client, what is
behind a proxy and the attacker share the other one, in this order of priority, and "attacker's cores" is how much the
attacker used of it. Reported are the growth of the worker's memory at
its peak and two seconds after they have left, requests of the other client without their answer, and its 99th
percentile beside that of the quiet seconds before. Ends with 1 when memory grew by 64 MiB or more, a request got no
answer, or the percentile is more than five times the quiet one. A worker of its own for every row.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bundles import one_limit
from contenders import Contender, edge, free_port, nginx_with, running, scratch
from load import LOST_NS, Steady
from machine import LOAD_CORE, SERVER_CORE, Machine
from rich.console import Console
from rich.progress import track
from streams import memory_kib, worker_of
from terminal import show

RATE = 1000
SCHED_SETATTR = 314  # on x86-64
SLICE_NS = 100_000
RAMP_S = 2.0
AGAIN_S = 5.0
TAKES_BYTES = (
    4096  # of the kernel's buffer for a client that does not read: what counts is what the worker keeps
)
DROP_S = 0.4
QUIET_S = 4
LEFT_S = 2.0
MOST_MIB = 64
MOST_TIMES = 5
PAGE_BYTES = 60_000
BODY_BYTES = 1 << 20  # of FAIRVISOR_MAX_BODY
READ_BYTES = 1 << 16

HOST = b"Host: a.example\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
DECISION = (
    b"GET /v1/decision HTTP/1.1\r\nX-Original-Method: %b\r\nX-Original-URI: /a\r\nX-Original-Host: a\r\n"
)


class Kind(NamedTuple):
    """A hostile client: what it sends at once, and again and again; whether it reads what it gets."""

    start: bytes
    drop: bytes = b""
    reads: bool = True
    proxied: bool = True


def _body(head: bytes) -> Kind:
    return Kind(head + b"Content-Length: %d\r\n\r\n" % BODY_BYTES + b" " * (BODY_BYTES - 100), b" ")


KINDS = {
    "pages unread": Kind((b"GET /page HTTP/1.1\r\n" + HOST + b"\r\n") * 20_740, reads=False),
    "rejects unread": Kind((b"GET /limited HTTP/1.1\r\n" + HOST + b"\r\n") * 20_740, reads=False),
    "rejects read": Kind((b"GET /limited HTTP/1.1\r\n" + HOST + b"\r\n") * 5_000, b"\r\n"),
    "undecided bodies": _body(b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST),
    "empty lines": Kind(b"\r\n", b"\r\n"),
    "heads": Kind(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 60_000, b"x"),
    "body drips": Kind(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "chunk drips": Kind(CHUNKED + b"fffff\r\n", b"x"),
    "extension drips": Kind(CHUNKED + b"1;", b"x"),
    "trailer drips": Kind(CHUNKED + b"0\r\n", b"a: b\r\n"),
    "decisions unread": Kind((DECISION % b"GET" + b"\r\n") * 20_000, reads=False, proxied=False),
    "metrics unread": Kind(b"GET /metrics HTTP/1.1\r\n\r\n" * 10_000, reads=False, proxied=False),
    "decision bodies": _body(DECISION.replace(b"GET", b"POST", 1) % b"POST")._replace(proxied=False),
    "decision empty lines": Kind(b"\r\n", b"\r\n", proxied=False),
}


# ---- the hostile clients, in a process of their own


class Hostile:
    """One of them; it connects again when its connection was ended."""

    def __init__(self, port: int, kind: Kind, selector: selectors.BaseSelector, begins: float) -> None:
        self._port = port
        self._kind = kind
        self._selector = selector
        self._socket: socket.socket | None = None
        self._left = memoryview(b"")
        self._next = begins  # when to connect, or to send a drop

    def step(self, now: float) -> None:
        """Connect or drip, when it is time."""
        if now < self._next:
            return
        if self._socket is None:
            self._connect()
        elif not self._left:
            self._next = now + DROP_S
            self._left = memoryview(self._kind.drop)
            self.send()

    def _connect(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        if not self._kind.reads:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TAKES_BYTES)
        with suppress(BlockingIOError):
            self._socket.connect(("127.0.0.1", self._port))
        self._left = memoryview(self._kind.start)
        self._watch()

    def _watch(self) -> None:
        wanted = selectors.EVENT_WRITE if self._left else 0
        if self._kind.reads:
            wanted |= selectors.EVENT_READ
        assert self._socket is not None
        with suppress(KeyError):
            self._selector.unregister(self._socket)
        if wanted:
            self._selector.register(self._socket, wanted, self)

    def send(self) -> None:
        """Send what goes."""
        assert self._socket is not None
        try:
            self._left = self._left[self._socket.send(self._left) :]
        except BlockingIOError:
            pass
        except OSError:
            self._again()
            return
        self._watch()

    def read(self) -> None:
        """Read, and notice the end."""
        assert self._socket is not None
        try:
            if not self._socket.recv(READ_BYTES):
                self._again()
        except BlockingIOError:
            pass
        except OSError:
            self._again()

    def _again(self) -> None:
        assert self._socket is not None
        with suppress(KeyError):
            self._selector.unregister(self._socket)
        self._socket.close()
        self._socket = None
        self._next = time.monotonic() + AGAIN_S


def attack(
    port: int, kind: Kind, connections: int, seconds: float, ready: Any, begin: Any, used: Any
) -> None:
    """Be so many hostile clients for so long, when both events say so: starting this process is no part of it."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # if all was started by chrt(1)
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # it shares its core with the measured client, which comes first
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    ready.set()
    begin.wait()
    selector = selectors.DefaultSelector()
    begins = time.monotonic()
    clients = [
        Hostile(port, kind, selector, begins + RAMP_S * number / connections) for number in range(connections)
    ]
    while (now := time.monotonic()) < begins + seconds:
        for client in clients:
            client.step(now)
        if not selector.get_map():
            time.sleep(0.05)
            continue
        for key, events in selector.select(0.05):
            if events & selectors.EVENT_READ:
                key.data.read()
            elif events & selectors.EVENT_WRITE:
                key.data.send()
    used.value = time.process_time()


# ---- what is attacked


@contextmanager
def attacked(folder: Path, kind: Kind) -> Iterator[Contender]:
    """A worker that runs, and what the other client asks it."""
    if not kind.proxied:
        contender = edge(folder, "decisions", one_limit())
        with first(contender, SERVER_CORE):
            shorten(contender)
            yield contender
        return
    behind = free_port()
    folder.chmod(0o755)  # nginx reads as another user
    (folder / "page").write_bytes(b"x" * PAGE_BYTES)
    places = f'location = /page {{ root {folder}; }} location / {{ return 200 "ok"; }}'
    http = f"server {{ listen 127.0.0.1:{behind}; {places} }}"
    environ = {
        "FAIRVISOR_MODE": "reverse_proxy",
        "FAIRVISOR_BACKEND_URL": f"http://127.0.0.1:{behind}",
        "FAIRVISOR_HEALTH_BIND": f"127.0.0.1:{free_port()}",
    }
    contender = edge(folder, "proxy", bundle(), environ=environ, path="/", expect=200)
    with (
        first(Contender("upstream", behind, nginx_with(folder, behind, http)), LOAD_CORE),
        first(contender, SERVER_CORE),
    ):
        shorten(contender)
        yield contender


def bundle() -> dict[str, Any]:
    """Policies that read bodies, reject, and let pass."""

    def limited(name: str, path: str, algorithm: str, **config: float) -> dict[str, Any]:
        rule = {"name": "r", "limit_keys": [], "algorithm": algorithm, "algorithm_config": config}
        return {"id": name, "spec": {"selector": {"pathPrefix": path}, "rules": [rule]}}

    return {
        "bundle_version": 1,
        "policies": [
            limited("all", "/", "token_bucket", tokens_per_second=1e6, burst=1e6),
            limited("none", "/limited", "token_bucket", tokens_per_second=0.001, burst=1),
            limited("llm", "/v1", "token_bucket_llm", tokens_per_minute=1e9),
        ],
    }


def shorten(contender: Contender) -> None:
    """Let the worker run soon after it is woken, though the core is shared: a slice of 100 us (sched_setattr(2))."""
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, -20, 0, SLICE_NS, 0, 0)
    ctypes.CDLL(None).syscall(SCHED_SETATTR, int(worker_of(contender.port).name), attributes, 0)


class Memory:
    """The most that the worker had since it was made."""

    def __init__(self, worker: Path) -> None:
        self._worker = worker
        self.before_kib = self.most_kib = memory_kib(worker)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            self.most_kib = max(self.most_kib, memory_kib(self._worker))

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()

    def grown_mib(self, now_kib: int) -> float:
        """What it has more than at first."""
        return round((now_kib - self.before_kib) / 1024, 1)


def come_first() -> list[str]:
    """Let what is started from now on come before what else the machine does. Return the command that lets the measured
    client come before all; nothing for a user who may not.

    The servers get no real-time policy: one that is busy would be stopped for 50 ms of each second (sched(7)).
    """
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except PermissionError:
        return []
    return ["chrt", "--fifo", "2"]


@contextmanager
def first(contender: Contender, core: str, *, stderr: int = subprocess.DEVNULL) -> Iterator[int]:
    """A server that runs before others: its priority counts in its session only, which has one too (sched(7))."""
    with running(contender, core, stderr=stderr) as pid:
        with suppress(OSError):
            Path(f"/proc/{pid}/autogroup").write_text("-20")
        yield pid


def p99_us(answers: list[tuple[int, int]]) -> float:
    """The 99th percentile; a request without an answer took as long as was waited."""
    delays = sorted(delay if delay >= 0 else LOST_NS for _, delay in answers)
    return delays[len(delays) * 99 // 100] / 1e3


def measure(name: str, kind: Kind, connections: int, seconds: float, command: list[str]) -> dict[str, Any]:
    """One row."""

    def asked(for_s: float) -> list[tuple[int, int]]:
        return Steady(contender, RATE, for_s, connections=8, before=command).finish()

    with scratch() as folder, attacked(folder, kind) as contender:
        asked(1)  # warm
        machine = Machine()
        quiet_us = p99_us(asked(QUIET_S))
        memory = Memory(worker_of(contender.port))
        spawn = multiprocessing.get_context("spawn")
        ready, begin, used = spawn.Event(), spawn.Event(), spawn.Value("d")
        hostile = spawn.Process(
            target=attack, args=(contender.port, kind, connections, seconds, ready, begin, used), daemon=True
        )
        hostile.start()
        ready.wait()
        begin.set()
        answers = asked(seconds + 1)
        hostile.join()
        memory.stop()
        disturbed = machine.disturbed()
        time.sleep(LEFT_S)
        during_us = p99_us(answers)
        return {
            "kind": name,
            "connections": connections,
            "grown, MiB": memory.grown_mib(memory.most_kib),
            "left, MiB": memory.grown_mib(memory_kib(worker_of(contender.port))),
            "lost": sum(delay < 0 for _, delay in answers),
            "quiet p99, us": round(quiet_us),
            "p99, us": round(during_us),
            "times": round(during_us / quiet_us, 1),
            "attacker's cores": round(used.value / seconds, 2),
            "elsewhere": disturbed.elsewhere,
        }


def holds(row: dict[str, Any]) -> bool:
    """Whether a row is as it should be."""
    return row["grown, MiB"] < MOST_MIB and not row["lost"] and row["times"] <= MOST_TIMES


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--connections", default="1,10,500")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--output", type=Path, help="a JSON file for the rows, too")
    options = parser.parse_args()
    rows = []
    command = come_first()
    chosen = [(name, kind) for name, kind in KINDS.items() if not options.kinds or name in options.kinds]
    counts = [int(each) for each in options.connections.split(",")]
    cells = [(name, kind, count) for name, kind in chosen for count in counts]
    for name, kind, count in track(cells, "hostile", console=Console(stderr=True)):
        rows.append(measure(name, kind, count, options.seconds, command))
    show(rows, options.format)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(0 if all(map(holds, rows)) else 1)


if __name__ == "__main__":
    main()
