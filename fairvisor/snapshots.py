"""Snapshots of one instance: written to the state directory, found again when the segment is gone.

What stands in a snapshot is `counters/snapshot.py`'s business. Here is when one is written and believed, and what is
said when that fails: a snapshot that cannot be written is a fault that everybody can read, one that cannot be believed
is refused with a line in the log and left where it is until the next one takes its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from fairvisor import notes
from fairvisor.clock import NS_PER_S, Now, read_now
from fairvisor.counters import snapshot
from fairvisor.counters.layout import Word
from fairvisor.counters.objects import segment_name
from fairvisor.counters.segment import Segment
from fairvisor.counters.snapshot import Snapshot
from fairvisor.errors import SegmentError
from fairvisor.memory import InstanceMemory
from fairvisor.metrics import FAMILIES
from fairvisor.notes import Notes
from fairvisor.state import StateDirectory

Pace = Callable[[Iterable[bytes]], Iterable[bytes]]

_GAUGES: Final = frozenset(family.name for family in FAMILIES if family.kind == "gauge")
_NS_PER_MS: Final = NS_PER_S // 1000

_log = logging.getLogger(__name__)


class Restoring(NamedTuple):
    """A snapshot and the moment at which it is restored: what `Segment.open` makes a segment from."""

    snapshot: Snapshot
    now: Now

    @property
    def seed(self) -> int:
        return self.snapshot.seed

    @property
    def reservation_key(self) -> bytes:
        return self.snapshot.reservation_key

    def restore(self, segment: Segment) -> None:
        """Put everything into the new segment."""
        kept, dropped = self.snapshot.restore(segment, self.now)
        age_s = max(0, self.now.wall_ns - self.snapshot.taken.wall_ns) / NS_PER_S
        _log.warning("restored %d counters from a snapshot that was taken %.1f s ago", kept, age_s)
        if dropped:
            _log.error("%d counters of the snapshot found no room in the segment", dropped)


class Snapshots:
    """The snapshot file of one instance."""

    def __init__(
        self, directory: InstanceMemory, state: StateDirectory, clock: Callable[[], Now] = read_now
    ) -> None:
        self._name = segment_name(directory.instance)
        self._state = state
        self._notes = Notes(directory)
        self._clock = clock

    def find(self) -> Restoring | None:
        """The snapshot, to be restored now; None when there is none that can be believed."""
        try:
            data = self._state.read(self._state.snapshot)
            return Restoring(snapshot.read(data, self._name), self._clock())
        except FileNotFoundError:
            return None
        except (OSError, SegmentError) as error:
            _log.error("the snapshot %s is not restored: %s", self._state.snapshot, error)
            return None

    def save(self, segment: Segment, pace: Pace = lambda pieces: pieces) -> bool:
        """Write a snapshot; was it possible? `pace` may pause between pieces."""
        now = self._clock()
        try:
            self._state.write(self._state.snapshot, pace(snapshot.take(segment, now, _GAUGES)))
        except OSError as error:
            text = f"{self._state.snapshot} cannot be written: {error.strerror}; counters are not safe from a reboot"
            if self._notes.put(notes.SNAPSHOT, text, now):
                _log.error("%s", text)
            return False
        segment.table.word_set(Word.SNAPSHOT_WALL_NS, now.wall_ns)
        if self._notes.drop(notes.SNAPSHOT):
            _log.info("%s is written again", self._state.snapshot)
        _log.debug("snapshot in %d ms", (self._clock().mono_ns - now.mono_ns) // _NS_PER_MS)
        return True
