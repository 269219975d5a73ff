"""Where everything stands in a segment: its regions, its header, the names of its words.

One header page, then words, series (index, cells, text) and slots. The header says which layout was used and is only
believed when its checksum holds; its magic is written last, so that a half-made segment has none. This module
computes and packs; it opens nothing and knows nothing of what is counted.

    offset 0      magic, 8 bytes          written last
           8      the fields of HEADER    layout version, geometry, seed, boot id, reservation key
           ...    checksum, 8 bytes       xxh3 of the fields
    4096          words                   WORDS of 8 bytes: named words, then one line of 8 per worker
    37888         series index            16 bytes each: offset and length of the text, its checksum
                  series cells            8 bytes each
                  series text             name and labels
                  slates                  SLATE_BYTES for each of the first workers, see `slates.py`
                  slots                   to the end, see `_table.c`
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

import xxhash

from fairvisor.counters._table import (
    GROUP,
    SLOT_BYTES,
    WORD_CLAIM_EVICTIONS,
    WORD_CLAIM_STAMP,
    WORD_EVICTIONS,
    WORD_FULL,
    WORD_NONCE,
)
from fairvisor.errors import SegmentError

# Raise with any change to this file's regions, to the slots of `_slots.h`, or to a word that is in use. A new word in a
# place that was free, and so 0, needs no new version.
LAYOUT_VERSION: Final = 3
MAGIC: Final = b"fvEdge\r\n"

PAGE_BYTES: Final = 4096
MIN_BYTES: Final = 64 * 1024
MAX_BYTES: Final = 1 << 40
WORKERS: Final = 512
WORDS: Final = 128 + 8 * WORKERS
SERIES_ENTRY_BYTES: Final = 16
SERIES_BYTES: Final = 128  # of one series: 16 index, 8 cell, 104 text on average
SERIES_SHARE: Final = 8  # one eighth of the segment is for series: those of 10,000 rules in use fit 48 MiB
SLATE_BYTES: Final = 16 * 1024
SLATES_SHARE: Final = 64  # one sixty-fourth of it is for slates: 48 workers have one in the default 48 MiB


class Word(enum.IntEnum):
    """Index of each named word. Words that are written often have a cache line (8 words) of their own."""

    NONCE = WORD_NONCE
    EVICTIONS = WORD_EVICTIONS
    FULL = WORD_FULL
    SERIES_USED = 10
    SERIES_TEXT_BYTES = 11
    SERIES_OVERFLOWS = 12
    CLAIM_EVICTIONS = WORD_CLAIM_EVICTIONS
    CLAIM_STAMP = WORD_CLAIM_STAMP
    BUNDLE_GENERATION = 16  # the active bundle, 0: none yet
    DURABLE_GENERATION = 17  # the one whose copy stands in the state directory
    KEYS_GENERATION = 19  # moves when a key set of an identity provider was fetched
    KEYS_WANTED_NS = 20  # when a token last named a key that is not known (wall clock)
    LEADER_PID = 24
    LEADER_START = 25
    LEADER_LEASE_NS = 26
    MASTER_PID = 32
    MASTER_START = 33
    SNAPSHOT_WALL_NS = 40
    DEBUG_EPOCH = 48  # debug sessions of an earlier one are over
    DEBUG_GUESSES = 49  # wrong debug secrets: the second (wall clock), and how many in it, in the low 16 bits
    FILE_OFFERED = 50  # digest of the bundle file that was last offered
    FILE_APPLIED = 51  # of the one that last came into force
    SPARE = 56  # 56 .. 127: for what is to come
    WORKER = 128  # the registry: WORKERS entries of 8 words


class WorkerWord(enum.IntEnum):
    """Words of one entry of the worker registry; PROCESS 0 is a free entry, claimed with `word_cas`."""

    PROCESS = 0  # see `processes.identity`: which process, told apart from others with the same pid
    GENERATION = 1  # the bundle generation that the worker has switched to
    HEARTBEAT_NS = 2
    CONNECTIONS = 3
    WAITING = 4  # answers that a throttle holds


def worker_word(entry: int, word: WorkerWord) -> int:
    """The index of a word of worker entry 0 .. WORKERS-1."""
    return Word.WORKER + 8 * entry + word


class Geometry(NamedTuple):
    """Byte offsets (`_at`) and numbers of items of one segment."""

    size_bytes: int
    words_at: int
    words: int
    series_at: int
    series: int
    cells_at: int
    text_at: int
    text_bytes: int
    slates_at: int
    slates: int
    slots_at: int
    slots: int


class Header(NamedTuple):
    """What a segment says about itself. `boot_id` and `reservation_key` are 16 and 32 bytes."""

    geometry: Geometry
    seed: int
    boot_id: bytes
    reservation_key: bytes


FIELDS: Final = struct.Struct("<Q12QQ16s32s")
CHECKSUM: Final = struct.Struct("<Q")


def plan(size_bytes: int) -> Geometry:
    """The geometry of a segment of `size_bytes`, rounded down to whole pages."""
    size_bytes -= size_bytes % PAGE_BYTES
    if not MIN_BYTES <= size_bytes <= MAX_BYTES:
        raise SegmentError(
            f"FAIRVISOR_SHARED_DICT_SIZE: {size_bytes} bytes; allowed are {MIN_BYTES} (64k) to {MAX_BYTES} (1024g)"
        )
    series = max(64, size_bytes // SERIES_SHARE // SERIES_BYTES // 64 * 64)
    words_at = PAGE_BYTES
    series_at = words_at + 8 * WORDS
    cells_at = series_at + SERIES_ENTRY_BYTES * series
    text_at = cells_at + 8 * series
    text_bytes = (SERIES_BYTES - SERIES_ENTRY_BYTES - 8) * series
    slates_at = round_up(text_at + text_bytes, 8)
    slates = min(WORKERS, size_bytes // SLATES_SHARE // SLATE_BYTES)
    slots_at = round_up(slates_at + SLATE_BYTES * slates, GROUP * SLOT_BYTES)
    slots = (size_bytes - slots_at) // SLOT_BYTES // GROUP * GROUP
    return Geometry(
        size_bytes,
        words_at,
        WORDS,
        series_at,
        series,
        cells_at,
        text_at,
        text_bytes,
        slates_at,
        slates,
        slots_at,
        slots,
    )


def round_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def pack(header: Header) -> bytes:
    """The header without its magic, to be written at len(MAGIC)."""
    fields = FIELDS.pack(
        LAYOUT_VERSION, *header.geometry, header.seed, header.boot_id, header.reservation_key
    )
    return fields + CHECKSUM.pack(xxhash.xxh3_64_intdigest(fields))


def unpack(page: bytes) -> Header:
    """Read a header; SegmentError says why it is not one of this layout."""
    if page[: len(MAGIC)] != MAGIC:
        raise SegmentError("it is no Fairvisor segment, or was never finished")
    fields = page[len(MAGIC) : len(MAGIC) + FIELDS.size]
    checksum = page[len(MAGIC) + FIELDS.size :][: CHECKSUM.size]
    if len(checksum) < CHECKSUM.size:
        raise SegmentError("its header is cut short")
    values = FIELDS.unpack(fields)
    if values[0] != LAYOUT_VERSION:
        raise SegmentError(f"it has layout {values[0]}, this version uses {LAYOUT_VERSION}")
    if CHECKSUM.unpack(checksum)[0] != xxhash.xxh3_64_intdigest(fields):
        raise SegmentError("its header is damaged")
    return Header(Geometry(*values[1:13]), *values[13:])
