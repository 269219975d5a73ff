"""Changing the bundle of a running instance, once for all of its workers.

`Publisher.publish` takes bytes from wherever they come (file, admin listener, last good copy), has them checked away
from requests, puts them into shared memory, moves the generation word, keeps a copy in the state directory and waits
until every worker has switched. A bundle that is refused changes nothing; why stands in the log, in the metrics and in
a note that every process can read. Either way the audit log gets a record of who offered it and what it changes. One
publisher at a time holds a lock that dies with it.

Workers switch in `follow.py`; who watches the file is `leader.py`. Nothing here knows requests.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from fairvisor import actor, notes, offered
from fairvisor.actor import PROGRAM, By
from fairvisor.audit import key_writer
from fairvisor.bundle import shared
from fairvisor.bundle.apart import prepare_apart
from fairvisor.bundle.offer import Made, Order, Rule, prepare
from fairvisor.bundle.shared import About, SharedBundle
from fairvisor.bundle.syntax import MAX_BUNDLE_BYTES
from fairvisor.bundle_file import FileRecord, digest_of
from fairvisor.clock import NS_PER_S, Now, read_now
from fairvisor.counters.layout import Word
from fairvisor.counters.registry import Registry
from fairvisor.counters.segment import Segment
from fairvisor.errors import BundleInvalid, BundleRefused, FairvisorError, Problem, SegmentError
from fairvisor.metrics.counting import Counter
from fairvisor.metrics.families import RELOADS
from fairvisor.notes import Notes
from fairvisor.offered import Published
from fairvisor.pending import Pending
from fairvisor.processes import identity, pid_of
from fairvisor.secret_values import encoded, is_one_of
from fairvisor.settings import FILE_ORDER, Settings
from fairvisor.state import StateDirectory

# Reading a bundle of this size takes a thread 3 ms and no single step of it 0.5 ms; a process takes 300 ms to start.
IN_THREAD_BYTES: Final = 32 * 1024
ACKNOWLEDGED_WITHIN_NS: Final = 5 * NS_PER_S
_LOCKED_WITHIN_NS: Final = 30 * NS_PER_S
_POLL_S: Final = 0.004
_LOCK: Final = "publish-lock"
# Codes of BundleRefused that say nothing about the bundle: the same bytes may be accepted later.
NOT_NOW: Final = frozenset({"busy", "no_room", "not_validated"})

_log = logging.getLogger(__name__)


class Publisher:
    """Publishes bundles for one instance. One per process; its methods may be called from any thread, and block."""

    def __init__(
        self,
        settings: Settings,
        segment: Segment,
        environ: Mapping[str, str],
        *,
        serving: bool = True,
        clock: Callable[[], Now] = read_now,
    ) -> None:
        """`serving`: requests are answered in this process, so a large bundle is validated in another one."""
        self.settings = settings
        self._segment = segment
        self._environ = environ
        self._serving = serving
        self._clock = clock
        self._numbers = itertools.count()
        self._pause = threading.Event()
        self._results = {result: Counter(segment, RELOADS, result) for result in RELOADS.known}
        self.file = settings.config_file
        self.registry = Registry(segment.table)
        self.notes = Notes(segment.directory)
        self.records = Pending(segment.directory)
        self._key_text = key_writer(settings.audit_keys, segment.reservation_key)
        self.state = StateDirectory(settings.state_dir, settings.instance)
        self._record = FileRecord(segment.table, self.state)

    # what there is

    @property
    def generation(self) -> int:
        """The active generation; 0 when there is no bundle yet."""
        return self._segment.table.word_get(Word.BUNDLE_GENERATION)

    def current(self) -> SharedBundle | None:
        """The active bundle, to be closed by the caller: `about`, `original()`... None: there is none."""
        while generation := self.generation:
            try:
                return SharedBundle.open(self._segment.directory, generation)
            except FileNotFoundError:
                if generation == self.generation:
                    return None  # removed by force: the leader puts it there again
            except SegmentError as error:
                _log.error("the active bundle cannot be read: %s", error)
                return None
        return None

    def use(self, settings: Settings) -> None:
        """Take over settings that were read again. With another signing key, a file that was rejected may be valid."""
        known = encoded(self.settings.bundle_signing_key)
        if not all(is_one_of(key, known) for key in encoded(settings.bundle_signing_key)):
            self._record.forget_rejected()
        self.settings = settings

    @property
    def _file_decides(self) -> bool:
        return self.settings.bundle_order == FILE_ORDER

    # changing it

    def publish(
        self,
        data: bytes,
        *,
        by: By = PROGRAM,
        source: str = "admin",
        rule: Rule = "successor",
        about: str = "",
    ) -> Published:
        """Make these bytes the active bundle, and wait until every worker has switched, at most 5 s.

        `by` is who offers them, for the audit log; `source` says in log and status where they came from; `about` marks
        a refusal of the file, which the file takes back. Raises BundleInvalid (every error with its JSON path),
        BundleRefused (`code`: invalid_signature, version_not_monotonic, bundle_expired, no_room, busy, not_validated).
        """
        try:
            published = self._publish(data, source, rule, by)
        except FairvisorError as error:
            self._results["invalid" if isinstance(error, BundleInvalid) else "refused"].add()
            now = self._clock()
            self.records.post([offered.rejected(data, source, by, error, now)], now)
            self.tell(f"{source}: {error}", about)
            raise
        self._results["applied" if published.changed else "unchanged"].add()
        told = self.notes.get(notes.RELOAD)
        # That the file is in force, as before, is no answer to a push that was refused meanwhile.
        if told is not None and (published.changed or not about or told.about):
            self.notes.drop(notes.RELOAD)
        return published

    def start(self, *, accept_older: bool = False) -> None:
        """Make active what wins at start: of last good bundle and file the greater version; equal: the file. Where the
        file decides: the file, if it changed since it was last in force.

        What is in shared memory is the last good bundle, else its copy in the state directory. A lower file is
        reported and not taken, unless `accept_older`. Never raises because of a bundle: without one the process is
        alive and not ready, and the leader goes on looking.
        """
        active = self.current()
        if active is None:
            self.restore()
        else:
            active.close()
        self.read_file("any_version" if accept_older else "file_at_start")

    def restore(self) -> None:
        """Take the last good bundle out of the state directory, if there is one."""
        try:
            data = self.state.read(self.state.bundle)
        except FileNotFoundError:
            self.healed(notes.STATE_DIR)
            return
        except OSError as error:
            text = f"the last good bundle {error.filename} is not used: {error.strerror}"
            if self.notes.put(notes.STATE_DIR, text, self._clock()):
                _log.error("%s", text)
            return
        self.healed(notes.STATE_DIR)
        with suppress(BundleInvalid, BundleRefused):
            source = f"last good bundle {self.state.bundle}"
            self.publish(data, by=actor.edge("last good bundle"), source=source, rule="restore")

    def push(self, data: bytes, by: By = PROGRAM, *, take_over: bool = False) -> Published:
        """Publish what an operator sends. Where the file decides, that needs `take_over`, and versions mean nothing."""
        if not self._file_decides:
            return self.publish(data, by=by)
        return self.publish(data, by=by, rule="any_version" if take_over else "nothing_new")

    def read_file(self, rule: Rule = "successor") -> None:
        """Offer the configured file."""
        if self.file is None:
            if not self.generation:
                self.tell("FAIRVISOR_CONFIG_FILE is not set")
            return
        try:
            data = self.file.read_bytes()
        except OSError as error:
            self.file_is_missing(f"{self.file}: {error.strerror}")
            return
        self.offer_file(data, rule)

    def offer_file(self, data: bytes, rule: Rule = "successor") -> bool:
        """Offer what the file holds, unless it did not change: while the edge runs since it was offered, at a start
        where the file decides since it was in force. False: it may be accepted later."""
        digest = digest_of(data)
        if rule == "successor" and self._record.was_offered(digest):
            return True
        at_start = rule == "file_at_start" and self._file_decides and self.generation
        if at_start and self._record.was_applied(digest):
            self._record.offered(digest)
            return True
        self.healed(notes.BUNDLE_FILE)
        assert self.file is not None, "a file was read"
        with suppress(BundleInvalid, BundleRefused):
            self.take_file(data, actor.file(self.file, data), rule, about=f"{digest:016x}")
        return self._record.was_offered(digest)

    def take_file(self, data: bytes, by: By, rule: Rule = "successor", about: str = "") -> Published:
        """Publish what the file holds, changed or not, and note that it was offered. Raises as `publish` does."""
        digest = digest_of(data)
        if not self.generation:
            rule = "file_at_start"
        elif self._file_decides:
            rule = "any_version"
        try:
            published = self.publish(data, by=by, source=str(self.file), rule=rule, about=about)
        except FairvisorError as error:
            if not (isinstance(error, BundleRefused) and error.code in NOT_NOW):
                self._record.offered(digest)
            raise
        self._record.offered(digest)
        self._record.applied(digest)
        self.make_durable()
        return published

    def file_is_missing(self, why: str) -> None:
        """The file cannot be read: a fault, and the reason when there is no bundle at all."""
        if self.notes.put(notes.BUNDLE_FILE, why, self._clock()):
            self._results["unreadable"].add()
            _log.error("the bundle file cannot be read: %s", why)
            if not self.generation:
                self.tell(why)

    def tell(self, why: str, about: str = "") -> None:
        """Say to everybody why there is no new bundle; in the log once."""
        if self.notes.put(notes.RELOAD, why, self._clock(), about):
            _log.error("the bundle stays as it is: %s", why)

    def remove_unread(self) -> None:
        """Remove bundles of other generations, and what processes left that were killed; not while one publishes."""
        with suppress(BundleRefused), self._lock(0):
            shared.unlink_all_but(self._segment.directory, self.generation)
            self._segment.directory.remove_unfinished()

    def make_durable(self) -> bool:
        """Keep a copy of the active bundle in the state directory, unless it stands there already; does it?

        False as well while a bundle is being published: that writes the copy itself.
        """
        try:
            with self._lock(0):
                return self._make_durable()
        except BundleRefused:
            return False

    def _make_durable(self) -> bool:
        table = self._segment.table
        generation = self.generation
        try:
            self._record.make_durable()
            if table.word_get(Word.DURABLE_GENERATION) == generation and self.state.bundle.exists():
                self.healed(notes.STATE_DIR)
                return True
            bundle = self.current()
            if bundle is None:
                return False
            self.state.write(self.state.bundle, [bundle.original()])
        except OSError as error:
            return self._not_durable(error)
        table.word_set(Word.DURABLE_GENERATION, bundle.generation)
        bundle.close()
        self.healed(notes.STATE_DIR)
        return True

    def healed(self, fault: str) -> None:
        """A fault is gone."""
        if self.notes.drop(fault):
            _log.info("%s: works again", fault)

    def _not_durable(self, error: OSError) -> bool:
        text = f"{self.state.directory} cannot be written: {error.strerror}; the bundle is not safe from a reboot"
        if self.notes.put(notes.STATE_DIR, text, self._clock()):
            _log.error("%s", text)
        return False

    def _publish(self, data: bytes, source: str, rule: Rule, by: By) -> Published:
        if len(data) > MAX_BUNDLE_BYTES:
            raise BundleInvalid(
                (Problem("", f"the bundle has {len(data):,} bytes; at most 64 MiB are read"),)
            )
        with self._lock():
            try:
                about = self._make(data, source, rule, by)
            except OSError as error:
                raise self._no_room(error) from error
            changed = about is not None
            active = self.current()
            if active is None:
                raise BundleRefused("no_room", "the bundle vanished from shared memory")
            about, generation = active.about, active.generation
            active.close()
            durable = self._make_durable()
        lagging = self._await(generation) if changed else ()
        published = Published(
            generation, about.version, about.sha256, changed, durable, lagging, about.warnings
        )
        if changed:
            offered.report(published, about)
        return published

    def _make(self, data: bytes, source: str, rule: Rule, by: By) -> About | None:
        """Check the bytes and make them the active generation; None: they are it already. The lock is held."""
        table, directory = self._segment.table, self._segment.directory
        active = self.current()
        generation = self.generation + 1
        offer = shared.offer_name(identity(os.getpid()), next(self._numbers))
        order = Order(
            str(directory.path),
            directory.instance,
            offer,
            generation,
            rule,
            source,
            self.settings.bundle_signing_key,
            active.about.version if active is not None else None,
            active.about.sha256 if active is not None else None,
            self._clock().wall_ns,
        )
        try:
            made = self._prepare(data, order)
        except SegmentError as error:
            raise BundleRefused("no_room", str(error)) from None
        if made is None:
            return None
        shared.accept(directory, offer, generation)
        table.word_set(Word.BUNDLE_GENERATION, generation)
        shared.unlink_all_but(directory, generation)
        now = self._clock()
        self.records.post(offered.in_force(made, order, by, self._key_text, now), now)
        return made.about

    def _no_room(self, error: OSError) -> BundleRefused:
        return BundleRefused(
            "no_room", f"{self._segment.directory.path} cannot be written: {error.strerror or error}"
        )

    def _prepare(self, data: bytes, order: Order) -> Made | None:
        if not self._serving or len(data) <= IN_THREAD_BYTES:
            return prepare(data, order, self._environ)
        return prepare_apart(data, order, self._environ)

    def _await(self, generation: int) -> tuple[int, ...]:
        """Wait until nobody lags; the pids of those who still do after 5 s."""
        end_ns = self._clock().mono_ns + ACKNOWLEDGED_WITHIN_NS
        while lagging := self.registry.lagging(generation):
            if self._clock().mono_ns >= end_ns:
                return tuple(pid_of(worker.process) for worker in lagging)
            self._pause.wait(_POLL_S)
        return ()

    @contextmanager
    def _lock(self, within_ns: int = _LOCKED_WITHIN_NS) -> Iterator[None]:
        """The right to publish: a lock on a file in the instance's directory, which the kernel lets go of if we die."""
        try:
            fd = self._segment.directory.open_lock(_LOCK)
        except OSError as error:
            raise self._no_room(error) from error
        try:
            end_ns = self._clock().mono_ns + within_ns
            while not _try_lock(fd):
                if self._clock().mono_ns >= end_ns:
                    raise BundleRefused("busy", "another bundle is being published")
                self._pause.wait(_POLL_S)
            yield
        finally:
            os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
