"""The dashboard and the alerts speak of families that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fairvisor.metrics.families import FAMILIES

CONF = Path(__file__).parent.parent / "conf"
NAMES = {
    name
    for family in FAMILIES
    for name in (
        [f"{family.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        if family.kind == "histogram"
        else [family.name]
    )
}


@pytest.mark.parametrize(
    "path",
    ["grafana/fairvisor.json", "prometheus/fairvisor.rules.yml", "prometheus/fairvisor.rules.test.yml"],
)
def test_every_name_in_a_query_is_a_family(path: str) -> None:
    used = set(re.findall(r"\bfairvisor_[a-z_]+", (CONF / path).read_text()))
    assert used - NAMES == set()


def test_the_dashboard_shows_every_family() -> None:
    text = (CONF / "grafana" / "fairvisor.json").read_text()
    shown = set(re.findall(r"\bfairvisor_[a-z_]+", text))
    assert {family.name for family in FAMILIES} - {name.removesuffix("_bucket") for name in shown} == set()


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((CONF / "grafana" / "fairvisor.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
