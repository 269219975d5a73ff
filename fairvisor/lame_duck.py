"""The time between being asked to stop and stopping: /readyz says no already, decisions go on as before.

Senders of requests learn a little late that an instance ends (Kubernetes takes it out of its Services while it asks it
to stop): connections that come meanwhile must still be taken. The flag is in memory that the workers inherit from
the master, which sets it. This module knows neither signals nor requests.
"""

from __future__ import annotations

import mmap


class LameDuck:
    """Whether the instance is about to stop; one for a master and all of its workers."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def begin(self) -> None:
        """Say it, in the master."""
        self._memory[0] = 1

    @property
    def has_begun(self) -> bool:
        """Whether it was said."""
        return self._memory[0] != 0
