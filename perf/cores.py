"""Throughput against cores: a model of the cache lines that several cores write, calibrated on this machine.

    python perf/cores.py [--format table|json] [--save]

`contention.c` measures what counting costs on a line of one's own, and on one that another core writes too. A request
is then its own processor time, during which cores do not meet, and its visits to shared lines, for which they queue:
mean value analysis of a closed network (Reiser and Lavenberg, 1980). Two kinds of lines are shared: the counter of a
hot key, and the cells of metrics, which all workers add to whatever the key is. `--save` records it all for
docs/performance.md, which says what the model leaves out. The time of a request is that of the last complete run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import report
from load import built
from machine import LOAD_CORE, SERVER_CORE, described
from run import render
from terminal import show

CORES = (1, 2, 4, 8, 16, 32, 64)
CELLS = 2  # sums that a request with one limit adds to: decisions, and results of the limit
HOT_KEYS = 8
FAR = 3  # for machines on which a line takes longer, such as those with two sockets
ONE_LIMIT = "one limit"


class Line(NamedTuple):
    """A line that all cores write: how long a visit has it, and how many visits a request makes.

    `failed` is how many tries of a visit fail for each core that waits: of a compare-and-swap, none of an addition.
    """

    visit_ns: float
    visits: float
    failed: float = 0


def measured() -> dict[str, list[list[float]]]:
    """By operation: pause, ns on an own line, ns on a shared one, failed tries, for each pause; `transfer`: ns."""
    argv = [built("contention.c"), SERVER_CORE, LOAD_CORE]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[list[float]]] = {}
    for line in out.splitlines():
        name, *numbers = line.split("\t")
        found.setdefault(name, []).append([float(each) for each in numbers])
    return found


def throughput(cores: int, own_ns: float, lines: Sequence[Line]) -> float:
    """Requests per second of so many cores, each of which has one request at a time."""
    if cores == 1:
        return 1e9 / own_ns
    waiting = [0.0] * len(lines)
    rate = 0.0
    for busy in range(1, cores + 1):
        at_line = [
            line.visits * line.visit_ns * (1 + others) * (1 + line.failed * others)
            for line, others in zip(lines, waiting, strict=True)
        ]
        rate = busy / (own_ns + sum(at_line))
        waiting = [rate * each for each in at_line]
    return rate * 1e9


def beside_measured(takes: Sequence[Sequence[float]], line: Line) -> list[report.Row]:
    """What the model says of the two cores that were measured."""
    return [
        {
            "pause between, ns": pause,
            "own line, ns": own,
            "shared line, ns": shared,
            "as modelled": 2e9 / throughput(2, pause + own, [line]) - pause,
            "failed tries": failed,
        }
        for pause, own, shared, failed in takes
    ]


def table(request_ns: float, visit_ns: float, failed: float) -> list[report.Row]:
    """Millions of requests per second for each number of cores, and what share of as many times one core that is."""

    def lines(hot_keys: int, times: int = 1) -> list[Line]:
        key = Line(visit_ns * times, 1 / max(1, hot_keys), failed)
        return [Line(visit_ns * times, CELLS)] + [key] * hot_keys

    shapes = {
        "spread keys": lines(0),
        f"{HOT_KEYS} hot keys": lines(HOT_KEYS),
        "one hot key": lines(1),
        f"spread keys, transfers {FAR} times as long": lines(0, FAR),
        f"one hot key, transfers {FAR} times as long": lines(1, FAR),
    }
    found = []
    for cores in CORES:
        row: report.Row = {"cores": str(cores)}
        for name, shared in shapes.items():
            rate = throughput(cores, request_ns, shared)
            row[name] = f"{rate / 1e6:.2f} ({rate * request_ns / 1e9 / cores:.0%})"
        found.append(row)
    return found


def modelled() -> dict[str, Any]:
    """All that is recorded."""
    last = json.loads(report.last().read_text())
    rates = {row[""]: row["requests/s"] for row in report.rows(last["workloads"]["decisions"])}
    request_ns = 1e9 / rates[ONE_LIMIT]
    found = measured()
    ((transfer_ns,),) = found["transfer"]
    _, _, shared_ns, failed = found["take"][0]  # with another core that does nothing else
    visit_ns = max(transfer_ns, shared_ns / 2 / (1 + failed))
    return {
        "machine": described(),
        "request_ns": round(request_ns),
        "transfer_ns": transfer_ns,
        "visit_ns": round(visit_ns, 1),
        "cell_ns": found["cell"][0][1:3],
        "measured": beside_measured(found["take"], Line(visit_ns, 1, failed)),
        "modelled": table(request_ns, visit_ns, failed),
    }


def main() -> None:
    """Measure, compute, show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--save", action="store_true", help=f"write {report.CORES.name} and the page")
    options = parser.parse_args()
    found = modelled()
    if options.format == "json":
        print(json.dumps(found, indent=1))
    else:
        title = f"Two cores that take from one bucket; a line takes {found['transfer_ns']} ns"
        show(found["measured"], "table", title)
        show(found["modelled"], "table", "million requests/s")
    if options.save:
        report.CORES.write_text(json.dumps(found, indent=1) + "\n")
        render()


if __name__ == "__main__":
    main()
