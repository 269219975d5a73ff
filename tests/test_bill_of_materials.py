"""What a release lists as its parts: all that an installation needs to run, and nothing that builds or tests it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def needed(name: str, extra: str = "") -> set[str]:
    """The packages that one needs here to run, and what these need; itself too."""
    found = {canonicalize_name(name)}
    for each in map(Requirement, requires(name) or ()):
        if each.marker is None or each.marker.evaluate({"extra": extra}):
            for wanted in ("", *each.extras):
                found |= needed(each.name, wanted)
    return found


@pytest.mark.needs("cyclonedx-py")
def test_it_lists_what_runs_and_nothing_else(tmp_path: Path) -> None:
    made = tmp_path / "sbom.json"
    subprocess.run(
        [str(ROOT / ".ci" / "sbom"), str(made)], check=True, env={**os.environ, "PYTHON": sys.executable}
    )
    parts = json.loads(made.read_text())["components"]
    assert {canonicalize_name(part["name"]) for part in parts} == needed("fairvisor")
    assert all(part["version"] and part["purl"] for part in parts if part["name"] != "fairvisor")
