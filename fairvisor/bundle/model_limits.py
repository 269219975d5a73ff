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
    between,
    fault,
    plain,
    show,
    whole_between,
)
from fairvisor.bundle.syntax import FREE_FIELDS

OnMissing = Literal["skip", "reject", "shared"]
Algorithm = Literal["token_bucket", "cost_based", "token_bucket_llm"]
Period = Literal["1m", "5m", "15m", "1h", "6h", "12h", "1d", "7d", "30d", "1mo"]

FALLBACK_NAME: Final = "fallback_limit"  # the name of a fallback rule that has none
LONGEST_FILL_S: Final = 100 * 86_400  # an empty bucket must fill within 100 days: counters date no further
ONE: Final = Decimal(1)


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

    name: Name
    limit_keys: Annotated[tuple[Descriptor, ...], Strict(False)]
    match: dict[Descriptor, Accepted] = Field(default_factory=dict)
    on_missing: OnMissing = "skip"

    @field_validator("match", mode="wrap")
    @classmethod
    def _each_descriptor_once(cls, raw: Any, handler: Any) -> dict[str, tuple[str, ...]]:
        raw = without_free_fields(raw)
        match: dict[str, tuple[str, ...]] = handler(raw)
        if len(match) < len(raw):  # two spellings of one descriptor, such as header:A and header:a
            raise fault(f"names a descriptor twice: {', '.join(sorted(raw))}")
        return match


class TokenBucket(Strictly):
    """A bucket of `burst` tokens that fills at `tokens_per_second` and starts full."""

    tokens_per_second: Rate = Field(validation_alias=AliasChoices("tokens_per_second", "rps"))
    cost_source: CostSource = "fixed"
    fixed_cost: Cost = ONE
    default_cost: Cost = ONE
    burst: Amount

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

    threshold_percent: Percent
    action: Literal["warn", "throttle", "reject"]
    delay_ms: Annotated[int, whole_between(1, 30_000)] | None = Field(default=None, validate_default=True)

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

    budget: Amount
    period: Period
    timezone: Zone = "UTC"
    cost_key: CostSource = "fixed"
    fixed_cost: Cost = ONE
    default_cost: Cost = ONE
    staged_actions: Annotated[tuple[StagedAction, ...], Strict(False)] = (REJECT_AT_BUDGET,)

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

    input: Weight = ONE
    cached_input: Weight = ONE
    cache_write: Weight = ONE
    output: Weight = ONE
    reasoning: Weight = ONE


class TokenSource(Strictly):
    """How the prompt's tokens are estimated before the provider counts them."""

    estimator: Literal["simple_word", "header_hint", "tiktoken"] = "simple_word"


class Streaming(Strictly):
    """What happens while an answer streams through the reverse proxy."""

    enabled: bool = True
    enforce_mid_stream: bool = True
    buffer_tokens: Annotated[int, whole_between(1, 1_000_000)] = 100
    on_limit_exceeded: Literal["graceful_close", "error_chunk"] = "graceful_close"
    include_partial_usage: bool = True


Tokens = Annotated[Decimal, between("1", "9.2e12")]
TokensOrNone = Annotated[Decimal, between("0", "9.2e12")]
TokensPerMinute = Annotated[Decimal, between("1", "1e9")]


class LlmTokens(Strictly):
    """Tokens of a language model per minute (a bucket of `burst_tokens`) and per UTC day, reserved together."""

    tokens_per_minute: TokensPerMinute
    tokens_per_day: Tokens | None = None
    max_tokens_per_request: Tokens | None = None
    max_prompt_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    default_max_completion: TokensOrNone = Decimal(1000)
    default_prompt_tokens: TokensOrNone = Decimal(0)
    token_source: TokenSource = TokenSource()
    weights: Weights = Weights()
    streaming: Streaming = Streaming()
    burst_tokens: Tokens = Field(default=Decimal(0), validate_default=True)

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

    algorithm: Literal["token_bucket"]
    algorithm_config: TokenBucket


class CostBasedRule(Rule):
    """A rule that limits what is spent in a period."""

    algorithm: Literal["cost_based"]
    algorithm_config: CostBased


class LlmTokensRule(Rule):
    """A rule that limits the tokens of a language model."""

    algorithm: Literal["token_bucket_llm"]
    algorithm_config: LlmTokens


def _named(raw: object) -> object:
    if isinstance(raw, dict) and "name" not in raw:
        return {"name": FALLBACK_NAME, **raw}
    return raw


AnyRule = Annotated[TokenBucketRule | CostBasedRule | LlmTokensRule, Field(discriminator="algorithm")]
FallbackRule = Annotated[AnyRule, BeforeValidator(_named)]


# Controls that watch a whole policy


class Switched(Strictly):
    """A control with a switch. Switched off (`"enabled": false`) it may leave its numbers out."""

    enabled: bool = True

    _when_off: ClassVar[Mapping[str, int]]  # what stands for a number that was left out; never read

    @model_validator(mode="before")
    @classmethod
    def _off_needs_no_numbers(cls, raw: object) -> object:
        if isinstance(raw, dict) and raw.get("enabled") is False:
            return {**cls._when_off, **raw}
        return raw


class LoopDetection(Switched):
    """Identical requests within `window_seconds` (seconds, at most 100 days)."""

    window_seconds: Annotated[Decimal, between("0.001", str(LONGEST_FILL_S))]
    threshold_identical_requests: Annotated[int, whole_between(2, 1_000_000)]
    action: Literal["reject", "throttle", "warn"] = "reject"
    similarity: Literal["exact"] = "exact"
    body: Literal["require", "ignore"] = "require"

    _when_off = {"window_seconds": 1, "threshold_identical_requests": 2}


class CircuitBreaker(Switched):
    """Opens when the cost of a sliding minute reaches the threshold. Scope `key`: the policy's first limit key."""

    spend_rate_threshold_per_minute: Amount
    action: Literal["reject"] = "reject"
    auto_reset_after_minutes: Annotated[Decimal, between("0", str(LONGEST_FILL_S // 60))] = Decimal(0)
    alert: bool = False
    scope: Literal["global", "policy", "key"] = "key"

    _when_off = {"spend_rate_threshold_per_minute": 1}
