"""`cost_based`: a budget per calendar window, with stages that warn, slow down and reject.

`warn` and `throttle` apply when usage after this request reaches their threshold; `reject` when it would pass its
threshold, and then nothing is charged. The window's start is part of the counter's identity, so a new window starts at
zero by itself and a late refund never touches it.
"""

from __future__ import annotations

from typing import NamedTuple

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.counters import ALLOWED, REFUSED, Counters
from fairvisor.decision import Action, Marked, Quota, Reason, Refusal, Verdict
from fairvisor.metrics import TABLE_FULL, Tally
from fairvisor.rules.cost import Cost
from fairvisor.rules.keys import Keyring, Keys, Scope, Values
from fairvisor.rules.limit import Described, Limit
from fairvisor.rules.standing import Standing
from fairvisor.rules.token_bucket import FULL_WAIT_NS
from fairvisor.rules.windows import Window, Windows


class Stage(NamedTuple):
    """`warn` or `throttle` from `threshold_u` millionths on; the highest stage reached wins."""

    threshold_u: int
    action: Action
    delay_ms: int


class Budget(Limit):
    """A compiled `cost_based` rule. `limit_u` is where it rejects; `stages` are ordered from the highest down."""

    __slots__ = ("_cost", "_ends_ns", "_fixed_u", "_keyring", "_keys", "_limit_u", "_quota", "_reject_full",
                 "_stages", "_starts_ns", "_windows", "scope")  # fmt: skip

    def __init__(
        self,
        tally: Tally,
        scope: Scope,
        keyring: Keyring,
        windows: Windows,
        shown_u: int,
        limit_u: int,
        stages: tuple[Stage, ...],
        fixed_u: int,
        cost: Cost | None,
        reject_full: bool,
    ) -> None:
        super().__init__(tally)
        self.scope = scope
        self._keyring = keyring
        self._windows = windows
        self._limit_u = limit_u
        self._stages = stages
        self._fixed_u = fixed_u
        self._cost = cost
        self._reject_full = reject_full
        # derived from the time of the latest request
        self._starts_ns = self._ends_ns = 0
        self._keys = Keys(keyring, "")
        self._quota = Quota(tally.rule, shown_u, 0)

    def _enter(self, wall_ns: int) -> None:
        """Make the window that holds `wall_ns` the current one."""
        window = self._windows.at(wall_ns // NS_PER_S)
        self._starts_ns, self._ends_ns = window.start_s * NS_PER_S, window.end_s * NS_PER_S
        self._keys = Keys(self._keyring, self._identity(window))
        self._quota = Quota(self.tally.rule, self._quota.amount_u, window.end_s - window.start_s)

    def _identity(self, window: Window) -> str:
        return f"{self.scope.identity}{window.start_s}:"

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Charge the request's cost to the budget of the current window."""
        scope = self.scope
        values = scope.values(context)
        if not values:
            return scope.absent(self, context)
        if not self._starts_ns <= now.wall_ns < self._ends_ns:
            self._enter(now.wall_ns)
        key = self._keys.key(values)
        cost_u = self._fixed_u if self._cost is None else self._cost(context)
        left_ns = self._ends_ns - now.wall_ns
        outcome, total_u = counters.add(key, now.mono_ns, cost_u, self._limit_u, left_ns)
        if outcome == ALLOWED:
            verdict = Verdict(self, self._quota, key, cost_u, max(0, self._quota.amount_u - total_u), left_ns)
            return self._staged(verdict, total_u) if self._stages else verdict
        if outcome == REFUSED:
            return self._refuse(key, max(0, self._quota.amount_u - total_u), left_ns)
        self.tally.add(TABLE_FULL)
        if self._reject_full:
            return self._refuse(key, 0, FULL_WAIT_NS)
        return Verdict(self, self._quota, key, 0, self._quota.amount_u, left_ns)

    def _refuse(self, key: int, remaining_u: int, wait_ns: int) -> Refusal:
        return Refusal(self, Reason.BUDGET_EXHAUSTED, self._quota, remaining_u, wait_ns, 0, key)

    def _staged(self, verdict: Verdict, total_u: int) -> Verdict:
        for stage in self._stages:
            if total_u >= stage.threshold_u:
                return Marked(verdict, stage.action, stage.delay_ms)
        return verdict

    def describe(self, context: Context) -> Described:
        """For whom it counts this request."""
        return self.scope.describe(context)

    def standings(self, counters: Counters, values: Values, now: Now) -> tuple[Standing, ...]:
        """What is left of the current window of these values (`Scope.chosen`)."""
        window = self._windows.at(now.wall_ns // NS_PER_S)
        key = self._keyring.key(self._identity(window), values)
        quota = Quota(self.tally.rule, self._limit_u, window.end_s - window.start_s)
        remaining_u = max(0, self._limit_u - counters.peek_total(key, now.mono_ns))
        return (Standing("window", key, quota, remaining_u, window.end_s * NS_PER_S - now.wall_ns),)

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Take the cost off the window's total."""
        if verdict.cost_u:
            counters.sub(verdict.key, now.mono_ns, verdict.cost_u)
