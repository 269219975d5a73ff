"""The workers of an instance: who they are, which bundle each has switched to, when each last gave a sign of life.

Every worker claims an entry in the segment, writes only its own and gives it back when it stops. The entry of a killed
worker is claimed again by the next one that comes: a process is named by pid and start time in one word, so taking an
entry is one compare-and-swap. This module knows the words; what a generation is, is its users' business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fairvisor.counters._table import Table
from fairvisor.counters.layout import WORKERS, WorkerWord, worker_word
from fairvisor.processes import is_alive


class Worker(NamedTuple):
    """What an entry says. `process` is an identity of `processes.py`."""

    entry: int
    process: int
    generation: int
    heartbeat_ns: int
    connections: int
    waiting: int


class Registry:
    """The entries of one segment."""

    def __init__(self, table: Table, alive: Callable[[int], bool] = is_alive) -> None:
        self._table = table
        self._alive = alive

    def claim(self, process: int) -> int | None:
        """An entry for this process: a free one, or that of a dead process; None when there is none."""
        for wanted_free in (True, False):
            for entry in range(WORKERS):
                word = worker_word(entry, WorkerWord.PROCESS)
                owner = self._table.word_get(word)
                free = not owner if wanted_free else not self._alive(owner)
                if free and self._table.word_cas(word, owner, process):
                    for fresh in (WorkerWord.GENERATION, WorkerWord.CONNECTIONS, WorkerWord.WAITING):
                        self._table.word_set(worker_word(entry, fresh), 0)
                    return entry
        return None

    def release(self, entry: int) -> None:
        """Give an entry back."""
        self._table.word_set(worker_word(entry, WorkerWord.PROCESS), 0)

    def record(self, entry: int, generation: int) -> None:
        """This worker decides by this generation from now on."""
        self._table.word_set(worker_word(entry, WorkerWord.GENERATION), generation)

    def beat(self, entry: int, now_ns: int) -> None:
        """This worker lives at this monotonic time."""
        self._table.word_set(worker_word(entry, WorkerWord.HEARTBEAT_NS), now_ns)

    def tell(self, entry: int, connections: int, waiting: int) -> None:
        """This worker has so many connections, and holds so many answers for a throttle."""
        self._table.word_set(worker_word(entry, WorkerWord.CONNECTIONS), connections)
        self._table.word_set(worker_word(entry, WorkerWord.WAITING), waiting)

    def workers(self) -> list[Worker]:
        """Everybody who has an entry and lives."""
        found = []
        for entry in range(WORKERS):
            process = self._table.word_get(worker_word(entry, WorkerWord.PROCESS))
            if process and self._alive(process):
                words = (self._table.word_get(worker_word(entry, word)) for word in WorkerWord)
                found.append(Worker(entry, *words))
        return found

    def lagging(self, generation: int) -> list[Worker]:
        """Who lives and has not switched to this generation, or a later one."""
        word = WorkerWord.GENERATION
        behind = [
            entry
            for entry in range(WORKERS)
            if self._table.word_get(worker_word(entry, WorkerWord.PROCESS))
            and self._table.word_get(worker_word(entry, word)) < generation
        ]
        return [worker for worker in self.workers() if worker.entry in behind] if behind else []
