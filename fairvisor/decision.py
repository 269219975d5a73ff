"""What a decision says: the closed vocabularies and the two result objects.

A `Verdict` is the answer of one limit, a `Decision` the answer of the whole bundle. Both hold facts only: amounts in
whole units, times in nanoseconds. Nothing here knows HTTP; `response.py` turns a decision into status, headers, body.
"""

from __future__ import annotations

from enum import Enum


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
    NO_BUNDLE_LOADED = "no_bundle_loaded"
    ENGINE_ERROR = "engine_error"


class Warning_(str, Enum):
    """Why an allowed request is marked: the values of `X-Fairvisor-Warning`."""

    BUDGET_WARN = "budget_warn"
    BUDGET_THROTTLE = "budget_throttle"
    LOOP_WARN = "loop_warn"
    LOOP_THROTTLE = "loop_throttle"


class Quota:
    """What one limit shows to clients: fixed at load for a bucket, per window for a budget.

    `name` is the rule's name, `amount` the quota and `window_s` its window in whole seconds; `head` is the part of the
    answer's head that does not change from request to request.
    """

    __slots__ = ("amount", "head", "name", "window_s")

    def __init__(self, name: str, amount: int, window_s: int, head: str = "") -> None:
        self.name = name
        self.amount = amount
        self.window_s = window_s
        self.head = head
