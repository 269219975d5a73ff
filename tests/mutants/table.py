"""Reads `table.txt`: what is promised, row by row, each with an edit of the source that breaks just that promise.

A row is a field of the bundle, a descriptor, an algorithm, an answer header, a reason, a step of the evaluation or an
endpoint. Its first line says `kind | name | file | tests`: the tests that must notice, as names of files in tests/
(without `test_` and `.py`) separated by spaces, or as `requests/<folder>`. The lines with `-` stand exactly once in
the file; the lines with `+` take their place. `tests/test_mutants.py` holds the table complete and applicable.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("table.txt")


class Row(NamedTuple):
    """One promise and the edit that breaks it."""

    kind: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_table() -> list[Row]:
    return [_row(block.splitlines()) for block in TABLE.read_text().strip().split("\n\n")]


def _row(lines: list[str]) -> Row:
    kind, name, file, tests = lines[0].split(" | ")
    old, new = ("\n".join(line[2:] for line in lines[1:] if line[0] == sign) for sign in "-+")
    assert all(line[:2] in ("- ", "+ ") for line in lines[1:]), f"{name}: a line is neither old nor new"
    return Row(kind, name, file, old, new, tuple(tests.split()))
