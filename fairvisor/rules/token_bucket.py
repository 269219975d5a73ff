"""`token_bucket`: a rate with a burst, as the generic cell rate algorithm (GCRA, ITU-T I.371).

The counter holds one time, the theoretical arrival time; its distance from now is the bucket's debt. Debt is kept in
ticks of 2^-28 ns so that any mix of millionths that sums to the burst fits and one more does not, at every rate.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from fairvisor.clock import Now
from fairvisor.context import Context
from fairvisor.counters import ALLOWED, REFUSED, Counters
from fairvisor.decision import Quota, Reason, Refusal, Verdict
from fairvisor.metrics import TABLE_FULL, Tally
from fairvisor.rules.cost import Cost
from fairvisor.rules.keys import Keyring, Keys, Scope, Values
from fairvisor.rules.limit import Described, Limit
from fairvisor.rules.standing import Standing

TICKS_PER_NS: Final = 1 << 28
FULL_WAIT_NS: Final = 1_000_000_000  # Retry-After when the table had no room and FAIRVISOR_TABLE_FULL=reject


def ticks_per_millionth(amount: Decimal, period_s: int = 1) -> int:
    """The time one millionth takes to refill at `amount` in `period_s` seconds, in ticks, rounded up: the limit is
    never looser than written.
    """
    numerator, denominator = amount.as_integer_ratio()
    return -(-TICKS_PER_NS * 1000 * period_s * denominator // numerator)


class TokenBucket(Limit):
    """A compiled `token_bucket` rule. `burst_u` in millionths, `per` in ticks per millionth."""

    __slots__ = (
        "_burst_u",
        "_cost",
        "_fixed_u",
        "_keys",
        "_per",
        "_reject_full",
        "quota",
        "scope",
    )

    def __init__(
        self,
        tally: Tally,
        scope: Scope,
        keyring: Keyring,
        quota: Quota,
        rate_per_s: Decimal,
        fixed_u: int,
        cost: Cost | None,
        reject_full: bool,
    ) -> None:
        super().__init__(tally)
        self.scope = scope
        self.quota = quota
        self._keys = Keys(keyring, scope.identity)
        # Only handed on to the table: compiled code would make an `int` into an object again at each request.
        self._burst_u: Any = quota.amount_u
        self._per: Any = ticks_per_millionth(rate_per_s)
        self._fixed_u = fixed_u
        self._cost = cost
        self._reject_full = reject_full

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Charge the request's cost to its bucket."""
        scope = self.scope
        values = scope.values(context)
        if not values:
            return scope.absent(self, context)
        key = self._keys.key(values)
        cost_u = self._fixed_u if self._cost is None else self._cost(context)
        outcome, remaining_u, wait_ns = counters.take(key, now.mono_ns, cost_u, self._burst_u, self._per)
        if outcome == ALLOWED:
            return Verdict(self, self.quota, key, cost_u, remaining_u, wait_ns)
        if outcome == REFUSED:
            return Refusal(self, Reason.RATE_LIMIT_EXCEEDED, self.quota, remaining_u, wait_ns, 0, key)
        self.tally.add(TABLE_FULL)
        if self._reject_full:
            return Refusal(self, Reason.RATE_LIMIT_EXCEEDED, self.quota, 0, FULL_WAIT_NS, 0, key)
        return Verdict(self, self.quota, key, 0, self._burst_u, 0)

    def describe(self, context: Context) -> Described:
        """For whom it counts this request."""
        return self.scope.describe(context)

    def standings(self, counters: Counters, values: Values, now: Now) -> tuple[Standing, ...]:
        """The bucket of these values (`Scope.chosen`)."""
        key = self._keys.key(values)
        remaining_u, reset_ns = counters.peek_bucket(key, now.mono_ns, self._burst_u, self._per)
        return (Standing("bucket", key, self.quota, remaining_u, reset_ns),)

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Put the cost back into the bucket."""
        if verdict.cost_u:
            counters.give(verdict.key, now.mono_ns, verdict.cost_u, self._per)
