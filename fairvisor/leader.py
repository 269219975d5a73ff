"""What one worker does for all: watch the bundle file, write snapshots, free slots that have run out, tidy up.

Whoever holds the lease in the segment header is the leader. The lease is one word, the monotonic time at which it runs
out, taken and renewed by compare-and-swap; a dead or stuck leader's runs out in 3 s and another worker takes it. Two
leaders for a moment would do no harm: files are replaced whole, publishing takes a lock, sweeping is atomic per slot.

All of it runs in a thread of its own, because files may be slow: what must not wait (`follow.py`) has another. Nothing
here knows requests.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from fairvisor.bundle.shared import SharedBundle
from fairvisor.clock import NS_PER_S, Now, read_now
from fairvisor.counters._table import Table
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.follow import PAUSE_S, SLICE_NS, STOP_S
from fairvisor.metrics import Counter
from fairvisor.metrics.families import THREAD_FAILURES
from fairvisor.notes import BUNDLE_FILE, STATE_DIR
from fairvisor.periodic import Periodic
from fairvisor.reload import Publisher
from fairvisor.snapshots import Snapshots

LEASE_NS: Final = 3 * NS_PER_S
TICK_S: Final = 0.1
WATCH_EVERY_NS: Final = NS_PER_S // 4
READ_EVERY_NS: Final = 10 * NS_PER_S  # a file whose stamp does not change may still hold other bytes
TIDY_EVERY_NS: Final = NS_PER_S
SNAPSHOT_EVERY_NS: Final = 10 * NS_PER_S
SWEEP_ROUND_NS: Final = 60 * NS_PER_S  # in which every slot is looked at once

_log = logging.getLogger(__name__)

# device, inode, size in bytes, modification and change time in ns; None when there is no file
Stamp = tuple[int, int, int, int, int]


class Lease:
    """The right to lead, of one process."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._held = 0  # what the word is while we hold it

    def hold(self, now_ns: int) -> bool:
        """Take or renew it: do we lead until `now_ns` + 3 s?"""
        word = self._table.word_get(Word.LEADER_LEASE_NS)
        if word != self._held and word > now_ns:
            self._held = 0
            return False
        taken = not self._held or word != self._held
        if not self._table.word_cas(Word.LEADER_LEASE_NS, word, now_ns + LEASE_NS):
            self._held = 0
            return False
        self._held = now_ns + LEASE_NS
        if taken:
            self._table.word_set(Word.LEADER_PID, os.getpid())
        return True

    def release(self) -> None:
        """Let another worker lead at once."""
        if self._held:
            self._table.word_cas(Word.LEADER_LEASE_NS, self._held, 0)
            self._held = 0


class BundleFile:
    """The bundle file, looked at again and again: gives its bytes when they are to be offered.

    The file may be written in place, replaced by a rename, reached through links that are swapped (Kubernetes), or
    stand on a file system whose times jump (NFS). So what `stat` says only tells when to read; whether there is
    anything new is told by the bytes. A file that is just being written is left until two looks see the same.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.problem = ""
        self._stamp: Stamp | None = None
        self._read: Stamp | None = None  # the stamp of what was read last
        self._read_ns = 0
        self._sha256 = ""

    def changed(self, now_ns: int) -> bytes | None:
        """The file's bytes if they are others than those given last; None: nothing new, or no file (`problem`)."""
        if self.path is None:
            return None
        before, read_before = self._stamp, self._read
        try:
            self._stamp = _stamp(self.path)
            if self._stamp != before:
                return None
            if self._stamp == read_before and now_ns - self._read_ns < READ_EVERY_NS:
                return None
            data = self.path.read_bytes()
        except OSError as error:
            self._stamp = self._read = None
            self.problem = f"{self.path}: {error.strerror}"
            return None
        self.problem = ""
        self._read, self._read_ns = self._stamp, now_ns
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 == self._sha256:
            return None
        self._sha256 = sha256
        return data

    def forget(self) -> None:
        """Give the same bytes once more, when they are read the next time."""
        self._sha256 = ""


