"""The shared-memory segment: creates, attaches, checks, resizes and describes it.

A segment is a POSIX shared-memory object (`objects.py`), allocated in full at once, so that a too small /dev/shm is an
error at start and not a SIGBUS later. It outlives the processes. One that replaces another has a name of its own, and
becomes the instance's when it is finished: a crash at any moment leaves either the old one or the new one. This module
knows the regions (`layout.py`), not what is counted in them; what the operations mean stands in `_table.pyi` and
`model.py`.
"""

from __future__ import annotations

import enum
import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from fairvisor.clock import read_now
from fairvisor.counters import layout, objects
from fairvisor.counters._table import SLOT_BYTES, Table
from fairvisor.counters.layout import MAGIC, PAGE_BYTES, Geometry, Header, Word
from fairvisor.counters.series import Labels, Series
from fairvisor.counters.slates import Slates
from fairvisor.errors import SegmentError
from fairvisor.memory import SHM_DIR, InstanceMemory

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
MIB: Final = 1 << 20
_COUNTED_AT_ONCE: Final = 1 << 14  # slots: some 160 microseconds


class Origin(enum.Enum):
    """How an open segment came about."""

    CREATED = "created"
    ATTACHED = "attached"
    RESTORED = "restored"  # from what was saved of one that is gone
    RESIZED = "resized"  # its counters were taken over from one of another size
    REPLACED = "replaced"  # the old one was of another layout or boot, its counters are gone


class Saved(Protocol):
    """What was saved of a segment that is gone: a new one is made with its seed and key, and then gets the rest."""

    @property
    def seed(self) -> int: ...
    @property
    def reservation_key(self) -> bytes: ...
    def restore(self, segment: Segment, /) -> None: ...


class Statistics(NamedTuple):
    """What is in a segment. Slots: free + held + times + totals + expired = slots."""

    size_bytes: int
    slots: int
    free: int
    held: int  # reserved and not used yet, or left behind by a killed process
    times: int  # token buckets and counts
    totals: int  # budgets and nonces of settlements
    expired: int  # not swept yet
    evictions: int
    full: int
    nonces_evicted: int  # of settlements, which gave way to a new key
    reservations: int
    series: int
    series_used: int
    series_overflows: int

    @property
    def live(self) -> int:
        return self.times + self.totals


