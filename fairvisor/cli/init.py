"""`fairvisor init`: a first policy and the list of settings, to be edited, and where to look next.

The policies are the files in templates/, copied as they are; the settings come from their declarations. Nothing that
is already there is overwritten unless --force says so: somebody's policy is in it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

import click

from fairvisor.cli.screen import print_line
from fairvisor.errors import FairvisorError
from fairvisor.settings import Declared, declared

POLICY: Final = "policy.json"
SETTINGS: Final = "edge.env.example"

TEMPLATES: Final = {
    "api": "requests per client and per API key",
    "llm": "tokens per minute and per day of an LLM API",
    "webhook": "incoming webhooks: bursts and repeated deliveries",
}


@click.command()
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    default="api",
    help="; ".join(f"{name}: {about}" for name, about in TEMPLATES.items()) + ". Default: api.",
)
@click.option("--force", is_flag=True, help="Overwrite files that exist.")
def init(template: str, force: bool) -> None:
    """Write policy.json and edge.env.example into this folder."""
    written = {POLICY: template_bytes(template), SETTINGS: settings_example().encode()}
    standing = [name for name in written if Path(name).exists()]
    if standing and not force:
        raise FairvisorError(f"{' and '.join(standing)} exists already; --force overwrites")
    for name, content in written.items():
        Path(name).write_bytes(content)
        print_line(("wrote", "green"), f"  {name}")
    _print_next_steps()


def template_bytes(name: str) -> bytes:
    """The policy bundle of a template."""
    return (files("fairvisor.cli") / "templates" / f"{name}.json").read_bytes()


def settings_example() -> str:
    """Every setting with its sentence and default, as an environment file in which all but the policy is commented."""
    blocks = [
        "# Settings of Fairvisor Edge: NAME=value, one a line, as systemd and containers read them.\n"
        "# Every one is also a flag of `fairvisor serve`. What is commented out shows the default.\n"
        "# A secret is given here, or in a file that the variable with _FILE names, readable by the service alone.\n"
    ]
    return "\n".join([*blocks, *(_example_of(setting) for setting in declared())])


def _example_of(setting: Declared) -> str:
    value = POLICY if setting.name == "config_file" else setting.default
    mark = "" if setting.name == "config_file" else "#"
    return f"# {setting.help}\n" + "".join(f"{mark}{variable}={value}\n" for variable in setting.variables)


def _print_next_steps() -> None:
    print_line("")
    print_line("Next:")
    for command, purpose in (
        (f"fairvisor validate {POLICY}", "check it after each change"),
        (f"fairvisor explain {POLICY} --path /", "what it does with a request, and why"),
        (f"fairvisor serve --config-file {POLICY}", "enforce it on 127.0.0.1:8080"),
        ("fairvisor schema > policy.schema.json", "completion and checks in your editor"),
        ("fairvisor help", "every command"),
    ):
        print_line("  ", (f"{command:43}", "bold"), purpose)
    print_line(f"The settings are in {SETTINGS}, each with a sentence.")
