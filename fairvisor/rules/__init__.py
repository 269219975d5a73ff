"""The limits: one file per kind, all with the same face.

`take` charges a request and answers with a verdict, or with None when the limit does not apply to it; `give` takes the
charge back when a later limit refuses. A limit is made at load by `bundle/compile.py`, holds everything that depends
only on the bundle, and keeps no state of its own: that is in `counters`. It knows nothing of other limits or of HTTP.

    keys.py           for whom a rule counts: match, limit keys, what happens when one is missing
    cost.py           what a request costs
    windows.py        calendar windows
    standing.py       what a counter holds for somebody, for operators
    token_bucket.py   rate with burst (GCRA)
    budget.py         total per window, with warn, throttle and reject stages
    llm_tokens.py     tokens per minute and day: reserve, then settle
    loop.py           identical requests in a row
    breaker.py        spend per minute
    kill_switch.py    no, at once
"""

from __future__ import annotations

from typing import Protocol

from fairvisor.clock import Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.decision import Verdict
from fairvisor.metrics import Tally
from fairvisor.rules.keys import Described


class Limit(Protocol):
    """What the engine knows of a limit."""

    tally: Tally

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Charge this request; None: the limit does not apply to it. A refusal has charged nothing."""

    def describe(self, context: Context) -> Described:
        """For whom it counts this request, for people: descriptors and their values."""

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Take back what `take` charged, with the same `now`."""
