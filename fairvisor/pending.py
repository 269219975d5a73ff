"""What was done to an instance, on its way to the audit log: records that wait in its shared memory.

Bundles are published by whichever process has them, the master included, and the audit log is written by the workers.
So records are left in files of the instance's memory, and the first worker that finds one takes it: who removes the
file writes its lines, once. While the log cannot be written they stay where they are. This module does not know what
the records say.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import orjson

from fairvisor.actor import By
from fairvisor.audit import record_of
from fairvisor.clock import Now
from fairvisor.memory import InstanceMemory

MAX_WAITING: Final = 1000  # files
_KIND: Final = "record"

_log = logging.getLogger(__name__)


class Pending:
    """The records of one instance that wait."""

    def __init__(self, directory: InstanceMemory) -> None:
        self._directory = directory
        self._numbers = itertools.count()

    def post(self, records: Sequence[Mapping[str, object]], now: Now) -> None:
        """Leave records for the audit log, in the order of their times. An error is logged: the change is done."""
        name = f"{_KIND}-{now.wall_ns:020}-{os.getpid()}-{next(self._numbers)}"
        try:
            if len(self._names()) >= MAX_WAITING:
                raise OSError(0, f"{MAX_WAITING} others wait", str(self._directory.path))
            self._directory.write(name, orjson.dumps(records, default=str))
        except OSError as error:
            _log.error("the audit log will lack %s: %s", records[0].get("action"), error.strerror)

    def record(self, action: str, by: By, now: Now, **fields: str) -> None:
        """Leave a record of an action of the edge itself."""
        more = {"instance": self._directory.instance, **by.fields(), **fields}
        self.post([record_of(action, more, now)], now)

    def take(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the records that wait, oldest first; the caller has to log them."""
        for name in self._names():
            try:
                data = self._directory.read(name)
            except FileNotFoundError:
                continue
            if self._directory.remove(name):  # else another process was faster
                yield orjson.loads(data)

    def _names(self) -> list[str]:
        return [name for name in self._directory.names() if name.startswith(f"{_KIND}-")]
