"""decide(): the order in which a bundle is evaluated, and only the order.

Kill switches, then the policies whose selector matches, in order of id; in each: loop detection, circuit breaker, the
rules (or the fallback when none ran). All must pass; the first refusal ends it, and what the request took before is
given back. A shadow policy runs on counters of its own, reports what it would have done and stops nothing.

No I/O, no clock, no HTTP. Everything is prepared by `bundle/compile.py`; this module loops over ready tuples.
"""

from __future__ import annotations

from typing import Final

from fairvisor.clock import Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.counters.lenient import Lenient
from fairvisor.decision import UNIT_U, Action, Decision, Reason, Remarked, Unmet, Verdict
from fairvisor.errors import AmbiguousValue
from fairvisor.llm.reservation import LIFETIME_NS, REPEAT_NS, Taken, fresh_nonce, seal, signing_with
from fairvisor.metrics import DECISIONS, SHADOW_REJECTS, Counter
from fairvisor.route import Routes, Selector
from fairvisor.rules.breaker import KEPT_NS, Breaker
from fairvisor.rules.keys import hash64, joined
from fairvisor.rules.kill_switch import KillSwitches
from fairvisor.rules.limit import Limit
from fairvisor.rules.llm_tokens import LlmTokens, LlmVerdict

_ALLOW: Final = Action.ALLOW


class Policy:
    """A compiled policy. `twin` is the same policy on shadow counters, where the bundle needs one."""

    __slots__ = (
        "asks_model",
        "breaker",
        "fallback",
        "guards",
        "headers",
        "id",
        "reads_body",
        "rules",
        "selector",
        "shadow",
        "twin",
    )

    def __init__(
        self,
        policy_id: str,
        selector: Selector,
        shadow: bool,
        loop: Limit | None,
        breaker: Breaker | None,
        rules: tuple[Limit, ...],
        fallback: Limit | None,
    ) -> None:
        self.id = policy_id
        self.selector = selector
        self.shadow = shadow
        self.guards: tuple[Limit, ...] = tuple(guard for guard in (loop, breaker) if guard is not None)
        self.breaker = breaker
        self.rules = rules
        self.fallback = fallback
        self.twin: Policy | None = None
        # what a proxy must know before it asks
        self.headers: frozenset[str] = frozenset()  # that something is counted or matched by
        self.reads_body = False
        self.asks_model = False  # whether it takes what it matches for LLM requests

    @property
    def in_shadow(self) -> Policy:
        """Its twin; itself when it has none, as a shadow policy. Not stored: a policy that refers to itself would
        never be freed when a bundle is replaced, since the collector does not look at bundles."""
        return self.twin or self


class Bundle:
    """What decisions are made by: a bundle compiled against one segment."""

    __slots__ = ("kill_switches", "override_until_ns", "repeats", "reserves", "routes", "seed", "sha256",
                 "shadow_until_ns", "signing", "unmatched", "version")  # fmt: skip

    def __init__(
        self,
        version: float,
        sha256: str,
        routes: Routes[Policy],
        kill_switches: KillSwitches,
        shadow_until_ns: int,
        override_until_ns: int,
        seed: int,
        reservation_key: bytes,
        reserves: bool,
        unmatched: Counter,
        repeats: Counter,
    ) -> None:
        self.version = version
        self.sha256 = sha256
        self.routes = routes
        self.kill_switches = kill_switches
        self.shadow_until_ns = shadow_until_ns
        self.override_until_ns = override_until_ns
        self.seed = seed
        self.signing = signing_with(reservation_key)
        self.reserves = reserves
        self.unmatched = unmatched
        self.repeats = repeats

    def reads_model(self, policies: tuple[Policy, ...]) -> bool:
        """Whether a decision by these policies looks at the model of an LLM request."""
        return self.kill_switches.reads_body or any(policy.asks_model for policy in policies)


