"""Real processes on one table: exact when they race, and when some of them are killed.

The hammer runs for FAIRVISOR_HAMMER_SECONDS (6): eight processes, two of them killed with SIGKILL every second and
replaced. Every operation is acknowledged, after it returned, in a cell of its own; so at the end each counter must
hold what was acknowledged, and at most one more for each process that was killed.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import gt
from pathlib import Path

import pytest
from edge_server import wait_until

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import NOW, SECOND, TOKEN, c_table, per_of, slot_of, table_over

from fairvisor.counters import ALLOWED, REFUSED
from fairvisor.counters._table import SLOT_BYTES, WORD_EVICTIONS, WORD_FULL, Table
from fairvisor.counters.records import UNIT_NS, fingerprint

HAMMER_SECONDS = float(os.environ.get("FAIRVISOR_HAMMER_SECONDS", "6"))
PROCESSES = 8
DAY = 86_400 * SECOND
NEVER = 2**63 - 1
PER = per_of(1000)
GO, STOP = 20, 21  # words
SHARED = range(100, 104)  # keys that all processes use, by kind of operation
OWN = range(200, 200 + PROCESSES)  # keys of one process each
RACE_BURST = 200


def start(work: Callable[[], None]) -> int:
    """Fork a process that does `work` and exits with 0; anything else is a failure."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def finish(children: list[int]) -> None:
    for child in children:
        assert os.waitpid(child, 0)[1] == 0, "a process failed"


def run_together(table: Table, work: Callable[[], None]) -> None:
    """`work` in all processes at once: none begins before the last was started."""

    def wait_and_work() -> None:
        while not table.word_get(GO):
            os.sched_yield()
        work()

    table.word_set(GO, 0)
    children = [start(wait_and_work) for _ in range(PROCESSES)]
    table.word_set(GO, 1)
    finish(children)


