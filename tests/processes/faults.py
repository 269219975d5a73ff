"""What can go wrong around a running edge: each fault does it to real processes and files, and puts it right again.

A fault leaves the edge able to serve; what it did to whom is noted, because a killed process may owe answers, and a
flipped bit is a change of the counter that it belongs to. Which come, and when, is drawn from the seed of the campaign,
so the same seed does the same again.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import flips
from campaign import admin_of, allows, bundle
from edge_server import Edge, attach, kill_quietly, wait_until
from fake_machine import NS_PER_S, Machine

from fairvisor.cli.edge import Refused, Unreachable
from fairvisor.counters.layout import Word
from fairvisor.counters.registry import Registry
from fairvisor.errors import SegmentError
from fairvisor.http.hub import Limits
from fairvisor.memory import SHM_DIR
from fairvisor.rules.windows import FIXED_SECONDS

MOST_BETWEEN_S = 0.4
MOST_STOPPED_S = 1.5
MOST_ASLEEP_S = 20
MOST_SLOW_S = 0.5  # of one write to a disk
PERIOD_NS = FIXED_SECONDS["30d"] * NS_PER_S
LAST_NS = 3600 * NS_PER_S
FLIPS = 8
BURDENS = 100


class Faults:
    """Does one fault after the other to `edge`, which lives on `machine`.

    `hurt`: the processes that were killed or had no memory. `flipped`: the keys of the slots that had a bit flipped.
    `wrong`: what should have been noticed, and was not.
    """

    def __init__(self, edge: Edge, machine: Machine, seed: int, own_shm: bool = False) -> None:
        """`own_shm`: /dev/shm is a file system that only this edge uses, so it may be filled."""
        self.hurt: set[int] = set()
        self.flipped: set[int] = set()
        self.wrong: list[str] = []
        self.counted_before = 0  # allows that segments counted which were replaced
        self.done: list[str] = []
        self._edge = edge
        self._machine = machine
        self._random = random.Random(seed)
        self._pause = threading.Event()  # never set
        self._version = 1
        self._state = Path(edge.environ["FAIRVISOR_STATE_DIR"])
        self._often: list[Callable[[], None]] = [
            self.kill_a_worker,
            self.stop_a_worker,
            self.take_descriptors,
            self.take_memory,
            self.step_the_wall_clock,
            self.sleep,
            self.push,
            self.push_nonsense,
            self.write_half_a_file,
            self.lock_the_log,
            self.damage_the_snapshot,
            self.lose_the_state,
            self.slow_disks,
            self.flip_slots,
            self.flip_the_header,
        ]
        self._seldom: list[Callable[[], None]] = [
            self.kill_the_leader,
            self.stop_the_leader,
            self.hang_up,
            self.kill_the_master,
            self.kill_all,
            self.start_on_a_flipped_header,
            *([self.fill_shm] if own_shm else []),
        ]

    def suffer(self, number: int) -> None:
        """So many faults, with pauses between them; all is well afterwards."""
        self._suffer([self._random.choice(self._often * 2 + self._seldom) for _ in range(number)])

    def suffer_each(self) -> None:
        """Every fault once, in some order."""
        faults = self._often + self._seldom
        self._suffer(self._random.sample(faults, len(faults)))

    def _suffer(self, faults: Sequence[Callable[[], None]]) -> None:
        wait_until(self._all_have_begun)
        for fault in faults:
            self._pause.wait(self._random.uniform(0, MOST_BETWEEN_S))
            self.done.append(fault.__name__)
            fault()
        self._edge.wait_ready()
        wait_until(lambda: len(self._edge.workers()) >= self._workers)

    def exempt(self, names: Collection[str]) -> set[str]:
        """Which of these keys had their own counter changed by a flipped bit."""
        seed = attach(self._edge.instance).table.seed
        return flips.named(self.flipped, names, seed, self._machine.wall_ns())

    @property
    def _workers(self) -> int:
        return int(self._edge.environ["FAIRVISOR_WORKER_PROCESSES"])

    # processes

    def kill_a_worker(self) -> None:
        for pid in self._some_worker():
            self._kill(pid)

    def stop_a_worker(self) -> None:
        self._stop(self._some_worker())

    def kill_the_leader(self) -> None:
        for pid in self._leader():
            self._kill(pid)

    def stop_the_leader(self) -> None:
        self._stop(self._leader())

    def kill_the_master(self) -> None:
        """Its workers answer what they have, and end."""
        self._end(())

    def kill_all(self) -> None:
        workers = self._edge.workers()
        self.hurt.update(workers)
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

    def take_memory(self) -> None:
        """A worker gets no more memory for a moment, and is sent much. The kernel's own way is `kill_a_worker`."""
        for pid in self._some_worker():
            self.hurt.add(pid)
            with suppress(ProcessLookupError, FileNotFoundError):
                before = resource.prlimit(pid, resource.RLIMIT_AS)
                in_use = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
                resource.prlimit(pid, resource.RLIMIT_AS, (in_use, before[1]))
                self._burden()
                resource.prlimit(pid, resource.RLIMIT_AS, before)

    def _burden(self) -> None:
        """Long heads that never end, from many connections, for a moment."""
        clients = []
        for _ in range(BURDENS):
            with suppress(OSError):
                clients.append(self._edge.connect())
                clients[-1].send(b"GET / HTTP/1.1\r\nX: " + b"x" * (Limits(1, 1, 1).max_head_bytes - 100))
        self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
        for client in clients:
            client.close()

    # clocks

    def step_the_wall_clock(self) -> None:
        """To any moment of the same budget period, but for its end: the next one has budgets of its own."""
        now_ns = self._machine.wall_ns()
        begins_ns = now_ns - now_ns % PERIOD_NS
        self._machine.set_wall(begins_ns + self._random.randrange(PERIOD_NS - LAST_NS))

    def sleep(self) -> None:
        """The machine is suspended: everybody stands still, and the clocks have gone on when they wake up."""
        self._stop(
            [self._edge.process.pid, *self._edge.workers()],
            lambda: self._machine.sleep(int(self._random.uniform(0, MOST_ASLEEP_S) * NS_PER_S)),
        )

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

    def slow_disks(self) -> None:
        """What is written during a push takes long, and the others wait for it."""
        self._machine.slow_disks(int(self._random.uniform(0, MOST_SLOW_S) * NS_PER_S))
        self.push()
        self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
        self._machine.slow_disks(0)

    def flip_slots(self) -> None:
        """Nobody can notice: what is exempt is the counter that stood in the slot."""
        self.flipped |= flips.flip_in_slots(self._edge.instance, self._random, FLIPS)

    def flip_the_header(self) -> None:
        """Who has the segment goes on; who would attach it now refuses."""
        bit = flips.some_header_bit(self._random)
        flips.flip(self._edge.instance, bit)
        with suppress(SegmentError):
            attach(self._edge.instance)
            self.wrong.append(f"a segment with bit {bit} of its header flipped was believed")
        self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
        flips.flip(self._edge.instance, bit)

    def start_on_a_flipped_header(self) -> None:
        """A clean stop, and a start that finds the segment damaged: everything comes from the snapshot."""
        self._edge.signal(signal.SIGTERM)
        self._edge.end()
        self.counted_before += allows(attach(self._edge.instance))
        flips.flip(self._edge.instance, flips.some_header_bit(self._random))
        self._start_again()

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
        leader = attach(self._edge.instance).table.word_get(Word.LEADER_PID)
        return [leader] if leader in self._edge.workers() else []

    def _kill(self, pid: int) -> None:
        self.hurt.add(pid)
        kill_quietly(pid)

    def _stop(self, pids: Iterable[int], meanwhile: Callable[[], None] = lambda: None) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        meanwhile()
        self._pause.wait(self._random.uniform(0, MOST_STOPPED_S))
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _end(self, others: Sequence[int]) -> None:
        """The master is killed, and `others` after it, so that it replaces nobody; then it is started again."""
        workers = self._edge.workers()
        self._edge.signal(signal.SIGKILL)
        for pid in others:
            kill_quietly(pid)
        self._edge.end()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        self._start_again()

    def _start_again(self) -> None:
        """At a start, and only then, a worker that cannot begin ends them all: no fault until all have begun."""
        self._edge.start_again()
        wait_until(self._all_have_begun)

    def _all_have_begun(self) -> bool:
        registry = Registry(attach(self._edge.instance).table)
        workers = [worker for worker in registry.workers() if worker.generation]
        return len(workers) >= self._workers
