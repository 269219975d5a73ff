"""The thread that keeps an `Identity` up to date: one in each worker, started after the fork.

It looks for changed files every few seconds, fetches the JWKS URL when that is due, and reports what went wrong or came
right since it last looked. It knows nothing of requests; they never wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from fairvisor.clock import Now, read_now
from fairvisor.identity.sources import Identity

# Four `stat` calls each time.
CHECK_EVERY_S: Final = 5.0

_log = logging.getLogger(__name__)


class Refresher:
    """Runs `identity.refresh` in a daemon thread from `start` to `stop`. `identity` is replaced with the bundle."""

    def __init__(self, identity: Identity, clock: Callable[[], Now] = read_now) -> None:
        self.identity = identity
        self._clock = clock
        self._stopped = threading.Event()
        self._reported: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._run, name="identity-refresher", daemon=True)

    def start(self) -> None:
        """Begin; the first refresh runs at once, in the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End without waiting for a fetch that is under way."""
        self._stopped.set()

    def step(self) -> None:
        """One refresh, and a log line for each thing that went wrong or came right."""
        identity = self.identity
        identity.refresh(self._clock())
        wrong = frozenset(identity.problems() + identity.warnings())
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
            self._stopped.wait(CHECK_EVERY_S)
