"""The bundle as a tree of frozen objects: what `load.py` reads and what `compile.py` builds the engine from.

The names and ranges are those of the policy reference; the limits are in `model_limits.py`, token keys in
`model_keys.py`, single values in `fields.py`. Instants are nanoseconds since the Unix epoch (`expires_at_ns` is the
JSON's `expires_at`), absent ones are None. This module knows what a well-formed bundle is; whether it may replace the
active one is decided in `load.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, Strict, ValidationInfo, field_validator

from fairvisor.bundle.fields import (
    Descriptor,
    Host,
    InstantNs,
    Method,
    Name,
    Path,
    Route,
    ScalarText,
    Text,
    Version,
    address_or_network,
    fault,
    show,
)
from fairvisor.bundle.model_keys import JwtIssuer, JwtKey
from fairvisor.bundle.model_limits import (
    AnyRule,
    CircuitBreaker,
    CostBased,
    CostBasedRule,
    FallbackRule,
    LlmTokens,
    LlmTokensRule,
    LoopDetection,
    MissingStatus,
    OnAmbiguous,
    OnInvalidToken,
    OnMissing,
    Rule,
    StagedAction,
    Strictly,
    TokenBucket,
    TokenBucketRule,
    without_free_fields,
)

__all__ = [
    "AnyRule", "Bundle", "CircuitBreaker", "CostBased", "CostBasedRule", "Defaults", "JwtIssuer", "JwtKey",
    "KillSwitch", "LlmTokens", "LlmTokensRule", "LoopDetection", "Mode", "OnMissing", "Override", "Policy", "Rule",
    "Selector", "Spec", "StagedAction", "TokenBucket", "TokenBucketRule",
]  # fmt: skip

Mode = Literal["enforce", "shadow"]
UnreadableBody = Literal["unread", "reject"]
MAX_ISSUERS: Final = 64  # each is fetched every few minutes


class Selector(Strictly):
    """Where a policy applies. When both paths are given, either one matching is enough."""

    path_exact: Path | None = Field(
        default=None,
        alias="pathExact",
        description="This path and no other. This or `pathPrefix` is required.",
    )
    methods: Annotated[tuple[Method, ...], Strict(False)] = Field(
        default=(), description="HTTP methods, in any case. Absent: any."
    )
    hosts: Annotated[tuple[Host, ...], Strict(False)] = Field(
        default=(),
        description="Host names without port, in any case, as A-labels. `*.example.com` is every host "
        "below `example.com`. Absent: any.",
    )
    path_prefix: Path | None = Field(
        default=None,
        alias="pathPrefix",
        validate_default=True,
        description="This path and everything below it, by whole segments: `/v1` has `/v1` and `/v1/x`, not "
        "`/v10`; `/v1/` has only what is below.",
    )

    @field_validator("methods", "hosts")
    @classmethod
    def _not_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise fault("must not be an empty array: leave the field out to match any")
        return names

    @field_validator("path_prefix")
    @classmethod
    def _some_path(cls, prefix: str | None, info: ValidationInfo) -> str | None:
        if prefix is None and info.data.get("path_exact", "") is None:
            raise fault("is required where there is no pathExact")
        return prefix


class Spec(Strictly):
    """What a policy does where it applies."""

    # After load a control that is switched off is None.

    selector: Selector = Field(description="Where it applies.")
    mode: Mode = Field(default="enforce", description="`shadow` only reports what `enforce` would do.")
    rules: Annotated[tuple[AnyRule, ...], Strict(False)] = Field(
        description="Its limits, evaluated in this order. All must pass."
    )
    fallback_limit: FallbackRule | None = Field(
        default=None,
        description="A rule, its name optional, for requests that no rule of the policy ran for.",
    )
    loop_detection: LoopDetection | None = Field(
        default=None, description="Stops the same request sent again and again."
    )
    circuit_breaker: CircuitBreaker | None = Field(
        default=None, description="Stops everything when spending rises too fast."
    )

    def placed_rules(self) -> Iterator[tuple[str, AnyRule]]:
        """Every rule with its path in the spec: `rules[0]`, ..., `fallback_limit`."""
        for index, rule in enumerate(self.rules):
            yield f"rules[{index}]", rule
        if self.fallback_limit is not None:
            yield "fallback_limit", self.fallback_limit


class Policy(Strictly):
    """One policy of the bundle."""

    id: Name = Field(description="Unique in the bundle. Policies are evaluated in the order of their ids.")
    spec: Spec = Field(description="What it does where.")

    def resolved(self, defaults: Defaults) -> Policy:
        """This policy with the bundle's defaults where it says nothing, and without controls that are switched off."""
        spec = self.spec
        update: dict[str, Any] = {}
        given = spec.model_fields_set
        if "mode" not in given and defaults.mode != spec.mode:
            update["mode"] = defaults.mode
        given_by_default = {
            name: getattr(defaults, name) for name in _RULE_DEFAULTS & defaults.model_fields_set
        }
        if given_by_default:
            update["rules"] = tuple(_with_defaults(rule, given_by_default) for rule in spec.rules)
            if spec.fallback_limit is not None:
                update["fallback_limit"] = _with_defaults(spec.fallback_limit, given_by_default)
        loop = spec.loop_detection or defaults.loop_detection
        breaker = spec.circuit_breaker or defaults.circuit_breaker
        loop = loop if loop is not None and loop.enabled else None
        breaker = breaker if breaker is not None and breaker.enabled else None
        if loop is not spec.loop_detection:
            update["loop_detection"] = loop
        if breaker is not spec.circuit_breaker:
            update["circuit_breaker"] = breaker
        if not update:
            return self
        return self.model_copy(update={"spec": spec.model_copy(update=update)})


