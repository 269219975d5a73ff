"""`unreadable_body: "reject"`: no LLM request passes that the limits on it cannot read.

It is asked before all other limits of a policy that takes its requests for LLM requests. What makes a body unreadable
is decided in `llm/request.py`.
"""

from __future__ import annotations

from fairvisor.clock import Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.decision import Reason, Unmet, Verdict
from fairvisor.rules.keys import MISSING_WAIT_NS
from fairvisor.rules.limit import Described, Limit


class Unreadable(Limit):
    """Rejects bodies that cannot be read."""

    __slots__ = ()

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Reject a body that cannot be read; a request without a body is not this limit's business."""
        llm = context.llm
        if llm is None or not llm.unread:
            return None
        return Unmet(self, Reason.UNREADABLE_BODY, "llm:model", MISSING_WAIT_NS)

    def describe(self, context: Context) -> Described:
        """Return nothing: it counts nobody."""
        return ()

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Nothing is taken."""
