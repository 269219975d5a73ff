"""Half an hour at half load, with reloads, kills and ever new keys: do memory and latency stay as they are?

    python perf/soak.py [--minutes 30] [--workers 2] [--load 0.5] [--save FILE] [--format table|json]

First a client asks as fast as answers come; then one asks at `--load` of that rate, at constant intervals, each tenth
request for a key that never comes again. Every 10 s a new bundle is pushed, every 30 s a worker is killed, but never
the eldest: a worker that dies young hides what it leaks. Clients and edge share the machine, so latencies are those of
this machine. Sampled are the own memory of each process (what is shared, the counters, is not in it), the counters in
use, and the latencies, which count from the moment at which a request was due.

Flat means: the means of the last fifth are not above those of the second fifth by more than 5 % and 1 MiB (memory of
the master and of the eldest worker), 5 % (counters in use), and 25 % and 100 microseconds (latency: the median of the
intervals' medians, and of their 99th percentiles). Nothing may be refused, or lost but by a worker that was killed.
Ends with 1 when that is not so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "processes"))

from edge_server import Edge, attach, wait_until
from soak_client import CONNECTIONS, run_client, seen
from streams import memory_kib
from test_reload import publisher

from fairvisor.clock import read_now

SAMPLES = 60
CALIBRATION_S = 5
PUSH_EVERY_S = 10
KILL_EVERY_S = 30
SLACK = {"memory": (1.05, 1024), "counters": (1.05, 0), "latency": (1.25, 100)}  # share, and in units
SHOWN = ("seconds", "answered", "p50_us", "p99_us", "master_kib", "eldest_kib", "counters")
WATCHED = {
    "master_kib": "memory",
    "eldest_kib": "memory",
    "counters": "counters",
    "p50_us": "latency",
    "p99_us": "latency",
}


def bundle(version: int) -> dict[str, Any]:
    """A bucket for each key, and a budget, that nobody uses up; one use of a bucket is forgotten after 10 s."""
    bucket = {"tokens_per_second": 0.1, "burst": 100_000}
    budget = {"budget": 10**12, "period": "1d"}
    rules = [
        {"name": "bucket", "limit_keys": ["header:x-key"], "algorithm": "token_bucket", "algorithm_config": bucket},
        {"name": f"budget-{version}", "limit_keys": [], "algorithm": "cost_based", "algorithm_config": budget},
    ]  # fmt: skip
    policy = {"id": "all", "spec": {"selector": {"pathPrefix": "/"}, "rules": rules}}
    return {"bundle_version": version, "policies": [policy]}


@contextmanager
def asking(port: int, rate: float | None) -> Iterator[Connection]:
    """A client at work; the end of its pipe."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    client = spawn.Process(target=run_client, args=(port, rate, there))
    client.start()
    there.close()
    try:
        while seen(here)["answered"] < CONNECTIONS:
            time.sleep(0.1)
        yield here
    finally:
        here.send(None)
        client.join()


