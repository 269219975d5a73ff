"""A thread that takes the same step again and again: the one way in which work is done in the background.

A step that fails is logged and counted, and taken again a second later: a thread that ended quietly would leave its
work undone for the life of the process. What a step does, and which faults it expects itself, is its owner's business.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

RETRY_S: Final = 1.0  # after a step that failed

_log = logging.getLogger(__name__)


class Periodic:
    """Takes `step` every `every_s` seconds from `start` to `stop`, and `end` once after the last one."""

    def __init__(
        self,
        name: str,
        every_s: float,
        step: Callable[[], object],
        failed: Callable[[], object],
        *,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        """`failed` counts a step that did not succeed."""
        self._name = name
        self._every_s = every_s
        self._step = step
        self._failed = failed
        self._end = end
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.stopped = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, within_s: float | None = None) -> None:
        """End after the step that is under way, and wait for that, at most `within_s`."""
        self.stopped.set()
        if self._thread.is_alive():  # a stop may come before the start is through
            self._thread.join(within_s)

    def run(self) -> None:
        """Take steps until stopped: what the thread does."""
        while not self.stopped.wait(self._every_s):
            if not self._succeeds(self._step):
                self.stopped.wait(RETRY_S)
        self._succeeds(self._end)

    def _succeeds(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except Exception:
            self._failed()
            _log.exception("%s failed; it is tried again", self._name)
            return False
        return True
