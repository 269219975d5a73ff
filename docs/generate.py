"""Writes the pages of docs/ that are made from the code: the command line from --help, the settings from their
declarations. `make docs` runs it; tests/test_docs.py fails when a page is out of step.
"""

from __future__ import annotations

from pathlib import Path

import click

from fairvisor.cli.main import cli
from fairvisor.settings import declared

HERE = Path(__file__).parent
MADE = "<!-- Made by `make docs` from the code: change it there. -->\n"
WIDTH = 100


def command_line_page() -> str:
    """docs/cli.md: the help of every command."""
    sections = [
        f"# The command line\n\n{MADE}\n"
        "Tables are for people, `--format json` is for programs. Results go to stdout, errors to stderr. Exit codes: "
        "0 done, 1 failed, 3 wrong usage, 130 interrupted.\n",
        _help_block("fairvisor", cli),
    ]
    for name, command in sorted(cli.commands.items()):
        sections.append(f"## fairvisor {name}\n\n{_help_block(f'fairvisor {name}', command)}")
    return "\n".join(sections)


def _help_block(name: str, command: click.Command) -> str:
    with click.Context(
        command,
        info_name=name,
        max_content_width=WIDTH,
        terminal_width=WIDTH,
        help_option_names=["-h", "--help"],
    ) as context:
        return f"```text\n{command.get_help(context)}\n```\n"


def settings_page() -> str:
    """docs/settings.md: every setting with its flag, default and sentence."""
    rows = [
        f"| `{each.variable}` | `{each.flag}` | {f'`{each.default}`' if each.default else ''} | {each.help} |"
        for each in declared()
    ]
    return "\n".join(
        [
            f"# Settings\n\n{MADE}",
            "Every setting is an environment variable and a flag of `fairvisor serve`; the flag wins. A wrong value",
            "stops the start with one line that names the variable, the value and what is allowed.\n",
            "| variable | flag | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def pages() -> dict[str, str]:
    """Every made page by its file name in docs/."""
    return {"cli.md": command_line_page(), "settings.md": settings_page()}


if __name__ == "__main__":
    for file_name, text in pages().items():
        (HERE / file_name).write_text(text)
