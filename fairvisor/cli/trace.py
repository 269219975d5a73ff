"""One request through the real engine, with every limit's answer noted on the way.

The bundle is compiled against counters of its own, so nothing that a running edge counts is touched. The limits of
the policies that apply are wrapped before `decide` runs; the wrapper notes what the limit answered and hands it on.
What is printed of it is the business of `explain.py`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from fairvisor.bundle.compile import compile_bundle
from fairvisor.bundle.load import Parsed
from fairvisor.clock import Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.counters.segment import Segment
from fairvisor.decision import Decision, Verdict
from fairvisor.engine import Bundle, Policy, ambiguous, decide
from fairvisor.errors import AmbiguousValue
from fairvisor.follow import decision_options
from fairvisor.rules.limit import Described, Limit
from fairvisor.settings import Settings

SEGMENT_BYTES: Final = 1 << 20  # one request touches a handful of counters


class Step(NamedTuple):
    """A limit that was asked, and its answer; None: it did not apply."""

    limit: Limit
    verdict: Verdict | None


class Traced(Limit):
    """A limit that notes its answers in `steps`."""

    def __init__(self, limit: Limit, steps: list[Step]) -> None:
        super().__init__(limit.tally)
        self._limit = limit
        self._steps = steps

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """The limit's answer, noted."""
        try:
            verdict = self._limit.take(counters, context, now)
        except AmbiguousValue as error:
            verdict = ambiguous(self._limit, error)
        self._steps.append(Step(self._limit, verdict))
        return verdict

    def describe(self, context: Context) -> Described:
        """As the limit does it."""
        return self._limit.describe(context)

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """As the limit does it."""
        self._limit.give(counters, verdict, now)


class Trace(NamedTuple):
    """A decided request: the policies as they acted, every limit that was asked in order, the decision."""

    policies: tuple[Policy, ...]
    steps: tuple[Step, ...]
    decision: Decision
    selects_by_host: bool


def trace(parsed: Parsed, settings: Settings, context: Context) -> Trace:
    """Decide `context` on fresh counters. Raises RequestError for a path that cannot be read."""
    segment = Segment.private(SEGMENT_BYTES)
    bundle = compile_bundle(parsed.model, parsed.sha256, segment, decision_options(settings))
    steps: list[Step] = []
    policies = _note_answers(bundle, context, steps)
    if context.now.wall_ns < bundle.shadow_until_ns:
        policies = tuple(policy.in_shadow for policy in policies)
    decision = decide(bundle, segment.table, context, context.now)
    return Trace(policies, tuple(steps), decision, bundle.routes.selects_by_host)


def _note_answers(bundle: Bundle, context: Context, steps: list[Step]) -> tuple[Policy, ...]:
    """Wrap the limits of the policies that apply to `context`."""
    policies = bundle.routes.plan(context.method, context.host, context.target).policies
    for policy in {id(each): each for one in policies for each in (one, one.in_shadow)}.values():
        policy.guards = tuple(Traced(guard, steps) for guard in policy.guards)
        policy.rules = tuple(Traced(rule, steps) for rule in policy.rules)
        if policy.fallback is not None:
            policy.fallback = Traced(policy.fallback, steps)
    return policies
