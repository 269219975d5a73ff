"""The cells of metrics: a name and its labels, interned once, then one atomic addition each time.

Entry i of the index says which text cell i belongs to. Entries are only ever appended: space for the text is taken
first, then an entry, then the text is written, then the entry with its checksum. A process killed in between leaves
an entry without a valid checksum, which readers pass over. Two processes that intern the same text at the same moment
may make two cells: readers add them up. Cell 0 has no entry: it takes what finds no room.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Final

import xxhash

from fairvisor.counters._table import Table
from fairvisor.counters.layout import SERIES_ENTRY_BYTES, Geometry, Word

Labels = tuple[tuple[str, str], ...]

OVERFLOW_CELL: Final = 0
ENTRY: Final = struct.Struct("<IIQ")  # offset in the text region, length, checksum of the text
SEPARATOR: Final = "\0"


class Series:
    """The series region of one mapped segment."""

    def __init__(self, memory: mmap.mmap, geometry: Geometry, table: Table) -> None:
        self._memory = memory
        self._geometry = geometry
        self._table = table
        self._cells: dict[str, int] = {}  # what this process has seen so far
        self._next = 1  # all entries before this one are in `_cells`

    def intern(self, name: str, labels: Labels) -> int:
        """The cell of this series, made when it is new; OVERFLOW_CELL when there is no room."""
        text = SEPARATOR.join([name, *(part for label in labels for part in label)])
        if text.count(SEPARATOR) != 2 * len(labels):
            raise ValueError(f"NUL in series {name!r} {labels!r}")
        cell = self._cells.get(text)
        if cell is None:
            self._read_new()
            cell = self._cells.get(text)
        return self._append(text) if cell is None else cell

    def entries(self, first: int, end: int) -> list[tuple[int, str, Labels]]:
        """(cell, name, labels) of the finished entries from `first` up to `end` (not included)."""
        return [(cell, *_parsed(text)) for cell, text in self._entries(first, min(end, self.used + 1))]

    def values(self) -> Iterator[tuple[str, Labels, int]]:
        """Every series with the sum of its cells."""
        sums: dict[str, int] = {}
        for cell, text in self._entries(1):
            sums[text] = (sums.get(text, 0) + self._table.cell_get(cell)) & (2**64 - 1)
        for text, value in sums.items():
            yield *_parsed(text), value

    @property
    def used(self) -> int:
        """Cells taken, without the overflow cell."""
        return min(self._table.word_get(Word.SERIES_USED), self._geometry.series - 1)

    def _append(self, text: str) -> int:
        data = text.encode()
        table = self._table
        if self.used == self._geometry.series - 1:
            return self._overflow(text)
        end = table.word_add(Word.SERIES_TEXT_BYTES, len(data))
        if end > self._geometry.text_bytes:
            table.word_add(Word.SERIES_TEXT_BYTES, -len(data))
            return self._overflow(text)
        cell = table.word_add(Word.SERIES_USED, 1)
        if cell >= self._geometry.series:
            return self._overflow(text)
        at = self._geometry.text_at + end - len(data)
        self._memory[at : at + len(data)] = data
        ENTRY.pack_into(
            self._memory, self._entry_at(cell), end - len(data), len(data), xxhash.xxh3_64_intdigest(data)
        )
        self._cells[text] = cell
        return cell

    def _overflow(self, text: str) -> int:
        self._table.word_add(Word.SERIES_OVERFLOWS, 1)
        self._cells[text] = OVERFLOW_CELL
        return OVERFLOW_CELL

    def _entry_at(self, cell: int) -> int:
        return self._geometry.series_at + SERIES_ENTRY_BYTES * cell

    def _entries(self, first: int, end: int | None = None) -> Iterator[tuple[int, str]]:
        """(cell, text) of the finished entries from `first` on, up to `end` (not included)."""
        for cell in range(first, self.used + 1 if end is None else end):
            offset, length, checksum = ENTRY.unpack_from(self._memory, self._entry_at(cell))
            if not length or offset + length > self._geometry.text_bytes:
                continue
            at = self._geometry.text_at + offset
            data = self._memory[at : at + length]
            if xxhash.xxh3_64_intdigest(data) == checksum:
                yield cell, data.decode()

    def _read_new(self) -> None:
        """Learn the entries of other processes, up to the first that is not finished."""
        for cell, text in self._entries(self._next):
            self._cells.setdefault(text, cell)
            if cell == self._next:
                self._next += 1


def _parsed(text: str) -> tuple[str, Labels]:
    name, *parts = text.split(SEPARATOR)
    return name, tuple(zip(parts[::2], parts[1::2], strict=True))
