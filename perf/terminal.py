"""Rows in the terminal, as a table for people or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from report import Row, number
from rich.console import Console
from rich.table import Table


def show(found: Sequence[Row], form: str, title: str | None = None) -> None:
    """Rows of the same fields in the terminal, as a table or as JSON."""
    if form == "json":
        print(json.dumps(found, indent=2))
        return
    sheet = Table(*found[0], title=title, title_justify="left")
    for row in found:
        sheet.add_row(*("" if value is None else number(value) for value in row.values()))
    Console().print(sheet)