# Fields of a rule that `defaults` may give.
_RULE_DEFAULTS: Final = frozenset({"on_missing", "missing_status", "on_ambiguous", "on_invalid_token"})


def _with_defaults(rule: AnyRule, defaults: Mapping[str, Any]) -> AnyRule:
    update = {name: value for name, value in defaults.items() if name not in rule.model_fields_set}
    return rule.model_copy(update=update) if update else rule


class KillSwitch(Strictly):
    """Stops everything whose descriptor `scope_key` has the value `scope_value` (`*`: any), until `expires_at`."""

    scope_key: Descriptor = Field(description="What it looks at. A request without it is not stopped.")
    scope_value: ScalarText = Field(
        description="The value that is stopped; `*` is any. For `ip:address` an address or a network (CIDR)."
    )
    route: Route | None = Field(
        default=None,
        description="Only this path; with `*` at its end every path that begins so. Absent: every path.",
    )
    reason: Text | None = Field(default=None, description="Why, for people. Clients do not see it.")
    expires_at_ns: InstantNs | None = Field(
        default=None, alias="expires_at", description="From then on it is inactive. Absent: it stays."
    )

    @field_validator("scope_value")
    @classmethod
    def _address_or_network(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("scope_key") != "ip:address" or value == "*":
            return value
        return address_or_network(value, 'must be an IP address, a network such as {network} or "*"')


class Override(Strictly):
    """A switch over the whole bundle. It acts while `enabled` and until `expires_at`."""

    enabled: bool = Field(description="Whether it acts.")
    reason: Text | None = Field(
        default=None, validate_default=True, description="Why, for people. Required when `enabled`."
    )
    expires_at_ns: InstantNs | None = Field(
        default=None,
        alias="expires_at",
        validate_default=True,
        description="From then on it is inactive. Required when `enabled`.",
    )

    @field_validator("reason", "expires_at_ns")
    @classmethod
    def _given_when_enabled(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("enabled"):
            raise fault("is required when enabled is true")
        return value


class Defaults(Strictly):
    """What policies do where they say nothing themselves."""

    mode: Mode = Field(default="enforce", description="The mode of policies that name none.")
    on_missing: OnMissing = Field(default="skip", description="The `on_missing` of rules that name none.")
    missing_status: MissingStatus = Field(
        default=429, description="The `missing_status` of rules that name none."
    )
    on_ambiguous: OnAmbiguous = Field(
        default="reject", description="The `on_ambiguous` of rules that name none."
    )
    on_invalid_token: OnInvalidToken = Field(
        default="missing", description="The `on_invalid_token` of rules that name none."
    )
    loop_detection: LoopDetection | None = Field(
        default=None, description="For policies without one of their own; theirs may switch it off."
    )
    circuit_breaker: CircuitBreaker | None = Field(
        default=None, description="For policies without one of their own; theirs may switch it off."
    )
    unreadable_body: UnreadableBody = Field(
        default="unread",
        description="What becomes of a body that cannot be read where an LLM request is expected: it may be for any "
        "model and its bytes count, or the request is rejected with 400.",
    )
    model_aliases: Annotated[Mapping[Text, Text], BeforeValidator(without_free_fields)] = Field(
        default_factory=dict, description="Names of models that `llm:model` reads as another one."
    )


class Bundle(Strictly):
    """The whole document."""

    # An int where the JSON number is whole.
    bundle_version: Version = Field(description="A bundle that replaces another must have a greater one.")
    issued_at_ns: InstantNs | None = Field(
        default=None, alias="issued_at", description="When it was made, for people."
    )
    expires_at_ns: InstantNs | None = Field(
        default=None,
        alias="expires_at",
        description="From then on it is refused when it is offered. While it is active it goes on being enforced.",
    )
    policies: Annotated[tuple[Policy, ...], Strict(False)] = Field(description="All policies; may be empty.")
    kill_switches: Annotated[tuple[KillSwitch, ...], Strict(False)] = Field(
        default=(), description="Who is stopped at once, whatever the policies say."
    )
    global_shadow: Override | None = Field(
        default=None, description="Turns every policy into a shadow policy for a while."
    )
    kill_switch_override: Override | None = Field(
        default=None, description="Suspends all kill switches for a while."
    )
    defaults: Defaults = Field(
        default=Defaults(), description="What holds for policies that say nothing themselves."
    )
    jwt_keys: Annotated[tuple[JwtKey, ...], Strict(False)] = Field(
        default=(), description="Keys that verify bearer tokens."
    )
    jwt_issuers: Annotated[tuple[JwtIssuer, ...], Strict(False)] = Field(
        default=(),
        description=f"Identity providers whose keys are fetched, at most {MAX_ISSUERS}.",
    )

    @field_validator("jwt_issuers")
    @classmethod
    def _each_once(cls, issuers: tuple[JwtIssuer, ...]) -> tuple[JwtIssuer, ...]:
        if len(issuers) > MAX_ISSUERS:
            raise fault(f"must name at most {MAX_ISSUERS} issuers, not {len(issuers)}")
        taken: set[str] = set()
        for each in issuers:
            if each.issuer in taken:
                raise fault(f"must name an issuer once: {show(each.issuer)} is there twice")
            taken.add(each.issuer)
        return issuers

    @field_validator("expires_at_ns")
    @classmethod
    def _expires_after_issue(cls, expires_at_ns: int | None, info: ValidationInfo) -> int | None:
        issued_at_ns = info.data.get("issued_at_ns")
        if expires_at_ns is not None and issued_at_ns is not None and expires_at_ns <= issued_at_ns:
            raise fault("must be later than issued_at")
        return expires_at_ns
