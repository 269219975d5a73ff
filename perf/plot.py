"""The pictures: who answers how many requests, and how late at a constant rate; throughput against cores.

    perf/.venv/bin/python perf/plot.py run|cores RECORDED.json PICTURE.svg

They read on light and dark pages.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from report import rows

SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fairvisor",  # the same numbers give the same file
    "font.family": "sans-serif",
}
INK = "#1f2933"  # what is drawn in it follows the colour scheme
OTHERS = "#8b98a5"
OURS = "#3b82f6"
LINES = (OTHERS, "#d97706", OURS)
STYLE = (
    "<style>svg { --ink: #1f2933; } @media (prefers-color-scheme: dark) { svg { --ink: #e6edf3; } }</style>"
)


def bars(axes: Any, workload: dict[str, Any]) -> None:
    """Requests per second, the first contender on top."""
    found = rows(workload)[::-1]
    names = [row[""] for row in found]
    rates = [row["requests/s"] / 1000 for row in found]
    ours = [OTHERS if re.match("nginx|Envoy|original", name) else OURS for name in names]
    drawn = axes.barh(names, rates, color=ours, height=0.65)
    labels = [f"{row['requests/s'] / 1000:.0f}  ({row['of the first']:.2f})" for row in found]
    axes.bar_label(drawn, labels=labels, padding=4, color=INK, fontsize=9)
    axes.set_xlim(0, max(rates) * 1.25)
    axes.set_title("thousand requests/s of one core\n(share of nginx return 204)", color=INK, fontsize=10)


def latencies(axes: Any, workload: dict[str, Any]) -> None:
    """A line for each contender and quantile over its load."""
    contenders: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for row in rows(workload):
        name, _, load = row[""].rpartition(" at ")
        contenders.setdefault(name, []).append((int(load.rstrip("%")), row))
    for (name, points), colour in zip(contenders.items(), LINES, strict=True):
        loads = [load for load, _ in points]
        for quantile, line in (("p50 µs", "-"), ("p99.9 µs", "--")):
            late = [row[quantile] for _, row in points]
            label = f"{name}, {quantile.removesuffix(' µs')}"
            axes.plot(loads, late, line, color=colour, marker="o", markersize=4, label=label)
    axes.set_yscale("log")
    axes.set_xticks(loads, [f"{load} %" for load in loads])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(
        frameon=False, labelcolor=INK, fontsize=8, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.1)
    )
    axes.set_title("latency in µs at a constant rate\n(share of what each can do)", color=INK, fontsize=10)


def plain(axes: Any) -> None:
    """Ink in one colour, and little of it."""
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors=INK, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def save(figure: Any, to: Path, about: str) -> None:
    """As an SVG that follows the colour scheme, with words for who cannot see it."""
    figure.savefig(to, transparent=True, bbox_inches="tight", metadata={"Date": None, "Description": about})
    text = to.read_text().replace(INK, "var(--ink)")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{about}" ', 1).replace(
        " <metadata>", f" {STYLE}\n <metadata>"
    )
    to.write_text(re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE))


def run(recorded: dict[str, Any], picture: Path) -> None:
    """Rates on the left, latencies on the right."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8), gridspec_kw={"width_ratios": [1.15, 1]})
    bars(left, recorded["workloads"]["decisions"])
    latencies(right, recorded["workloads"]["latency"])
    plain(left)
    plain(right)
    figure.tight_layout(w_pad=3)
    save(figure, picture, "Requests per second beside nginx and Envoy, and latency at constant rates")


def cores(recorded: dict[str, Any], picture: Path) -> None:
    """A line for each shape of load, beside the one that would be straight."""
    figure, axes = pyplot.subplots(figsize=(7, 3.8))
    counts = [int(row["cores"]) for row in recorded["modelled"]]
    straight = [count * 1e3 / recorded["request_ns"] for count in counts]
    axes.plot(counts, straight, ":", color=INK, label="as many times one core")
    shapes = [name for name in recorded["modelled"][0] if name != "cores"]
    for name, colour in zip(shapes, (OURS, "#10b981", "#d97706", "#a78bfa", OTHERS), strict=True):
        rates = [float(row[name].split()[0]) for row in recorded["modelled"]]
        axes.plot(counts, rates, "-", color=colour, marker="o", markersize=4, label=name)
    axes.set_xticks([1, *counts[3:]])
    axes.set_title("million requests/s against cores, as the model has it", color=INK, fontsize=10)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    plain(axes)
    save(figure, picture, "Throughput against cores, as the model has it")


if __name__ == "__main__":
    pyplot.rcParams.update(SETTINGS)
    {"run": run, "cores": cores}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
