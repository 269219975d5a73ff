"""Results as tables: what is shown of the rounds, and the Markdown in the pages that show them.

A median is taken of the rounds in which neither other processes nor the host of the machine took more than 2 % of it, a
share within such a round. Knows the recorded numbers only, not how they were measured: pages are made without a server.
"""

from __future__ import annotations

import json
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "perf" / "results"
CORES = RESULTS / "cores.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
DISTURBANCES = ("elsewhere", "stolen")  # shares of the machine that somebody else had
MOST = 0.02
WIDTH = 120
LABELS = {
    "requests_per_s": "requests/s",
    "events_per_s": "events/s",
    "p50_us": "p50 µs",
    "p99_us": "p99 µs",
    "p999_us": "p99.9 µs",
    "cpu_us": "processor µs each",
    "cpu_us_per_event": "processor µs each",
    "unique_mb": "MB",
}
SHOWN_IN_README = "decisions"

Round = dict[str, float]
Row = dict[str, Any]


def disturbed(one: Round) -> bool:
    """Whether others had more than a little of the machine."""
    return any(one[name] > MOST for name in DISTURBANCES)


def quiet(rounds: Sequence[Round]) -> list[int]:
    """The numbers of the rounds that were not disturbed; all of them when there is none."""
    found = [number for number, each in enumerate(rounds) if not disturbed(each)]
    return found or list(range(len(rounds)))


def rows(workload: dict[str, Any]) -> list[Row]:
    """One row for each contender of a recorded workload."""
    contenders: dict[str, list[Round]] = workload["contenders"]
    first = next(iter(contenders.values()))
    return [_row(name, rounds, first, workload["share"]) for name, rounds in contenders.items()]


def _row(name: str, rounds: list[Round], first: list[Round], share: str) -> Row:
    kept = quiet(rounds)
    found: Row = {"": name}
    for field in rounds[0]:
        if field not in DISTURBANCES:
            found[LABELS[field]] = statistics.median(rounds[number][field] for number in kept)
    if share:
        both = sorted(set(kept) & set(quiet(first))) or kept
        found["of the first"] = statistics.median(rounds[each][share] / first[each][share] for each in both)
    return found | {"rounds": f"{sum(not disturbed(each) for each in rounds)} of {len(rounds)}"}


def number(value: Any) -> str:
    """Three digits that say something; text and truth as they are."""
    if isinstance(value, (str, bool)):
        return str(value)
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def table(found: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    head = [f"| {' | '.join(found[0])} |", f"| {' | '.join('---' for _ in found[0])} |"]
    return "\n".join(head + [f"| {' | '.join(map(number, row.values()))} |" for row in found])


def where(results: dict[str, Any], names: Iterable[str]) -> str:
    """A sentence about date, machine and versions, and how long the rounds of these workloads were."""
    of = results["machine"]
    named = [name for name in ("nginx", "Envoy", "wrk", "uvloop") if name.lower() in of]
    versions = ", ".join(f"{name} {of[name.lower()]}" for name in named)
    lengths = " or ".join(
        str(each) for each in sorted({results["workloads"][name]["seconds"] for name in names})
    )
    words = (
        f"Measured by `perf/run` on {of['date']}: {of['processor']}, {of['cores']} cores, Linux {of['kernel']}, "
        f"Python {of['python']}, {versions}; medians of rounds of {lengths} s, in turns."
    )
    return textwrap.fill(words, WIDTH)


def in_readme(results: dict[str, Any], name: str) -> str:
    """The short table and the picture."""
    shown = [{**row} for row in rows(results["workloads"][SHOWN_IN_README])]
    for row in shown:
        row[f"of {shown[0]['']}"] = row.pop("of the first")
        del row["rounds"], row["p50 µs"], row["p99 µs"]
    picture = f"![Requests per second beside nginx and Envoy, and latency at constant rates](perf/results/{name}.svg)"
    return f"{picture}\n\n{table(shown)}\n\n{where(results, [SHOWN_IN_README])}"


def in_performance(results: dict[str, Any], name: str) -> str:
    """Every table."""
    parts = [f"**{each['title']}**\n\n{table(rows(each))}" for each in results["workloads"].values()]
    return "\n\n".join(
        [
            where(results, results["workloads"]),
            *parts,
            f"Every round: [{name}.json](../perf/results/{name}.json).",
        ]
    )


def in_cores(recorded: dict[str, Any]) -> str:
    """What `cores.py` measured, and its table."""
    of, (own_ns, shared_ns) = recorded["machine"], recorded["cell_ns"]
    return "\n\n".join([
        textwrap.fill(
            f"Measured on {of['date']}, {of['processor']}: a line goes from one core to the other in "
            f"{recorded['transfer_ns']:.0f} ns. Adding to a metric took {own_ns:.0f} ns on an own line, "
            f"{shared_ns:.0f} ns on one that the other core added to all the time. "
            "Taking from a token bucket, both cores at it:",
            WIDTH,
        ),
        table(recorded["measured"]),
        textwrap.fill(
            f"With Z = {recorded['request_ns'] / 1000:.1f} µs, t = {recorded['visit_ns']:.0f} ns, f = "
            f"{recorded['measured'][0]['failed tries']:.2f}: million requests per second, and the share "
            "of as many times one core:",
            WIDTH,
        ),
        table(recorded["modelled"]),
        "![Throughput against cores, as the model has it](../perf/results/cores.svg)",
    ])  # fmt: skip


def last() -> Path:
    """Where the last complete run is recorded."""
    return max(RESULTS.glob("????-??-??.json"))


def blocks() -> dict[str, str]:
    """What stands in the pages between the comments of these names."""
    results = json.loads(last().read_text())
    return {
        "readme": in_readme(results, last().stem),
        "performance": in_performance(results, last().stem),
        "cores": in_cores(json.loads(CORES.read_text())),
    }


def filled(text: str) -> str:
    """A page with its blocks made anew."""
    for name, made in blocks().items():
        begin, end = f"<!-- perf: {name} -->", f"<!-- /perf: {name} -->"
        text = re.sub(f"{begin}.*?{end}", lambda _, m=f"{begin}\n{made}\n{end}": m, text, flags=re.DOTALL)
    return text
