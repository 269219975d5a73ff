"""Circuit breaker: no more spending when the spend per minute has reached a threshold.

The rate is that of a sliding minute: this minute's total plus the previous one's, weighted by how much of it the
sliding minute still covers. Whether the breaker is open is read before the rules; the cost is added by `spend` when
every limit has passed, so rejected requests cannot trip it, and the request that reaches the threshold passes and opens
it. Opening zeroes the windows, so that a reset starts from nothing.
"""

from __future__ import annotations

from typing import Final

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.decision import NEVER_NS, Reason, Refusal, Verdict
from fairvisor.descriptors import Descriptor
from fairvisor.metrics import BREAKER_TRIPS, CIRCUIT_STATE, Tally
from fairvisor.rules.keys import hash64
from fairvisor.rules.limit import Described, Limit

MINUTE_NS: Final = 60 * NS_PER_S
KEPT_NS: Final = 2 * MINUTE_NS  # a minute's total counts until the next one has ended
UNTIL_RESET_NS: Final = 90 * 86_400 * NS_PER_S  # the table keeps a record for at most 100 days
RENEWED_NS: Final = UNTIL_RESET_NS // 3  # so an open breaker that is asked now and then stays open
_NO_LIMIT: Final = (1 << 63) - 1


class Breaker(Limit):
    """A compiled `circuit_breaker`. `key` reads the value it is scoped by (None: the policy, or everything).

    `name` is the descriptor that `key` reads, `auto_reset_ns` is 0 when it stays open until an operator resets it.
    """

    __slots__ = (
        "_auto_reset_ns",
        "_key",
        "_minute",
        "_minute_keys",
        "_name",
        "_open",
        "_prefix",
        "_seed",
        "_shared_open",
        "_threshold_u",
    )

    def __init__(
        self,
        tally: Tally,
        prefix: str,
        seed: int,
        name: str,
        key: Descriptor | None,
        threshold_u: int,
        auto_reset_ns: int,
    ) -> None:
        super().__init__(tally)
        self._open = tally.open_of(CIRCUIT_STATE)
        self._prefix = prefix
        self._seed = seed
        self._name = name
        self._key = key
        self._threshold_u = threshold_u
        self._auto_reset_ns = auto_reset_ns
        # derived, for a breaker that is the same for everybody
        self._shared_open = hash64(prefix + "-:open", seed)
        self._minute = -1
        self._minute_keys = (0, 0)

    @property
    def key_name(self) -> str:
        """The descriptor that it is scoped by; "" when it is the same for everybody."""
        return self._name if self._key is not None else ""

    def _identity(self, context: Context) -> str:
        return self._identity_of(self._key.read(context) if self._key is not None else None)

    def _identity_of(self, value: str | None) -> str:
        return f"{self._prefix}{len(value)}:{value}" if value else self._prefix + "-:"

    def _minutes(self, context: Context, minute: int) -> tuple[int, int]:
        """The keys of this minute's total and of the one before; kept while they are the same for everybody."""
        if self._key is None and minute == self._minute:
            return self._minute_keys
        identity = self._identity(context)
        self._minute = minute
        self._minute_keys = (
            hash64(f"{identity}{minute}", self._seed),
            hash64(f"{identity}{minute - 1}", self._seed),
        )
        return self._minute_keys

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Refuse while open. The record of an open breaker holds the wall time at which it opened."""
        key = self._shared_open if self._key is None else hash64(self._identity(context) + "open", self._seed)
        opened_ns = counters.peek_total(key, now.mono_ns)
        if not opened_ns:
            return None
        if not self._auto_reset_ns:
            if now.wall_ns - opened_ns > RENEWED_NS:
                self._open.prolonged(self._write(counters, key, now))
            return Refusal(self, Reason.CIRCUIT_BREAKER_OPEN, wait_ns=NEVER_NS)
        wait_ns = opened_ns + self._auto_reset_ns - now.wall_ns
        return Refusal(self, Reason.CIRCUIT_BREAKER_OPEN, wait_ns=wait_ns) if wait_ns > 0 else None

    def describe(self, context: Context) -> Described:
        """The value that it is scoped by; nothing when it is the same for everybody."""
        return () if self._key is None else ((self._name, self._key.shown(context)),)

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Nothing is taken before all have passed."""

    def spend(self, counters: Counters, context: Context, now: Now, cost_u: int) -> tuple[int, bool]:
        """Add the cost of a request that passed, open at the threshold: the minute's key, and whether it opened."""
        minute = now.mono_ns // MINUTE_NS
        into_ns = now.mono_ns % MINUTE_NS
        key, previous = self._minutes(context, minute)
        _, total_u = counters.add(key, now.mono_ns, cost_u, _NO_LIMIT, KEPT_NS - into_ns)
        before_u = counters.peek_total(previous, now.mono_ns)
        if total_u + before_u < self._threshold_u:  # nearly always: nothing to weigh
            return key, False
        if total_u * MINUTE_NS + before_u * (MINUTE_NS - into_ns) >= self._threshold_u * MINUTE_NS:
            opened = self._trip(counters, self._identity(context), now)
            counters.delete(key, now.mono_ns)
            counters.delete(previous, now.mono_ns)
            return key, opened
        return key, False

    def opened_ns(self, counters: Counters, value: str | None, now: Now) -> int:
        """When it opened for this value of `key_name` (wall clock); 0 when it is closed."""
        opened_ns = counters.peek_total(hash64(self._identity_of(value) + "open", self._seed), now.mono_ns)
        over = 0 < self._auto_reset_ns <= now.wall_ns - opened_ns
        return 0 if over else opened_ns

    def trip(self, counters: Counters, value: str | None, now: Now) -> bool:
        """Open it by hand for this value of `key_name`; False: it was open."""
        return self._trip(counters, self._identity_of(value), now)

    def reset(self, counters: Counters, value: str | None, now: Now) -> bool:
        """Close it by hand, and forget what was spent; False: it was closed."""
        was_open = self.opened_ns(counters, value, now) > 0
        identity = self._identity_of(value)
        minute = now.mono_ns // MINUTE_NS
        for record in ("open", str(minute), str(minute - 1)):
            counters.delete(hash64(identity + record, self._seed), now.mono_ns)
        if was_open:
            self._open.closed()
        return was_open

    def _trip(self, counters: Counters, identity: str, now: Now) -> bool:
        """Open, unless another request of this moment did."""
        key = hash64(identity + "open", self._seed)
        opened_ns = counters.peek_total(key, now.mono_ns)
        if opened_ns and not 0 < self._auto_reset_ns <= now.wall_ns - opened_ns:
            return False
        self._open.opened(self._write(counters, key, now), now.wall_ns // NS_PER_S)
        self.tally.add(BREAKER_TRIPS)
        return True

    def _write(self, counters: Counters, key: int, now: Now) -> int:
        """Record that it is open: until when, in seconds of the wall clock.

        The record of an earlier opening goes first: it would stand as long as that was to last.
        """
        lasts_ns = self._auto_reset_ns or UNTIL_RESET_NS
        counters.delete(key, now.mono_ns)
        counters.add(key, now.mono_ns, now.wall_ns, now.wall_ns, lasts_ns)
        return -(-(now.wall_ns + lasts_ns) // NS_PER_S)
