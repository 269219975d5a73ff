"""One counter or breaker of the active bundle, found by the names of policy and rule and by descriptor values.

For operators: what is left to somebody, and a fresh start for them. Values are spelled as requests spell them, so that
an IPv6 address finds the counter of its network and a model's dated name that of the model. Counters are read without
charging anything; a reset is one atomic operation on each counter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters import Counters
from fairvisor.decision import UNIT_U
from fairvisor.descriptors import accepted_values
from fairvisor.engine import Bundle, Policy
from fairvisor.errors import NotFound, RequestError
from fairvisor.identity import Identity
from fairvisor.identity.addresses import parse_address
from fairvisor.rules.breaker import Breaker
from fairvisor.rules.budget import Budget
from fairvisor.rules.llm_tokens import LlmTokens
from fairvisor.rules.standing import Standing
from fairvisor.rules.token_bucket import TokenBucket

Keys = Mapping[str, "str | None"]  # descriptors with values; None: a request without it
Counting = TokenBucket | Budget | LlmTokens

_ADDRESS: Final = "ip:address"


class Found(NamedTuple):
    """The counters of a rule for somebody. `keys` are spelled as the counters' identity has them."""

    policy: str
    rule: str
    mode: str
    keys: dict[str, str | None]
    standings: tuple[Standing, ...]

    def report(self) -> dict[str, Any]:
        """As plain data: amounts in whole units, times in seconds."""
        return {
            "policy": self.policy,
            "rule": self.rule,
            "mode": self.mode,
            "keys": self.keys,
            "counters": [_counter(standing) for standing in self.standings],
        }


def _counter(standing: Standing) -> dict[str, Any]:
    return {
        "counter": standing.name,
        "limit": standing.quota.amount_u / UNIT_U,
        "remaining": standing.remaining_u / UNIT_U,
        "window_seconds": standing.quota.window_s,
        "reset_seconds": -(-standing.reset_ns // NS_PER_S),
    }


class Lookup:
    """Finds in one bundle, with the identity that goes with it."""

    def __init__(self, bundle: Bundle, identity: Identity, counters: Counters) -> None:
        self._bundle = bundle
        self._identity = identity
        self._counters = counters

    def find(self, policy_id: str, rule_name: str, keys: Keys, now: Now) -> Found:
        """The counters that decisions use now. Raises NotFound, or RequestError when the keys are not the rule's."""
        policy = self._policy(policy_id, now)
        limit = self._limit(policy, rule_name)
        names = limit.scope.names
        given = {_normal(name): value for name, value in keys.items()}
        if set(given) != set(names):
            wanted = ", ".join(names) or "none: it counts all requests together"
            raise RequestError(f"the limit keys of {policy_id}/{rule_name} are {wanted}")
        spelled = {name: self._spell(name, given[name]) for name in names}
        values = limit.scope.chosen(list(spelled.values()))
        if not values:
            missing = ", ".join(name for name, value in spelled.items() if not value)
            raise RequestError(f"{policy_id}/{rule_name} counts nobody without a value of {missing}")
        standings = limit.standings(self._counters, values, now)
        return Found(policy_id, rule_name, limit.tally.mode, spelled, standings)

    def reset(self, found: Found, now: Now) -> int:
        """Forget these counters; how many of them had counted anything."""
        return sum(self._counters.delete(standing.key, now.mono_ns) for standing in found.standings)

    def breaker(self, policy_id: str, keys: Keys, now: Now) -> tuple[Breaker, str | None]:
        """The breaker of a policy, and the value it is scoped by. Raises NotFound or RequestError."""
        breaker = self._policy(policy_id, now).breaker
        if breaker is None:
            raise NotFound(f"the policy {policy_id!r} has no circuit breaker")
        given = {_normal(name): value for name, value in keys.items()}
        name = breaker.key_name
        if set(given) - {name} or (name and not given):
            wanted = f"has one for each {name}" if name else "is the same for everybody: it takes no key"
            raise RequestError(f"the circuit breaker of {policy_id} {wanted}")
        return breaker, self._spell(name, given[name]) if name else None

    def _policy(self, policy_id: str, now: Now) -> Policy:
        """The policy as it acts now: on shadow counters while everything is a shadow."""
        found = next((each for each in self._bundle.routes.policies() if each.id == policy_id), None)
        if found is None:
            raise NotFound(f"there is no policy {policy_id!r}")
        return found.in_shadow if now.wall_ns < self._bundle.shadow_until_ns else found

    def _limit(self, policy: Policy, rule_name: str) -> Counting:
        limits = [*policy.rules, *([policy.fallback] if policy.fallback is not None else [])]
        for limit in limits:
            if limit.tally.rule == rule_name:
                assert isinstance(limit, (TokenBucket, Budget, LlmTokens)), "rules are of these three kinds"
                return limit
        rules = ", ".join(limit.tally.rule for limit in limits) or "none"
        raise NotFound(f"the policy {policy.id!r} has no rule {rule_name!r}; it has {rules}")

    def _spell(self, name: str, value: str | None) -> str | None:
        """A value as the descriptor gives it."""
        if not value:
            return None
        if name == _ADDRESS:
            return self._identity.addresses.client(value, {}).key if parse_address(value) else value
        (spelled,) = accepted_values(name, (value,), {})
        return spelled


def _normal(name: str) -> str:
    """The name of a descriptor as bundles have it after validation."""
    if name.lower().startswith("header:"):
        return name.lower()
    return _ADDRESS if name == "ip:addr" else name
