"""The fault campaign of the tests, for longer: many seeds, more workers, a /dev/shm of its own that is filled.

    python perf/chaos.py [--runs 10] [--first-seed 1] [--faults 20] [--seconds 10] [--workers 4] [--format table|json]

Each run starts an edge, asks for decisions all the time, does faults to it that are drawn from the seed (processes
killed and stopped, descriptors and memory taken, clocks set, disks slow or gone, bits flipped in shared memory, bundles
and snapshots half written or damaged), and proves afterwards that no limit was exceeded, nothing charged that was not
answered or owed by a killed worker, and no request lost by another one. A run has at least so many faults and seconds.
A seed that failed is named, and its log kept; `--first-seed N --runs 1` does the same faults again.
As root, or where unshare may make a user namespace, the run has a /dev/shm of 64 MiB for itself, as in a container.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "processes"))

import edge_server
from campaign import Asking, Found, Ledger, check, start_edge_on
from edge_server import wait_until
from fake_machine import Machine
from faults import Faults

PATIENCE_S = 120  # several campaigns may share the machine
OWN_SHM = "FAIRVISOR_CHAOS_OWN_SHM"


def run(seed: int, number: int, seconds: float, workers: int) -> dict[str, Any]:
    """One run; what it came to."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fairvisor-chaos-") as name:
        place = Path(name)
        machine = Machine(place / "machine")
        edge = start_edge_on(place / "machine", place, workers, FAIRVISOR_SHARED_DICT_SIZE="16m")
        faults, ledger = Faults(edge, machine, seed, own_shm=OWN_SHM in os.environ), Ledger()
        try:
            edge.wait_ready()
            with Asking(edge, ledger):
                began = time.monotonic()
                faults.suffer(number)
                while time.monotonic() - began < seconds:
                    faults.suffer(1)
                until = ledger.asked + 1000
                wait_until(lambda: ledger.asked >= until)
            found = check(edge, ledger, faults.hurt, faults.exempt(ledger.admitted), faults.counted_before)
        except AssertionError as error:  # it hangs, or does not start again
            found = Found([f"after {', '.join(faults.done)}: {error}"], ledger.asked, 0, 0, 0, 0)
        finally:
            log = edge.log.read_text()
            edge.clean_up()
    violations = found.violations + faults.wrong
    if violations:
        Path(f"chaos-{seed}.log").write_text(log)
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "faults": dict(Counter(faults.done)),
        **found._asdict(),
        "violations": violations,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    _own_shm()
    edge_server.PATIENCE_S = PATIENCE_S
    seeds = range(options.first_seed, options.first_seed + options.runs)
    rows = []
    for seed in track(seeds, console=Console(stderr=True)):
        rows.append(run(seed, options.faults, options.seconds, options.workers))
        if options.format == "json":
            print(json.dumps(rows[-1]), flush=True)
    if options.format == "table":
        Console().print(_runs(rows), _kinds(rows))
    sys.exit(any(row["violations"] for row in rows))


def _runs(rows: list[dict[str, Any]]) -> Table:
    table = Table(*rows[0])
    for row in rows:
        shown = {**row, "faults": sum(row["faults"].values()), "violations": "\n".join(row["violations"])}
        table.add_row(*(str(value) for value in shown.values()))
    return table


def _kinds(rows: list[dict[str, Any]]) -> Table:
    """How often each fault was done, in all runs."""
    table = Table("fault", "times")
    for kind, times in sum((Counter(row["faults"]) for row in rows), Counter()).most_common():
        table.add_row(kind.replace("_", " "), str(times))
    return table


def _own_shm() -> None:
    """Begin again in a mount namespace with a /dev/shm of its own, where that is allowed."""
    if OWN_SHM in os.environ:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", "/dev/shm"], check=True)
        return
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False).returncode == 0:
        os.environ[OWN_SHM] = "1"
        os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


if __name__ == "__main__":
    main()