def decide(bundle: Bundle, counters: Counters, context: Context, now: Now) -> Decision:
    """Decide one request. Raises RequestError (400) for a path that cannot be read."""
    if not context.request_id:
        return _decide(bundle, counters, context, now, 0)
    key = _request_key(bundle, context)
    if counters.peek_count(key, now.mono_ns):
        bundle.repeats.add()
        return _decide(bundle, Lenient(counters), context, now, _nonce(bundle, key))
    decision = _decide(bundle, counters, context, now, _nonce(bundle, key))
    if decision.reason is None:
        counters.count(key, now.mono_ns, REPEAT_NS)
    return decision


def _request_key(bundle: Bundle, context: Context) -> int:
    """What makes two questions the same request: the gateway's id and all that a client could vary."""
    authorization = context.headers.get("authorization", b"").decode("latin-1")
    parts = (
        context.request_id,
        context.method,
        context.host,
        context.target,
        context.client.text,
        authorization,
    )
    return hash64("request id:" + joined(parts), bundle.seed)


def _nonce(bundle: Bundle, request_key: int) -> int:
    """The nonce of the reservation of a request that may be asked about again: the same, in another record."""
    return hash64(f"nonce:{request_key}", bundle.seed)


def _decide(bundle: Bundle, counters: Counters, context: Context, now: Now, nonce: int) -> Decision:
    plan = bundle.routes.plan(context.method, context.host, context.target)
    context.path = plan.path
    context.coarse_path = plan.coarse_path
    policies = plan.policies
    if bundle.kill_switches and now.wall_ns >= bundle.override_until_ns:
        asks_model = bundle.kill_switches.reads_body and any(policy.asks_model for policy in policies)
        try:
            switch = bundle.kill_switches.find(context, plan.readings, now.wall_ns, asks_model=asks_model)
        except AmbiguousValue as error:  # more values than are looked at: one of them may be stopped
            return _rejected(ambiguous(bundle.kill_switches.first(), error), policies, [])
        if switch is not None:
            return _rejected(switch.take(counters, context, now), policies, [])
    all_shadow = now.wall_ns < bundle.shadow_until_ns
    passed: list[Verdict] = []
    shadowed: list[Verdict] = []
    would_reject: list[Verdict] = []
    spends: list[tuple[Breaker, Verdict | None]] = []
    for policy in policies:
        acting = policy.in_shadow if all_shadow else policy
        taken = shadowed if acting.shadow else passed
        before = len(taken)
        refusal = _evaluate(acting, counters, context, now, taken, spends)
        if refusal is None:
            continue
        if acting.shadow:
            _give_back(counters, taken, before, now)
            would_reject.append(refusal)
            continue
        _give_back(counters, passed, 0, now)
        _give_back(counters, shadowed, 0, now)
        return _rejected(refusal, policies, would_reject)
    spent, tripped = _spend(spends, counters, context, now) if spends else ((), ())
    reservation = _reserve(bundle, passed + shadowed, spent, now, nonce) if bundle.reserves else ""
    return _allowed(bundle, policies, passed, would_reject, reservation, tripped)


def _evaluate(
    policy: Policy,
    counters: Counters,
    context: Context,
    now: Now,
    taken: list[Verdict],
    spends: list[tuple[Breaker, Verdict | None]],
) -> Verdict | None:
    """Run one policy: what passes is added to `taken`, the first refusal is returned."""
    if policy.guards:
        refusal = _run(policy.guards, counters, context, now, taken)
        if refusal is not None:
            return refusal
    first = len(taken)
    refusal = _run(policy.rules, counters, context, now, taken)
    if refusal is None and first == len(taken) and policy.fallback is not None:
        refusal = _run((policy.fallback,), counters, context, now, taken)
    if refusal is None and policy.breaker is not None:
        spends.append((policy.breaker, taken[first] if first < len(taken) else None))
    return refusal


def _run(
    limits: tuple[Limit, ...], counters: Counters, context: Context, now: Now, taken: list[Verdict]
) -> Verdict | None:
    """Ask limits in order, up to the first refusal."""
    for limit in limits:
        try:
            verdict = limit.take(counters, context, now)
        except AmbiguousValue as error:
            verdict = ambiguous(limit, error)
        if verdict is not None:
            tally = limit.tally
            if verdict.reason is not None:
                tally.refused.hit()
                if verdict.quota is not None and verdict.remaining_u < tally.lowest_u:
                    tally.lower(verdict.remaining_u)
                return verdict
            tally.allowed.hit()
            if verdict.remaining_u < tally.lowest_u:
                tally.lower(verdict.remaining_u)
            taken.append(verdict)
    return None


