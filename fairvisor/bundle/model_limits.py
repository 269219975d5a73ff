"""The limits of a policy as the bundle writes them: rules, their three algorithms, loop detection, circuit breaker.

Every class is frozen; a field has the name, the range and the default of the policy reference. Fields whose range
depends on others stand after them, so that their check sees what was read already and every error is found in one
pass. Amounts are `Decimal` in whole units (requests, tokens, money); the compiler rounds them to millionths.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fairvisor.bundle.fields import (
    Accepted,
    Amount,
    Cost,
    CostSource,
    Descriptor,
    Name,
    Percent,
    Rate,
    Zone,
    address_or_network,
    between,
    fault,
    plain,
    show,
    whole_between,
)
from fairvisor.bundle.syntax import FREE_FIELDS

OnMissing = Literal["skip", "reject", "shared"]
OnInvalidToken = Literal["missing", "reject"]
OnAmbiguous = Literal["reject", "first", "last"]
MissingStatus = Literal[401, 429]
Algorithm = Literal["token_bucket", "cost_based", "token_bucket_llm"]
Period = Literal["1m", "5m", "15m", "1h", "6h", "12h", "1d", "7d", "30d", "1mo"]

ADDRESS: Final = "ip:address"
FALLBACK_NAME: Final = "fallback_limit"  # the name of a fallback rule that has none
LONGEST_FILL_S: Final = 100 * 86_400  # an empty bucket must fill within 100 days: counters date no further
ONE: Final = Decimal(1)

# Descriptions that several fields share.
UNTRUSTED: Final = "A header or query parameter is the client's word unless the gateway overwrites it."
DEFAULT_COST: Final = "The cost when the request names none, or none above 0 that can be read."
ALGORITHM: Final = "How it counts."
ALGORITHM_CONFIG: Final = "The numbers of the algorithm."


class Strictly(BaseModel):
    """What all parts of a bundle share: no guessing of types, no unknown fields, no change after load."""

    # `model_aliases` is a field: pydantic keeps names that start with "model_" for itself unless told not to.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


def without_free_fields(raw: object) -> Any:
    """An object whose names are the user's, without the comments that every object may hold."""
    if isinstance(raw, dict):
        return {name: value for name, value in raw.items() if name not in FREE_FIELDS}
    return raw


# Rules


class Rule(Strictly):
    """One limit: what it counts by (`limit_keys`), when it runs (`match`) and how it counts (`algorithm`)."""

    name: Name = Field(description="Stands in headers, metrics and logs. Unique in its policy.")
    limit_keys: Annotated[tuple[Descriptor, ...], Strict(False)] = Field(
        description="What it counts by: one counter for each combination of values. Empty: one counter for all."
    )
    match: dict[Descriptor, Accepted] = Field(
        default_factory=dict,
        description="When it runs: every descriptor named here has one of its values. Absent: always. The values of "
        "`ip:address` are addresses and networks (CIDR).",
    )
    on_missing: OnMissing = Field(
        default="skip",
        description="When a descriptor of `limit_keys` is missing: `skip` does not run the rule, `reject` refuses "
        "(`descriptor_missing`), `shared` counts all such requests together.",
    )
    missing_status: MissingStatus = Field(
        default=429, description="The status of a reject with `descriptor_missing`: 429, or 401 for log-ins."
    )
    on_ambiguous: OnAmbiguous = Field(
        default="reject",
        description="When a cookie or a query parameter that names a counter or a cost comes more than once with "
        "different values: `reject` answers 400 (`ambiguous_request`), `first` and `last` take what the application "
        "reads. Header fields and credentials that differ are always rejected.",
    )
    on_invalid_token: OnInvalidToken = Field(
        default="missing",
        description="When the rule reads `jwt:` and a token is sent that does not verify: `missing` takes its claims "
        "for missing, `reject` answers 401 (`invalid_token`).",
    )

    @field_validator("match", mode="wrap")
    @classmethod
    def _each_descriptor_once(cls, raw: Any, handler: Any) -> dict[str, tuple[str, ...]]:
        raw = without_free_fields(raw)
        match: dict[str, tuple[str, ...]] = handler(raw)
        if len(match) < len(raw):  # two spellings of one descriptor, such as header:A and header:a
            raise fault(f"names a descriptor twice: {', '.join(sorted(raw))}")
        if ADDRESS in match:
            wanted = f"{ADDRESS} must be an IP address or a network such as {{network}}"
            match[ADDRESS] = tuple(address_or_network(value, wanted) for value in match[ADDRESS])
        return match


