"""For whom a limit counts, for people: the descriptors that it counts by, with the values of one request.

Read when something was rejected, by whoever reports rejects. What a limit reads is worked out when it first rejects,
so that a bundle of ten thousand policies costs nothing here until then. Deciding is not done here.
"""

from __future__ import annotations

from typing import Final

from fairvisor.bundle.model import AnyRule, Bundle, Policy
from fairvisor.context import Context
from fairvisor.descriptors import Descriptor, compile_descriptor
from fairvisor.llm.models import compile_aliases
from fairvisor.rules import Limit
from fairvisor.rules.kill_switch import KillSwitch

LOOP: Final = "loop_detection"
BREAKER: Final = "circuit_breaker"
CLIENT: Final = "ip:address"

Subject = tuple[tuple[str, str | None], ...]  # (descriptor, value); None: the request has none
Readers = tuple[tuple[str, Descriptor], ...]


class Subjects:
    """The subjects of one bundle's limits."""

    def __init__(self, bundle: Bundle) -> None:
        self._policies = {policy.id: policy for policy in bundle.policies}
        self._aliases = compile_aliases(bundle.defaults.model_aliases)
        self._readers: dict[tuple[str, str], Readers] = {}

    def of(self, limit: Limit, context: Context) -> Subject:
        """For whom `limit` counted this request; () when it counts all together."""
        if isinstance(limit, KillSwitch):
            return ((limit.scope_key, limit.scope_value),)
        tally = limit.tally
        place = (tally.policy_id, tally.rule)
        readers = self._readers.get(place)
        if readers is None:
            names = _names(self._policies[tally.policy_id], tally.rule)
            readers = tuple((name, compile_descriptor(name, self._aliases)) for name in names)
            self._readers[place] = readers
        return tuple((name, read(context) or None) for name, read in readers)


def _names(policy: Policy, rule_name: str) -> tuple[str, ...]:
    """The descriptors that a limit of this policy counts by."""
    rules: list[AnyRule] = [rule for _, rule in policy.spec.placed_rules()]
    for rule in rules:
        if rule.name == rule_name:
            return rule.limit_keys
    names = tuple(dict.fromkeys(name for rule in rules for name in rule.limit_keys))
    if rule_name == LOOP:
        return names or (CLIENT,)
    breaker = policy.spec.circuit_breaker
    return names[:1] if breaker is not None and breaker.scope == "key" else ()
