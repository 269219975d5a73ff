"""An offered bundle: may it become the active one? Then it is packed for the workers.

`prepare` does everything that takes time with a large bundle (signature, validation, what it changes about the active
one, packing) and so runs away from requests: in the master before it forks, in a thread for small bundles, else in a
process of its own (`apart.py`). A refusal leaves nothing behind. Nothing here reads a file or a clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import orjson

from fairvisor.bundle import shared
from fairvisor.bundle.changes import Change, changes
from fairvisor.bundle.load import (
    Parsed,
    check_successor,
    parse,
    parse_head,
    parse_kill_switch,
    parse_policy,
    verify_signature,
)
from fairvisor.bundle.model import Bundle, CostBased, Policy
from fairvisor.bundle.shared import About, Contents, SharedBundle
from fairvisor.errors import BundleInvalid, BundleRefused, SegmentError
from fairvisor.memory import InstanceMemory
from fairvisor.secret_values import encoded

Rule = Literal["successor", "file_at_start", "any_version", "nothing_new", "restore"]

_KEPT_WARNINGS: Final = 100  # of a bundle with more, the log has the rest
_KEPT_CHANGES: Final = 200


class Order(NamedTuple):
    """Where, under which name and generation an offer is packed, and what it must be to be accepted.

    `rule` is `successor` (a greater version than the active one), `file_at_start` (the same version will do),
    `any_version`, `nothing_new` (only the active bundle itself: the file decides), or `restore` (the last good bundle:
    it was accepted before).
    """

    directory: str  # of the instance, in shared memory
    instance: str
    name: str
    generation: int
    rule: Rule
    source: str
    signing_keys: Sequence[str]
    active_version: float | None
    active_sha256: str | None
    wall_ns: int


class Made(NamedTuple):
    """An offer that was accepted: its description, the first changes and the number of all of them.

    `number` is None if there was no bundle before, or if that bundle cannot be read any more.
    """

    about: About
    changes: tuple[Change, ...] = ()
    number: int | None = None


def prepare(data: bytes, order: Order, environ: Mapping[str, str]) -> Made | None:
    """Check what is offered and make its object; None: it is the active bundle already.

    Raises BundleInvalid, BundleRefused, or SegmentError when the object finds no room.
    """
    payload = verify_signature(data, encoded(order.signing_keys))
    parsed = parse(payload, wall_ns=order.wall_ns, environ=environ)
    if not _accepted(parsed, order):
        return None
    about = describe(parsed, order.source, order.wall_ns)
    document: dict[str, Any] = orjson.loads(payload)
    policies = [orjson.dumps(policy) for policy in document.pop("policies")]
    switches = [orjson.dumps(switch) for switch in document.pop("kill_switches", ())]
    contents = Contents(about, orjson.dumps(document), policies, switches, data)
    directory = InstanceMemory(Path(order.directory), order.instance, os.geteuid())
    shared.write(directory, order.name, order.generation, contents)
    if order.active_sha256 is None:
        return Made(about)
    try:
        found = tuple(_changes(directory, order.generation - 1, contents, parsed.model, environ))
    except (SegmentError, BundleInvalid, FileNotFoundError):
        return Made(about)  # the old bundle was valid in another environment
    return Made(about, found[:_KEPT_CHANGES], len(found))


def _changes(
    directory: InstanceMemory, generation: int, contents: Contents, new: Bundle, environ: Mapping[str, str]
) -> Iterator[Change]:
    """Yield what the new bundle changes about the active one. Only policies whose JSON differs are parsed."""
    active = SharedBundle.open(directory, generation)
    try:
        old = parse_head(orjson.loads(active.head()), environ)
        before = [active.read(part) for part in active.policies()]
        switches = tuple(
            parse_kill_switch(orjson.loads(active.read(part))) for part in active.kill_switches()
        )
    finally:
        active.close()
    same = frozenset(before) & frozenset(contents.policies) if old.defaults == new.defaults else frozenset()
    left = tuple(parse_policy(orjson.loads(part), old.defaults) for part in before if part not in same)
    come = tuple(
        policy for part, policy in zip(contents.policies, new.policies, strict=True) if part not in same
    )
    yield from changes(
        old.model_copy(update={"policies": left, "kill_switches": switches}),
        new.model_copy(update={"policies": come}),
    )


def describe(parsed: Parsed, source: str, wall_ns: int) -> About:
    """What is to be known of a valid bundle that is published at `wall_ns`."""
    model = parsed.model
    return About(
        version=model.bundle_version,
        sha256=parsed.sha256,
        policies=len(model.policies),
        shadow_policies=sum(policy.spec.mode == "shadow" for policy in model.policies),
        kill_switches=len(model.kill_switches),
        throttles=any(map(_throttles, model.policies)),
        issued_at_ns=model.issued_at_ns,
        expires_at_ns=model.expires_at_ns,
        published_ns=wall_ns,
        source=source,
        warnings=tuple(str(warning) for warning in parsed.warnings[:_KEPT_WARNINGS]),
    )


def _throttles(policy: Policy) -> bool:
    """Whether a policy holds answers: a stage of a budget, or a loop, with the action `throttle`."""
    loop = policy.spec.loop_detection
    return (loop is not None and loop.action == "throttle") or any(
        stage.action == "throttle"
        for _, rule in policy.spec.placed_rules()
        if isinstance(rule.algorithm_config, CostBased)
        for stage in rule.algorithm_config.staged_actions
    )


def _accepted(parsed: Parsed, order: Order) -> bool:
    """Whether the bundle is a new one. Raises BundleRefused when it may not replace the active one."""
    if order.rule == "restore":
        return True
    if order.rule == "successor":
        return check_successor(parsed, order.active_version, order.active_sha256, order.wall_ns)
    version, active = parsed.model.bundle_version, order.active_version
    if order.rule == "nothing_new" and parsed.sha256 != order.active_sha256:
        raise BundleRefused(
            "file_decides",
            "FAIRVISOR_BUNDLE_ORDER is file: change the bundle file, or push with --take-over, which holds until the "
            "file changes",
        )
    if order.rule == "file_at_start" and active is not None and version < active:
        raise BundleRefused(
            "version_not_monotonic",
            f"bundle_version {version} of the file is lower than that of the last good bundle, {active}, which stays "
            "in force; `fairvisor serve --accept-older` takes the file",
        )
    return check_successor(parsed, None, order.active_sha256, order.wall_ns)
