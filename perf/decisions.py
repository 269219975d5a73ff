"""Requests per second of one worker on one core, as a share of nginx answering 204 on the same core.

    python perf/decisions.py [--seconds 4] [--rounds 3] [--connections 32] [--only NAME]
                             [--format table|json] [--save FILE]

The server runs on core 0 and wrk on core 1. Contenders take turns, round after round, so that a drift of the machine
meets all of them; a share is computed within a round and its median is reported. `--connections 1` gives latencies,
`--save` also writes the numbers of every round, with date, machine and versions, as JSON. Run it with the Python and
the installation that you would serve with: compiled (FAIRVISOR_COMPILE=1), on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from contenders import LOAD_CORE, Contender, line_up, running, scratch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fairvisor import engine


class Measured(NamedTuple):
    """One run of wrk: requests per second, latencies in microseconds."""

    rate: float
    p50_us: float
    p99_us: float


UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def check(contender: Contender, port: int) -> None:
    """Ask twice and see that the answer is the one that is meant to be measured."""
    for _ in range(2):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{contender.path}", contender.body or None, contender.headers
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                status, body = answer.status, b""
        except urllib.error.HTTPError as refused:
            status, body = refused.code, refused.read()
    if status != contender.expect:
        sys.exit(f"{contender.name}: answered {status} instead of {contender.expect}: {body[:300]!r}")


def measure(contender: Contender, port: int, seconds: int, connections: int) -> Measured:
    """One run of wrk against a contender."""
    argv = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    for name, value in contender.headers.items():
        argv += ["-H", f"{name}: {value}"]
    argv.append(f"http://127.0.0.1:{port}{contender.path}")
    with tempfile.TemporaryDirectory() as folder:
        if contender.body:
            script = Path(folder, "post.lua")
            script.write_text(f'wrk.method = "POST"\nwrk.body = [==[{contender.body.decode()}]==]\n')
            argv[-1:-1] = ["-s", str(script)]
        out = subprocess.run(argv, capture_output=True, text=True, check=True)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out.stdout)
    quantiles = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s))$", out.stdout, re.M))
    assert rate is not None, out.stdout
    return Measured(float(rate[1]), _microseconds(quantiles["50"]), _microseconds(quantiles["99"]))


def _microseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
    assert match is not None, text
    return float(match[1]) * UNITS[match[2]]


def main() -> None:
    """Run all rounds and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", help="a contender's name (nginx always runs)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--save", type=Path, help="a file for every round's numbers")
    options = parser.parse_args()
    console = Console(stderr=True)
    with scratch() as folder, ExitStack() as stack:
        contenders = [
            (contender, port)
            for at, (contender, port) in enumerate(line_up(folder))
            if at == 0 or options.only in (None, contender.name)
        ]
        for contender, port in contenders:
            stack.enter_context(running(contender, port))
            check(contender, port)
        turns = [(contender, port) for _ in range(options.rounds) for contender, port in contenders]
        runs: dict[str, list[Measured]] = {contender.name: [] for contender, _ in contenders}
        for contender, port in track(turns, "measuring", console=console):
            runs[contender.name].append(measure(contender, port, options.seconds, options.connections))
    if options.save:
        record = {"machine": machine(), "options": f"{options.seconds} s, {options.connections} connections"}
        record |= {"rounds": {name: [run._asdict() for run in each] for name, each in runs.items()}}
        options.save.write_text(json.dumps(record, indent=2) + "\n")
    report(runs, options.format)


def machine() -> dict[str, str]:
    """What was measured, where and when."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    nginx = subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor[1] if processor else platform.machine(),
        "kernel": platform.release(),
        "python": sys.version,
        "nginx": nginx.strip(),
        "compiled": str(not engine.__file__.endswith(".py")),
    } | {name: metadata.version(name) for name in ("uvloop", "httptools", "gunicorn")}


def report(runs: dict[str, list[Measured]], form: str) -> None:
    """Medians over the rounds, shares of the first contender within each round."""
    ceiling = next(iter(runs.values()))
    rows = [
        {
            "contender": name,
            "requests_per_s": round(statistics.median(run.rate for run in each)),
            "share": round(statistics.median(a.rate / b.rate for a, b in zip(each, ceiling, strict=True)), 3),
            "p50_us": statistics.median(run.p50_us for run in each),
            "p99_us": statistics.median(run.p99_us for run in each),
        }
        for name, each in runs.items()
    ]
    show(rows, form)


def show(rows: list[dict[str, Any]], form: str) -> None:
    """Rows of the same fields, as a table or as JSON."""
    if form == "json":
        print(json.dumps(rows, indent=2))
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
