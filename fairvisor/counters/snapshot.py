"""A segment as a file: what it counted, to be found again after a reboot or in a new container.

A snapshot holds the live records, the cells of gauges, the words that are no process's business, the hash seed and the
reservation key: a new segment that is made with seed and key of the old one finds every counter under its old name.
What only ever rises in /metrics is left out: a snapshot is older than the last scrape, and a number that went back
looks like a reset with everything counted anew (Prometheus, `rate`). Such a number begins at 0 with the segment.
Records are dated by the monotonic clock, which begins anew at each boot, so a snapshot says when it was taken on both
clocks, and records are shifted by what the wall clock says has passed. A snapshot is believed whole or not at all.

    HEADER        fixed fields; the last is the checksum of the others and the name
    name          of the segment
    blocks        each BLOCK (kind, length, checksum) and its bytes: words, series, records ..., end

This module knows bytes and regions. It opens no file: `take` gives pieces to write, `read` gets the whole.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from typing import Final, NamedTuple

import orjson
import xxhash

from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.layout import LAYOUT_VERSION, Word
from fairvisor.counters.segment import Segment, boot_id
from fairvisor.errors import SegmentError

MAGIC: Final = b"fvSnap\r\n"
FORMAT: Final = 1  # raise with any change to what stands in a snapshot
HEADER: Final = struct.Struct("<8sQQ16sQQQ32sHQ")
BLOCK: Final = struct.Struct("<IQQ")
WORDS_BLOCK, SERIES_BLOCK, RECORDS_BLOCK, END_BLOCK = range(4)

SLICE_SLOTS: Final = 1 << 13  # 256 KiB of slots: some 50 microseconds
SLICE_SERIES: Final = 64
MAX_AGE_NS: Final = 100 * 86_400 * NS_PER_S  # no record lives longer; a shift stays below the clock's wrap

# Words that belong to processes of the moment, that series and reservations make themselves, or that only ever rise.
_OWN_WORDS: Final = frozenset(
    {
        Word.SERIES_USED,
        Word.SERIES_TEXT_BYTES,
        Word.SERIES_OVERFLOWS,
        Word.EVICTIONS,
        Word.CLAIM_EVICTIONS,
        Word.FULL,
        Word.BUNDLE_GENERATION,
        Word.DURABLE_GENERATION,
        Word.LEADER_PID,
        Word.LEADER_START,
        Word.LEADER_LEASE_NS,
        Word.MASTER_PID,
        Word.MASTER_START,
        Word.FILE_OFFERED,
        Word.FILE_APPLIED,
    }
)


class Snapshot(NamedTuple):
    """A snapshot that was read and checked in full."""

    name: str
    boot: bytes
    taken: Now
    seed: int
    reservation_key: bytes
    words: dict[int, int]
    series: list[tuple[str, tuple[tuple[str, str], ...], int]]
    records: list[memoryview]

    def restore(self, segment: Segment, now: Now) -> tuple[int, int]:
        """Put everything into a new segment that was made with this seed and key: (records kept, dropped)."""
        for index, value in self.words.items():
            segment.table.word_set(index, value)
        for name, labels, value in self.series:
            segment.table.cell_add(segment.series(name, labels), value)
        if now.wall_ns - self.taken.wall_ns > MAX_AGE_NS:
            return 0, 0
        kept = dropped = 0
        for records in self.records:
            more, fewer = segment.table.merge(records, self.shift_ns(now), now.mono_ns)
            kept, dropped = kept + more, dropped + fewer
        return kept, dropped

    def shift_ns(self, now: Now) -> int:
        """How much later the records are dated on the monotonic clock of now.

        Within one boot that clock went on, whatever was done to the wall clock. After a reboot the wall clock tells how
        much time passed; one that was set back counts as none.
        """
        if self.boot == boot_id() and self.taken.mono_ns <= now.mono_ns:
            return 0
        passed_ns = max(0, now.wall_ns - self.taken.wall_ns)
        return now.mono_ns - self.taken.mono_ns - passed_ns


def take(segment: Segment, now: Now, gauges: Container[str]) -> Iterator[bytes]:
    """Give the bytes of a snapshot, in pieces that each take some 50 microseconds to make.

    `gauges` names the series that are kept: those whose numbers may fall.
    """
    name = segment.name.encode()
    fields = (MAGIC, FORMAT, LAYOUT_VERSION, boot_id(), now.mono_ns, now.wall_ns, segment.table.seed,
              segment.reservation_key, len(name))  # fmt: skip
    checksum = xxhash.xxh3_64_intdigest(HEADER.pack(*fields, 0) + name)
    yield HEADER.pack(*fields, checksum) + name
    table = segment.table
    words = {index: table.word_get(index) for index in range(Word.WORKER) if index not in _OWN_WORDS}
    yield _block(WORDS_BLOCK, orjson.dumps({str(index): value for index, value in words.items() if value}))
    for first in range(1, segment.series_used + 1, SLICE_SERIES):
        some = [
            (series, labels, table.cell_get(cell))
            for cell, series, labels in segment.series_entries(first, first + SLICE_SERIES)
            if series in gauges
        ]
        yield _block(SERIES_BLOCK, orjson.dumps(some))
    for start in range(0, table.slots, SLICE_SLOTS):
        records = table.dump(start, SLICE_SLOTS, now.mono_ns)
        if records:
            yield _block(RECORDS_BLOCK, records)
    yield _block(END_BLOCK, b"")


def _block(kind: int, data: bytes) -> bytes:
    return BLOCK.pack(kind, len(data), xxhash.xxh3_64_intdigest(data)) + data


def read(data: bytes, name: str) -> Snapshot:
    """A snapshot of the segment `name`. SegmentError: damaged, cut short, or not one of this instance and layout."""
    if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise SegmentError("it is not a snapshot")
    *fields, checksum = HEADER.unpack_from(data)
    _, version, layout, boot, mono_ns, wall_ns, seed, key, name_bytes = fields
    if version != FORMAT or layout != LAYOUT_VERSION:
        raise SegmentError(f"it has format {version}.{layout}, this version uses {FORMAT}.{LAYOUT_VERSION}")
    own_name = data[HEADER.size : HEADER.size + name_bytes]
    if checksum != xxhash.xxh3_64_intdigest(HEADER.pack(*fields, 0) + own_name):
        raise SegmentError("its header is damaged")
    if own_name.decode() != name:
        raise SegmentError(f"it is a snapshot of {own_name.decode()}, not of {name}")
    found = Snapshot(name, boot, Now(mono_ns, wall_ns), seed, key, {}, [], [])
    for kind, block in _blocks(memoryview(data)[HEADER.size + name_bytes :]):
        if kind == WORDS_BLOCK:
            found.words.update((int(index), value) for index, value in orjson.loads(block).items())
        elif kind == SERIES_BLOCK:
            found.series.extend(
                (series, tuple((label, value) for label, value in labels), count)
                for series, labels, count in orjson.loads(block)
            )
        else:
            found.records.append(block)
    return found


def _blocks(rest: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Every block up to the end. SegmentError when one is damaged or the end is missing."""
    while len(rest) >= BLOCK.size:
        kind, length, checksum = BLOCK.unpack_from(rest)
        block = rest[BLOCK.size : BLOCK.size + length]
        if len(block) < length or xxhash.xxh3_64_intdigest(block) != checksum:
            raise SegmentError("it is damaged or cut short")
        if kind == END_BLOCK:
            return
        yield kind, block
        rest = rest[BLOCK.size + length :]
    raise SegmentError("it is cut short")
