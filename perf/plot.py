"""The picture of a run: who answers how many requests, and how late at a constant rate.

    perf/.venv/bin/python perf/plot.py RESULTS.json PICTURE.svg

It reads on light and dark pages.
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
    ours = [OTHERS if re.match("nginx|Envoy", name) else OURS for name in names]
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


def main(results: Path, picture: Path) -> None:
    """Both halves."""
    pyplot.rcParams.update(SETTINGS)
    workloads = json.loads(results.read_text())["workloads"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.8), gridspec_kw={"width_ratios": [1.15, 1]})
    bars(left, workloads["decisions"])
    latencies(right, workloads["latency"])
    for axes in (left, right):
        plain(axes)
    figure.tight_layout(w_pad=3)
    save(figure, picture, "Requests per second beside nginx and Envoy, and latency at constant rates")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
