"""The slates: a small text of each worker's own in the shared segment, written by it alone, read by everybody.

What a worker has to tell that is neither a counter nor a metric. A slate is replaced in place, so a reader may catch it
half-written: a checksum tells, and the reader looks again. It stays when its worker dies, until the next worker of the
same entry writes. The entry is that of the registry; a small segment has slates for fewer workers than there are, or
for none. This module does not know what the texts say.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Final

import xxhash

from fairvisor.counters.layout import SLATE_BYTES, Geometry

HEAD: Final = struct.Struct("<QQ")  # length of the text, its checksum
MAX_TEXT_BYTES: Final = SLATE_BYTES - HEAD.size
_TRIES: Final = 16  # of a reader that catches a writer in the middle


class Slates:
    """The slates of one mapped segment."""

    def __init__(self, memory: mmap.mmap, geometry: Geometry) -> None:
        self._memory = memory
        self._at = geometry.slates_at
        self.slates = geometry.slates

    def write(self, entry: int, text: bytes) -> bool:
        """Replace the text of this worker, at most MAX_TEXT_BYTES; False: it has no slate."""
        assert len(text) <= MAX_TEXT_BYTES, "the writer keeps it short"
        if entry >= self.slates:
            return False
        at = self._at + SLATE_BYTES * entry
        start = at + HEAD.size
        self._memory[start : start + len(text)] = text
        HEAD.pack_into(self._memory, at, len(text), xxhash.xxh3_64_intdigest(text))
        return True

    def read(self, entry: int) -> bytes:
        """The text of a worker, b"" when there is none, or none that is whole."""
        at = self._at + SLATE_BYTES * entry
        for _ in range(_TRIES if entry < self.slates else 0):
            length, checksum = HEAD.unpack_from(self._memory, at)
            if not 0 < length <= MAX_TEXT_BYTES:
                return b""
            text = self._memory[at + HEAD.size : at + HEAD.size + length]
            if xxhash.xxh3_64_intdigest(text) == checksum:
                return text
        return b""

    def texts(self) -> Iterator[bytes]:
        """Every text there is."""
        for entry in range(self.slates):
            if text := self.read(entry):
                yield text