def _stamp(path: Path) -> Stamp:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Leader:
    """Leads whenever it can, in a thread, from `start` to `stop`."""

    def __init__(
        self,
        segment: Segment,
        publisher: Publisher,
        snapshots: Snapshots,
        active_object: Callable[[], SharedBundle | None],
        clock: Callable[[], Now] = read_now,
    ) -> None:
        """`active_object`: the bundle object that this process has mapped, to be put back if somebody removed it."""
        # per process
        self._segment = segment
        self._publisher = publisher
        self._snapshots = snapshots
        self._active_object = active_object
        self._clock = clock
        self._lease = Lease(segment.table)
        failures = Counter(segment, THREAD_FAILURES, "leader")
        self._periodic = Periodic("leader", TICK_S, self.step, failures.add, end=self._end)
        # while it leads
        self.leads = False
        self._file = BundleFile(None)
        self._swept = 0
        self._due: dict[Callable[[Now], None], int] = {}

    def start(self) -> None:
        """Begin to ask for the lease."""
        self._periodic.start()

    def stop(self) -> None:
        """Give the lease back, unless a slow file keeps us: then it runs out."""
        self._periodic.stop(STOP_S)

    def resign(self) -> None:
        """Let another worker lead, after the step that is under way; nothing waits for that."""
        self._periodic.stopped.set()

    def _end(self) -> None:
        self.leads = False
        self._lease.release()

    def step(self) -> None:
        """Renew the lease and do what is due, if we lead."""
        now = self._clock()
        leads = self._lease.hold(now.mono_ns)
        if leads and not self.leads:
            self._begin(now)
        self.leads = leads
        for task, due_ns in tuple(self._due.items()) if leads else ():
            if now.mono_ns >= due_ns:
                self._due[task] = now.mono_ns + self._every_ns[task.__name__]
                task(now)

    _every_ns: Final = {
        "_sweep": int(TICK_S * NS_PER_S),
        "_watch": WATCH_EVERY_NS,
        "_tidy": TIDY_EVERY_NS,
        "_save": SNAPSHOT_EVERY_NS,
    }

    def _begin(self, now: Now) -> None:
        """Know nothing of what an earlier leader saw: its file was offered, its snapshot is up to 10 s old."""
        _log.debug("leading from now on")
        self._file = BundleFile(self._publisher.file)
        self._due = {
            self._sweep: 0,
            self._watch: 0,
            self._tidy: 0,
            self._save: now.mono_ns + SNAPSHOT_EVERY_NS,
        }
        if not self._publisher.generation:
            self._publisher.restore()

    def _sweep(self, now: Now) -> None:
        """Free slots that have run out, a small part of the table each time."""
        table = self._segment.table
        slots = table.slots * int(TICK_S * NS_PER_S) // SWEEP_ROUND_NS + 1
        table.sweep(self._swept, slots, now.mono_ns)
        self._swept = self._swept + slots if self._swept + slots < table.slots else 0

    def _watch(self, now: Now) -> None:
        """Offer the bundle file when it changed."""
        data = self._file.changed(now.mono_ns)
        if self._file.problem:
            self._publisher.file_is_missing(self._file.problem)
            return
        self._publisher.healed(BUNDLE_FILE)
        if data is not None and not self._publisher.offer_file(data):
            self._file.forget()

    def _tidy(self, now: Now) -> None:
        """Put back what somebody removed, remove what nobody reads, and make the bundle durable if it is not."""
        mine = self._active_object()
        gone = mine is not None and not mine.exists()
        # Read afterwards: who publishes removes an object when this moved.
        generation = self._publisher.generation
        if mine is not None and gone and mine.generation == generation:
            mine.put_back()
            _log.warning("the bundle's shared memory was removed and is there again")
        if generation:
            self._publisher.remove_unread()
            self._publisher.make_durable()
        elif self._publisher.notes.get(STATE_DIR) is not None:
            self._publisher.restore()

    def _save(self, now: Now) -> None:
        self._snapshots.save(self._segment, self._paced)

    def _paced(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The same pieces, with pauses in which requests run."""
        began_ns = self._clock().mono_ns
        for piece in pieces:
            yield piece
            if self._clock().mono_ns - began_ns >= SLICE_NS:
                self._periodic.stopped.wait(PAUSE_S)
                began_ns = self._clock().mono_ns
