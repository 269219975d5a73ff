"""A validated bundle -> what the engine evaluates: everything that depends only on the bundle is worked out here.

Descriptors become functions, rates ticks, amounts millionths, limit keys the constant part of a counter's identity,
selectors an index. A bundle is compiled against one segment, whose seed is part of every counter's key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Final, NamedTuple

from fairvisor.bundle import model
from fairvisor.clock import NS_PER_S
from fairvisor.counters.segment import Segment
from fairvisor.decision import UNIT_U, Action, Quota, Reason
from fairvisor.descriptors import Descriptor, accepted_values, compile_descriptor, compile_match
from fairvisor.engine import Bundle, Policy
from fairvisor.llm.estimate import load_estimator
from fairvisor.llm.models import compile_aliases
from fairvisor.llm.usage import compile_weights
from fairvisor.metrics import (
    DECISIONS,
    KILL_SWITCH_HITS,
    REMAINING,
    REPEATS,
    TOKENS_REMAINING,
    Counter,
    Tally,
)
from fairvisor.route import Routes, Selector, normal_route
from fairvisor.rules.breaker import MINUTE_NS, Breaker
from fairvisor.rules.budget import Budget, Stage
from fairvisor.rules.cost import Cost, compile_cost, millionths
from fairvisor.rules.keys import Keyring, Scope, joined
from fairvisor.rules.kill_switch import ANY, KillSwitch, KillSwitches
from fairvisor.rules.limit import Limit
from fairvisor.rules.llm_tokens import Caps, LlmTokens, Streaming
from fairvisor.rules.loop import Loop
from fairvisor.rules.token_bucket import TokenBucket
from fairvisor.rules.unreadable import Unreadable
from fairvisor.rules.windows import Windows

NO_EXPIRY: Final = 0
SHADOW: Final = "shadow"
ENFORCE: Final = "enforce"


class Options(NamedTuple):
    """The settings that decisions depend on."""

    reject_when_full: bool = False
    trust_token_hint: bool = False
    key_issuers: frozenset[str | None] = (
        frozenset()
    )  # of the keys that the settings name; None: of any issuer


DEFAULT_OPTIONS: Final = Options()


class Compiler:
    """Compiles the parts of one bundle. Holds what all parts need: the segment, the options, the defaults, and whether
    there are several issuers of tokens."""

    def __init__(
        self, segment: Segment, options: Options, defaults: model.Defaults, several_issuers: bool = False
    ) -> None:
        self._segment = segment
        self._seed = segment.table.seed
        self._keyring = Keyring(self._seed)
        self._options = options
        self._aliases = compile_aliases(defaults.model_aliases)
        self._rejects_unreadable = defaults.unreadable_body == "reject"
        self._several_issuers = several_issuers
        self._switch_hits: dict[str, Counter] = {}
        self._switch_tally = Tally(segment, "", "kill_switch", ENFORCE)

    def policy(self, policy: model.Policy, with_shadow: bool) -> Policy:
        """One policy; `with_shadow` also makes its twin on shadow counters."""
        compiled = self._policy(policy, policy.spec.mode)
        if with_shadow and not compiled.shadow:
            compiled.twin = self._policy(policy, SHADOW)
        return compiled

    def _policy(self, policy: model.Policy, mode: str) -> Policy:
        spec = policy.spec
        selector = Selector(
            spec.selector.path_exact,
            spec.selector.path_prefix,
            frozenset(method.upper() for method in spec.selector.methods),
            tuple(host.lower() for host in spec.selector.hosts),
        )
        fallback = spec.fallback_limit
        compiled = Policy(
            policy.id,
            selector,
            mode == SHADOW,
            self._loop(policy, mode),
            self._breaker(policy, mode),
            tuple(self._rule(policy.id, rule, mode) for rule in spec.rules),
            self._rule(policy.id, fallback, mode) if fallback is not None else None,
        )
        names = {name for rule in _all_rules(spec) for name in (*rule.limit_keys, *rule.match)}
        compiled.headers = frozenset(
            name.removeprefix("header:").lower() for name in names if name.startswith("header:")
        )
        loop = spec.loop_detection
        compiled.asks_model = "llm:model" in names or reserves(policy)
        compiled.reads_body = compiled.asks_model or (loop is not None and loop.body != "ignore")
        if compiled.asks_model and self._rejects_unreadable:
            tally = Tally(self._segment, policy.id, Reason.UNREADABLE_BODY.value, mode)
            compiled.guards = (Unreadable(tally), *compiled.guards)
        return compiled

    def _rule(self, policy_id: str, rule: model.AnyRule, mode: str) -> Limit:
        remaining = TOKENS_REMAINING if rule.algorithm == "token_bucket_llm" else REMAINING
        tally = Tally(self._segment, policy_id, rule.name, mode, remaining)
        return _BUILDERS[rule.algorithm](self, tally, rule, rule.algorithm_config)

    def _read(self, name: str, choice: str = "reject") -> Descriptor:
        return compile_descriptor(name, self._aliases, choice)

    def _count_by(self, name: str, choice: str) -> Descriptor:
        return compile_descriptor(name, self._aliases, choice, several_issuers=self._several_issuers)

    def _scope(self, tally: Tally, rule: model.AnyRule, kind: str, *window: str) -> Scope:
        identity = joined((kind, *window, tally.policy_id, tally.rule, *rule.limit_keys, tally.mode))
        return Scope(
            f"{len(rule.limit_keys)}|{identity}",
            tuple((name, self._count_by(name, rule.on_ambiguous)) for name in rule.limit_keys),
            tuple(compile_match(name, values, self._aliases) for name, values in rule.match.items()),
            rule.on_missing,
            rule.missing_status,
            rule.on_invalid_token if _reads_claims(rule) else "",
        )

    def _cost(self, source: str, default_cost: Decimal, rule: model.AnyRule) -> Cost | None:
        return (
            None if source == "fixed" else compile_cost(self._read(source, rule.on_ambiguous), default_cost)
        )

    def _token_bucket(self, tally: Tally, rule: model.TokenBucketRule, config: model.TokenBucket) -> Limit:
        rate = config.tokens_per_second
        burst_u = round(config.burst * UNIT_U)
        return TokenBucket(
            tally,
            self._scope(tally, rule, "bucket"),
            self._keyring,
            Quota(tally.rule, burst_u, _seconds(config.burst, rate)),
            rate,
            max(1, millionths(config.fixed_cost)),
            self._cost(config.cost_source, config.default_cost, rule),
            self._options.reject_when_full,
        )

    def _budget(self, tally: Tally, rule: model.CostBasedRule, config: model.CostBased) -> Limit:
        budget = config.budget
        shares = [(stage, *_share_u(budget, stage.threshold_percent)) for stage in config.staged_actions]
        limit_u = min(below_u for stage, below_u, _ in shares if stage.action == "reject")
        stages = [
            Stage(above_u, Action(stage.action), int(stage.delay_ms or 0))
            for stage, _, above_u in shares
            if stage.action != "reject"
        ]
        return Budget(
            tally,
            self._scope(tally, rule, "budget", config.period, config.timezone),
            self._keyring,
            Windows(config.period, config.timezone),
            limit_u,
            limit_u,
            tuple(reversed(stages)),
            max(1, millionths(config.fixed_cost)),
            self._cost(config.cost_key, config.default_cost, rule),
            self._options.reject_when_full,
        )

    def _llm_tokens(self, tally: Tally, rule: model.LlmTokensRule, config: model.LlmTokens) -> Limit:
        burst_u = round(config.burst_tokens * UNIT_U)
        window_s = _seconds(config.burst_tokens, config.tokens_per_minute, 60)
        day_u = round(config.tokens_per_day * UNIT_U) if config.tokens_per_day is not None else 0
        estimator = config.token_source.estimator
        caps = Caps(
            _whole(config.max_tokens_per_request),
            _whole(config.max_prompt_tokens),
            _whole(config.max_completion_tokens),
            int(config.default_max_completion),
            int(config.default_prompt_tokens),
        )
        return LlmTokens(
            tally,
            self._scope(tally, rule, "llm"),
            self._keyring,
            Quota(tally.rule, burst_u, window_s),
            Quota(tally.rule, day_u, 86_400) if day_u else None,
            config.tokens_per_minute,
            caps,
            compile_weights(dict(config.weights)),
            None if estimator == "header_hint" else load_estimator(estimator),
            self._options.trust_token_hint,
            self._options.reject_when_full,
            _streaming(config),
        )

    def _loop(self, policy: model.Policy, mode: str) -> Loop | None:
        loop = policy.spec.loop_detection
        if loop is None:
            return None
        names: dict[str, str] = {}
        for rule in _all_rules(policy.spec):
            for name in rule.limit_keys:
                names.setdefault(name, rule.on_ambiguous)
        return Loop(
            Tally(self._segment, policy.id, "loop_detection", mode),
            joined(("loop", policy.id, mode, *names)),
            self._keyring,
            tuple((name, self._count_by(name, choice)) for name, choice in names.items()),
            int(loop.window_seconds * NS_PER_S),
            loop.threshold_identical_requests,
            Action(loop.action),
            loop.body == "ignore",
        )

    def _breaker(self, policy: model.Policy, mode: str) -> Breaker | None:
        breaker = policy.spec.circuit_breaker
        if breaker is None:
            return None
        first, choice = None, "reject"
        if breaker.scope == "key":
            keyed = (rule for rule in _all_rules(policy.spec) if rule.limit_keys)
            first, choice = next(((rule.limit_keys[0], rule.on_ambiguous) for rule in keyed), (None, choice))
        owner = "" if breaker.scope == "global" else policy.id
        return Breaker(
            Tally(self._segment, policy.id, "circuit_breaker", mode),
            joined(("breaker", breaker.scope, owner, first or "", mode)),
            self._seed,
            first or "",
            self._count_by(first, choice) if first is not None else None,
            millionths(breaker.spend_rate_threshold_per_minute),
            int(breaker.auto_reset_after_minutes * MINUTE_NS),
        )

    def kill_switch(self, switch: model.KillSwitch) -> tuple[KillSwitch, Descriptor]:
        """One kill switch, with the reader of what it looks at."""
        accepted = accepted_values(switch.scope_key, (switch.scope_value,), self._aliases)
        (value,) = accepted if switch.scope_value != ANY else (ANY,)
        read = self._read(switch.scope_key)
        compiled = KillSwitch(
            self._switch_tally,
            self._hits_of(switch.scope_key),
            read,
            switch.scope_key,
            value,
            normal_route(switch.route) if switch.route else "",
            switch.reason or "",
            switch.expires_at_ns or NO_EXPIRY,
        )
        return compiled, read

    def _hits_of(self, scope_key: str) -> Counter:
        """The counter that all switches of a descriptor share."""
        if scope_key not in self._switch_hits:
            self._switch_hits[scope_key] = Counter(self._segment, KILL_SWITCH_HITS, scope_key)
        return self._switch_hits[scope_key]


# Not in the compiler: holding methods of itself it would hold itself, and it and its keyring would never be freed, as
# the collector does not look at what a reload made.
_BUILDERS: Final[dict[str, Callable[..., Limit]]] = {
    "token_bucket": Compiler._token_bucket,
    "cost_based": Compiler._budget,
    "token_bucket_llm": Compiler._llm_tokens,
}


def compile_bundle(
    bundle: model.Bundle, sha256: str, segment: Segment, options: Options = DEFAULT_OPTIONS
) -> Bundle:
    """The bundle as the engine evaluates it, its counters in `segment`."""
    compiler = Compiler(segment, options, bundle.defaults, has_several_issuers(bundle, options))
    with_shadow = wants_shadow(bundle)
    routes = Routes(compiler.policy(policy, with_shadow) for policy in bundle.policies)
    switches = KillSwitches(compiler.kill_switch(switch) for switch in bundle.kill_switches)
    return assemble(bundle, sha256, segment, routes, switches, any(map(reserves, bundle.policies)))


def assemble(
    head: model.Bundle,
    sha256: str,
    segment: Segment,
    routes: Routes[Policy],
    kill_switches: KillSwitches,
    reserving: bool,
) -> Bundle:
    """A bundle of parts that were compiled before; of `head` only what is neither policy nor kill switch is read."""
    return Bundle(
        head.bundle_version,
        sha256,
        routes,
        kill_switches,
        _until(head.global_shadow),
        _until(head.kill_switch_override),
        segment.table.seed,
        segment.reservation_key,
        reserving,
        Counter(segment, DECISIONS, "", "", "allow", ""),
        Counter(segment, REPEATS),
    )


def has_several_issuers(head: model.Bundle, options: Options) -> bool:
    """Whether tokens of several issuers are verified: their claims are counted apart.

    Keys that name no issuer are those of one more, where `jwt_issuers` says who the others are.
    """
    issuers: set[str | None] = {each.issuer for each in head.jwt_issuers}
    others = {key.issuer for key in head.jwt_keys} | options.key_issuers
    return len(issuers | others if issuers else others - {None}) > 1


def wants_shadow(head: model.Bundle) -> bool:
    """Whether every policy needs a twin on shadow counters."""
    return head.global_shadow is not None and head.global_shadow.enabled


def reserves(policy: model.Policy) -> bool:
    """Whether some rule of the policy reserves tokens."""
    return any(rule.algorithm == "token_bucket_llm" for rule in _all_rules(policy.spec))


def _until(override: model.Override | None) -> int:
    """When an override ends (wall clock, ns); 0 when there is none."""
    if override is None or not override.enabled or override.expires_at_ns is None:
        return 0
    return override.expires_at_ns


def _all_rules(spec: model.Spec) -> Iterator[model.AnyRule]:
    yield from spec.rules
    if spec.fallback_limit is not None:
        yield spec.fallback_limit


def _reads_claims(rule: model.AnyRule) -> bool:
    return any(name.startswith("jwt:") for name in (*rule.limit_keys, *rule.match))


def _streaming(config: model.LlmTokens) -> Streaming:
    streaming = config.streaming
    return Streaming(
        streaming.enabled and streaming.enforce_mid_stream,
        streaming.on_limit_exceeded == "graceful_close",
        streaming.include_partial_usage,
        streaming.limit == "reservation",
    )


# Exact, in whole numbers: fractions would cost a tenth of the time that a large bundle takes.


def _seconds(amount: Decimal, rate: Decimal, period_s: int = 1) -> int:
    """How long `amount` takes at `rate` in `period_s` seconds, rounded up."""
    numerator, denominator = amount.as_integer_ratio()
    per, of = rate.as_integer_ratio()
    return -(-numerator * of * period_s // (denominator * per))


def _share_u(amount: Decimal, percent: Decimal) -> tuple[int, int]:
    """So many percent of `amount` in millionths, rounded down and up."""
    numerator, denominator = amount.as_integer_ratio()
    share, of = percent.as_integer_ratio()
    over, under = numerator * share * UNIT_U, denominator * of * 100
    return over // under, -(-over // under)


def _whole(amount: Decimal | None) -> int | None:
    """A cap in whole tokens, rounded down."""
    return None if amount is None else int(amount)
