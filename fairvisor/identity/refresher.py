"""The thread that keeps an `Identity` up to date: one in each worker, started after the fork.

Several times a second it takes over key sets that were fetched, every few seconds it looks for changed files, and in
the worker that leads it has key sets fetched when they are due. It reports what went wrong or came right since it last
looked. It knows nothing of requests; they never wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from fairvisor.clock import NS_PER_S, Now, read_now
from fairvisor.identity.fetcher import REFRESH_NS, KeyFetcher
from fairvisor.identity.sources import Identity

LOOK_EVERY_S: Final = 0.25
# Four `stat` calls each time.
CHECK_EVERY_NS: Final = 5 * NS_PER_S
# A worker that starts waits so long for key sets that nobody has fetched yet.
SETTLED_WITHIN_S: Final = 5.0

_log = logging.getLogger(__name__)


class Refresher:
    """Runs `identity.refresh` in a daemon thread from `start` to `stop`. `identity` is replaced with the bundle.

    `fetcher` fetches key sets while `leads` says that this process does that for the others.
    """

    def __init__(
        self,
        identity: Identity,
        fetcher: KeyFetcher,
        leads: Callable[[], bool],
        clock: Callable[[], Now] = read_now,
    ) -> None:
        self.identity = identity
        self._fetcher = fetcher
        self._leads = leads
        self._clock = clock
        self._checked_ns: int | None = None  # when files were looked at (monotonic)
        self._settled = threading.Event()
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._reported: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._run, name="identity-refresher", daemon=True)

    def start(self) -> None:
        """Begin; the first refresh runs at once, in the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End without waiting for a fetch that is under way."""
        self._stopped.set()
        self._wake.set()

    def use(self, identity: Identity) -> None:
        """Keep this identity up to date from now on, and look at once."""
        self.identity = identity
        self._wake.set()

    def wait(self) -> None:
        """Wait until every key set was taken over or tried, at most SETTLED_WITHIN_S: a token must find its keys."""
        if not self._settled.wait(SETTLED_WITHIN_S):
            _log.warning("identity: key sets are not there yet: tokens that need them have no claims")

    def step(self) -> None:
        """One look, and a log line for each thing that went wrong or came right."""
        identity, now = self.identity, self._clock()
        if self._leads():
            self._fetcher.step(identity.endpoints, self._clock)
        if self._checked_ns is None or now.mono_ns - self._checked_ns >= CHECK_EVERY_NS:
            self._checked_ns = now.mono_ns
            identity.refresh(now)
        else:
            identity.refresh_keys(now)
        if identity.settled(now, 2 * REFRESH_NS):
            self._settled.set()
        self._report(frozenset(identity.problems() + identity.warnings()))

    def _report(self, wrong: frozenset[str]) -> None:
        for text in sorted(wrong - self._reported):
            _log.warning("identity: %s", text)
        for text in sorted(self._reported - wrong):
            _log.info("identity: no longer: %s", text)
        self._reported = wrong

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.step()
            except Exception:  # a thread that died quietly would leave old keys in use for ever
                _log.exception("identity: refresh failed")
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
