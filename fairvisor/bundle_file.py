"""What the bundle file held when it was last offered, and when it was last in force: whether it changed.

A file that did not change is not offered again, by whichever worker leads: it would be rejected over and over where a
newer bundle was pushed, or would undo the push where the file decides (FAIRVISOR_BUNDLE_ORDER). Both are digests of the
whole file in words of the segment. The second is in the state directory too, so that it outlives a reboot as the last
good bundle does; without it the file counts as changed. This module does not know what is in the file.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

from fairvisor.counters._table import Table
from fairvisor.counters.layout import Word
from fairvisor.state import StateDirectory


def digest_of(data: bytes) -> int:
    """Return the first 64 bits of the SHA-256, never 0: whoever can make two files alike owns the file."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") or 1


class FileRecord:
    """The record of one instance; one object for each process."""

    def __init__(self, table: Table, state: StateDirectory) -> None:
        self._table = table
        self._state = state

    def was_offered(self, digest: int) -> bool:
        """Whether these bytes were offered last."""
        return self._table.word_get(Word.FILE_OFFERED) == digest

    def was_applied(self, digest: int) -> bool:
        """Whether these bytes were the last of the file that came into force."""
        return (self._table.word_get(Word.FILE_APPLIED) or self._stored()) == digest

    def offered(self, digest: int) -> None:
        """Note what was offered."""
        self._table.word_set(Word.FILE_OFFERED, digest)

    def forget_rejected(self) -> None:
        """Let the bytes that were offered last be offered again, unless they came into force."""
        if not self.was_applied(self._table.word_get(Word.FILE_OFFERED)):
            self._table.word_set(Word.FILE_OFFERED, 0)

    def applied(self, digest: int) -> None:
        """Note what came into force, or was it already."""
        self._table.word_set(Word.FILE_APPLIED, digest)

    def make_durable(self) -> None:
        """Bring what was applied to the state directory, unless it is there. Raises OSError."""
        digest = self._table.word_get(Word.FILE_APPLIED)
        if digest and digest != self._stored():
            self._state.write(self._state.file, [b"%016x\n" % digest])

    def _stored(self) -> int:
        with suppress(OSError, ValueError):  # none, or none of ours: the file counts as changed
            return int(self._state.read(self._state.file), 16)
        return 0
