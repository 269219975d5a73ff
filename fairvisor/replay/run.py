"""The requests of a log through the engine, in a segment of their own, and what came of them.

The bundle, the settings and `decide` are those of a live edge. What differs: time is the log's, the counters are
fresh, whoever the log says described a request is believed, and what the log tells of places or claims counts as told
by the gateway. With `dry_run` every policy is a shadow policy, so that none hides what another would have rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Final

from fairvisor.bundle.compile import compile_bundle
from fairvisor.bundle.load import Parsed
from fairvisor.bundle.model import AnyRule, Bundle, CostBasedRule, Policy, TokenBucketRule
from fairvisor.context import Context
from fairvisor.counters.segment import Segment
from fairvisor.decision import Decision, Verdict
from fairvisor.descriptors import Descriptor, compile_descriptor
from fairvisor.engine import decide
from fairvisor.errors import RequestError
from fairvisor.follow import decision_options
from fairvisor.identity import Identity
from fairvisor.llm.models import compile_aliases
from fairvisor.metrics import DESCRIPTOR_MISSING, ESTIMATE_MISSING, LIMIT_RESULTS, LOOPS_SKIPPED
from fairvisor.replay.clock import LogClock
from fairvisor.replay.fields import HINTS, Logged
from fairvisor.replay.findings import Finding
from fairvisor.settings import Settings

KILL_SWITCH: Final = "kill_switch"  # the rule of no policy under which kill switches are reported
LOOP: Final = "loop_detection"
BREAKER: Final = "circuit_breaker"
NO_POLICY: Final = ""

_EVERYBODY: Final = (ip_network("0.0.0.0/0"), ip_network("::/0"))

Place = tuple[str, str]  # policy id, rule name
Readers = list[tuple[str, Descriptor]]


class Replay:
    """Decides the requests of one log. `told` are the meanings that the log's fields were given by `--map`."""

    def __init__(
        self,
        parsed: Parsed,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        dry_run: bool = False,
        told: Collection[str] = (),
    ) -> None:
        model = _in_shadow(parsed.model) if dry_run else parsed.model
        if any(meaning.startswith("jwt:") for meaning in told):
            model = model.model_copy(update={"jwt_keys": (), "jwt_issuers": ()})
        settings = believing(settings, told)
        self.identity = Identity.from_settings(settings, model.jwt_keys, environ, model.jwt_issuers)
        self.segment = Segment.private(settings.shared_dict_size)
        self.bundle = compile_bundle(model, parsed.sha256, self.segment, decision_options(settings))
        self.clock = LogClock()
        # what came of the requests
        self.decided = 0
        self.rejected = 0
        self.marked: Counter[str] = Counter()  # warned and throttled
        self.unanswerable: Counter[str] = Counter()  # requests that are 400, by what is said of them
        self.without_host = 0
        self.routed: Counter[str] = Counter()  # by policy id
        self._model = model
        self._findings: dict[Place, Finding] = {}
        self._unseen = self._all_readers(model)  # descriptors that no request had yet, by policy

    def run(self, requests: Iterable[Logged]) -> None:
        """Decide the requests, which are in order of time, and note what came of them."""
        for logged in requests:
            self.decide(logged)

    def decide(self, logged: Logged) -> Decision | None:
        """Decide one request and note it; None for one that a live edge would answer with 400."""
        now = self.clock.at(logged.wall_ns)
        _, method, host, target, headers, peer, body, repeated = logged
        if not host and self.bundle.routes.selects_by_host:
            self.without_host += 1
            return None
        context = Context(method, host, target, headers, peer, self.identity, now, body, repeated=repeated)
        try:
            decision = decide(self.bundle, self.segment.table, context, now)
        except RequestError as error:
            self.unanswerable[str(error)[:80]] += 1
            return None
        self._note(decision, context)
        return decision

    def _note(self, decision: Decision, context: Context) -> None:
        self.decided += 1
        unseen = self._unseen
        for policy in decision.policies:
            self.routed[policy.id] += 1
            if unseen[policy.id]:
                self._strike_off(unseen[policy.id], context)
        if unseen[NO_POLICY]:
            self._strike_off(unseen[NO_POLICY], context)
        verdict = decision.verdict
        if verdict is not None and verdict.reason is not None:
            self.rejected += 1
            self._note_reject(verdict, context)
        if decision.remarked:
            self._note_remarks(decision, context)

    def _note_remarks(self, decision: Decision, context: Context) -> None:
        if decision.marked:
            self.marked[decision.action.value] += 1
        for verdict in decision.would_reject:
            self._note_reject(verdict, context)
        for verdict in decision.marked:
            self._finding(verdict).marked[verdict.action.value] += 1

    def _note_reject(self, verdict: Verdict, context: Context) -> None:
        assert verdict.reason is not None, "a refusal says why"
        described = verdict.limit.describe(context)
        self._finding(verdict).rejects.add(verdict.reason.value, described, context.now.wall_ns)

    def _finding(self, verdict: Verdict) -> Finding:
        tally = verdict.limit.tally
        place = (tally.policy_id, tally.rule)
        finding = self._findings.get(place)
        if finding is None:
            finding = self._findings[place] = Finding(*place, "", tally.mode == "shadow")
        return finding

    # what the log lacks

    def _strike_off(self, unseen: Readers, context: Context) -> None:
        """Forget the descriptors that this request has."""
        unseen[:] = [each for each in unseen if not each[1].read(context)]

    def _all_readers(self, model: Bundle) -> dict[str, Readers]:
        aliases = compile_aliases(model.defaults.model_aliases)
        names = {policy.id: _descriptors(policy) for policy in model.policies}
        names[NO_POLICY] = tuple(dict.fromkeys(switch.scope_key for switch in model.kill_switches))
        return {
            policy_id: [(name, compile_descriptor(name, aliases)) for name in used]
            for policy_id, used in names.items()
        }

    # results

    def findings(self) -> list[Finding]:
        """Every limit of the bundle, in its order, with what it did."""
        asked, missing, blind = self._counted()
        found = [self._known(place, kind, shadow, rule) for place, kind, shadow, rule in self._limits()]
        for finding in found:
            place = (finding.policy, finding.rule)
            finding.asked = asked[place]
            finding.missing = missing.get(place, Counter())
            finding.blind = blind[place]
        return found

    def _limits(self) -> Iterator[tuple[Place, str, bool, AnyRule | None]]:
        if self._model.kill_switches:
            yield (NO_POLICY, KILL_SWITCH), KILL_SWITCH, False, None
        all_shadow = self.clock.last_ns < self.bundle.shadow_until_ns
        for policy in self._model.policies:
            shadow = all_shadow or policy.spec.mode == "shadow"
            for name, control in ((LOOP, policy.spec.loop_detection), (BREAKER, policy.spec.circuit_breaker)):
                if control is not None:
                    yield (policy.id, name), name, shadow, None
            for _, rule in policy.spec.placed_rules():
                yield (policy.id, rule.name), rule.algorithm, shadow, rule

    def _known(self, place: Place, kind: str, shadow: bool, rule: AnyRule | None) -> Finding:
        finding = self._findings.setdefault(place, Finding(*place, kind, shadow))
        finding.kind = kind
        finding.on_missing = rule.on_missing if rule is not None else ""
        finding.lacking = self._lacking(place[0], rule)
        return finding

    def _lacking(self, policy_id: str, rule: AnyRule | None) -> tuple[str, ...]:
        """The descriptors of a rule, or of all kill switches, that no request had which the policy applies to."""
        if not self.decided or (policy_id and not self.routed[policy_id]):
            return ()
        unseen = [name for name, _ in self._unseen[policy_id]]
        if policy_id:
            used = _rule_descriptors(rule) if rule is not None else ()
            return tuple(name for name in used if name in unseen)
        return tuple(unseen)

    def _counted(self) -> tuple[Counter[Place], dict[Place, Counter[str]], Counter[Place]]:
        """From the segment: how often each limit answered, lacked a descriptor, had no body to look at."""
        asked: Counter[Place] = Counter()
        missing: dict[Place, Counter[str]] = {}
        blind: Counter[Place] = Counter()
        for name, labels, count in self.segment.series_values():
            label = dict(labels)
            place = (label.get("policy", ""), label.get("rule", ""))
            if name == LIMIT_RESULTS.name:
                asked[place] += count
            elif name == DESCRIPTOR_MISSING.name:
                missing.setdefault(place, Counter())[label["descriptor"]] += count
            elif name == ESTIMATE_MISSING.name:
                blind[place] += count
            elif name == LOOPS_SKIPPED.name:
                blind[place[0], LOOP] += count
        return asked, missing, blind