class TokenBucket(Strictly):
    """A bucket of `burst` tokens that fills at `tokens_per_second` and starts full."""

    tokens_per_second: Rate = Field(
        validation_alias=AliasChoices("tokens_per_second", "rps"),
        description="How fast the bucket fills. May also be written `rps`.",
    )
    cost_source: CostSource = Field(
        default="fixed", description="Where a request's cost is read. " + UNTRUSTED
    )
    fixed_cost: Cost = Field(
        default=ONE, description="The cost of each request when `cost_source` is `fixed`."
    )
    default_cost: Cost = Field(default=ONE, description=DEFAULT_COST)
    burst: Amount = Field(
        description="How much fits into the bucket. At least the rate, 1, `fixed_cost` and `default_cost`; at most "
        "what the rate fills in 100 days."
    )

    @field_validator("burst")
    @classmethod
    def _burst_fits(cls, burst: Decimal, info: ValidationInfo) -> Decimal:
        rate: Decimal | None = info.data.get("tokens_per_second")
        fixed_cost: Decimal = info.data.get("fixed_cost", ONE)
        default_cost: Decimal = info.data.get("default_cost", ONE)
        for name, least in (
            ("tokens_per_second", rate),
            ("one request", ONE),
            ("fixed_cost", fixed_cost),
            ("default_cost", default_cost),
        ):
            if least is not None and burst < least:
                raise fault(f"must be at least {plain(least)} ({name}), not {show(burst)}")
        if rate is not None:
            _fills(burst, rate * LONGEST_FILL_S, "tokens_per_second")
        return burst


