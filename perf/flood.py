"""What a flood of new keys does to those that were there before, and to the time of a look-up.

    python perf/flood.py [--keys 1000000] [--victims 1000] [--mib 76] [--fill 10] [--each 10000000]
                         [--format table|json]

Victims are token buckets and budgets that were partly used up. Then come `--keys` new keys, as fast as one process can
make them, each with a bucket that does not run out meanwhile; the clock of the table goes on as if 100,000 came in a
second. What the victims have left is compared with what they had, and a look-up of a victim (a take of nothing) is
timed before and after. Then the flood goes on until `--fill` times the slots were asked for: what is answered,
whom the table forgets, and whether keys used every second stay. One process; nanoseconds of processor time, the Python
loop included.

At last come `--each` new keys of each kind that a client can make, into a segment of 48 MiB of its own with the same
victims: how many found no room, whom the table forgot, and how many budgets are not what they were.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from rich.console import Console
from rich.progress import track

from fairvisor.counters import ALLOWED
from fairvisor.counters._table import WORD_CLAIM_EVICTIONS, WORD_EVICTIONS, WORD_FULL, Table
from fairvisor.counters.segment import Segment
from fairvisor.llm.reservation import LIFETIME_NS, REPEAT_NS
from fairvisor.rules.keys import hash64

NOW = 1 << 50  # ns
SECOND = 10**9
TOKEN = 10**6
BURST = 1000 * TOKEN
PER = 268_435_456_000  # ticks of a millionth: one token a second
DAY = 86_400 * SECOND
BETWEEN_NS = SECOND // 100_000
ROUNDS = 9
DEFAULT_MIB = 48  # of FAIRVISOR_SHARED_DICT_SIZE


def new_bucket(table: Table, key: int, now_ns: int) -> None:
    """The bucket of a key that a client invented."""
    table.take(key, now_ns, 500 * TOKEN, BURST, PER)


def new_loop(table: Table, key: int, now_ns: int) -> None:
    """A request that never came before, which loop detection counts for an hour."""
    table.count(key, now_ns, 3600 * SECOND)


def new_request_id(table: Table, key: int, now_ns: int) -> None:
    """A request id of a gateway."""
    table.count(key, now_ns, REPEAT_NS)


def new_reservation(table: Table, key: int, now_ns: int) -> None:
    """An LLM request of a new key: its reservation, settled at once."""
    new_bucket(table, key, now_ns)
    new_settlement(table, key + 1, now_ns)


def new_settlement(table: Table, key: int, now_ns: int) -> None:
    """The nonce that a gateway's settlement leaves."""
    table.once(key, now_ns, LIFETIME_NS, now_ns + LIFETIME_NS)


KINDS = {
    "buckets": new_bucket,
    "loops": new_loop,
    "request ids": new_request_id,
    "reservations": new_reservation,
    "settlements": new_settlement,
}


