"""What is said of a bundle that was offered: that it came into force and what it changed, or why it did not.

Each record of the audit log names who offered it, so that one line is enough to say who changed a limit, when, why,
from what to what. This module makes records and lines; it knows nothing of who offers bundles and who reads them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from fairvisor.actor import By
from fairvisor.audit import record_of
from fairvisor.bundle.changes import Change
from fairvisor.bundle.offer import Made, Order
from fairvisor.bundle.shared import About
from fairvisor.clock import Now
from fairvisor.errors import FairvisorError

_SHOWN: Final = 200  # characters of an error

_log = logging.getLogger(__name__)

KeyText = Callable[[str, str], str]


class Published(NamedTuple):
    """What came of a bundle that was accepted.

    `generation` counts the bundles of this segment. `changed` is False when it was the active one already. `durable`:
    a copy is in the state directory. `lagging`: pids of workers that had not switched after 5 s; every other
    worker decides by the new bundle when this is returned.
    """

    generation: int
    version: float
    sha256: str
    changed: bool
    durable: bool
    lagging: tuple[int, ...]
    warnings: tuple[str, ...]


def in_force(made: Made, order: Order, by: By, key_text: KeyText, now: Now) -> list[Mapping[str, object]]:
    """Return the records of a bundle that came into force."""
    about = made.about
    which = {"version": about.version, "generation": order.generation, **by.fields()}
    fields = {
        **which,
        "sha256": about.sha256,
        "source": about.source,
        "previous": (
            {"version": order.active_version, "sha256": order.active_sha256} if order.active_sha256 else None
        ),
        "changes": made.number,
    }
    return [
        record_of("bundle", fields, now),
        *(record_of("bundle_change", {**_fields(each, key_text), **which}, now) for each in made.changes),
    ]


def rejected(data: bytes, source: str, by: By, error: FairvisorError, now: Now) -> Mapping[str, object]:
    """Return the record of a bundle that did not come into force."""
    fields = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "source": source,
        "error": error.lines[0][:_SHOWN],
        **by.fields(),
    }
    return record_of("bundle_rejected", fields, now)


def _fields(change: Change, key_text: KeyText) -> dict[str, object]:
    fields = change._asdict()
    key = fields.pop("key")
    return {**fields, "key": {key[0]: key_text(*key)}} if key else fields


def report(published: Published, about: About) -> None:
    """Log that a bundle came into force, with its warnings."""
    _log.info(
        "bundle %s (%s) is active as generation %d: %d policies, %d kill switches",
        about.version,
        about.source,
        published.generation,
        about.policies,
        about.kill_switches,
    )
    for warning in about.warnings:
        _log.warning("bundle %s: %s", about.version, warning)
    if published.lagging:
        _log.warning("these workers have not switched yet: %s", ", ".join(map(str, published.lagging)))
