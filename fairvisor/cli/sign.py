"""`fairvisor sign`: put the signature line in front of a bundle, with the key of the settings.

The key is never an argument, which every user of the machine could read. What the bundle says is not looked at:
`validate` and the edge do that.
"""

from __future__ import annotations

from pathlib import Path

import click

from fairvisor.bundle.load import sign as signed
from fairvisor.bundle.load import verify_signature
from fairvisor.cli.files import read_file, signing_key
from fairvisor.errors import SettingsError


@click.command()
@click.argument("file")
@click.option("-o", "--output", metavar="OUT", help="Write to this file.  Default: standard output.")
def sign(file: str, output: str | None) -> None:
    """Sign the policy bundle FILE (- is standard input) with FAIRVISOR_BUNDLE_SIGNING_KEY.

    A signature that it has already is replaced. Of a key's file with two lines, the first one signs.
    """
    key = signing_key()
    if key is None:
        raise SettingsError(
            "FAIRVISOR_BUNDLE_SIGNING_KEY is not set: there is no key to sign with; set it, or "
            "FAIRVISOR_BUNDLE_SIGNING_KEY_FILE"
        )
    data = signed(verify_signature(read_file(file), ()), key)
    if output is None:
        click.echo(data, nl=False)
    else:
        Path(output).write_bytes(data)
