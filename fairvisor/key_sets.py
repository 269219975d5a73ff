"""The key sets of an instance: fetched by one worker, read by all, there again after a restart and a reboot.

Each record stands in the directory of the instance in shared memory, where workers find it, and in the state directory
with it. Two words in the segment say that a record changed and that a worker met an unknown key, so that nobody reads a
file to learn that nothing happened. What a record says is `identity/stored.py`'s business.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from typing import Final, Protocol

from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters._table import Table
from fairvisor.counters.layout import Word
from fairvisor.identity.stored import KeySets, StoredSet, set_name
from fairvisor.state import StateDirectory

UNUSED_NS: Final = 24 * 3600 * NS_PER_S  # how long the record of a URL that nothing names is kept
_PREFIX: Final = "keys-"

_log = logging.getLogger(__name__)


class Memory(Protocol):
    """Files in shared memory by name; methods raise OSError."""

    def read(self, name: str, /) -> bytes: ...
    def write(self, name: str, /, *pieces: bytes) -> None: ...
    def remove(self, name: str, /) -> bool: ...
    def names(self) -> list[str]: ...


class SharedKeySets(KeySets):
    """Records that all processes of an instance share. Methods may be called from any thread."""

    def __init__(self, table: Table, memory: Memory, state: StateDirectory) -> None:
        super().__init__()
        self._table = table
        self._memory = memory
        self._state = state
        self._lock = threading.Lock()
        self._read_at: dict[str, int] = {}  # the generation at which a record was read
        self._unkept: dict[str, str] = {}  # URLs whose record could not be kept, and why
        self._unshared: set[str] = set()  # records that only this process has

    @property
    def generation(self) -> int:
        return self._table.word_get(Word.KEYS_GENERATION)

    @property
    def wanted_ns(self) -> int:
        return self._table.word_get(Word.KEYS_WANTED_NS)

    def want(self, now: Now) -> None:
        """Ask the worker that fetches for newer sets."""
        self._table.word_set(Word.KEYS_WANTED_NS, now.wall_ns)

    def read(self, url: str) -> StoredSet | None:
        """Return the record of a URL; files are read when the generation moved since the last time."""
        name, generation = _PREFIX + set_name(url), self.generation
        if self._read_at.get(name) != generation and name not in self._unshared:
            found = self._find(name)
            if found is not None:
                super().write(url, found)
            self._read_at[name] = generation
        return super().read(url)

    def write(self, url: str, record: StoredSet) -> None:
        """Replace the record of a URL for all processes. One that cannot be kept is used by this process alone."""
        with self._lock:
            super().write(url, record)
            self._keep(url, record)

    def keep_again(self) -> None:
        """Try once more to keep the records that could not be kept."""
        with self._lock:
            for url in tuple(self._unkept):
                self._keep(url, self._records[set_name(url)])

    def _keep(self, url: str, record: StoredSet) -> None:
        """Put a record where other processes and the next start find it. The lock is held."""
        name, data = _PREFIX + set_name(url), record.pack()
        problems = []
        try:
            self._memory.write(name, data)
            self._unshared.discard(name)
        except OSError as error:
            self._unshared.add(name)
            problems.append(f"cannot be shared with other workers: {error}")
        if not record.failure:
            try:
                self._state.write(self._state.of(name), [data])
            except OSError as error:
                problems.append(f"are not safe from a reboot: {error}")
        self._unkept.pop(url, None)
        if problems:
            self._unkept[url] = "; ".join(problems)
        self._table.word_set(Word.KEYS_GENERATION, self._table.word_get(Word.KEYS_GENERATION) + 1)

    def _find(self, name: str) -> StoredSet | None:
        """Read a record from shared memory, else from the state directory."""
        for where, read in (("shared memory", self._memory.read), (self._state.directory, self._read_state)):
            try:
                return StoredSet.unpack(read(name))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("the key set %s in %s cannot be read: %s", name, where, error)
        return None

    def remove_unused(self, urls: Collection[str], now: Now) -> None:
        """Remove the records of URLs that nothing has named for a day."""
        used = {_PREFIX + set_name(url) for url in urls}
        for name in self._memory.names():
            if name.startswith(_PREFIX) and name not in used:
                record = self._find(name)
                if record is None or now.wall_ns - record.tried_ns > UNUSED_NS:
                    self._memory.remove(name)
                    self._state.remove(self._state.of(name))

    def warnings(self) -> tuple[str, ...]:
        return tuple(f"the key sets {why}" for why in dict.fromkeys(self._unkept.copy().values()))

    def _read_state(self, name: str) -> bytes:
        return self._state.read(self._state.of(name))