def believing(settings: Settings, told: Collection[str]) -> Settings:
    """The settings under which what a log tells is believed as if a gateway had told it."""
    hints = {HINTS[meaning] for meaning in told if meaning in HINTS}
    changed = replace(settings, trusted_peers=_EVERYBODY, trusted_hints=settings.trusted_hints | hints)
    if any(meaning.startswith("jwt:") for meaning in told):
        changed = replace(changed, jwks_file=None, jwks_url=None)
    return changed


def _in_shadow(model: Bundle) -> Bundle:
    policies = tuple(
        policy.model_copy(update={"spec": policy.spec.model_copy(update={"mode": "shadow"})})
        for policy in model.policies
    )
    return model.model_copy(update={"policies": policies})


def _descriptors(policy: Policy) -> tuple[str, ...]:
    """Every descriptor that the rules of a policy read."""
    names = (name for _, rule in policy.spec.placed_rules() for name in _rule_descriptors(rule))
    return tuple(dict.fromkeys(names))


def _rule_descriptors(rule: AnyRule) -> tuple[str, ...]:
    """What a rule counts by, is chosen by and takes its cost from."""
    cost = ""
    if isinstance(rule, TokenBucketRule):
        cost = rule.algorithm_config.cost_source
    elif isinstance(rule, CostBasedRule):
        cost = rule.algorithm_config.cost_key
    names = (*rule.limit_keys, *rule.match, *([cost] if cost not in ("", "fixed") else ()))
    return tuple(dict.fromkeys(names))
