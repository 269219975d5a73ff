"""A traced request in words: why each policy applies or not, what each limit answered, what was decided.

`report` gives plain data for both output formats. The words come from the bundle's model, the answers from the trace;
nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fairvisor.bundle.model import AnyRule, Bundle, Policy, Selector
from fairvisor.bundle.reach import host_fits
from fairvisor.cli.trace import Step, Trace
from fairvisor.clock import NS_PER_S
from fairvisor.context import Context
from fairvisor.decision import UNIT_U, Unmet, Verdict
from fairvisor.descriptors import compile_descriptor, compile_match
from fairvisor.rules.kill_switch import KillSwitch
from fairvisor.rules.limit import Limit

Report = dict[str, object]

_NOT_ASKED: Final = "not asked: the decision was made before"
_GUARDS: Final = {
    "unreadable_body": "the body can be read, or there is none",
    "loop_detection": "not counted, or fewer identical requests than it takes",
    "circuit_breaker": "closed",
}


class Words:
    """The words for one trace."""

    def __init__(self, bundle: Bundle, traced: Trace, context: Context) -> None:
        self._bundle = bundle
        self._traced = traced
        self._context = context
        self._aliases = dict(bundle.defaults.model_aliases)
        self._steps: Mapping[tuple[str, str], Step] = {
            (step.limit.tally.policy_id, step.limit.tally.rule): step for step in traced.steps
        }

    def report(self) -> Report:
        """Every policy of the bundle with its limits, and the decision."""
        return {
            "policies": [self._policy(policy) for policy in self._bundle.policies],
            "decision": self._decision(),
        }

    def _policy(self, policy: Policy) -> Report:
        applying = {compiled.id: compiled for compiled in self._traced.policies}
        compiled = applying.get(policy.id)
        if compiled is None:
            why = f"does not apply, {self._excluded_by(policy.spec.selector)}"
            return {"id": policy.id, "applies": False, "shadow": False, "why": why, "limits": []}
        return {
            "id": policy.id,
            "applies": True,
            "shadow": compiled.shadow,
            "why": "applies",
            "limits": [*self._guards(policy), *self._rules(policy)],
        }

    def _excluded_by(self, selector: Selector) -> str:
        context = self._context
        if selector.methods and context.method not in {name.upper() for name in selector.methods}:
            return f"the method is not {' or '.join(selector.methods)}"
        if selector.hosts and not any(host_fits(pattern.lower(), context.host) for pattern in selector.hosts):
            return f"the host is not {' or '.join(selector.hosts)}"
        exact = f"is not {selector.path_exact}" if selector.path_exact else ""
        prefix = f"is not below {selector.path_prefix}" if selector.path_prefix else ""
        return f"the path {' and '.join(part for part in (exact, prefix) if part)}"

    def _guards(self, policy: Policy) -> list[Report]:
        found = []
        for name, control in (
            ("unreadable_body", self._steps.get((policy.id, "unreadable_body"))),
            ("loop_detection", policy.spec.loop_detection),
            ("circuit_breaker", policy.spec.circuit_breaker),
        ):
            if control is not None:
                step = self._steps.get((policy.id, name))
                verdict = step.verdict if step is not None else None
                silent = _GUARDS[name] if step is not None else _NOT_ASKED
                found.append(_limit(name, name, {}, _answer(verdict) if verdict else silent))
        return found

    def _rules(self, policy: Policy) -> list[Report]:
        found = []
        ran = False
        for place, rule in policy.spec.placed_rules():
            step = self._steps.get((policy.id, rule.name))
            if step is None:
                why = "not used: a rule ran" if place == "fallback_limit" and ran else _NOT_ASKED
                found.append(_limit(rule.name, rule.algorithm, {}, why))
                continue
            ran = ran or (step.verdict is not None and step.verdict.reason is None)
            why = _answer(step.verdict) if step.verdict is not None else self._why_not(rule)
            found.append(_limit(rule.name, rule.algorithm, self._keys(rule), why))
        return found

    def _keys(self, rule: AnyRule) -> dict[str, str | None]:
        return {
            name: compile_descriptor(name, self._aliases, rule.on_ambiguous).shown(self._context) or None
            for name in rule.limit_keys
        }

    def _why_not(self, rule: AnyRule) -> str:
        """Why a rule did not run: a `match` that does not hold, else a limit key that is missing."""
        for name, values in rule.match.items():
            if not compile_match(name, frozenset(values), self._aliases)(self._context):
                value = compile_descriptor(name, self._aliases).shown(self._context)
                shown = "missing" if value is None else repr(value)
                return f"does not run: {name} is {shown}, not {' or '.join(map(repr, values))}"
        missing = [name for name, value in self._keys(rule).items() if value is None]
        return f"does not run: {', '.join(missing)} is missing"

    def _decision(self) -> Report:
        decision = self._traced.decision
        verdict = decision.verdict
        document: Report = {"action": decision.action.value, "reason": None, "policy": None, "rule": None}
        if verdict is None:
            some = "no limit ran" if decision.policies else "no policy applies"
            return {**document, "why": some, "would_reject": self._would_reject()}
        tally = verdict.limit.tally
        document |= {
            "policy": tally.policy_id or None,
            "rule": tally.rule,
            "would_reject": self._would_reject(),
        }
        if verdict.reason is None:
            return {**document, "why": f"{_place(verdict.limit)} is the tightest limit"}
        why = f"{verdict.reason.value} by {_place(verdict.limit)}"
        return {**document, "reason": verdict.reason.value, "why": why}

    def _would_reject(self) -> list[str]:
        return [_place(verdict.limit) for verdict in self._traced.decision.would_reject]


def _limit(rule: str, kind: str, keys: Mapping[str, str | None], why: str) -> Report:
    return {"rule": rule, "kind": kind, "keys": keys, "why": why}


def _place(limit: Limit) -> str:
    if isinstance(limit, KillSwitch):
        route = f" on {limit.route}" if limit.route else ""
        because = f" ({limit.why})" if limit.why else ""
        return f"the kill switch for {limit.scope_key} {limit.scope_value}{route}{because}"
    return f"{limit.tally.policy_id}/{limit.tally.rule}"


def _answer(verdict: Verdict) -> str:
    if verdict.reason is not None:
        if isinstance(verdict, Unmet) and verdict.reset_ns < 0:
            return f"rejects, {verdict.reason.value}: {verdict.name}"
        if verdict.reset_ns < 0:
            return f"rejects, {verdict.reason.value}: it can never fit"
        return f"rejects, {verdict.reason.value}: again in {_seconds(verdict.reset_ns)}"
    did = "allows" if verdict.action.value == "allow" else f"allows with {verdict.action.value}"
    if verdict.quota is None:
        return did
    left = f"{_amount(verdict.remaining_u)} of {_amount(verdict.quota.amount_u)} left"
    return f"{did}: takes {_amount(verdict.cost_u)}, {left}, full again in {_seconds(verdict.reset_ns)}"


def _amount(amount_u: int) -> str:
    whole, rest = divmod(amount_u, UNIT_U)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".")


def _seconds(time_ns: int) -> str:
    return f"{-(-time_ns // NS_PER_S)} s"