class TestExactly:
    """Each process takes until it is refused; together they get what there is, to the last millionth."""

    ROUNDS = 10

    @pytest.mark.parametrize("cost_u", [TOKEN, TOKEN // 3, 7 * TOKEN // 10], ids=lambda u: f"cost {u}")
    def test_bucket(self, cost_u: int) -> None:
        table = c_table(1024)
        burst_u = 5000 * cost_u + cost_u - 1
        for key in range(self.ROUNDS):

            def work(key: int = key) -> None:
                while table.take(key, NOW, cost_u, burst_u, PER)[0] == ALLOWED:
                    table.cell_add(key, 1)

            run_together(table, work)
            assert table.cell_get(key) == 5000
            assert table.peek_bucket(key, NOW, burst_u, PER)[0] == cost_u - 1

    def test_total(self) -> None:
        table = c_table(1024)
        for key in range(self.ROUNDS):

            def work(key: int = key) -> None:
                while table.add(key, NOW, 3, 15_001, DAY)[0] == ALLOWED:
                    table.cell_add(key, 1)

            run_together(table, work)
            assert table.cell_get(key) == 5000
            assert table.peek_total(key, NOW) == 15_000

    def test_count(self) -> None:
        table = c_table(1024)

        def work() -> None:
            for _ in range(2000):
                table.cell_add(0, table.count(1, NOW, DAY))

        run_together(table, work)
        total = 2000 * PROCESSES
        assert table.peek_count(1, NOW) == total
        assert table.cell_get(0) == total * (total + 1) // 2  # every number was given to one arrival

    def test_once_has_one_winner(self) -> None:
        table = c_table(4096)

        def work() -> None:
            for key in range(1000):
                table.cell_add(0, table.once(key, NOW, DAY, key)[0] == ALLOWED)

        run_together(table, work)
        assert table.cell_get(0) == 1000

    def test_two_limits_of_which_one_refuses_leave_no_charge(self) -> None:
        table = c_table(1024)
        wide, narrow = 1, 2

        def work() -> None:
            for _ in range(2000):
                if table.take(wide, NOW, TOKEN, 5000 * TOKEN, PER)[0] == ALLOWED:
                    if table.take(narrow, NOW, TOKEN, 100 * TOKEN, PER)[0] == ALLOWED:
                        table.cell_add(0, 1)
                    else:
                        table.give(wide, NOW, TOKEN, PER)

        run_together(table, work)
        assert table.cell_get(0) == 100
        assert table.peek_bucket(wide, NOW, 5000 * TOKEN, PER)[0] == 4900 * TOKEN

    def test_insertion_races_in_a_crowded_window_make_one_record(self) -> None:
        """One window of 16 slots and twice as many keys, which run out, are deleted and swept all the time."""
        memory = mmap.mmap(-1, 4096)
        table = crowded(memory)

        def work() -> None:
            chance = random.Random(os.getpid())
            for _ in range(10_000):
                churn(table, chance)

        run_together(table, work)
        assert_no_twins(memory)


def crowded(memory: mmap.mmap) -> Table:
    return table_over(memory, 16)


def churn(table: Table, chance: random.Random) -> None:
    """One operation of any kind on one of 32 keys; what is taken is regained within microseconds."""
    key, now_ns = chance.randrange(32), time.monotonic_ns()
    match chance.randrange(8):
        case 0:
            table.give(key, now_ns, TOKEN, 1)
        case 1:
            table.delete(key, now_ns)
        case 2:
            table.sweep(0, 16, now_ns)
        case 3:
            table.count(key, now_ns, chance.randrange(1, 20_000))
        case 4:
            table.once(64 + key % 4, now_ns - chance.randrange(4) * UNIT_NS, 1, key)
        case _:
            table.take(key, now_ns, TOKEN, 100 * TOKEN, 2**28 // 100)


def assert_no_twins(memory: mmap.mmap) -> None:
    prints = [a >> 21 for _, a, _, _ in (slot_of(memory, at) for at in range(16)) if a >> 19 & 3 >= 2]
    assert len(prints) == len(set(prints)), "two live records of one key"
    assert set(prints) <= {fingerprint(key) for key in range(68)}, "a record of no key"


class Hammer:
    """The keys that the killed processes share, and what each process does without end.

    Cells: one for each key of SHARED and OWN, one per process for progress, the rest one per race.
    """

    def __init__(self) -> None:
        slots = 1 << 16
        words_bytes, slots_bytes = 512, SLOT_BYTES * slots
        self.races = 30_000
        self.race_cell = len(SHARED) + 2 * PROCESSES
        cells = self.race_cell + self.races
        memory = mmap.mmap(-1, words_bytes + slots_bytes + 8 * cells)
        self.table = Table(
            memory, seed=7, words_at=0, words=64, slots_at=words_bytes, slots=slots,
            cells_at=words_bytes + slots_bytes, cells=cells,
        )  # fmt: skip
        self.churned = mmap.mmap(-1, 4096)
        self.crowded = crowded(self.churned)

    def work(self, process: int) -> None:
        table, chance = self.table, random.Random(os.getpid())
        total, bucket, count, both = SHARED
        own, progress = OWN[process], len(SHARED) + PROCESSES + process
        race = 0
        while not table.word_get(STOP):
            table.add(total, NOW, 1, NEVER, DAY)
            table.cell_add(0, 1)
            table.take(bucket, NOW, 1, 2**53, 1)
            table.cell_add(1, 1)
            table.count(count, NOW, DAY)
            table.cell_add(2, 1)
            table.add(both, NOW, 5, NEVER, DAY)
            table.cell_add(3, 5)
            table.sub(both, NOW, 5)
            table.cell_add(3, -5)
            table.add(own, NOW, 1, NEVER, DAY)
            table.cell_add(len(SHARED) + process, 1)
            race = self.race(race)
            churn(self.crowded, chance)
            table.cell_add(progress, 1)

    def progress(self) -> list[int]:
        """Rounds that each process has finished."""
        return [self.table.cell_get(len(SHARED) + PROCESSES + process) for process in range(PROCESSES)]

    def race(self, race: int) -> int:
        """A key that all processes meet for the first time together: RACE_BURST of them may pass."""
        if race < self.races:
            if self.table.take(1000 + race, NOW, TOKEN, RACE_BURST * TOKEN, PER)[0] == REFUSED:
                return race + 1
            self.table.cell_add(self.race_cell + race, 1)
        return race


def test_killed_processes_lose_and_invent_nothing(request: pytest.FixtureRequest) -> None:
    hammer, chance, kills = Hammer(), random.Random(1), 0
    children = {process: start(lambda p=process: hammer.work(p)) for process in range(PROCESSES)}
    request.addfinalizer(lambda: end(children.values()))
    deadline_ns = time.monotonic_ns() + int(HAMMER_SECONDS * SECOND)
    while time.monotonic_ns() < deadline_ns:
        let_run(children.values(), 1 - chance.random() / 10)
        for process in chance.sample(range(PROCESSES), 2):
            os.kill(children[process], signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(children[process], 0)[1]), "it had ended before it was killed"
            kills += 1
            children[process] = start(lambda p=process: hammer.work(p))
    before = hammer.progress()
    wait_until(lambda: all(map(gt, hammer.progress(), before)))  # none stands still
    hammer.table.word_set(STOP, 1)
    finish(list(children.values()))
    children.clear()
    check(hammer, kills)


def end(children: Iterable[int]) -> None:
    """After a failure: leave no process behind."""
    for child in children:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def let_run(children: Iterable[int], seconds: float) -> None:
    """Wait, unless a process ends, which none should by itself."""
    handles = [os.pidfd_open(child) for child in children]
    try:
        ended, _, _ = select.select(handles, [], [], seconds)
        assert not ended, "a process failed"
    finally:
        for handle in handles:
            os.close(handle)


def check(hammer: Hammer, kills: int) -> None:
    table = hammer.table
    assert (table.word_get(WORD_FULL), table.word_get(WORD_EVICTIONS)) == (0, 0), (
        "too few slots for this test"
    )
    total, bucket, count, both = SHARED
    over = 0
    for cell, counter in [
        (0, table.peek_total(total, NOW)),
        (1, 2**53 - table.peek_bucket(bucket, NOW, 2**53, 1)[0]),
        (2, table.peek_count(count, NOW)),
        *((len(SHARED) + process, table.peek_total(OWN[process], NOW)) for process in range(PROCESSES)),
    ]:
        acknowledged = table.cell_get(cell)
        assert acknowledged <= counter <= acknowledged + kills
        over += counter - acknowledged
    raced = [table.cell_get(hammer.race_cell + race) for race in range(hammer.races)]
    done = raced[: max(i for i, passed in enumerate(raced) if passed)]
    assert max(raced) <= RACE_BURST
    over += sum(RACE_BURST - passed for passed in done)
    net = (table.cell_get(3) + 2**63) % 2**64 - 2**63
    assert abs(table.peek_total(both, NOW) - net) <= 5 * kills
    assert over <= kills, "more than one operation per kill went unacknowledged"
    assert table.census(0, table.slots, NOW)[1] <= kills
    assert_no_twins(hammer.churned)
    operations = sum(table.cell_get(cell) for cell in range(3)) + sum(raced)
    print(f"{kills} kills, {operations} counted operations, {len(done)} races, {over} not acknowledged")
