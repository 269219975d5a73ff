"""Key sets as they were fetched last: one record for each URL, kept where every process of an instance finds it.

A record says what a provider published, when, and how the last try to fetch it went. It holds the bytes as they came,
so that what is made of them depends on the settings of whoever reads it. `KeySets` keeps records in the memory of one
process; `SharedKeySets` in `key_sets.py` is for an instance. This module knows no keys and does no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final, NamedTuple

import orjson

from fairvisor.clock import Now

_FORMAT: Final = 1


class StoredSet(NamedTuple):
    """What is known of one URL. Times are nanoseconds of the wall clock: a record outlives a reboot."""

    document: bytes | None = None  # the last usable set; None: there never was one
    etag: str | None = None  # of the document
    fetched_ns: int = 0  # when the document was last known to be what the provider publishes
    tried_ns: int = 0
    due_ns: int = 0  # when to try again
    failures: int = 0  # in a row
    failure: str = ""  # why the last try failed; "" when it did not

    def pack(self) -> bytes:
        """Return the record as bytes that `unpack` reads: a digest, what is known, the document."""
        fields = {**self._asdict(), "format": _FORMAT, "document": self.document is not None}
        rest = orjson.dumps(fields) + b"\n" + (self.document or b"")
        return hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest

    @classmethod
    def unpack(cls, data: bytes) -> StoredSet:
        """Read a record. ValueError: it is damaged, or of another version."""
        digest, _, rest = data.partition(b"\n")
        if digest != hashlib.sha256(rest).hexdigest().encode():
            raise ValueError("it is damaged")
        head, _, document = rest.partition(b"\n")
        fields = orjson.loads(head)
        if fields.pop("format") != _FORMAT:
            raise ValueError("it is of another version")
        return cls(**{**fields, "document": document if fields["document"] else None})


def set_name(url: str) -> str:
    """Return the name of the record of a URL, which may hold a password and is not told by it."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


class KeySets:
    """Records by URL, in the memory of this process.

    Attributes:
        generation: changes with every record that is written.
        wanted_ns: when a token last named a key that is not known (wall clock); 0: never.

    """

    def __init__(self) -> None:
        self._records: dict[str, StoredSet] = {}
        self._generation = 0
        self._wanted_ns = 0

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def wanted_ns(self) -> int:
        return self._wanted_ns

    def want(self, now: Now) -> None:
        """Ask for newer sets: a token named a key that is not known."""
        self._wanted_ns = now.wall_ns

    def read(self, url: str) -> StoredSet | None:
        """Return the record of a URL; None when there is none."""
        return self._records.get(set_name(url))

    def write(self, url: str, record: StoredSet) -> None:
        """Replace the record of a URL."""
        self._records[set_name(url)] = record
        self._generation += 1

    def keep_again(self) -> None:
        """Try once more to keep what could not be kept; this process keeps everything."""

    def remove_unused(self, urls: Collection[str], now: Now) -> None:
        """Remove the records of URLs that nothing has named for a day; this process holds none."""

    def warnings(self) -> tuple[str, ...]:
        """Say why records cannot be kept, if they cannot."""
        return ()
