"""`fairvisor reset`: forget what an instance counted, while it does not run.

The counters are in shared memory and, for a reboot, in a snapshot: both go, else the next start would bring them back.
The last good bundle stays unless it is asked for, so that a kill switch which was pushed is still in force afterwards.
Who did it is written to the audit log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import orjson

from fairvisor import chain
from fairvisor.actor import By, claiming, myself
from fairvisor.audit import record_of
from fairvisor.cli.screen import print_line
from fairvisor.cli.who import Claims, who_options
from fairvisor.clock import read_now
from fairvisor.linefile import LineFile
from fairvisor.memory import InstanceMemory
from fairvisor.reset import forget
from fairvisor.settings import Settings, environment
from fairvisor.state import StateDirectory
from fairvisor.visible import visible_json


@click.command()
@click.option("--instance", metavar="VALUE", help="Which instance.  [FAIRVISOR_INSTANCE]")
@click.option(
    "--bind", metavar="VALUE", help="Its bind address, from which its name was made.  [FAIRVISOR_BIND]"
)
@click.option("--state-dir", metavar="VALUE", help="Where its snapshot is.  [FAIRVISOR_STATE_DIR]")
@click.option("--state", is_flag=True, help="Remove the last good bundle as well.")
@who_options
def reset(state: bool, claims: Claims, **flags: str | None) -> None:
    """Forget all counters of an instance that does not run.

    Removes its shared memory and its snapshot; with --state also the last good bundle, so that the next start takes the
    bundle file whatever its version is. Refuses while a master or a worker of the instance lives.
    """
    try:
        by = claiming(myself(), dict(claims))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
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
    if removed:
        _log(settings, by, removed)
    else:
        print_line(f"nothing there of instance {settings.instance}")


def _log(settings: Settings, by: By, removed: list[str]) -> None:
    """Write the reset to the edge's audit log, which stays the edge's file. Raises OSError."""
    path = settings.audit_path
    if path is None:
        return  # standard output is the server's
    record = record_of(
        "reset", {"instance": settings.instance, **by.fields(), "removed": removed}, read_now()
    )
    with _as_owner(path):
        log = LineFile(path, *chain.keys_of(settings.audit_key))
        log.append([visible_json(orjson.dumps({**record, "worker": os.getpid()})) + b"\n"])
        log.close()


@contextmanager
def _as_owner(log: Path) -> Iterator[None]:
    """Act as the owner of the log while root runs this, so that the edge can write on and no link misleads root."""
    if os.geteuid() != 0:
        yield
        return
    owner, group = (log if log.exists() else log.parent).stat(), os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def _users(state_dir: Path) -> list[int]:
    """Return whose instance it may be: this user's, and for root that of the state directory's owner."""
    own = os.geteuid()
    owner = state_dir.stat().st_uid if own == 0 and state_dir.exists() else own
    return sorted({own, owner})