def main() -> int:
    """Flood a table; 1 when a victim was touched although the table was large enough, or an answer was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--victims", type=int, default=1000)
    parser.add_argument("--mib", type=int, default=76, help="of the segment; an eighth of it is for metrics")
    parser.add_argument(
        "--fill", type=int, default=10, help="how often the table is filled over; 0: not at all"
    )
    parser.add_argument("--each", type=int, default=10_000_000, help="keys of each kind; 0: none")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    flood = Flood(options.mib, options.victims)
    before_ns = flood.look_up_ns()
    flood.add_keys(options.keys, "a flood")
    after_ns = flood.look_up_ns()
    found = {
        "slots": flood.slots,
        "keys": options.keys,
        "victims_changed": flood.changed(),
        "evictions": flood.evictions,
        "look_up_before_ns": round(before_ns, 1),
        "look_up_after_ns": round(after_ns, 1),
        "slower": round(after_ns / before_ns, 2),
    }
    if options.fill:
        flood.add_keys(options.fill * flood.slots - options.keys, f"{options.fill} times over", busy=True)
        found |= {
            "asked": flood.asked,
            "allowed": flood.allowed,
            "evictions_in_the_end": flood.evictions,
            "without_room": flood.table.word_get(WORD_FULL),
            "busy_keys_forgotten": flood.forgotten(),
            "budgets_changed": flood.changed_budgets(),
        }
    kinds = {kind: keys_of(kind, options.each, options.victims) for kind in KINDS if options.each}
    if options.format == "json":
        sys.stdout.write(json.dumps(found | {"kinds": kinds}, indent=2) + "\n")
    else:
        for part in (found, *({"kind": kind, **result} for kind, result in kinds.items())):
            for name, value in part.items():
                Console().print(
                    f"{name.replace('_', ' '):>24}  {value:,}" if name != "kind" else f"\n{value}"
                )
    harmed = any(result["without_room"] or result["budgets_changed"] for result in kinds.values())
    return 0 if found["slower"] < 2 and not found["victims_changed"] and not harmed else 1


def keys_of(kind: str, keys: int, victims: int) -> dict[str, int]:
    """What so many new keys of one kind do to a segment of the default size."""
    flood = Flood(DEFAULT_MIB, victims)
    table, add, seed = flood.table, KINDS[kind], flood.table.seed
    for start in track(range(0, keys, 10_000), kind, console=Console(stderr=True), transient=True):
        for number in range(start, min(start + 10_000, keys)):
            flood.now += BETWEEN_NS
            add(table, hash64(f"{kind} {number}", seed), flood.now)
    return {
        "slots": flood.slots,
        "keys": keys,
        "without_room": table.word_get(WORD_FULL),
        "evictions": flood.evictions,
        "nonces_evicted": table.word_get(WORD_CLAIM_EVICTIONS),
        "budgets_changed": flood.changed_budgets(),
    }


class Flood:
    """A table, the keys that were in it first, and those that came."""

    def __init__(self, mib: int, victims: int) -> None:
        self.segment = Segment.private(mib << 20)
        self.table = self.segment.table
        self.slots: int = sum(self.table.census(0, self.segment.geometry.slots, NOW))
        self.now = NOW
        self.asked = self.allowed = 0
        seed = self.table.seed
        self._seed = seed
        self._buckets = [hash64(f"bucket {number}", seed) for number in range(victims)]
        self._budgets = [hash64(f"budget {number}", seed) for number in range(victims)]
        self._busy = [hash64(f"busy {number}", seed) for number in range(100)]
        for number, (bucket, budget) in enumerate(zip(self._buckets, self._budgets, strict=True)):
            self.table.take(bucket, NOW, (500 + number % 500) * TOKEN, BURST, PER)
            self.table.add(budget, NOW, 1 + number, DAY, 30 * DAY)
        for key in self._busy:
            self.table.take(key, NOW, BURST, BURST, PER)

    @property
    def evictions(self) -> int:
        """Whom the table has forgotten so far."""
        return self.table.word_get(WORD_EVICTIONS)

    def look_up_ns(self) -> float:
        """One look-up of a victim, the median of some rounds over all of them in another order each time."""
        take, now, rounds = self.table.take, self.now, []
        for number in range(ROUNDS):
            keys = self._buckets[number::2] + self._buckets[:number]
            start_ns = time.thread_time_ns()
            for key in keys:
                take(key, now, 0, BURST, PER)
            rounds.append((time.thread_time_ns() - start_ns) / len(keys))
        return statistics.median(rounds)

    def add_keys(self, count: int, what: str, *, busy: bool = False) -> None:
        """So many new keys, each once; with `busy`, some old ones are used every second beside them."""
        take, seed = self.table.take, self._seed
        for start in track(range(0, count, 10_000), what, console=Console(stderr=True), transient=True):
            for number in range(start, min(start + 10_000, count)):
                self.now += BETWEEN_NS
                key = hash64(f"{what} {number}", seed)
                self.allowed += take(key, self.now, 500 * TOKEN, BURST, PER)[0] == ALLOWED
            self.asked += min(10_000, count - start)
            if busy and not start % 100_000:
                for key in self._busy:
                    take(key, self.now, 0, BURST, PER)

    def changed(self) -> int:
        """How many victims have not what they had: buckets as far as they filled up since, budgets as they were."""
        refilled_u = (self.now - NOW) // 1000
        wrong = self.changed_budgets()
        for number, key in enumerate(self._buckets):
            expected = min(BURST, BURST - (500 + number % 500) * TOKEN + refilled_u)
            wrong += abs(self.table.peek_bucket(key, self.now, BURST, PER)[0] - expected) > 1
        return wrong

    def changed_budgets(self) -> int:
        """How many budgets are not what they were."""
        totals = (self.table.peek_total(key, self.now) for key in self._budgets)
        return sum(total != 1 + number for number, total in enumerate(totals))

    def forgotten(self) -> int:
        """How many of the busy keys have started anew."""
        refilled_u = (self.now - NOW) // 1000
        full = min(BURST, refilled_u)
        return sum(abs(self.table.peek_bucket(key, self.now, BURST, PER)[0] - full) > 1 for key in self._busy)


if __name__ == "__main__":
    sys.exit(main())
