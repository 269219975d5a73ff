"""`fairvisor reset`: forget what an instance counted, while it does not run.

The counters are in shared memory and, for a reboot, in a snapshot: both go, else the next start would bring them back.
The last good bundle stays unless it is asked for, so that a kill switch which was pushed is still in force afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from fairvisor.cli.screen import print_line
from fairvisor.memory import InstanceMemory
from fairvisor.reset import forget
from fairvisor.settings import Settings, environment
from fairvisor.state import StateDirectory


@click.command()
@click.option("--instance", metavar="VALUE", help="Which instance.  [FAIRVISOR_INSTANCE]")
@click.option(
    "--bind", metavar="VALUE", help="Its bind address, from which its name was made.  [FAIRVISOR_BIND]"
)
@click.option("--state-dir", metavar="VALUE", help="Where its snapshot is.  [FAIRVISOR_STATE_DIR]")
@click.option("--state", is_flag=True, help="Remove the last good bundle as well.")
def reset(state: bool, **flags: str | None) -> None:
    """Forget all counters of an instance that does not run.

    Removes its shared memory and its snapshot; with --state also the last good bundle, so that the next start takes the
    bundle file whatever its version is. Refuses while a master or a worker of the instance lives.
    """
    settings = Settings.load(
        environment(), {name: value for name, value in flags.items() if value is not None}
    )
    kept = StateDirectory(settings.state_dir, settings.instance)
    removed = [
        path
        for uid in _users(settings.state_dir)
        for path in forget(InstanceMemory.find(settings.instance, uid), kept, with_bundle=state)
    ]
    for name in removed:
        print_line(f"removed {name}")
    if not removed:
        print_line(f"nothing there of instance {settings.instance}")


def _users(state_dir: Path) -> list[int]:
    """Return whose instance it may be: this user's, and for root that of the state directory's owner."""
    own = os.geteuid()
    owner = state_dir.stat().st_uid if own == 0 and state_dir.exists() else own
    return sorted({own, owner})