class Soak:
    """The edge under test, and what is done to it on the way."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._push = publisher(edge).publish
        self._segment = attach(edge.instance)
        self._eldest = min(edge.workers())
        self._chance = random.Random(1)
        self._version = 1
        self._due_s = {"push": PUSH_EVERY_S, "kill": KILL_EVERY_S}
        self.killed = 0

    def disturb(self, passed_s: float) -> None:
        """Push and kill, when it is time to."""
        if passed_s >= self._due_s["push"]:
            self._due_s["push"] += PUSH_EVERY_S
            self._version += 1
            self._push(json.dumps(bundle(self._version)).encode())
        young = [pid for pid in self._edge.workers() if pid != self._eldest]
        if passed_s >= self._due_s["kill"] and young:
            self._due_s["kill"] += KILL_EVERY_S
            os.kill(self._chance.choice(young), signal.SIGKILL)
            self.killed += 1

    def sample(self, passed_s: float, client: Connection) -> dict[str, int]:
        """The processes and the latencies now."""
        return {
            "seconds": round(passed_s),
            **seen(client),
            "master_kib": memory_kib(Path(f"/proc/{self._edge.process.pid}")),
            "eldest_kib": memory_kib(Path(f"/proc/{self._eldest}")),
            "counters": self._segment.statistics(read_now().mono_ns).live,
        }


def verdict(samples: list[dict[str, int]], killed: int) -> list[str]:
    """What is not flat, or lost."""
    fifth = len(samples) // 5
    wrong = []
    for name, kind in WATCHED.items():
        middle = statistics.median if kind == "latency" else statistics.fmean
        before, after = (
            middle([sample[name] for sample in part])
            for part in (samples[fifth : 2 * fifth], samples[-fifth:])
        )
        share, units = SLACK[kind]
        if after > max(share * before, before + units):
            wrong.append(f"{name} went from {before:,.0f} to {after:,.0f}")
    lost, refused = lost_and_refused(samples)
    if lost > killed * CONNECTIONS:
        wrong.append(f"{lost} requests were lost, with {killed} workers killed")
    if refused:
        wrong.append(f"{refused} requests were refused")
    return wrong


def lost_and_refused(samples: list[dict[str, int]]) -> tuple[int, int]:
    """How many requests got no answer, and how many a reject."""
    return sum(sample["unanswered"] for sample in samples), sum(sample["refused"] for sample in samples)


def soak(minutes: float, workers: int, load: float) -> dict[str, Any]:
    """Run it."""
    with tempfile.TemporaryDirectory(prefix="fairvisor-soak-") as name:
        edge = Edge(Path(name), bundle(1), {
            "FAIRVISOR_WORKER_PROCESSES": str(workers), "FAIRVISOR_SHARED_DICT_SIZE": "48m",
        })  # fmt: skip
        try:
            edge.wait_ready()
            wait_until(lambda: len(edge.workers()) >= workers)
            port = edge.bind[1]
            assert isinstance(port, int)
            with asking(port, None) as client:
                seen(client)
                time.sleep(CALIBRATION_S)
                most = seen(client)["answered"] / CALIBRATION_S
            rate = load * most
            with asking(port, rate) as client:
                soaked = Soak(edge)
                samples = _samples(soaked, client, 60 * minutes / SAMPLES)
        finally:
            edge.clean_up()
    return {
        "most_per_s": round(most),
        "rate_per_s": round(rate),
        "killed": soaked.killed,
        "wrong": verdict(samples, soaked.killed),
        "samples": samples,
    }


def _samples(soaked: Soak, client: Connection, every_s: float) -> list[dict[str, int]]:
    began, samples = time.monotonic(), []
    seen(client)
    for number in track(range(1, SAMPLES + 1), "soaking", console=Console(stderr=True)):
        while (left_s := began + number * every_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 1))
            soaked.disturb(time.monotonic() - began)
        samples.append(soaked.sample(time.monotonic() - began, client))
    return samples


def report(found: dict[str, Any]) -> None:
    """Ten of the samples and the last, and the verdict."""
    console = Console()
    lost, refused = lost_and_refused(found["samples"])
    console.print(
        f"{found['rate_per_s']:,} requests a second, of {found['most_per_s']:,}; {found['killed']} workers killed, "
        f"{lost:,} requests lost, {refused:,} refused"
    )
    table = Table(*SHOWN, box=SIMPLE, pad_edge=False)
    for sample in found["samples"][:: SAMPLES // 10] + found["samples"][-1:]:
        table.add_row(*(f"{sample[name]:,}" for name in SHOWN))
    console.print(table)
    console.print("\n".join(found["wrong"]) or "flat: memory, counters and latency")


def main() -> None:
    """Soak, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--load", type=float, default=0.5, help="share of what the machine can do")
    parser.add_argument("--save", type=Path, help="a file for everything that was sampled, as JSON")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the edge is not left behind
    found = soak(options.minutes, options.workers, options.load)
    if options.save is not None:
        options.save.write_text(json.dumps(found, indent=1))
    if options.format == "json":
        print(json.dumps(found))
    else:
        report(found)
    sys.exit(1 if found["wrong"] else 0)


if __name__ == "__main__":
    main()
