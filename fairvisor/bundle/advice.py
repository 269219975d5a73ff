"""What is odd about a valid bundle: settings that have no effect, limits that nothing passes, claims taken on trust.

Warnings never stop a bundle; `validate`, the log and `status` show them. Whether a descriptor can be filled from the
configured sources is not known here: the compiler, which has the sources, adds that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fairvisor.bundle.fields import did_you_mean, plain
from fairvisor.bundle.model import (
    AnyRule,
    Bundle,
    CostBased,
    KillSwitch,
    LlmTokens,
    Override,
    Policy,
    TokenBucket,
)
from fairvisor.bundle.model_limits import ADDRESS
from fairvisor.errors import Problem
from fairvisor.identity.networks import NetworkIndex, parse_network

# RFC 9110 9.3, RFC 5789, those of WebDAV (RFC 4918, RFC 3253 3.6, RFC 5323), and what caches are purged with.
KNOWN_METHODS: Final = frozenset({
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY",
    "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH", "PURGE",
})  # fmt: skip
ZONED_PERIODS: Final = ("1d", "7d", "1mo")
JWKS_VARIABLES: Final = ("FAIRVISOR_JWKS_FILE", "FAIRVISOR_JWKS_URL")


def advise(bundle: Bundle, wall_ns: int, environ: Mapping[str, str]) -> Iterator[Problem]:
    """Every warning about a valid bundle as of `wall_ns` (nanoseconds since the Unix epoch)."""
    yield from _on_bundle(bundle, wall_ns)
    for index, policy in enumerate(bundle.policies):
        yield from _on_policy(policy, f"policies[{index}]")
    in_bundle = bundle.jwt_keys or bundle.jwt_issuers
    if not in_bundle and not any(environ.get(name) for name in JWKS_VARIABLES):
        yield from _on_unverified_claims(bundle)


def _on_bundle(bundle: Bundle, wall_ns: int) -> Iterator[Problem]:
    if bundle.expires_at_ns is not None and bundle.expires_at_ns <= wall_ns:
        yield Problem("expires_at", "has passed: an edge that is offered this bundle refuses it")
    if bundle.issued_at_ns is not None and bundle.issued_at_ns > wall_ns:
        yield Problem("issued_at", "lies in the future")
    if not bundle.policies and not bundle.kill_switches:
        yield Problem("policies", "is empty and there are no kill_switches: every request is allowed")
    for index, switch in enumerate(bundle.kill_switches):
        yield from _on_expiry(switch, f"kill_switches[{index}]", wall_ns)
    for name in ("global_shadow", "kill_switch_override"):
        override: Override | None = getattr(bundle, name)
        if override is not None and override.enabled:
            yield from _on_expiry(override, name, wall_ns)


def _on_expiry(part: KillSwitch | Override, path: str, wall_ns: int) -> Iterator[Problem]:
    if part.expires_at_ns is not None and part.expires_at_ns <= wall_ns:
        yield Problem(f"{path}.expires_at", "has passed: it is inactive")


def _on_policy(policy: Policy, path: str) -> Iterator[Problem]:
    spec = policy.spec
    if not (spec.rules or spec.fallback_limit or spec.loop_detection or spec.circuit_breaker):
        yield Problem(
            f"{path}.spec", "has no rule, no fallback_limit and no other control: it limits nothing"
        )
    for index, method in enumerate(spec.selector.methods):
        if method not in KNOWN_METHODS:
            hint = did_you_mean(method, KNOWN_METHODS)
            yield Problem(
                f"{path}.spec.selector.methods[{index}]", f'"{method}" is not a known HTTP method{hint}'
            )
    if spec.selector.path_prefix is not None and spec.selector.path_prefix.endswith("*"):
        yield Problem(f"{path}.spec.selector.pathPrefix", '"*" stands for itself here: a prefix needs none')
    for place, rule in spec.placed_rules():
        yield from _on_rule(rule, f"{path}.spec.{place}")


def _on_rule(rule: AnyRule, path: str) -> Iterator[Problem]:
    if len(set(rule.limit_keys)) < len(rule.limit_keys):
        yield Problem(f"{path}.limit_keys", "names a descriptor twice")
    for name in ("ua:bot", "ip:tor"):
        if not {"true", "false"}.issuperset(rule.match.get(name, ())):
            yield Problem(f'{path}.match["{name}"]', 'is only ever "true" or "false"')
    yield from _on_networks(rule.match.get(ADDRESS, ()), f'{path}.match["{ADDRESS}"]')
    config = rule.algorithm_config
    if isinstance(config, TokenBucket):
        yield from _on_cost_source(config.cost_source, f"{path}.algorithm_config.cost_source")
    elif isinstance(config, CostBased):
        yield from _on_cost_source(config.cost_key, f"{path}.algorithm_config.cost_key")
        yield from _on_budget(config, f"{path}.algorithm_config")
    else:
        yield from _on_tokens(config, f"{path}.algorithm_config")


def _on_networks(values: Sequence[str], path: str) -> Iterator[Problem]:
    """A warning for each address or network that another one of the list holds whole."""
    networks: NetworkIndex[str] = NetworkIndex()
    for value in values:
        networks.add(parse_network(value), value)
    for value in dict.fromkeys(values):
        network = parse_network(value)
        for other in networks.find(network.network_address):
            if other != value and parse_network(other).prefixlen <= network.prefixlen:
                yield Problem(path, f'"{value}" adds nothing: it is in "{other}"')
                break


def _on_cost_source(source: str, path: str) -> Iterator[Problem]:
    kind, _, name = source.partition(":")
    if name:
        yield Problem(
            path, f'the cost is the client\'s word unless the gateway overwrites the {kind} "{name}"'
        )


def _on_budget(config: CostBased, path: str) -> Iterator[Problem]:
    if config.timezone != "UTC" and config.period not in ZONED_PERIODS:
        yield Problem(
            f"{path}.timezone", f"moves only periods of {', '.join(ZONED_PERIODS)}, not {config.period}"
        )
    for index, stage in enumerate(config.staged_actions):
        where = f"{path}.staged_actions[{index}]"
        if stage.delay_ms is not None and stage.action != "throttle":
            yield Problem(f"{where}.delay_ms", f"has no effect on {stage.action}: only throttle delays")
        if index and config.staged_actions[index - 1].action == "reject":
            yield Problem(where, "is never reached: the stage before it rejects")
    reject = next(stage for stage in config.staged_actions if stage.action == "reject")
    most = config.budget * reject.threshold_percent / 100
    fixed = config.cost_key == "fixed"
    cost = config.fixed_cost if fixed else config.default_cost
    if cost > most:
        name, who = ("fixed_cost", "nothing") if fixed else ("default_cost", "no request that states no cost")
        yield Problem(
            f"{path}.{name}", f"{plain(cost)} is more than the {plain(most)} it rejects at: {who} passes"
        )


def _on_tokens(config: LlmTokens, path: str) -> Iterator[Problem]:
    most, limit = config.burst_tokens, "burst_tokens"
    if config.tokens_per_day is not None and config.tokens_per_day < most:
        most, limit = config.tokens_per_day, "tokens_per_day"
    for name in ("max_tokens_per_request", "max_prompt_tokens", "max_completion_tokens"):
        cap = getattr(config, name)
        if cap is not None and cap > most:
            yield Problem(f"{path}.{name}", f"{plain(cap)} is never reached: {limit} is {plain(most)}")
    if config.default_prompt_tokens > most:
        what = f"{plain(config.default_prompt_tokens)} is more than {limit} ({plain(most)})"
        yield Problem(f"{path}.default_prompt_tokens", f"{what}: no request without an estimate passes")


def _on_unverified_claims(bundle: Bundle) -> Iterator[Problem]:
    """One warning for the bundle, at the first place that reads a claim."""
    places = [*_claims(bundle)]
    if places:
        path, descriptor = places[0]
        more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        why = f"there is no key source (jwt_keys, jwt_issuers, {' or '.join(JWKS_VARIABLES)})"
        yield Problem(
            path,
            f"{descriptor}{more} is read unverified, as {why}: safe only where the gateway has verified the token",
        )


def _claims(bundle: Bundle) -> Iterator[tuple[str, str]]:
    for index, switch in enumerate(bundle.kill_switches):
        if switch.scope_key.startswith("jwt:"):
            yield f"kill_switches[{index}].scope_key", switch.scope_key
    for index, policy in enumerate(bundle.policies):
        for place, rule in policy.spec.placed_rules():
            path = f"policies[{index}].spec.{place}"
            for at, name in enumerate(rule.limit_keys):
                if name.startswith("jwt:"):
                    yield f"{path}.limit_keys[{at}]", name
            for name in rule.match:
                if name.startswith("jwt:"):
                    yield f'{path}.match["{name}"]', name
