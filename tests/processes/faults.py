"""What can go wrong around a running edge: each fault does it to real processes and files, and puts it right again.

A fault leaves the edge able to serve; what it did to whom is noted, because a killed process may owe answers. Which
come, and when, is drawn from the seed of the campaign, so the same seed does the same again.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from campaign import admin_of, bundle
from edge_server import Edge, kill_quietly, wait_until

from fairvisor.cli.edge import Refused, Unreachable
from fairvisor.counters.layout import Word
from fairvisor.counters.registry import Registry
from fairvisor.counters.segment import SHM_DIR, Segment
from fairvisor.http.start import segment_name

MOST_BETWEEN_S = 0.4
MOST_STOPPED_S = 1.5


class Faults:
    """Does one fault after the other to `edge`. `killed`: the processes that were."""

    def __init__(self, edge: Edge, seed: int, own_shm: bool = False) -> None:
        """`own_shm`: /dev/shm is a file system that only this edge uses, so it may be filled."""
        self.killed: set[int] = set()
        self.done: list[str] = []
        self._edge = edge
        self._random = random.Random(seed)
        self._pause = threading.Event()  # never set
        self._version = 1
        self._state = Path(edge.environ["FAIRVISOR_STATE_DIR"])
        often = [
            self.kill_a_worker,
            self.stop_a_worker,
            self.push,
            self.push_nonsense,
            self.write_half_a_file,
        ]
        often += [self.take_descriptors, self.lock_the_log, self.damage_the_snapshot, self.lose_the_state]
        seldom = [
            self.kill_the_leader,
            self.stop_the_leader,
            self.hang_up,
            self.kill_the_master,
            self.kill_all,
        ]
        self._faults: list[Callable[[], None]] = often * 2 + seldom + ([self.fill_shm] if own_shm else [])

    def suffer(self, number: int) -> None:
        """So many faults, with pauses between them; all is well afterwards."""
        for _ in range(number):
            self._pause.wait(self._random.uniform(0, MOST_BETWEEN_S))
            fault = self._random.choice(self._faults)
            self.done.append(fault.__name__)
            fault()
        self._edge.wait_ready()
        wait_until(lambda: len(self._edge.workers()) >= self._workers)

    @property
    def _workers(self) -> int:
        return int(self._edge.environ["FAIRVISOR_WORKER_PROCESSES"])

    # processes

    def kill_a_worker(self) -> None:
        for pid in self._some_worker():
            self._kill(pid)

    def stop_a_worker(self) -> None:
        for pid in self._some_worker():
            self._stop(pid)

    def kill_the_leader(self) -> None:
        for pid in self._leader():
            self._kill(pid)

    def stop_the_leader(self) -> None:
        for pid in self._leader():
            self._stop(pid)

    def kill_the_master(self) -> None:
        """Its workers answer what they have, and end."""
        self._end(())

    def kill_all(self) -> None:
        workers = self._edge.workers()
        self.killed.update(workers)
        self._end(workers)

    def hang_up(self) -> None:
        before = set(self._edge.workers())
        self._edge.signal(signal.SIGHUP)
        wait_until(
            lambda: len(self._edge.workers()) >= self._workers and not before & set(self._edge.workers())
        )

    def take_descriptors(self) -> None:
        """A worker may open nothing more for a moment."""
        for pid in self._some_worker():
            with suppress(ProcessLookupError, FileNotFoundError):
                before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                in_use = len(os.listdir(f"/proc/{pid}/fd"))
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use, before[1]))
                self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    # bundles

    def push(self) -> None:
        self._version += 1
        with suppress(Refused, Unreachable):  # no room, or nobody is there at this moment
            admin_of(self._edge).ask("PUT", "bundle", body=json.dumps(bundle(self._version)).encode())

    def push_nonsense(self) -> None:
        with suppress(Refused, Unreachable):
            admin_of(self._edge).ask("PUT", "bundle", body=b'{"bundle_version": 1e9, "policies": [{}]}')

    def write_half_a_file(self) -> None:
        self._version += 1
        whole = json.dumps(bundle(self._version))
        self._edge.policy.write_text(whole[: self._random.randrange(len(whole))])
        self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
        self._edge.policy.write_text(whole)

    # disks and memory

    def lock_the_log(self) -> None:
        """Somebody keeps the audit log locked: lines wait."""
        with suppress(FileNotFoundError), open(self._edge.environ["FAIRVISOR_AUDIT_LOG"], "rb") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))

    def damage_the_snapshot(self) -> None:
        """It is not needed while the segment is there."""
        path = self._state / f"{self._edge.instance}.snapshot"
        with suppress(FileNotFoundError):
            data = bytearray(path.read_bytes())
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            path.write_bytes(data)

    def lose_the_state(self) -> None:
        """The state directory is a file for a moment."""
        away = self._state.with_name("away")
        with suppress(FileNotFoundError):
            self._state.rename(away)
            self._state.write_text("in the way")
            self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
            self._state.unlink()
            away.rename(self._state)

    def fill_shm(self) -> None:
        ballast = SHM_DIR / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        self.push()
        self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
        ballast.unlink()

    # to whom

    def _some_worker(self) -> list[int]:
        workers = sorted(self._edge.workers())
        return [self._random.choice(workers)] if workers else []

    def _leader(self) -> list[int]:
        leader = Segment.attach(segment_name(self._edge.instance)).table.word_get(Word.LEADER_PID)
        return [leader] if leader in self._edge.workers() else []

    def _kill(self, pid: int) -> None:
        self.killed.add(pid)
        kill_quietly(pid)

    def _stop(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
            os.kill(pid, signal.SIGCONT)

    def _end(self, others: Sequence[int]) -> None:
        """The master is killed, and `others` after it, so that it replaces nobody; then it is started again."""
        workers = self._edge.workers()
        self._edge.signal(signal.SIGKILL)
        for pid in others:
            kill_quietly(pid)
        self._edge.end()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        self._edge.start_again()
        wait_until(
            self._all_have_begun
        )  # at a start, and only then, a worker that cannot begin ends them all

    def _all_have_begun(self) -> bool:
        registry = Registry(Segment.attach(segment_name(self._edge.instance)).table)
        workers = [worker for worker in registry.workers() if worker.generation]
        return len(workers) >= self._workers
