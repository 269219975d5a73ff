"""Measures everything that `workloads.py` knows, and writes what README.md and docs/performance.md show.

    perf/run [WORKLOAD...] [--again] [--quick] [--rounds 5] [--seconds 2] [--format table|json] [--save FILE]
             [--original DIR]
    perf/run --render

Installs what is missing (as root: wrk and nginx; Envoy and matplotlib into a virtual environment of their own). The
servers run on core 0, the load on core 1. In each round all contenders of a workload take their turn, so that a drift
of the machine meets all of them; the first round warms up and does not count. Recorded with each number is what share
of the machine its host took away meanwhile: such rounds are kept, but not counted.

Without names and --quick everything is measured, in about ten minutes, and written: perf/results/<date>.json with every
round, a picture beside it, the tables in the pages. What was disturbed is measured again with its name and --again, as
long as nothing else has changed. --render makes pictures and pages again from what was recorded. Leave the machine
alone meanwhile, and run it with the Python and the installation that you would serve with.

--original takes a checkout of fairvisor/edge, which then takes part in `decisions` and `proxy`: nginx runs it, for
which its module for Lua is installed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import report
from contenders import scratch
from install import install
from machine import TOOLS, Machine, described
from original import missing
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from terminal import show
from workloads import WORKLOADS, Once, Workload, beside

HERE = Path(__file__).parent


def alternate(
    measured: dict[str, Once], rounds: int, seconds: int, progress: Progress
) -> dict[str, list[report.Round]]:
    """Each in turn, round after round, after a round of a second that does not count."""
    runs: dict[str, list[report.Round]] = {name: [] for name in measured}
    task = progress.add_task("", total=(rounds + 1) * len(measured))
    for number in range(rounds + 1):
        for name, once in measured.items():
            progress.update(task, description=name, advance=1)
            machine = Machine()
            found = once(seconds if number else 1)
            if number:
                runs[name].append(found | machine.disturbed()._asdict())
    progress.remove_task(task)
    return runs


def measure(workload: Workload, options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """One workload, as it is recorded."""
    with scratch() as folder, workload.begin(folder) as measured:
        contenders = alternate(measured, options.rounds, options.seconds, progress)
    return {
        "title": workload.title,
        "share": workload.share,
        "seconds": options.seconds,
        "contenders": contenders,
    }


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """The chosen workloads, with a bar on stderr and each table when it is complete."""
    found: dict[str, Any] = {}
    workloads = beside(options.original.resolve()) if options.original else WORKLOADS
    results = {"machine": described(), "workloads": found}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        everything = progress.add_task("all", total=len(options.workloads))
        for name in options.workloads:
            found[name] = measure(workloads[name], options, progress)
            progress.advance(everything)
            if options.format == "table":
                show(report.rows(found[name]), "table", found[name]["title"])
    return results


def render() -> None:
    """The pictures of what was recorded last, and the pages that show them."""
    for kind, recorded in (("run", report.last()), ("cores", report.CORES)):
        argv = [TOOLS / "python", HERE / "plot.py", kind, recorded, recorded.with_suffix(".svg")]
        subprocess.run(argv, check=True)
    for page in report.PAGES:
        page.write_text(report.filled(page.read_text()))


def write(results: dict[str, Any], to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    to.write_text(json.dumps(results, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="perf/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each round")
    parser.add_argument("--quick", action="store_true", help="two rounds of one second")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="also for some workloads: every round's numbers"
    )
    parser.add_argument(
        "--original", type=Path, metavar="DIR", help="a checkout of fairvisor/edge: measured beside ours"
    )
    parser.add_argument("--again", action="store_true", help="put these workloads into the last record anew")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    options = parser.parse_args()
    unknown = set(options.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}: there are {', '.join(WORKLOADS)}")
    lacking = missing(options.original) if options.original else []
    if lacking:
        parser.error(f"no fairvisor/edge in {options.original}: there is no {', no '.join(lacking)}")
    return options


def main() -> None:
    """Measure, write, show."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    install(lua=options.original is not None)
    if options.render:
        return render()
    complete = not options.workloads and not options.quick
    options.workloads = options.workloads or list(WORKLOADS)
    if options.quick:
        options.rounds, options.seconds = 2, 1
    results = measure_all(options)
    if options.format == "json":
        print(json.dumps(results, indent=1))
    if options.save:
        write(results, options.save)
    if complete:
        write(results, report.RESULTS / f"{results['machine']['date']}.json")
    if options.again:
        last = json.loads(report.last().read_text())
        last["workloads"] |= results["workloads"]
        write(last, report.last())
    if complete or options.again:
        render()
    return None


if __name__ == "__main__":
    main()
