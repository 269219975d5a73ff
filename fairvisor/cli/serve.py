"""`fairvisor serve`: starts the edge. Every setting is a flag of the same name, made from its declaration.

Flags stay text until `Settings.load` reads them together with the environment, so that a wrong value is reported the
same way wherever it was set. What happens after that is the master's business.
"""

from __future__ import annotations

import click

from fairvisor import master
from fairvisor.settings import Declared, Settings, declared, environment


def _option(setting: Declared) -> click.Option:
    default = f"  Default: {setting.default}." if setting.default else ""
    return click.Option(
        [setting.flag, setting.name],
        metavar="FILE" if setting.secret else "VALUE",
        help=f"{setting.help}{default}  [{setting.variables[-1]}]",
    )


@click.command(params=[_option(setting) for setting in declared()])
@click.option(
    "--accept-older",
    is_flag=True,
    help="This once, take the bundle file even if the last good bundle has a greater bundle_version.",
)
def serve(accept_older: bool, **flags: str | None) -> None:
    """Enforce a policy bundle, in the foreground.

    A flag wins over the environment variable of the same name, which is shown in brackets. A secret is in
    a file, or in the variable without _FILE.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    master.serve(lambda: Settings.load(environment(), given), accept_older=accept_older)
