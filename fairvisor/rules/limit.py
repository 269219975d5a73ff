"""The face of a limit: what the engine may ask of one, whatever its kind.

A class rather than a protocol: where the decision path is compiled, its methods are called directly. It knows requests
and verdicts, and nothing of any kind of limit.
"""

from __future__ import annotations

from fairvisor.clock import Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.decision import Verdict
from fairvisor.metrics import Tally

Described = tuple[tuple[str, "str | None"], ...]  # descriptors with the values that a request has


class Limit:
    """What the engine knows of a limit; `tally` counts what it does."""

    __slots__ = ("tally",)

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Charge this request; None: the limit does not apply to it. A refusal has charged nothing."""
        raise NotImplementedError

    def describe(self, context: Context) -> Described:
        """For whom it counts this request, for people: descriptors and their values."""
        raise NotImplementedError

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Take back what `take` charged, with the same `now`."""
        raise NotImplementedError