def ambiguous(limit: Limit, error: AmbiguousValue) -> Verdict:
    """Return the reject of a limit that counts by what a request carries several values of."""
    return Unmet(limit, Reason.AMBIGUOUS_REQUEST, error.name)


def _give_back(counters: Counters, taken: list[Verdict], kept: int, now: Now) -> None:
    while len(taken) > kept:
        verdict = taken.pop()
        verdict.limit.give(counters, verdict, now)


def _allowed(
    bundle: Bundle,
    policies: tuple[Policy, ...],
    passed: list[Verdict],
    would_reject: list[Verdict],
    reservation: str,
    tripped: tuple[Limit, ...],
) -> Decision:
    """The decision on a request that every limit lets pass, described by the tightest of them."""
    tightest: Verdict | None = None
    least = 0.0
    marked: list[Verdict] = []
    for verdict in passed:
        quota = verdict.quota
        if quota is not None:
            share = quota.share(verdict.remaining_u)
            if tightest is None or share < least:
                tightest, least = verdict, share
        if verdict.action is not _ALLOW:
            marked.append(verdict)
    if marked:
        slowest = max(marked, key=_by_delay)
        slowest.limit.tally.add(DECISIONS, slowest.action.value, "")
        action = slowest.action
    else:
        action = _ALLOW
        (tightest.limit.tally.admitted if tightest is not None else bundle.unmatched).hit()
    if not (marked or would_reject or reservation or tripped):
        return Decision(tightest, policies)
    _count_shadow(would_reject)
    held = tuple(passed) if reservation else ()
    return Remarked(
        tightest, policies, action, tuple(marked), tuple(would_reject), reservation, tripped, held
    )


def _by_delay(verdict: Verdict) -> int:
    return verdict.delay_ms


def _rejected(refusal: Verdict, policies: tuple[Policy, ...], would_reject: list[Verdict]) -> Decision:
    assert refusal.reason is not None, "a refusal says why"
    refusal.limit.tally.reject(refusal.reason)
    _count_shadow(would_reject)
    return Remarked(refusal, policies, Action.REJECT, (), tuple(would_reject))


def _count_shadow(would_reject: list[Verdict]) -> None:
    for verdict in would_reject:
        assert verdict.reason is not None, "a refusal says why"
        verdict.limit.tally.add(SHADOW_REJECTS, verdict.reason.value)


def _spend(
    spends: list[tuple[Breaker, Verdict | None]], counters: Counters, context: Context, now: Now
) -> tuple[tuple[tuple[Verdict | None, int], ...], tuple[Limit, ...]]:
    """Add the cost of a request that passed to its breakers: that of each policy's first rule, else 1.

    Gives each first verdict with the key of the minute it was added to, and the breakers that opened.
    """
    spent: list[tuple[Verdict | None, int]] = []
    tripped: list[Limit] = []
    for breaker, first in spends:
        key, opened = breaker.spend(counters, context, now, first.cost_u if first else UNIT_U)
        spent.append((first, key))
        if opened:
            tripped.append(breaker)
    return tuple(spent), tuple(tripped)


def _reserve(
    bundle: Bundle, taken: list[Verdict], spent: tuple[tuple[Verdict | None, int], ...], now: Now, nonce: int
) -> str:
    """The sealed reservation of all LLM tokens taken, "" when none were. A repeated request gets the same one."""
    reserved: list[Taken] = []
    for verdict in taken:
        if isinstance(verdict, LlmVerdict) and verdict.cost_u:
            limit = verdict.limit
            assert isinstance(limit, LlmTokens), "only this limit reserves tokens"
            limit.reserve(verdict, reserved)
            for first, key in spent:
                if first is verdict:
                    reserved.append(limit.spent(verdict, key, now.mono_ns + KEPT_NS))
    if not reserved:
        return ""
    return seal(bundle.signing, nonce or fresh_nonce(), now.wall_ns + LIFETIME_NS, reserved)
