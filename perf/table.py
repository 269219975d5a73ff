"""What an operation on the table of counters costs, called from Python, and how it grows with the number of keys.

    python perf/table.py [--keys 1000000] [--mib 64] [--rounds 7] [--format table|json]

One process, one core. Times are nanoseconds of processor time per operation, the Python loop around the call
included. Measurements take turns, round after round, so that a drift of the machine meets all of them. The ratio of
many keys to 1,000 is taken within a round; of it the least, the median and the greatest are reported. It is given
twice: for `take` alone, and for what a limit does for each request: join the identity, hash it, take. The difference
between the two numbers of keys is one access to memory that is in no cache; its latency is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table as Sheet

from fairvisor.counters.segment import Segment
from fairvisor.rules.keys import hash64

NOW = 1 << 50  # ns
SECOND = 10**9
TOKEN = 10**6
BURST = 5000 * TOKEN
PER = 268_436  # 1,000 tokens a second
DAY = 86_400 * SECOND
FEW = 1000
CALLS = 200_000  # per measurement of what fits the caches
IDENTITY = "6:bucket0:12:orders-limit8:per-user10:ip:address7:enforce"


class Measured(NamedTuple):
    """One row: what was done and nanoseconds per operation, one for each round."""

    name: str
    ns: list[float]

    @property
    def median_ns(self) -> float:
        return statistics.median(self.ns)


def timed(run: Callable[[], None], operations: int) -> float:
    start_ns = time.thread_time_ns()
    run()
    return (time.thread_time_ns() - start_ns) / operations


def take_all(segment: Segment, keys: Iterable[int]) -> None:
    take = segment.table.take
    for key in keys:
        take(key, NOW, TOKEN, BURST, PER)


def decide_all(segment: Segment, count: int, operations: int) -> None:
    """Identity, hash and take for clients 0 .. count-1 in a scattered order; 7,368,787 is prime."""
    take, seed = segment.table.take, segment.table.seed
    client = 0
    for _ in range(operations):
        client = (client + 7_368_787) % count
        value = f"10.{client}"
        take(hash64(f"{IDENTITY}{len(value)}:{value}", seed), NOW, TOKEN, BURST, PER)


def hot_operations(segment: Segment) -> dict[str, Callable[[], None]]:
    """Every operation on a key or cell that is in the cache, CALLS times."""
    table, chance = segment.table, random.Random(2)
    bucket, refused, total, count = (chance.getrandbits(64) for _ in range(4))
    cell = segment.series("perf", ())
    table.take(refused, NOW, TOKEN, TOKEN, PER)
    many = range(CALLS)

    def repeat(call: Callable[..., object], *arguments: int) -> Callable[[], None]:
        def run() -> None:
            for _ in many:
                call(*arguments)

        return run

    return {
        "take, allowed": repeat(table.take, bucket, NOW, TOKEN, 2**40, 1),
        "take, refused": repeat(table.take, refused, NOW, TOKEN, TOKEN, PER),
        "give": repeat(table.give, bucket, NOW, 1, 1),
        "add": repeat(table.add, total, NOW, 1, 2**62, DAY),
        "count": repeat(table.count, count, NOW, DAY),
        "peek_total": repeat(table.peek_total, total, NOW),
        "cell_add": repeat(table.cell_add, cell, 1),
        "word_get": repeat(table.word_get, 16),
    }


def memory_latency_ns(size_bytes: int, chance: random.Random) -> float:
    """What Python pays for a byte at a random place of a buffer of this size, above one in the cache."""
    memory = bytearray(b"\1") * size_bytes
    far = [chance.randrange(size_bytes) for _ in range(CALLS)]
    near = [place % 4096 for place in far]

    def read(places: list[int]) -> float:
        def run() -> None:
            for place in places:
                memory[place]

        return min(timed(run, CALLS) for _ in range(3))

    return max(0.0, read(far) - read(near))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    chance = random.Random(1)
    segment = Segment.private(arguments.mib << 20)
    keys = [chance.getrandbits(64) for _ in range(arguments.keys)]
    few = keys[:FEW] * (CALLS // FEW)
    segment_two = Segment.private(arguments.mib << 20)

    new_ns = timed(lambda: take_all(segment, keys), len(keys))
    decide_all(segment_two, arguments.keys, arguments.keys)
    after_insertion = segment.statistics(NOW)
    rows = [Measured(f"take, known key, {count:,} keys", []) for count in (FEW, arguments.keys)]
    whole = [Measured(f"identity, hash and take, {count:,} keys", []) for count in (FEW, arguments.keys)]
    hot = hot_operations(segment)
    hot_rows = [Measured(name, []) for name in hot]
    for _ in track(range(arguments.rounds), console=Console(stderr=True), transient=True):
        rows[0].ns.append(timed(lambda: take_all(segment, few), len(few)))
        rows[1].ns.append(timed(lambda: take_all(segment, keys), len(keys)))
        whole[0].ns.append(timed(lambda: decide_all(segment_two, FEW, CALLS), CALLS))
        whole[1].ns.append(
            timed(lambda: decide_all(segment_two, arguments.keys, arguments.keys), arguments.keys)
        )
        for row, run in zip(hot_rows, hot.values(), strict=True):
            row.ns.append(timed(run, CALLS))
    rows.append(Measured("take, new key", [new_ns]))
    return {
        "rows": {row.name: round(row.median_ns, 1) for row in [*hot_rows, *rows, *whole]},
        "ratio_take": spread(rows),
        "ratio_limit": spread(whole),
        "memory_latency_ns": round(memory_latency_ns(arguments.mib << 20, chance), 1),
        "keys": len(keys),
        "live": after_insertion.live,
        "slots": after_insertion.slots,
        "bytes_per_key": round(after_insertion.size_bytes / after_insertion.live, 1),
        "evictions": after_insertion.evictions,
        "full": after_insertion.full,
    }


def spread(rows: list[Measured]) -> list[float]:
    """Least, median and greatest of the ratios within each round."""
    ratios = sorted(many / few for few, many in zip(rows[0].ns, rows[1].ns, strict=True))
    return [round(value, 2) for value in (ratios[0], statistics.median(ratios), ratios[-1])]


def show(result: dict[str, object]) -> None:
    sheet = Sheet("operation", "ns", title="Cost of an operation, from Python")
    rows = result["rows"]
    assert isinstance(rows, dict)
    for name, ns in rows.items():
        sheet.add_row(name, f"{ns:.0f}")
    Console().print(sheet)
    facts = Sheet("fact", "value")
    for name, value in result.items():
        if name != "rows":
            facts.add_row(name.replace("_", " "), str(value))
    Console().print(facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--format", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = measure(arguments)
    if arguments.format == "json":
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        show(result)


if __name__ == "__main__":
    main()
