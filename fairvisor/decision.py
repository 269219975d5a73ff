"""What a decision says: the closed vocabularies and the result objects.

A `Verdict` is the answer of one limit, a `Decision` the answer of the whole bundle. Both hold facts only: amounts in
millionths (`_u`), times in nanoseconds (`_ns`). Nothing here knows HTTP; `response.py` turns a decision into status,
headers and body. What rarely changes is a class attribute that a subclass overrides, so that the common verdict, an
allowed request, costs as little as it can.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fairvisor.engine import Policy
    from fairvisor.rules.limit import Limit

UNIT_U: Final = 1_000_000  # millionths in one whole unit: a request, a token, a unit of money
NEVER_NS: Final = -1  # as a waiting time: it cannot fit, however long one waits


class Action(str, Enum):
    """What happens to the request. `THROTTLE` and `WARN` let it pass, later or marked."""

    ALLOW = "allow"
    WARN = "warn"
    THROTTLE = "throttle"
    REJECT = "reject"


class Reason(str, Enum):
    """Why a request was rejected; the values are part of the interface (header, metrics, audit log)."""

    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    BUDGET_EXHAUSTED = "budget_exhausted"
    TPM_EXCEEDED = "tpm_exceeded"
    TPD_EXCEEDED = "tpd_exceeded"
    PROMPT_TOKENS_EXCEEDED = "prompt_tokens_exceeded"
    MAX_TOKENS_PER_REQUEST_EXCEEDED = "max_tokens_per_request_exceeded"
    LOOP_DETECTED = "loop_detected"
    CIRCUIT_BREAKER_OPEN = "circuit_breaker_open"
    KILL_SWITCH_ACTIVE = "kill_switch_active"
    DESCRIPTOR_MISSING = "descriptor_missing"
    AMBIGUOUS_REQUEST = "ambiguous_request"
    INVALID_TOKEN = "invalid_token"
    KEYS_UNAVAILABLE = "keys_unavailable"
    UNREADABLE_BODY = "unreadable_body"
    NO_BUNDLE_LOADED = "no_bundle_loaded"
    ENGINE_ERROR = "engine_error"


# The status of the answer to a reject, where it is not 429.
STATUSES: Final = {
    Reason.UNREADABLE_BODY: 400,
    Reason.AMBIGUOUS_REQUEST: 400,
    Reason.INVALID_TOKEN: 401,
    Reason.KEYS_UNAVAILABLE: 503,
    Reason.NO_BUNDLE_LOADED: 503,
    Reason.ENGINE_ERROR: 503,
}

# A retry within seconds cannot help: clients are told so with `X-Should-Retry: false`.
HOPELESS: Final = frozenset(Reason) - {
    Reason.RATE_LIMIT_EXCEEDED,
    Reason.TPM_EXCEEDED,
    Reason.KEYS_UNAVAILABLE,
    Reason.NO_BUNDLE_LOADED,
    Reason.ENGINE_ERROR,
}


class Quota:
    """What a limit shows of itself: rule `name`, the `amount_u` it admits and the `window_s` it does so in.

    `rendered` is what `response.py` keeps of its rendering, which depends on nothing else.
    """

    __slots__ = ("_amount", "amount_u", "name", "rendered", "window_s")

    def __init__(self, name: str, amount_u: int, window_s: int) -> None:
        self.name = name
        self.amount_u = amount_u
        self.window_s = window_s
        self.rendered: tuple[str, str, str] | None = None
        self._amount = float(amount_u or 1)

    def share(self, remaining_u: int) -> float:
        """`remaining_u` as a share of the amount; rounded, which never turns the order of two shares round."""
        return float(remaining_u) / self._amount


class Verdict:
    """The answer of one limit: `key` and `cost_u` are what was taken, `remaining_u` what is left after it.

    `reset_ns` is the time until the limit is full again (a bucket) or its window ends (a budget); on a refusal the
    time until the request would fit, or `NEVER_NS`.
    """

    __slots__ = ("cost_u", "key", "limit", "quota", "remaining_u", "reset_ns")

    reason: Reason | None = None
    action: Action = Action.ALLOW
    status: int = 429  # of the answer to a reject
    delay_ms: int = 0
    loop_count: int = 0

    def __init__(
        self, limit: Limit, quota: Quota | None, key: int, cost_u: int, remaining_u: int, reset_ns: int
    ) -> None:
        self.limit = limit
        self.quota = quota
        self.key = key
        self.cost_u = cost_u
        self.remaining_u = remaining_u
        self.reset_ns = reset_ns


class Refusal(Verdict):
    """A limit that says no; it has taken nothing. `key` is the counter it asked, 0 where that is no single one."""

    __slots__ = ("loop_count", "reason")
    action = Action.REJECT

    def __init__(
        self,
        limit: Limit,
        reason: Reason,
        quota: Quota | None = None,
        remaining_u: int = 0,
        wait_ns: int = NEVER_NS,
        loop_count: int = 0,
        key: int = 0,
    ) -> None:
        super().__init__(limit, quota, key, 0, remaining_u, wait_ns)
        self.reason = reason
        self.loop_count = loop_count


class Unmet(Refusal):
    """A limit that cannot count a request for what it carries or lacks: `name` is the descriptor in question."""

    __slots__ = ("name", "status")

    def __init__(
        self, limit: Limit, reason: Reason, name: str, wait_ns: int = NEVER_NS, status: int = 0
    ) -> None:
        super().__init__(limit, reason, wait_ns=wait_ns)
        self.name = name
        self.status = status or STATUSES[reason]


class Marked(Verdict):
    """A limit that lets the request pass with a warning or after a delay."""

    __slots__ = ("action", "delay_ms", "loop_count")

    def __init__(self, verdict: Verdict, action: Action, delay_ms: int = 0, loop_count: int = 0) -> None:
        super().__init__(
            verdict.limit, verdict.quota, verdict.key, verdict.cost_u, verdict.remaining_u, verdict.reset_ns
        )
        self.action = action
        self.delay_ms = delay_ms
        self.loop_count = loop_count


class Decision:
    """The answer to one request.

    `verdict` is the limit that rejected, or the tightest of those that passed (None when no limit ran), `policies` all
    that matched. `marked` holds the verdicts that warn or throttle, `would_reject` the refusals of shadow policies,
    `tripped` the circuit breakers that this request opened, `reservation` the sealed token of an LLM reservation, with
    `passed`, what the enforced limits said; most requests have none of these, and then they are not `remarked`.
    """

    __slots__ = ("policies", "verdict")

    remarked: bool = False
    action: Action = Action.ALLOW
    delay_ms: int = 0
    marked: tuple[Verdict, ...] = ()
    would_reject: tuple[Verdict, ...] = ()
    tripped: tuple[Limit, ...] = ()
    reservation: str = ""
    passed: tuple[Verdict, ...] = ()

    def __init__(self, verdict: Verdict | None, policies: tuple[Policy, ...]) -> None:
        self.verdict = verdict
        self.policies = policies

    @property
    def reason(self) -> Reason | None:
        """Why it was rejected; None when it may pass."""
        return None if self.verdict is None else self.verdict.reason


class Remarked(Decision):
    """A decision about which there is more to say than what its limit has left."""

    __slots__ = ("action", "delay_ms", "marked", "passed", "reservation", "tripped", "would_reject")
    remarked = True

    def __init__(
        self,
        verdict: Verdict | None,
        policies: tuple[Policy, ...],
        action: Action,
        marked: tuple[Verdict, ...] = (),
        would_reject: tuple[Verdict, ...] = (),
        reservation: str = "",
        tripped: tuple[Limit, ...] = (),
        passed: tuple[Verdict, ...] = (),
    ) -> None:
        super().__init__(verdict, policies)
        self.action = action
        self.delay_ms = 0
        for each in marked:
            self.delay_ms = max(self.delay_ms, each.delay_ms)
        self.marked = marked
        self.would_reject = would_reject
        self.reservation = reservation
        self.tripped = tripped
        self.passed = passed
