"""Who the workers are, and which bundle each decides by."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fairvisor.counters.layout import WORKERS
from fairvisor.counters.registry import Registry
from fairvisor.counters.segment import Segment
from fairvisor.processes import identity, is_alive, pid_of, start_time


class World:
    """A registry in which only the processes in `living` live."""

    def __init__(self) -> None:
        self.living: set[int] = set()
        self.registry = Registry(Segment.private(1 << 17).table, self.living.__contains__)

    def join(self, process: int) -> int | None:
        self.living.add(process)
        return self.registry.claim(process)


@pytest.fixture
def world() -> World:
    return World()


class TestRegistry:
    def test_each_worker_has_an_entry_of_its_own(self, world: World) -> None:
        assert [world.join(process) for process in (11, 12, 13)] == [0, 1, 2]
        assert [worker.process for worker in world.registry.workers()] == [11, 12, 13]

    def test_an_entry_that_was_given_back_is_taken_first(self, world: World) -> None:
        entries = [world.join(process) for process in (11, 12)]
        assert entries[0] is not None
        world.registry.release(entries[0])
        world.living.discard(12)
        assert world.join(13) == 0

    def test_the_entry_of_a_dead_process_is_taken_when_none_is_free(self, world: World) -> None:
        for process in range(1, WORKERS + 1):
            world.join(process)
        assert world.join(9_999) is None
        world.living.discard(7)
        assert world.join(10_000) == 6

    def test_who_has_not_recorded_a_generation_lags(self, world: World) -> None:
        one, other = world.join(11), world.join(12)
        assert one is not None
        assert other is not None
        world.registry.record(one, 4)
        world.registry.record(other, 3)
        assert [worker.process for worker in world.registry.lagging(4)] == [12]
        world.registry.record(other, 5)
        assert world.registry.lagging(4) == []

    def test_nobody_waits_for_the_dead(self, world: World) -> None:
        world.join(11)
        world.living.discard(11)
        assert world.registry.lagging(1) == []
        assert world.registry.workers() == []

    def test_a_new_worker_has_none_of_what_its_predecessor_recorded(self, world: World) -> None:
        entry = world.join(11)
        assert entry is not None
        world.registry.record(entry, 9)
        world.registry.release(entry)
        world.join(12)
        assert [worker.generation for worker in world.registry.workers()] == [0]

    def test_a_sign_of_life_is_kept(self, world: World) -> None:
        entry = world.join(11)
        assert entry is not None
        world.registry.beat(entry, 123_456_789)
        assert world.registry.workers()[0].heartbeat_ns == 123_456_789


class TestProcesses:
    def test_a_living_process_is_known_by_pid_and_start(self) -> None:
        process = identity(os.getpid())
        assert pid_of(process) == os.getpid()
        assert is_alive(process)
        assert not is_alive(process + (1 << 22)), "the same pid, started at another time"

    def test_nobody_is_not_alive(self) -> None:
        assert not is_alive(0)
        assert identity(2**22 - 1) == 0

    def test_a_process_that_died_counts_as_dead_before_it_is_collected(self) -> None:
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        process = identity(child.pid)
        assert is_alive(process)
        assert child.stdin is not None
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the table of processes
        assert not is_alive(process)
        assert start_time(child.pid) == 0
        child.stdin.close()
        child.wait()
