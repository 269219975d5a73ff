"""`fairvisor version`: which edge this is, and what it runs on."""

from __future__ import annotations

import platform

import click

from fairvisor import __version__
from fairvisor.cli.screen import format_option, print_json, print_line


@click.command()
@format_option
def version(output_format: str) -> None:
    """Print the version of Fairvisor Edge and of the Python it runs on."""
    if output_format == "json":
        print_json(
            {"version": __version__, "python": platform.python_version(), "machine": platform.platform()}
        )
    else:
        print_line(f"fairvisor {__version__} (Python {platform.python_version()}, {platform.platform()})")
