"""`fairvisor schema`: the JSON Schema of a policy bundle, for editors and pipelines."""

from __future__ import annotations

import click

from fairvisor.bundle.schema import json_schema
from fairvisor.cli.screen import print_json


@click.command()
def schema() -> None:
    """Print the JSON Schema of a policy bundle."""
    print_json(json_schema())
