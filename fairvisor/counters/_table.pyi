"""Counters in memory that processes share: one compare-and-swap per decision, no locks.

Units: `_u` millionths, `_ns` nanoseconds, `per` ticks of 2^-28 ns per millionth. `key` is a 64-bit hash, `now_ns` a
reading of one monotonic clock that every process shares. All arguments are integers from 0 to 2^63-1, keys and words
to 2^64-1; anything else is a ValueError (TypeError for what is no integer). A counter that has run out, whether its
slot was taken since or not, counts as none. `_slots.h` specifies the format, `model.py` is the readable twin.
"""

from typing import Final, final

from typing_extensions import Buffer

ALLOWED: Final = 1
REFUSED: Final = 0
FULL: Final = -1  # no room in the window of the key: nothing was counted, the caller decides
GROUP: Final[int]  # the number of slots is a multiple of this
SLOT_BYTES: Final[int]
OWN_WORDS: Final[int]  # words 0 .. OWN_WORDS-1 are the table's
WORD_NONCE: Final[int]  # reservations made so far
WORD_EVICTIONS: Final[int]  # buckets and counts that gave way to a new key before they had run out
WORD_FULL: Final[int]  # operations that ended as FULL
WORD_CLAIM_EVICTIONS: Final[int]  # claims that gave way to a new key before they had run out
WORD_CLAIM_STAMP: Final[int]  # the greatest stamp of these

@final
class Table:
    """Slots, words and cells in `buffer` (writable, kept exported), at byte offsets `*_at`; new memory is all zero.

    `slots` is a multiple of GROUP and `slots_at` aligned to GROUP * SLOT_BYTES, `words_at` and `cells_at` to 64;
    ValueError otherwise. `seed` is only kept: whoever makes keys hashes with it.
    """

    seed: Final[int]
    slots: Final[int]
    words: Final[int]
    cells: Final[int]

    def __new__(
        cls,
        buffer: Buffer,
        *,
        seed: int,
        words_at: int,
        words: int,
        slots_at: int,
        slots: int,
        cells_at: int,
        cells: int,
    ) -> Table: ...

    # token buckets
    def take(self, key: int, now_ns: int, cost_u: int, burst_u: int, per: int, /) -> tuple[int, int, int]:
        """Take `cost_u` from the bucket: (outcome, remaining_u, wait_ns).

        `wait_ns` is the time until the bucket is full when ALLOWED, until the cost fits when REFUSED (-1: it never
        will, cost_u > burst_u), 0 when FULL. A bucket without a record is full. `burst_u * per` is below 2^82.
        """
    def give(self, key: int, now_ns: int, cost_u: int, per: int, /) -> None:
        """Put back what was taken; never fuller than full, never makes a record."""
    def overdraw(self, key: int, now_ns: int, cost_u: int, burst_u: int, per: int, /) -> None:
        """Take without refusing, down to an empty bucket: settles an estimate that was too low."""
    def peek_bucket(self, key: int, now_ns: int, burst_u: int, per: int, /) -> tuple[int, int]:
        """(remaining_u, time until full in ns), for display only."""

    # totals of a window; the key names the window
    def add(self, key: int, now_ns: int, amount_u: int, limit_u: int, ttl_ns: int, /) -> tuple[int, int]:
        """Add when the total stays within `limit_u`: (outcome, total_u afterwards, as it is unless ALLOWED).

        The total is kept for `ttl_ns` (1 ns to 100 days) and 69 to 137 s more. A later addition may prolong that, when
        the wall clock was set back and the window ends later than was thought, and never shortens it.
        """
    def sub(self, key: int, now_ns: int, amount_u: int, /) -> None:
        """Take back from a total, not below 0; never makes a record."""
    def charge(self, key: int, now_ns: int, amount_u: int, /) -> None:
        """Add to a total that exists, without a limit, at most to 2^63-1; never makes a record."""
    def peek_total(self, key: int, now_ns: int, /) -> int:
        """The total, 0 when there is none; for display only."""

    # counts and claims
    def count(self, key: int, now_ns: int, window_ns: int, /) -> int:
        """Count one more: the new count (at most 2^28-1), 0 when FULL.

        A count that is not running starts a window of `window_ns` (1 ns to 100 days).
        """
    def peek_count(self, key: int, now_ns: int, /) -> int:
        """The count, 0 when no window is running; for display only."""
    def once(self, key: int, now_ns: int, ttl_ns: int, stamp: int, /) -> tuple[int, int]:
        """Claim what may be done once: (outcome, evicted_stamp).

        ALLOWED the first time within `ttl_ns` (and 69 to 137 s more), REFUSED when it was claimed, or FULL. A claim is
        the last to give way to a new key, and of several the one with the least stamp. `evicted_stamp` is the greatest
        stamp of those that did, 0 when none did: what is not above it may have been claimed before.
        """

    # any record
    def delete(self, key: int, now_ns: int, /) -> bool:
        """Forget the record of the key; was there one that had not run out?"""
    def sweep(self, start: int, slots: int, now_ns: int, /) -> int:
        """Free the slots from `start` on that have run out; how many. Ranges are clipped to the table."""
    def census(self, start: int, slots: int, now_ns: int, /) -> tuple[int, int, int, int, int]:
        """How many of these slots are (free, reserved, buckets and counts, totals, run out)."""
    def dump(self, start: int, slots: int, now_ns: int, /) -> bytes:
        """The live records of these slots as they stand, one slot after the other, for `merge`."""
    def merge(self, records: Buffer, shift_ns: int, now_ns: int, /) -> tuple[int, int]:
        """Take over slots of another table, dated `shift_ns` later: (kept, dropped).

        `records` is a dump or the whole slot region of a table that nobody uses. Of two records of a key the one with
        the greater charge stays. Dropped: no room in its window, or killed before its key was known.
        """

    # words of 64 bits, sequentially consistent
    def word_get(self, index: int, /) -> int: ...
    def word_set(self, index: int, value: int, /) -> None: ...
    def word_add(self, index: int, amount: int, /) -> int:
        """Add modulo 2^64 (a negative amount subtracts): the new value."""
    def word_cas(self, index: int, old: int, value: int, /) -> bool:
        """Store `value` if the word is `old`; was it?"""

    # cells of 64 bits, relaxed: sums for metrics
    def cell_add(self, index: int, amount: int, /) -> None:
        """Add modulo 2^64 (a negative amount subtracts)."""
    def cell_get(self, index: int, /) -> int: ...
    def cell_set(self, index: int, value: int, /) -> None: ...
