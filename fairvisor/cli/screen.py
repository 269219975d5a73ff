"""What commands print, and the option that chooses between people and programs.

Lines are never wrapped, so that they can be searched and piped; colours appear on a terminal only. Text that clients or
files brought is printed as it is, without markup and emoji codes, except for what a terminal would act on: that is
escaped here (`visible.py`), so every command prints with these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.text import Text

from fairvisor.visible import visible, visible_json

Command = TypeVar("Command", bound=Callable[..., Any])


def format_option(command: Command) -> Command:
    """Adds `--format table|json`, the parameter `output_format`."""
    return click.option(
        "--format",
        "output_format",
        type=click.Choice(["table", "json"]),
        default="table",
        help="table for people (default), json for programs.",
    )(command)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(visible_json(orjson.dumps(value, option=orjson.OPT_INDENT_2)))


def print_document(line: bytes) -> None:
    """Print a line of JSON; it stays the same document."""
    click.echo(visible_json(line))


def print_line(*parts: str | tuple[str, str]) -> None:
    """One line on stdout; a part is a text or a pair of text and rich style."""
    shown = [visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts]
    Console(highlight=False, emoji=False).print(Text.assemble(*shown), soft_wrap=True)


def print_errors(*lines: str) -> None:
    """What went wrong, on stderr: each line on one line."""
    for line in (f"Error: {lines[0]}", *lines[1:]):
        click.echo(visible(line), err=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """One line on stdout for each warning."""
    for warning in warnings:
        print_line(("warning", "yellow"), f"  {warning}")


def count_of(number: int, one: str, many: str) -> str:
    """`1 policy`, `2,000 policies`."""
    return f"{number:,} {one if number == 1 else many}"
