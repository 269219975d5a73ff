"""The bytes of a log file: opened, unpacked, in UTF-8, and cut into records.

gzip is known by its first bytes, also where several members follow each other. A byte order mark (Unicode 23.8) is not
part of the text, and UTF-16, which it announces, is turned into UTF-8. What a damaged file gives before its damage
counts. A record is a line, or an element of a JSON array (`elements.py`). However long a line is, a bounded part of it
is kept. This module knows no format of lines.
"""

from __future__ import annotations

import codecs
import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fairvisor.errors import FairvisorError
from fairvisor.replay.elements import Elements

if TYPE_CHECKING:
    from io import BufferedReader

LONGEST_LINE_BYTES: Final = 16 << 20
_BATCH_BYTES: Final = 1 << 18
_GZIP: Final = b"\x1f\x8b"
# Other ways of packing, by their first bytes: the command that unpacks.
_PACKED: Final = {
    b"\x28\xb5\x2f\xfd": "zstdcat",
    b"BZh": "bzcat",
    b"\xfd7zXZ": "xzcat",
    b"\x04\x22\x4d\x18": "lz4cat",
    b"PK\x03\x04": "unzip -p",
}
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class LogError(FairvisorError):
    """A log that cannot be read."""


class LogFile:
    """One log file; `-` is standard input. A context manager: inside, the file is open. Raises LogError there.

    `size_bytes` is 0 where it is not known. `cut_short` says why a file ends before its end.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.size_bytes = 0
        self.cut_short = ""
        self._raw: BufferedReader
        self._stream: BufferedReader | gzip.GzipFile

    def __enter__(self) -> LogFile:
        try:
            self._raw = os.fdopen(os.dup(0), "rb") if self.name == "-" else Path(self.name).open("rb")
            status = os.fstat(self._raw.fileno())
            first = self._raw.peek(8)[:8]
        except OSError as error:
            raise LogError(f"cannot read {self.name}: {error.strerror}") from None
        command = next((command for magic, command in _PACKED.items() if first.startswith(magic)), "")
        if command:
            self._raw.close()
            raise LogError(
                f"{self.name} is packed and not with gzip: `{command} FILE | fairvisor test --requests -`"
            )
        self.size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._stream = gzip.GzipFile(fileobj=self._raw) if first.startswith(_GZIP) else self._raw
        return self

    def __exit__(self, *unused: object) -> None:
        self._raw.close()

    def position_bytes(self) -> int:
        """Return how much of the file has been read; 0 where that cannot be said."""
        return self._raw.tell() if self.size_bytes else 0

    def text(self) -> Iterator[bytes]:
        """Yield the file in pieces of UTF-8, without byte order mark."""
        pieces = self._pieces()
        first = b""
        for piece in pieces:
            first += piece
            if len(first) >= len(codecs.BOM_UTF8):
                break
        if first.startswith(_UTF16):
            decoded = codecs.iterdecode(chain((first,), pieces), "utf-16", "replace")
            return (piece.encode("utf-8", "surrogatepass") for piece in decoded)
        return chain((first.removeprefix(codecs.BOM_UTF8),), pieces)

    def _pieces(self) -> Iterator[bytes]:
        while True:
            try:
                data = self._stream.read1(_BATCH_BYTES)
            except (EOFError, OSError, zlib.error) as error:
                self.cut_short = str(error)
                return
            if not data:
                return
            yield data

    def lines(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines without their ends; of one that is longer than LONGEST_LINE_BYTES, its beginning."""
        begun: list[bytes] = []  # pieces of a line whose end has not come
        begun_bytes = 0
        for data in pieces:
            first, *lines = data.split(b"\n")
            if begun_bytes < LONGEST_LINE_BYTES:
                begun.append(first)
                begun_bytes += len(first)
            if lines:
                yield b"".join(begun)
                begun = [lines.pop()]
                begun_bytes = len(begun[0])
                yield from lines
        if last := b"".join(begun):
            yield last

    def elements(self, pieces: Iterable[bytes], elements: Elements) -> Iterator[bytes]:
        """Yield the elements of JSON arrays. Raises LogError for one that does not end."""
        for data in chain(pieces, (b"\n",)):  # a number ends where something follows
            try:
                yield from elements.feed(data)
            except ValueError as error:
                raise LogError(f"cannot read {self.name}: {error}") from None
        if elements.unfinished and not self.cut_short:
            self.cut_short = "its JSON ends in the middle"
