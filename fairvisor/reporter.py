"""The thread of a worker that writes what requests leave behind: audit lines, and the gauges of what is left.

Requests only count in memory; this thread does the slow part, ten times a second, in small steps. When the audit log
cannot be written it says so once in the log and in a note that every process can read, tries again every second, and
says when it works again. It knows nothing of decisions.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Final

from fairvisor import chain
from fairvisor.audit import Audit, key_writer
from fairvisor.clock import NS_PER_S, Now, read_now
from fairvisor.counters.segment import Segment
from fairvisor.follow import ActiveBundle
from fairvisor.linefile import LineFile
from fairvisor.metrics import Counter
from fairvisor.metrics.families import THREAD_FAILURES
from fairvisor.notes import AUDIT_LOG
from fairvisor.pending import Pending
from fairvisor.periodic import Periodic
from fairvisor.settings import Settings

FLUSH_S: Final = 0.1
RETRY_NS: Final = NS_PER_S  # after the log could not be written
WRITE_NS: Final = NS_PER_S  # how often gauges are written
PAUSE_S: Final = 0.000_2  # between slices of work, for threads that answer requests
STOPPED_WITHIN_S: Final = 5.0
_LAST_TRIES: Final = 5  # to write what is left; in each, another process may have the log for half a second

_log = logging.getLogger(__name__)


def open_audit(
    settings: Settings, segment: Segment, worker: int, pause: Callable[[], object] = lambda: None
) -> Audit:
    """Return the audit log of one process, as the settings have it."""
    return Audit(
        segment,
        LineFile(settings.audit_path, *chain.keys_of(settings.audit_key)),
        key_writer(settings.audit_keys, segment.reservation_key),
        worker,
        pause,
    )


def write_pending(settings: Settings, segment: Segment, pending: Pending, now: Now) -> None:
    """Write the records that wait when there are no workers any more; a log that nothing reads holds up for 5 s."""

    def write() -> None:
        audit = open_audit(settings, segment, os.getpid())
        for records in pending.take():
            audit.log(records)
        audit.flush(now)
        audit.give_up()

    writer = threading.Thread(target=write, name="last-records", daemon=True)
    writer.start()
    writer.join(STOPPED_WITHIN_S)


class Reporter:
    """Flushes `audit` from `start` to `stop`."""

    def __init__(
        self,
        settings: Settings,
        segment: Segment,
        active: ActiveBundle,
        pending: Pending,
        clock: Callable[[], Now] = read_now,
        *,
        also: tuple[Callable[[Now], None], ...] = (),
    ) -> None:
        """`pending`: what waits to be logged; `also`: what else is to be written once a second."""
        # per process
        self._segment = segment
        self._active = active
        self._clock = clock
        self._also = also
        failures = Counter(segment, THREAD_FAILURES, "reporter")
        self._periodic = Periodic("reporter", FLUSH_S, self._work, failures.add, end=self._finish)
        self._pause = threading.Event()  # never set
        self._pending = pending
        self.audit = open_audit(settings, segment, os.getpid(), lambda: self._pause.wait(PAUSE_S))
        # what changes
        self._is_probed = False
        self._wait_until_ns = 0
        self._written_ns = 0
        self._told = ""

    def start(self) -> None:
        """Begin."""
        self._periodic.start()

    def stop(self) -> None:
        """Write what is left, then end."""
        self._periodic.stop(STOPPED_WITHIN_S)

    def step(self, now: Now) -> None:
        """What is done ten times a second."""
        if now.mono_ns - self._written_ns >= WRITE_NS:
            self._written_ns = now.mono_ns
            self._segment.write_postponed(now.wall_ns // NS_PER_S)
            for write in self._also:
                write(now)
        if now.mono_ns >= self._wait_until_ns:
            self._flush(now)

    def _flush(self, now: Now) -> None:
        if self.audit.problem is None:
            for records in self._pending.take():
                self.audit.log(records)
        written = self.audit.flush(now)
        if self.audit.problem is not None:
            self._complain(now)
        elif written or self._told:
            self._all_is_well()

    def _all_is_well(self) -> None:
        """The log can be written; the note may be of a worker that is no more."""
        if self._active.notes.drop(AUDIT_LOG):
            _log.info("the audit log can be written again")
        self._told = ""

    def _complain(self, now: Now) -> None:
        self._wait_until_ns = now.mono_ns + RETRY_NS
        problem = str(self.audit.problem)
        self._active.notes.put(AUDIT_LOG, problem, now)
        if problem != self._told:
            self._told = problem
            _log.error("the audit log cannot be written, events are kept without their keys: %s", problem)

    def _work(self) -> None:
        if not self._is_probed:
            self._probe()
            self._is_probed = True
        self.step(self._clock())

    def _probe(self) -> None:
        """Find out whether the log can be written before there is anything to write."""
        self.audit.probe()
        if self.audit.problem is None:
            self._all_is_well()
        else:
            self._complain(self._clock())

    def _finish(self) -> None:
        """Write what is left."""
        now = self._clock()
        self._segment.write_postponed(now.wall_ns // NS_PER_S)
        for _ in range(_LAST_TRIES):
            self.audit.flush(now)
            if self.audit.problem is None:
                break
        self.audit.give_up()
