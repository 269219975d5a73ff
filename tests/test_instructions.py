"""The guard of perf/instructions.py: what it reads of callgrind, and when it calls a path dearer than recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parents[1] / "perf"
sys.path.insert(0, str(PERF))

import instructions  # noqa: E402

DUMP = """# callgrind format
version: 1
creator: callgrind-3.19.0
desc: Trigger: Client Request: five limits, JWT
events: Ir
summary: 33482207
"""


def test_a_dump_tells_its_path_and_the_instructions_of_one_request() -> None:
    assert instructions.read_dump(DUMP) == ("five limits, JWT", 33482207 // instructions.COUNTED)


def test_what_is_no_dump_is_refused() -> None:
    with pytest.raises(ValueError, match="no dump"):
        instructions.read_dump("valgrind: failed to start")


@pytest.mark.parametrize(
    ("now", "recorded", "too_many"),
    [
        ({"one": 1050}, {"one": 1000}, False),
        ({"one": 1051}, {"one": 1000}, True),
        ({"one": 700}, {"one": 1000}, False),
        ({"new": 700}, {}, True),
        ({}, {"gone": 700}, True),
    ],
    ids=["at the bound", "above it", "cheaper", "never recorded", "not counted any more"],
)
def test_more_than_five_per_cent_above_the_record_is_too_many(
    now: dict[str, int], recorded: dict[str, int], too_many: bool
) -> None:
    assert [row["too_many"] for row in instructions.compare(now, recorded)] == [too_many]


def test_a_record_stands_for_every_path(tmp_path: Path) -> None:
    recorded = json.loads(instructions.RECORDED.read_text())["instructions"]
    assert recorded.keys() == {each.name for each in instructions.paths(tmp_path)}
