"""From a bundle in shared memory to one that decides, in steps of microseconds.

A large bundle takes a second to compile, and requests are answered meanwhile: so `compile_shared` is a generator that
compiles one part at each step, and whoever drives it pauses as it likes. A part whose bytes did not change since the
bundle before keeps its compiled form, as long as nothing that it was compiled with changed either. Taking the old
bundle apart is sliced as well. This module knows no thread, no clock and no generation word.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from typing import Final, NamedTuple

import orjson

from fairvisor.bundle import model
from fairvisor.bundle.compile import Compiler, Options, assemble, has_several_issuers, reserves, wants_shadow
from fairvisor.bundle.load import parse_head, parse_kill_switch, parse_policy
from fairvisor.bundle.shared import SharedBundle
from fairvisor.counters.segment import Segment
from fairvisor.descriptors import Descriptor
from fairvisor.engine import Bundle, Policy
from fairvisor.route import Routes
from fairvisor.rules.kill_switch import KillSwitch, KillSwitches

_ONLY_OURS: Final = 2  # references as `sys.getrefcount` counts them: the attribute and its own argument


class Surroundings(NamedTuple):
    """What every part is compiled with beside its own bytes."""

    defaults: model.Defaults
    with_shadow: bool
    several_issuers: bool


class Compiled:
    """A bundle that decides, and its parts by the digest of their bytes."""

    __slots__ = ("bundle", "head", "kill_switches", "policies", "surroundings")

    def __init__(self, head: model.Bundle, surroundings: Surroundings) -> None:
        self.bundle: Bundle
        self.head = head
        self.surroundings = surroundings
        self.policies: dict[bytes, tuple[Policy, bool]] = {}  # with whether it reserves tokens
        self.kill_switches: dict[bytes, tuple[KillSwitch, Descriptor]] = {}


def compile_shared(
    shared: SharedBundle,
    segment: Segment,
    options: Options,
    environ: Mapping[str, str],
    before: Compiled | None = None,
) -> Generator[None, None, Compiled]:
    """Compile a shared bundle; a step for each part. Its value is the result; `before` stays as it is."""
    head = parse_head(orjson.loads(shared.head()), environ)
    several_issuers = has_several_issuers(head, options)
    surroundings = Surroundings(head.defaults, wants_shadow(head), several_issuers)
    compiled = Compiled(head, surroundings)
    if before is not None and before.surroundings != surroundings:
        before = None
    compiler = Compiler(segment, options, head.defaults, several_issuers)
    routes: Routes[Policy] = Routes(())
    reserving = False
    for part in shared.policies():
        kept = before.policies.get(part.digest) if before is not None else None
        if kept is None:
            policy = parse_policy(orjson.loads(shared.read(part)), head.defaults)
            kept = compiler.policy(policy, surroundings.with_shadow), reserves(policy)
        compiled.policies[part.digest] = kept
        routes.add(kept[0])
        reserving = reserving or kept[1]
        yield
    switches = KillSwitches(())
    for part in shared.kill_switches():
        switch = before.kill_switches.get(part.digest) if before is not None else None
        if switch is None:
            switch = compiler.kill_switch(parse_kill_switch(orjson.loads(shared.read(part))))
        compiled.kill_switches[part.digest] = switch
        switches.add(*switch)
        yield
    compiled.bundle = assemble(head, shared.about.sha256, segment, routes, switches, reserving)
    return compiled


def in_use(old: Compiled) -> bool:
    """Whether somebody else still holds the bundle: a decision that began before it was replaced."""
    return sys.getrefcount(old.bundle) > _ONLY_OURS


def take_apart(old: Compiled) -> Generator[None, None, None]:
    """Free a bundle that was replaced and that nobody uses any more, a piece at each step."""
    bundle = old.bundle
    yield from bundle.routes.take_apart()
    yield from bundle.kill_switches.take_apart()
    for parts in (old.policies, old.kill_switches):
        while parts:
            parts.popitem()
            yield
