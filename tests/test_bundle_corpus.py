"""The bundles in tests/bundles: what is valid loads with exactly these warnings, what is wrong is refused with exactly
these lines. One file for every way to be wrong; a line of NAME.txt is a line that `fairvisor validate` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairvisor.bundle.load import parse
from fairvisor.bundle.model import Bundle
from fairvisor.bundle.model_limits import Strictly
from fairvisor.cli.exits import FAILED
from fairvisor.cli.main import run
from fairvisor.clock import NS_PER_S
from fairvisor.errors import BundleInvalid

BUNDLES = Path(__file__).parent / "bundles"
VALID = sorted((BUNDLES / "valid").glob("*.json"))
INVALID = sorted((BUNDLES / "invalid").glob("*.json"))
WALL_NS = 1_800_000_000 * NS_PER_S  # 2027-01-15T08:00:00Z, the day on which the corpus is read
ENVIRON = {"LONG": "s" * 64, "SHORT_SECRET": "too short"}


def name_of(path: Path) -> str:
    return path.stem


def lines_of(path: Path) -> list[str]:
    expected = path.with_suffix(".txt")
    return expected.read_text(encoding="utf-8").splitlines() if expected.exists() else []


def comparable(line: str) -> str:
    """What is said of a syntax error is the JSON reader's, whose wording and column differ between its versions."""
    return re.sub(r"(the bundle is not JSON): .+ \(line \d+, column \d+\)$", r"\1", line)


@pytest.mark.parametrize("path", INVALID, ids=name_of)
def test_what_is_wrong_is_refused_with_every_error(path: Path) -> None:
    with pytest.raises(BundleInvalid) as invalid:
        parse(path.read_bytes(), wall_ns=WALL_NS, environ=ENVIRON)
    found = [comparable(str(problem)) for problem in invalid.value.problems]
    assert found == [comparable(line) for line in lines_of(path)]


@pytest.mark.parametrize("path", VALID, ids=name_of)
def test_what_is_valid_loads_with_its_warnings(path: Path) -> None:
    warnings = parse(path.read_bytes(), wall_ns=WALL_NS, environ=ENVIRON).warnings
    assert [str(warning) for warning in warnings] == lines_of(path)


@pytest.mark.parametrize("path", INVALID, ids=name_of)
def test_validate_prints_every_error_and_exits_1(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    assert run(["validate", str(path)]) == FAILED
    printed = [comparable(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [comparable(f"error  {line}") for line in lines_of(path)]


def test_every_expectation_belongs_to_a_bundle() -> None:
    bundles = {path.with_suffix(".txt") for path in VALID + INVALID}
    assert set(BUNDLES.glob("*/*.txt")) <= bundles
    assert {path for path in bundles if path.parent.name == "invalid"} <= set(BUNDLES.glob("*/*.txt"))


def field_names(model: type[Strictly]) -> Iterator[str]:
    """Every field of a class of the model and of the classes in it, as the JSON spells it."""
    schema = model.model_json_schema()
    for part in [schema, *schema["$defs"].values()]:
        yield from part["properties"]


def names_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from names_in(part)


def test_every_field_is_used_in_a_valid_bundle() -> None:
    used = {name for path in VALID for name in names_in(json.loads(path.read_bytes()))}
    assert set(field_names(Bundle)) - used == set()
