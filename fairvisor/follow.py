"""How a worker comes to decide by the active bundle, and by a new one as soon as there is one.

`ActiveBundle` is what requests read: one attribute, one object that holds a bundle and the identity with its keys, so
no request is decided by a mixture. `Follower` is the thread that replaces it: it looks at the generation word a
hundred times a second, compiles the new bundle in slices while requests go on, switches with one assignment and
records the generation in the worker's entry of the registry. It does no disk or network I/O: nothing can delay it.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from fairvisor.bundle.compile import Options
from fairvisor.bundle.shared import About, SharedBundle
from fairvisor.bundle.slices import Compiled, compile_shared, in_use, take_apart
from fairvisor.clock import NS_PER_S, Now, read_now
from fairvisor.counters.layout import Word
from fairvisor.counters.registry import Registry
from fairvisor.counters.segment import Segment
from fairvisor.engine import Bundle
from fairvisor.errors import BundleInvalid, EstimatorUnavailable, SegmentError
from fairvisor.identity import Identity, Refresher
from fairvisor.metrics import Counter
from fairvisor.metrics.families import THREAD_FAILURES
from fairvisor.notes import RELOAD, Notes
from fairvisor.periodic import Periodic
from fairvisor.settings import Settings

POLL_S: Final = 0.01
# A slice ends early for who waits to run in this process (SWITCH_INTERVAL_S); its length is how long others may have
# to wait for the processor. After a pause the caches are cold: shorter slices took half as much time again.
SLICE_NS: Final = 1_000_000
PAUSE_S: Final = 0.001
HEARTBEAT_NS: Final = NS_PER_S // 4
STOP_S: Final = 0.5  # how long a worker that ends waits for a thread
TRY_AGAIN_NS: Final = NS_PER_S // 4  # with an object that is not there or damaged

# How long a thread that wants to run waits for one that computes. Python's 5 ms would be what a request waits.
SWITCH_INTERVAL_S: Final = 0.000_5

ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """What is made meanwhile stays: the collector does not walk it while it grows, and never afterwards.

    It is frozen before the collector is switched on again: walking a large bundle once would take a tenth of a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class Current:
    """What a request is decided by: a bundle, the identity with its keys, and what is known about the bundle."""

    __slots__ = ("about", "bundle", "generation", "identity")

    def __init__(self, bundle: Bundle, identity: Identity, about: About, generation: int) -> None:
        self.bundle = bundle
        self.identity = identity
        self.about = about
        self.generation = generation


class ActiveBundle:
    """The active bundle of this process. `current` is None until there is one; a request reads it once."""

    __slots__ = ("current", "notes")

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.current: Current | None = None

    @property
    def reason(self) -> str:
        """Why there is no newer bundle, or none at all; "" when the last one that was offered is active."""
        note = self.notes.get(RELOAD)
        if note is not None:
            return note.text
        return "" if self.current is not None else "no bundle was offered yet"


def decision_options(settings: Settings) -> Options:
    """The settings that a bundle is compiled with."""
    return Options(
        reject_when_full=settings.table_full == "reject",
        trust_token_hint="x-token-estimate" in settings.trusted_hints,
        key_issuers=frozenset({settings.jwks_issuer} if settings.jwks_url or settings.jwks_file else ()),
    )


class Follower:
    """Keeps `active` up to date from `start` to `stop`. Not shared between threads, except for `stop`."""

    def __init__(
        self,
        settings: Settings,
        segment: Segment,
        active: ActiveBundle,
        refresher: Refresher,
        environ: Mapping[str, str],
        entry: int | None,
        clock: Callable[[], Now] = read_now,
    ) -> None:
        # per process
        self._segment = segment
        self._active = active
        self._refresher = refresher
        self._environ = environ
        self._entry = entry
        self._registry = Registry(segment.table)
        self._clock = clock
        self._options = decision_options(settings)
        failures = Counter(segment, THREAD_FAILURES, "bundle-follower")
        self._periodic = Periodic("bundle-follower", POLL_S, self.step, failures.add, end=self._release)
        # what changes
        self.shared: SharedBundle | None = None  # the object of the active generation, mapped
        self._compiled: Compiled | None = None
        self._replaced: list[Compiled] = []  # to be freed when nobody uses them any more
        self._generation = 0
        self._failed = ""
        self._try_again_ns = 0
        self._heartbeat_ns = 0

    def start(self) -> None:
        """Load the active bundle, if there is one, then follow in a thread."""
        self.step(paced=False)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._periodic.start()

    def stop(self) -> None:
        """End; a switch that is under way is given up. The worker's entry in the registry is free afterwards."""
        self._periodic.stop(STOP_S)

    def step(self, *, paced: bool = True) -> None:
        """Switch if the generation moved. `paced`: compile in slices, with pauses in which requests run."""
        now = self._clock()
        if now.mono_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now.mono_ns
            if self._entry is not None:
                self._registry.beat(self._entry, now.mono_ns)
        generation = self._segment.table.word_get(Word.BUNDLE_GENERATION)
        if generation == self._generation or (self._failed and now.mono_ns < self._try_again_ns):
            self._free()
            return
        try:
            self._switch(generation, paced)
        except FileNotFoundError:
            self._put_off(f"the object of generation {generation} is not there", now)
        except (SegmentError, BundleInvalid, EstimatorUnavailable) as error:
            self._put_off(str(error), now)

    def _put_off(self, why: str, now: Now) -> None:
        """Go on with the bundle there is, and look again a little later."""
        self._try_again_ns = now.mono_ns + TRY_AGAIN_NS
        if why != self._failed:
            self._failed = why
            _log.error("the new bundle cannot be read: %s", why)

    def _switch(self, generation: int, paced: bool) -> None:
        shared = SharedBundle.open(self._segment.directory, generation)
        old = self._compiled
        steps = compile_shared(shared, self._segment, self._options, self._environ, old)
        with _collector_paused():
            compiled = self._drive(steps, paced)
        if compiled is None:
            return
        head = compiled.head
        identity = self._refresher.identity.with_keys(head.jwt_keys, head.jwt_issuers)
        self._active.current = Current(compiled.bundle, identity, shared.about, generation)
        self._refresher.use(identity)
        self._compiled, self._generation, self._failed = compiled, generation, ""
        if self._entry is not None:
            self._registry.record(self._entry, generation)
        before, self.shared = self.shared, shared
        if before is not None:
            before.close()
        if old is not None:
            self._replaced.append(old)
        _log.debug("deciding by generation %d", generation)

    def _free(self) -> None:
        """Free bundles that were replaced, in slices too, when the last decision that began with one has ended."""
        for old in tuple(self._replaced):
            if not in_use(old):
                self._replaced.remove(old)
                self._drive(take_apart(old), paced=True)

    def _drive(self, steps: Generator[None, None, ResultT], paced: bool) -> ResultT | None:
        """Run steps to their end, pausing between slices. None: stopped before."""
        began_ns = self._clock().mono_ns
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: ResultT = end.value
                return result
            if paced and self._clock().mono_ns - began_ns >= SLICE_NS:
                if self._periodic.stopped.wait(PAUSE_S):
                    return None
                began_ns = self._clock().mono_ns

    def _release(self) -> None:
        if self._entry is not None:
            with suppress(ValueError):
                self._registry.release(self._entry)
