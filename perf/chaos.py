"""The fault campaign of the tests, for longer: many seeds, more workers, a /dev/shm of its own that is filled.

    python perf/chaos.py [--runs 10] [--first-seed 1] [--faults 20] [--workers 4] [--format table|json]

Each run starts an edge, asks for decisions all the time, does faults to it that are drawn from the seed (processes
killed and stopped, descriptors taken, memory and disks full or gone, bundles and snapshots half written or damaged),
and proves afterwards that no limit was exceeded, nothing charged that was not answered or owed by a killed worker, and
no request lost by another one. A seed that failed is named; `--first-seed N --runs 1` does the same faults again.
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
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "processes"))

from campaign import Asking, Found, Ledger, bundle, check
from edge_server import Edge, wait_until
from faults import Faults

OWN_SHM = "FAIRVISOR_CHAOS_OWN_SHM"


def run(seed: int, number: int, workers: int) -> dict[str, Any]:
    """One run; what it came to."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fairvisor-chaos-") as name:
        edge = Edge(Path(name), bundle(1), {
            "FAIRVISOR_WORKER_PROCESSES": str(workers),
            "FAIRVISOR_ADMIN_BIND": f"unix:{name}/admin",
            "FAIRVISOR_AUDIT_LOG": f"{name}/audit.log",
            "FAIRVISOR_SHARED_DICT_SIZE": "16m",
        })  # fmt: skip
        faults, ledger = Faults(edge, seed, own_shm=OWN_SHM in os.environ), Ledger()
        try:
            edge.wait_ready()
            with Asking(edge, ledger):
                faults.suffer(number)
                until = ledger.asked + 1000
                wait_until(lambda: ledger.asked >= until)
            found = check(edge, ledger, faults.killed)
        except AssertionError as error:  # it hangs, or does not start again
            found = Found([f"after {', '.join(faults.done)}: {error}"], ledger.asked, 0, 0, 0)
        finally:
            log = edge.log.read_text()
            edge.clean_up()
    if found.violations:
        Path(f"chaos-{seed}.log").write_text(log)
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - began),
        "faults": len(faults.done),
        "killed": len(faults.killed),
        **found._asdict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    _own_shm()
    seeds = range(options.first_seed, options.first_seed + options.runs)
    rows = [run(seed, options.faults, options.workers) for seed in track(seeds, console=Console(stderr=True))]
    if options.format == "json":
        print(json.dumps(rows, indent=2))
    else:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(
                *("\n".join(each) if isinstance(each, list) else str(each) for each in row.values())
            )
        Console().print(table)
    sys.exit(any(row["violations"] for row in rows))


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