class Segment:
    """A mapped segment. `table` counts in it; it stays mapped until the last user of `table` is gone."""

    def __init__(
        self, directory: InstanceMemory | None, memory: mmap.mmap, header: Header, origin: Origin
    ) -> None:
        geometry = header.geometry
        self._directory = directory
        self.name = objects.segment_name(directory.instance) if directory is not None else ""
        self.origin = origin
        self.dropped = 0  # records that found no room when the segment was resized
        self.replaces = ""  # why the one that was there cannot be used, if there was one
        self.geometry = geometry
        self.reservation_key = header.reservation_key
        self.table = Table(
            memory,
            seed=header.seed,
            words_at=geometry.words_at,
            words=geometry.words,
            slots_at=geometry.slots_at,
            slots=geometry.slots,
            cells_at=geometry.cells_at,
            cells=geometry.series,
        )
        self._memory = memory
        self._series = Series(memory, geometry, self.table)
        self.slates = Slates(memory, geometry)
        self.postponed: list[Callable[[int], None]] = []  # what this process has yet to write into its cells

    @classmethod
    def open(
        cls,
        directory: InstanceMemory,
        size_bytes: int,
        *,
        now_ns: int | None = None,
        find_saved: Callable[[], Saved | None] | None = None,
    ) -> Segment:
        """Attach the segment of an instance, if it has this size, or make it.

        One of another size is replaced by a new one that takes its counters over; one of another layout or boot is
        replaced. Where there is nothing to take over, `find_saved` is asked for what to restore. SegmentError: too
        little memory, or opened to others. `now_ns`: monotonic time, read when not given.
        """
        geometry = layout.plan(size_bytes)
        with objects.lock(directory):
            current = objects.find(directory)
            objects.remove_all_but(directory, current)
            old, unreadable = cls._existing(directory, current)
            if old is not None and old.geometry == geometry:
                objects.name_anew(directory, current)
                return old
            saved = find_saved() if old is None and find_saved is not None else None
            with objects.made(directory) as (name, fd):
                fresh = cls._build(directory, fd, geometry, old, saved)
                if old is not None:
                    fresh._take_over(old, read_now().mono_ns if now_ns is None else now_ns)
                elif saved is not None:
                    saved.restore(fresh)
                elif unreadable:
                    fresh.origin = Origin.REPLACED
                fresh.replaces = unreadable
                fresh._memory[: len(MAGIC)] = MAGIC
                objects.choose(directory, name)
            objects.remove_all_but(directory, name)
            return fresh

    @classmethod
    def _existing(cls, directory: InstanceMemory, name: str) -> tuple[Segment | None, str]:
        """Map the segment that there is; if it cannot be used, why it is to be replaced."""
        try:
            return cls._map(directory, name), ""
        except (_Unreadable, objects.Foreign) as error:
            return None, str(error)
        except FileNotFoundError:
            return None, ""

    @classmethod
    def attach(cls, directory: InstanceMemory) -> Segment:
        """Map an existing segment. FileNotFoundError: there is none. SegmentError: not ours, or not readable."""
        return cls._map(directory, objects.find(directory))

    @classmethod
    def _map(cls, directory: InstanceMemory, name: str) -> Segment:
        with objects.opened(directory, name) as fd:
            memory, header = _map_existing(objects.segment_name(directory.instance), fd)
        return cls(directory, memory, header, Origin.ATTACHED)

    @classmethod
    def private(cls, size_bytes: int, *, seed: int | None = None) -> Segment:
        """A segment in anonymous memory that is shared with children only, for tests and replay."""
        geometry = layout.plan(size_bytes)
        memory = mmap.mmap(-1, geometry.size_bytes)
        return cls(None, memory, _new_header(geometry, seed), Origin.CREATED)

    @staticmethod
    def unlink(directory: InstanceMemory) -> list[Path]:
        """Remove the object and what is left of others: the paths. Processes that have it mapped keep the memory."""
        objects.forget(directory)
        return objects.remove_all_but(directory, "")

    @property
    def directory(self) -> InstanceMemory:
        """Where the files of the same instance are."""
        assert self._directory is not None, "a private segment has no instance"
        return self._directory

    def series(self, name: str, labels: Labels) -> int:
        """The cell of a series, the same one in every process and after a restart."""
        return self._series.intern(name, labels)

    def series_values(self) -> Iterator[tuple[str, Labels, int]]:
        """(name, labels, value) of every series."""
        return self._series.values()

    def series_entries(self, first: int, end: int) -> list[tuple[int, str, Labels]]:
        """(cell, name, labels) of the series in cells from `first` up to `end` (not included)."""
        return self._series.entries(first, end)

    @property
    def series_used(self) -> int:
        """Cells that series take."""
        return self._series.used

    def write_postponed(self, wall_s: int) -> None:
        """Write what was put off; `wall_s` is the wall clock in seconds. Once a second is often enough."""
        while self.postponed:
            self.postponed.pop()(wall_s)

    def statistics(self, now_ns: int) -> Statistics:
        """Counts every slot, which takes about 10 ms a million, in steps that other threads can run between."""
        table = self.table
        starts = range(0, table.slots, _COUNTED_AT_ONCE)
        steps = [table.census(start, _COUNTED_AT_ONCE, now_ns) for start in starts]
        free, held, times, totals, expired = (sum(part) for part in zip(*steps, strict=True))
        return Statistics(
            self.geometry.size_bytes,
            table.slots,
            free,
            held,
            times,
            totals,
            expired,
            table.word_get(Word.EVICTIONS),
            table.word_get(Word.FULL),
            table.word_get(Word.CLAIM_EVICTIONS),
            table.word_get(Word.NONCE),
            self.geometry.series - 1,
            self._series.used,
            table.word_get(Word.SERIES_OVERFLOWS),
        )

    def close(self) -> None:
        """Let go of the memory; it is unmapped when nobody holds `table` any more. The name stays."""
        del self.table, self._series, self.slates, self._memory

    @classmethod
    def _build(
        cls,
        directory: InstanceMemory,
        fd: int,
        geometry: Geometry,
        old: Segment | None,
        saved: Saved | None,
    ) -> Segment:
        origin = Origin.CREATED
        _allocate(fd, geometry.size_bytes)
        memory = mmap.mmap(fd, geometry.size_bytes)
        header = _new_header(geometry, None if old is None else old.table.seed)
        if old is not None:
            header = header._replace(reservation_key=old.reservation_key)
            origin = Origin.RESIZED
        elif saved is not None:
            header = header._replace(seed=saved.seed, reservation_key=saved.reservation_key)
            origin = Origin.RESTORED
        data = layout.pack(header)
        memory[len(MAGIC) : len(MAGIC) + len(data)] = data
        return cls(directory, memory, header, origin)

    def _take_over(self, old: Segment, now_ns: int) -> None:
        """Words, series and live records of a segment that no process uses any more."""
        own = {Word.SERIES_USED, Word.SERIES_TEXT_BYTES, Word.SERIES_OVERFLOWS}
        for index in range(min(old.geometry.words, self.geometry.words)):
            if index not in own:
                self.table.word_set(index, old.table.word_get(index))
        for series, labels, value in old.series_values():
            self.table.cell_add(self.series(series, labels), value)
        start = old.geometry.slots_at
        with memoryview(old._memory) as view:
            _, self.dropped = self.table.merge(
                view[start : start + SLOT_BYTES * old.geometry.slots], 0, now_ns
            )


class _Unreadable(SegmentError):
    """A segment of our own that another version or boot made, or that was never finished."""


def _allocate(fd: int, size_bytes: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        os.ftruncate(fd, 0)
        space = os.statvfs(SHM_DIR)
        free_mib = space.f_bavail * space.f_frsize / MIB
        raise SegmentError(
            f"the shared-memory segment of {size_bytes / MIB:.1f} MiB (FAIRVISOR_SHARED_DICT_SIZE) does not fit: "
            f"{SHM_DIR} has {free_mib:.1f} MiB free ({error.strerror})"
        ) from error


def _map_existing(name: str, fd: int) -> tuple[mmap.mmap, Header]:
    size_bytes = os.fstat(fd).st_size
    if size_bytes < PAGE_BYTES:
        raise _Unreadable(f"segment {name}: it was never finished")
    memory = mmap.mmap(fd, size_bytes)
    try:
        header = layout.unpack(memory[:PAGE_BYTES])
        if header.geometry != layout.plan(size_bytes):
            raise SegmentError("its size is not the one in its header")
        if header.boot_id != boot_id():
            raise SegmentError("it is from before the last boot of this machine")
    except SegmentError as error:
        memory.close()
        raise _Unreadable(f"segment {name}: {error}") from None
    return memory, header


def _new_header(geometry: Geometry, seed: int | None) -> Header:
    return Header(
        geometry, secrets.randbits(64) if seed is None else seed, boot_id(), secrets.token_bytes(32)
    )


def boot_id() -> bytes:
    """The 16 bytes by which this boot of the machine is known; zeros where the system does not tell."""
    with suppress(OSError):
        return bytes.fromhex(BOOT_ID.read_text().strip().replace("-", ""))
    return bytes(16)