class StagedAction(Strictly):
    """What happens from a percentage of the budget on; `delay_ms` (milliseconds) belongs to `throttle`."""

    threshold_percent: Percent = Field(
        description="Percent of the budget. Ascends strictly from stage to stage."
    )
    action: Literal["warn", "throttle", "reject"] = Field(
        description="`warn` and `throttle` from the threshold on, with this request; `reject` when it would be passed."
    )
    delay_ms: Annotated[int, whole_between(1, 30_000)] | None = Field(
        default=None,
        validate_default=True,
        description="For `throttle`, required there: how long the answer is held, in milliseconds.",
    )

    @field_validator("delay_ms", mode="wrap")
    @classmethod
    def _throttle_has_a_delay(cls, value: Any, handler: Any, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("action") == "throttle":
            raise fault("is required for throttle: milliseconds from 1 to 30,000")
        delay_ms: int | None = handler(value)
        return delay_ms


REJECT_AT_BUDGET: Final = StagedAction.model_validate({"threshold_percent": 100, "action": "reject"})


class CostBased(Strictly):
    """A budget per calendar window. `staged_actions` always holds a reject stage: without one it is at 100 %."""

    budget: Amount = Field(description="What may be spent in a period.")
    period: Period = Field(
        description="Calendar windows; `7d` begins on Monday, `30d` is counted from 1970-01-01."
    )
    timezone: Zone = Field(
        default="UTC",
        description="IANA zone in which a day, a week or a month begins; moves `1d`, `7d` and `1mo` only.",
    )
    cost_key: CostSource = Field(default="fixed", description="Where a request's cost is read. " + UNTRUSTED)
    fixed_cost: Cost = Field(default=ONE, description="The cost of each request when `cost_key` is `fixed`.")
    default_cost: Cost = Field(default=ONE, description=DEFAULT_COST)
    staged_actions: Annotated[tuple[StagedAction, ...], Strict(False)] = Field(
        default=(REJECT_AT_BUDGET,),
        description="What happens on the way to the end of the budget. Without a `reject` it rejects at 100.",
    )

    @field_validator("staged_actions")
    @classmethod
    def _stages_ascend(cls, stages: tuple[StagedAction, ...]) -> tuple[StagedAction, ...]:
        for lower, upper in pairwise(stages):
            if upper.threshold_percent <= lower.threshold_percent:
                raise fault(
                    "threshold_percent must ascend strictly: "
                    f"{plain(upper.threshold_percent)} follows {plain(lower.threshold_percent)}"
                )
        if any(stage.action == "reject" for stage in stages):
            return stages
        return (*stages, REJECT_AT_BUDGET)


Weight = Annotated[Decimal, between("0", "1e6")]


class Weights(Strictly):
    """What a token of each kind costs, in tokens."""

    input: Weight = Field(default=ONE, description="Prompt tokens neither read from nor written to a cache.")
    cached_input: Weight = Field(default=ONE, description="Prompt tokens read from the provider's cache.")
    cache_write: Weight = Field(default=ONE, description="Prompt tokens written to the provider's cache.")
    output: Weight = Field(default=ONE, description="Generated tokens without reasoning.")
    reasoning: Weight = Field(
        default=ONE, description="Reasoning tokens, where the provider tells them apart."
    )


class TokenSource(Strictly):
    """How the prompt's tokens are estimated before the provider counts them."""

    estimator: Literal["simple_word", "header_hint", "tiktoken"] = Field(
        default="simple_word",
        description="`simple_word` and `tiktoken` (an extra) read the body, `header_hint` reads `X-Token-Estimate`.",
    )


class Streaming(Strictly):
    """What happens while an answer streams through the reverse proxy."""

    enabled: bool = Field(default=True, description="Whether tokens are counted while an answer streams.")
    enforce_mid_stream: bool = Field(default=True, description="Whether a stream past its limit is ended.")
    buffer_tokens: Annotated[int, whole_between(1, 1_000_000)] = Field(
        default=100, description="How many tokens may pass between two looks at the limit."
    )
    on_limit_exceeded: Literal["graceful_close", "error_chunk"] = Field(
        default="graceful_close", description="How it ends: as the provider would end it, or with an error."
    )
    include_partial_usage: bool = Field(default=True, description="Whether the end tells the usage so far.")
    limit: Literal["max_completion_tokens", "reservation"] = Field(
        default="max_completion_tokens",
        description="What a stream may not pass: `max_completion_tokens`, or also the tokens reserved for it.",
    )


Tokens = Annotated[Decimal, between("1", "9.2e12")]
TokensOrNone = Annotated[Decimal, between("0", "9.2e12")]
TokensPerMinute = Annotated[Decimal, between("1", "1e9")]


class LlmTokens(Strictly):
    """Tokens of a language model per minute (a bucket of `burst_tokens`) and per UTC day, reserved together."""

    tokens_per_minute: TokensPerMinute = Field(description="TPM: how fast the bucket of tokens fills.")
    tokens_per_day: Tokens | None = Field(
        default=None,
        description="TPD: tokens of a day, from midnight to midnight UTC. Absent: no such limit.",
    )
    max_tokens_per_request: Tokens | None = Field(
        default=None, description="Prompt and completion of one request together. Absent: no such limit."
    )
    max_prompt_tokens: Tokens | None = Field(
        default=None, description="The prompt of one request. Absent: no such limit."
    )
    max_completion_tokens: Tokens | None = Field(
        default=None, description="What is reserved for a completion at most, whatever the client asks for."
    )
    default_max_completion: TokensOrNone = Field(
        default=Decimal(1000),
        description="What is reserved for a completion when the client names no maximum.",
    )
    default_prompt_tokens: TokensOrNone = Field(
        default=Decimal(0), description="The prompt's tokens when nothing is known of it."
    )
    token_source: TokenSource = Field(default=TokenSource(), description="How the prompt is estimated.")
    weights: Weights = Field(default=Weights(), description="What a token of each kind costs.")
    streaming: Streaming = Field(default=Streaming(), description="What happens while an answer streams.")
    burst_tokens: Tokens = Field(
        default=Decimal(0),
        validate_default=True,
        description="How many tokens fit into the bucket. At least `tokens_per_minute`, which is also the default; "
        "at most what fills in 100 days.",
    )

    @field_validator("burst_tokens", mode="wrap")
    @classmethod
    def _burst_fits(cls, value: Any, handler: Any, info: ValidationInfo) -> Decimal:
        per_minute: Decimal | None = info.data.get("tokens_per_minute")
        if type(value) is Decimal:  # the default, as JSON numbers are int or float
            return per_minute or ONE
        burst: Decimal = handler(value)
        if per_minute is not None:
            if burst < per_minute:
                raise fault(f"must be at least {plain(per_minute)} (tokens_per_minute), not {show(burst)}")
            _fills(burst, per_minute * LONGEST_FILL_S / 60, "tokens_per_minute")
        return burst


def _fills(burst: Decimal, most: Decimal, rate_name: str) -> None:
    if burst > most:
        raise fault(f"must be at most {plain(most)}, what {rate_name} fills in 100 days, not {show(burst)}")


class TokenBucketRule(Rule):
    """A rule that limits a rate."""

    algorithm: Literal["token_bucket"] = Field(description=ALGORITHM)
    algorithm_config: TokenBucket = Field(description=ALGORITHM_CONFIG)


class CostBasedRule(Rule):
    """A rule that limits what is spent in a period."""

    algorithm: Literal["cost_based"] = Field(description=ALGORITHM)
    algorithm_config: CostBased = Field(description=ALGORITHM_CONFIG)


class LlmTokensRule(Rule):
    """A rule that limits the tokens of a language model."""

    algorithm: Literal["token_bucket_llm"] = Field(description=ALGORITHM)
    algorithm_config: LlmTokens = Field(description=ALGORITHM_CONFIG)


def _named(raw: object) -> object:
    if isinstance(raw, dict) and "name" not in raw:
        return {"name": FALLBACK_NAME, **raw}
    return raw


AnyRule = Annotated[TokenBucketRule | CostBasedRule | LlmTokensRule, Field(discriminator="algorithm")]
FallbackRule = Annotated[AnyRule, BeforeValidator(_named)]


# Controls that watch a whole policy


class Switched(Strictly):
    """A control with a switch. Switched off (`"enabled": false`) it may leave its numbers out."""

    enabled: bool = Field(
        default=True, description="`false` switches it off; its numbers may then be left out."
    )

    _when_off: ClassVar[Mapping[str, int]]  # what stands for a number that was left out; never read

    @model_validator(mode="before")
    @classmethod
    def _off_needs_no_numbers(cls, raw: object) -> object:
        if isinstance(raw, dict) and raw.get("enabled") is False:
            return {**cls._when_off, **raw}
        return raw


class LoopDetection(Switched):
    """Looks for identical requests within `window_seconds` (at most 100 days)."""

    window_seconds: Annotated[Decimal, between("0.001", str(LONGEST_FILL_S))] = Field(
        description="How long arrivals are counted together, from the first of them on."
    )
    threshold_identical_requests: Annotated[int, whole_between(2, 1_000_000)] = Field(
        description="The arrival that triggers: of 5 identical requests 4 pass."
    )
    action: Literal["reject", "throttle", "warn"] = Field(
        default="reject", description="`throttle` holds the answer 100 ms for each arrival, at most 30 s."
    )
    similarity: Literal["exact"] = Field(default="exact", description="What counts as the same request.")
    body: Literal["require", "ignore"] = Field(
        default="require",
        description="`require` does not count a request that may have a body which the gateway did not send; `ignore` "
        "compares without the body.",
    )

    _when_off = {"window_seconds": 1, "threshold_identical_requests": 2}


class CircuitBreaker(Switched):
    """Opens when the cost of a sliding minute reaches the threshold, and then refuses everything."""

    spend_rate_threshold_per_minute: Amount = Field(
        description="Cost in a sliding minute at which it opens. The request that reaches it still passes."
    )
    action: Literal["reject"] = Field(default="reject", description="What happens while it is open.")
    auto_reset_after_minutes: Annotated[Decimal, between("0", str(LONGEST_FILL_S // 60))] = Field(
        default=Decimal(0), description="When it closes again. 0: when an operator resets it."
    )
    alert: bool = Field(
        default=False,
        description="For older bundles: opening is always logged and counted, with or without it.",
    )
    scope: Literal["global", "policy", "key"] = Field(
        default="key",
        description="`key`: one breaker for each value of the policy's first limit key; `policy`: one for the policy; "
        "`global`: one that all policies with this scope share.",
    )

    _when_off = {"spend_rate_threshold_per_minute": 1}
