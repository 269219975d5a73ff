"""`token_bucket_llm`: tokens per minute (TPM) and per UTC day (TPD), reserved before the request, settled after it.

A request reserves the prompt's estimate plus the completion it asks for, from both counters or from neither. When the
provider has told the real usage, `settle` gives back the difference, or charges it. What was taken travels in the
sealed reservation, with the weights, so settling never consults the bundle: it may have been replaced meanwhile.

Guarantee: real usage in any period is at most burst + rate x period + the reservations outstanding at its start, as
far as estimates are not below real usage; an excess is charged to the bucket down to empty.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final, NamedTuple

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.counters import ALLOWED, FULL, Counters
from fairvisor.decision import UNIT_U, Quota, Reason, Refusal, Verdict
from fairvisor.errors import Conflict
from fairvisor.llm.request import LlmRequest
from fairvisor.llm.reservation import LIFETIME_NS, REPEAT_NS, Reservation, Take, Taken, Terms
from fairvisor.llm.usage import Usage, Weights, weigh, weigh_request
from fairvisor.metrics import ESTIMATE_MISSING, TABLE_FULL, TOKENS_RESERVED, Tally
from fairvisor.rules.cost import read_amount
from fairvisor.rules.keys import MISSING_WAIT_NS, Keyring, Keys, Scope, Values
from fairvisor.rules.limit import Described, Limit
from fairvisor.rules.standing import Standing
from fairvisor.rules.token_bucket import FULL_WAIT_NS, ticks_per_millionth

DAY_NS: Final = 86_400 * NS_PER_S


class Caps(NamedTuple):
    """Tokens per request, unweighted; None: no such cap."""

    request: int | None
    prompt: int | None
    completion: int | None
    default_completion: int
    default_prompt: int


class Streaming(NamedTuple):
    """What happens while an answer streams through the proxy: whether it is ended at its limit (looked at with every
    event, so never later than `buffer_tokens`), whether as the provider would end it, whether with its usage, and
    whether it may not pass its reservation either."""

    enforced: bool = False
    graceful: bool = True
    tells_usage: bool = True
    at_reservation: bool = False


NOT_ENFORCED: Final = Streaming()


class LlmVerdict(Verdict):
    """Tokens were reserved: from the bucket under `key`, and, when there is a daily limit, under `day_key`."""

    __slots__ = ("day_end_ns", "day_key")

    def __init__(
        self, limit: Limit, quota: Quota, key: int, cost_u: int, remaining_u: int, reset_ns: int
    ) -> None:
        super().__init__(limit, quota, key, cost_u, remaining_u, reset_ns)
        self.day_key = 0
        self.day_end_ns = 0


class LlmTokens(Limit):
    """A compiled `token_bucket_llm` rule. `_day_u` is 0 when there is no daily limit."""

    __slots__ = ("_burst_u", "_caps", "_day", "_day_keys", "_day_quota", "_day_u", "_estimate", "_keyring",
                 "_keys", "_minute_terms", "_most_u", "_per", "_reject_full", "_reserved", "_total_terms",
                 "_trust_hint", "_weights", "quota", "scope", "streaming")  # fmt: skip

    def __init__(
        self,
        tally: Tally,
        scope: Scope,
        keyring: Keyring,
        quota: Quota,
        day_quota: Quota | None,
        tokens_per_minute: Decimal,
        caps: Caps,
        weights: Weights,
        estimate: Callable[[LlmRequest], int] | None,
        trust_hint: bool,
        reject_full: bool,
        streaming: Streaming = NOT_ENFORCED,
    ) -> None:
        super().__init__(tally)
        self.scope = scope
        self.quota = quota
        self._keyring = keyring
        self._keys = Keys(keyring, scope.identity)
        self._burst_u = quota.amount_u
        self._per = ticks_per_millionth(tokens_per_minute, 60)
        self._day_quota = day_quota
        self._day_u = day_quota.amount_u if day_quota is not None else 0
        self._most_u = min(self._burst_u, self._day_u) if self._day_u else self._burst_u
        self._day = -1
        self._day_keys = Keys(keyring, "")
        self._caps = caps
        self._weights = weights
        self._estimate = estimate
        self._trust_hint = trust_hint
        self._reject_full = reject_full
        self.streaming = streaming
        owner = (tally.policy_id, tally.rule)
        self._minute_terms = Terms("bucket", self._burst_u, self._per, weights, owner)
        self._total_terms = Terms("total", weights=weights)
        self._reserved = tally.counter_of(TOKENS_RESERVED)

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Reserve the request's tokens from the minute and the day, or from neither."""
        scope = self.scope
        values = scope.values(context)
        if not values:
            return scope.absent(self, context)
        cost_u = self._price(context)
        if isinstance(cost_u, Refusal):
            return cost_u
        key = self._keys.key(values)
        outcome, remaining_u, wait_ns = counters.take(key, now.mono_ns, cost_u, self._burst_u, self._per)
        if outcome == FULL:
            return self._no_room()
        if outcome != ALLOWED:
            return Refusal(self, Reason.TPM_EXCEEDED, self.quota, remaining_u, wait_ns, 0, key)
        verdict = LlmVerdict(self, self.quota, key, cost_u, remaining_u, wait_ns)
        if self._day_quota is None:
            return verdict
        return self._take_day(counters, verdict, values, self._day_quota, now)

    def _take_day(
        self, counters: Counters, verdict: LlmVerdict, values: Values, quota: Quota, now: Now
    ) -> Verdict:
        """The same from the day; `verdict` is what the minute says, and becomes what the day says if that is less."""
        day = now.wall_ns // DAY_NS
        if day != self._day:
            self._day, self._day_keys = day, Keys(self._keyring, self._day_identity(day))
        left_ns = DAY_NS - now.wall_ns % DAY_NS
        key = self._day_keys.key(values)
        outcome, total_u = counters.add(key, now.mono_ns, verdict.cost_u, self._day_u, left_ns)
        if outcome != ALLOWED:
            counters.give(verdict.key, now.mono_ns, verdict.cost_u, self._per)
            if outcome == FULL:
                return self._no_room()
            return Refusal(self, Reason.TPD_EXCEEDED, quota, max(0, self._day_u - total_u), left_ns, 0, key)
        verdict.day_key = key
        verdict.day_end_ns = now.mono_ns + left_ns
        day_left_u = self._day_u - total_u
        if quota.share(day_left_u) < self.quota.share(verdict.remaining_u):
            verdict.quota, verdict.remaining_u, verdict.reset_ns = quota, day_left_u, left_ns
        return verdict

    def _day_identity(self, day: int) -> str:
        return f"day{day}:{self.scope.identity}"

    def _no_room(self) -> Verdict:
        self.tally.add(TABLE_FULL)
        if self._reject_full:
            return Refusal(self, Reason.TPM_EXCEEDED, self.quota, 0, FULL_WAIT_NS)
        return Verdict(self, self.quota, 0, 0, self._burst_u, 0)

    def _price(self, context: Context) -> int | Refusal:
        """The reservation in weighted millionths, or the refusal of a request that can never fit."""
        caps = self._caps
        prompt = self._prompt_tokens(context)
        if caps.prompt is not None and prompt > caps.prompt:
            return self._never(Reason.PROMPT_TOKENS_EXCEEDED)
        asked = context.llm
        if asked is not None and asked.completion_cap is not None:
            per_choice = asked.completion_cap
            if caps.completion is not None:
                per_choice = min(per_choice, caps.completion)
            completion = per_choice * asked.choices
        else:
            completion = self._default_completion(prompt)
        if caps.request is not None and prompt + completion > caps.request:
            return self._never(Reason.MAX_TOKENS_PER_REQUEST_EXCEEDED)
        cost_u = weigh_request(prompt, completion, self._weights) or 1
        if cost_u > self._most_u:
            return self._never(Reason.MAX_TOKENS_PER_REQUEST_EXCEEDED)
        return cost_u

    def _default_completion(self, prompt: int) -> int:
        """What is reserved when the client did not say: never so much that it alone makes the request impossible."""
        caps = self._caps
        completion = caps.default_completion
        if caps.completion is not None:
            completion = min(completion, caps.completion)
        if caps.request is not None:
            completion = min(completion, max(0, caps.request - prompt))
        room_u = max(0, self._most_u - weigh_request(prompt, 0, self._weights))
        each_u = self._weights.output
        return min(completion, room_u // each_u) if each_u else completion

    def _prompt_tokens(self, context: Context) -> int:
        estimate = self._estimated(context)
        if estimate is None:
            self.tally.add(ESTIMATE_MISSING)
            return self._caps.default_prompt
        return estimate

    def _estimated(self, context: Context) -> int | None:
        """The tokens of the prompt, None when nothing tells them."""
        llm = context.llm
        if self._estimate is not None and llm is not None:
            return self._estimate(llm)
        hint_u = read_amount(context.header("x-token-estimate")) if self._trust_hint else None
        return None if hint_u is None else -(-hint_u // UNIT_U)

    def _never(self, reason: Reason) -> Refusal:
        return Refusal(self, reason, wait_ns=MISSING_WAIT_NS)

    def stream_limit(self, context: Context, verdict: LlmVerdict) -> int | None:
        """How many completion tokens may stream to the request of this verdict; None: this rule ends nothing."""
        if not self.streaming.enforced:
            return None
        limits = []
        if self._caps.completion is not None:
            limits.append(self._caps.completion * (context.llm.choices if context.llm is not None else 1))
        each_u = self._weights.output
        if self.streaming.at_reservation and each_u and verdict.cost_u:
            prompt = self._estimated(context)
            prompt_u = weigh_request(
                self._caps.default_prompt if prompt is None else prompt, 0, self._weights
            )
            limits.append(max(0, verdict.cost_u - prompt_u) // each_u)
        return min(limits, default=None)

    def describe(self, context: Context) -> Described:
        """For whom it counts this request."""
        return self.scope.describe(context)

    def standings(self, counters: Counters, values: Values, now: Now) -> tuple[Standing, ...]:
        """The minute's bucket and, where there is one, the day's total of these values (`Scope.chosen`)."""
        key = self._keys.key(values)
        remaining_u, reset_ns = counters.peek_bucket(key, now.mono_ns, self._burst_u, self._per)
        minute = Standing("minute", key, self.quota, remaining_u, reset_ns)
        if self._day_quota is None:
            return (minute,)
        day, into_ns = divmod(now.wall_ns, DAY_NS)
        day_key = self._keyring.key(self._day_identity(day), values)
        left_u = max(0, self._day_u - counters.peek_total(day_key, now.mono_ns))
        return (minute, Standing("day", day_key, self._day_quota, left_u, DAY_NS - into_ns))

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Give the whole reservation back."""
        if verdict.cost_u:
            counters.give(verdict.key, now.mono_ns, verdict.cost_u, self._per)
        if isinstance(verdict, LlmVerdict) and verdict.day_key:
            counters.sub(verdict.day_key, now.mono_ns, verdict.cost_u)

    def reserve(self, verdict: LlmVerdict, reserved: list[Taken]) -> None:
        """Put what was taken on the list that a reservation is made of; now it counts as reserved."""
        self._reserved.add(verdict.cost_u // UNIT_U)
        reserved.append((self._minute_terms, verdict.key, verdict.cost_u, 0))
        if verdict.day_key:
            reserved.append((self._total_terms, verdict.day_key, verdict.cost_u, verdict.day_end_ns))

    def spent(self, verdict: Verdict, key: int, until_ns: int) -> Taken:
        """The same for a breaker's minute, which is corrected too."""
        return self._total_terms, key, verdict.cost_u, until_ns


class Settled(NamedTuple):
    """What the tokens of one rule came to, in weighted millionths."""

    policy_id: str
    rule: str
    reserved_u: int
    used_u: int


def claim(counters: Counters, reservation: Reservation, now: Now) -> bool:
    """Claim the settlement of a reservation whose token came from outside; return whether unused tokens may come back.

    They may not when nonces of reservations as old have been evicted from a full table: this one may have been settled
    before. Raises Conflict when it was settled before, or when the claim finds no room.
    """
    expires_ns = reservation.expires_wall_ns
    outcome, evicted_ns = counters.once(reservation.nonce, now.mono_ns, LIFETIME_NS, expires_ns)
    if outcome == FULL:
        raise Conflict("the counter table is full: the settlement could not be recorded and was not made")
    if outcome != ALLOWED:
        raise Conflict("this reservation has been settled already")
    return expires_ns - evicted_ns >= REPEAT_NS


def settle(
    counters: Counters, reservation: Reservation, usage: Usage | None, now: Now, *, gives_back: bool
) -> tuple[Settled, ...]:
    """Replace what was reserved by the real usage; None: the request failed and used nothing.

    Without `gives_back` the reservation counts as used where less was. Gives what it came to for each rule that
    reserved, for the metrics.
    """
    settled = []
    for take in reservation.takes:
        real_u = 0 if usage is None else weigh(usage, take.weights)
        if not gives_back:
            real_u = max(real_u, take.amount_u)
        if take.owner is not None:
            settled.append(Settled(*take.owner, take.amount_u, real_u))
        if take.kind == "bucket":
            _settle_bucket(counters, take, real_u - take.amount_u, now)
        elif now.mono_ns < take.until_mono_ns:
            _settle_total(counters, take, real_u - take.amount_u, now)
    return tuple(settled)


def _settle_bucket(counters: Counters, take: Take, more_u: int, now: Now) -> None:
    if more_u < 0:
        counters.give(take.key, now.mono_ns, -more_u, take.per)
    elif more_u > 0:
        counters.overdraw(take.key, now.mono_ns, more_u, take.burst_u, take.per)


def _settle_total(counters: Counters, take: Take, more_u: int, now: Now) -> None:
    if more_u < 0:
        counters.sub(take.key, now.mono_ns, -more_u)
    elif more_u > 0:
        counters.charge(take.key, now.mono_ns, more_u)
