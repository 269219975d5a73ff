"""The active bundle in shared memory: one object for each generation, read by every worker.

An object is a file in the instance's directory, written once, in full, before the generation word of the segment moves
to it, and never changed. It holds the bundle in the parts that are compiled one by one, so that no worker parses a
large document in one go, and the bytes as they were offered. Its name ends in its generation. A worker that finds the
object gone looks at the generation word again: it has moved on.

    HEADER       fixed fields, the last one the checksum of fields, about and index
    about        JSON: what is known of the bundle without reading it (`About`)
    index        for each policy, then each kill switch: offset, length, digest
    head         JSON: the bundle without policies and kill switches
    parts        JSON of each
    original     the bytes as they were offered, deflated

The digest of a part (xxh3, 128 bits) checks it when it is read and says whether it is the one of another generation.
This module packs and checks bytes; what they mean is not known here.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson
import xxhash

from fairvisor.counters.segment import boot_id
from fairvisor.errors import SegmentError
from fairvisor.memory import InstanceMemory
from fairvisor.processes import is_alive

FORMAT: Final = 1  # raise with any change to what stands in an object
MAGIC: Final = b"fvPolicy"
HEADER: Final = struct.Struct("<8sQ16s9Q")
ENTRY: Final = struct.Struct("<QQ16s")
_BUNDLE: Final = "bundle"
_OFFER: Final = "offer"
_FAST: Final = 1


class About(NamedTuple):
    """What is known of a bundle without reading it. `sha256` is that of the payload, times are wall-clock ns."""

    version: float
    sha256: str
    policies: int
    shadow_policies: int
    kill_switches: int
    throttles: bool
    issued_at_ns: int | None
    expires_at_ns: int | None
    published_ns: int
    source: str
    warnings: tuple[str, ...]


class Part(NamedTuple):
    """Where a part stands in its object, and its digest."""

    at: int
    length: int
    digest: bytes


class Contents(NamedTuple):
    """What goes into an object."""

    about: About
    head: bytes
    policies: Sequence[bytes]
    kill_switches: Sequence[bytes]
    original: bytes


def object_name(generation: int) -> str:
    """The name of a generation's object."""
    return f"{_BUNDLE}-{generation}"


def offer_name(process: int, number: int) -> str:
    """The name of an object that `process` (an identity) makes, until it is accepted."""
    return f"{_OFFER}-{process}-{number}"


def accept(directory: InstanceMemory, offer: str, generation: int) -> None:
    """Make a finished object that of a generation; one that a killed publisher left under its name is replaced."""
    directory.rename(offer, object_name(generation))


def write(directory: InstanceMemory, name: str, generation: int, contents: Contents) -> None:
    """Make the object. Raises SegmentError when there is no room for it."""
    pieces = _pack(generation, contents)
    try:
        directory.write(name, *pieces)
    except OSError as error:
        size = sum(map(len, pieces))
        raise SegmentError(
            f"the bundle needs {size:,} bytes in {directory.path}, which cannot be written: {error.strerror}"
        ) from error


def _pack(generation: int, contents: Contents) -> list[bytes]:
    about = orjson.dumps(contents.about._asdict())
    parts = [*contents.policies, *contents.kill_switches]
    original = zlib.compress(contents.original, _FAST)
    at = HEADER.size + len(about) + ENTRY.size * len(parts) + len(contents.head)
    entries = []
    for part in parts:
        entries.append(ENTRY.pack(at, len(part), xxhash.xxh3_128_digest(part)))
        at += len(part)
    index = b"".join(entries)
    fields = (MAGIC, FORMAT, boot_id(), generation, len(contents.policies), len(contents.kill_switches),
              len(about), len(contents.head), at, len(original), xxhash.xxh3_64_intdigest(contents.head))  # fmt: skip
    header = HEADER.pack(*fields, _checksum(HEADER.pack(*fields, 0), about, index))
    return [header, about, index, contents.head, b"".join(parts), original]


def _checksum(*pieces: bytes | memoryview) -> int:
    state = xxhash.xxh3_64()
    for piece in pieces:
        state.update(piece)
    return state.intdigest()


class SharedBundle:
    """An object that was opened and checked. Its memory stays mapped until `close`, also when its name is gone."""

    def __init__(self, directory: InstanceMemory, name: str, memory: mmap.mmap) -> None:
        self.name = name
        self._directory = directory
        self._memory = memory
        self._view = memoryview(memory)
        *fields, checksum = HEADER.unpack_from(memory)
        magic, version, boot, self.generation, self._policies, self._switches = fields[:6]
        if magic != MAGIC or version != FORMAT:
            raise SegmentError(f"{name} is not a bundle that this version reads")
        if boot != boot_id():
            raise SegmentError(f"{name} is from before the last boot of this machine")
        about_bytes, self._head_bytes, self._original_at, self._original_bytes, self._head_sum = fields[6:]
        self._index_at = HEADER.size + about_bytes
        self._head_at = self._index_at + ENTRY.size * (self._policies + self._switches)
        if self._original_at + self._original_bytes != len(memory) or self._head_at > len(memory):
            raise SegmentError(f"{name} is cut short")
        about = self._view[HEADER.size : self._index_at]
        index = self._view[self._index_at : self._head_at]
        if checksum != _checksum(HEADER.pack(*fields, 0), about, index):
            raise SegmentError(f"{name} is damaged")
        self.about = about_of(orjson.loads(about))

    @classmethod
    def open(cls, directory: InstanceMemory, generation: int) -> SharedBundle:
        """Map and check the object. FileNotFoundError: there is none. SegmentError: not ours, or not readable."""
        name = object_name(generation)
        try:
            fd = directory.open(name)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SegmentError(f"{directory.path / name} cannot be opened: {error.strerror}") from error
        try:
            if os.fstat(fd).st_size < HEADER.size:
                raise SegmentError(f"{name} is cut short")
            memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        return cls(directory, name, memory)

    def head(self) -> bytes:
        """The bundle without policies and kill switches, as JSON."""
        data = bytes(self._view[self._head_at : self._head_at + self._head_bytes])
        if xxhash.xxh3_64_intdigest(data) != self._head_sum:
            raise SegmentError(f"{self.name} is damaged")
        return data

    def policies(self) -> Iterator[Part]:
        """Where each policy stands, in the order of the bundle."""
        return self._parts(0, self._policies)

    def kill_switches(self) -> Iterator[Part]:
        """Where each kill switch stands, in the order of the bundle."""
        return self._parts(self._policies, self._switches)

    def read(self, part: Part) -> bytes:
        """The JSON of a part. Raises SegmentError when it is not what the index says."""
        data = bytes(self._view[part.at : part.at + part.length])
        if xxhash.xxh3_128_digest(data) != part.digest:
            raise SegmentError(f"{self.name} is damaged")
        return data

    def original(self) -> bytes:
        """The bytes as they were offered, with the signature line if there was one."""
        try:
            return zlib.decompress(self._view[self._original_at :])
        except zlib.error as error:
            raise SegmentError(f"{self.name} is damaged: {error}") from None

    def exists(self) -> bool:
        """Whether the object still has its name."""
        return self._directory.exists(self.name)

    def put_back(self) -> None:
        """Give the object its name again, after somebody removed it."""
        self._directory.write(self.name, self._view)

    def close(self) -> None:
        """Unmap the object."""
        self._view.release()
        self._memory.close()

    def _parts(self, first: int, count: int) -> Iterator[Part]:
        for index in range(first, first + count):
            yield Part(*ENTRY.unpack_from(self._memory, self._index_at + ENTRY.size * index))


def about_of(fields: dict[str, Any]) -> About:
    return About(**{**fields, "warnings": tuple(fields["warnings"])})


def unlink_all_but(directory: InstanceMemory, generation: int) -> None:
    """Remove other generations, and offers of processes that died. Workers that read one keep its memory."""
    for name in directory.names():
        kind, _, rest = name.partition("-")
        number = rest.partition("-")[0]
        if (kind == _BUNDLE and name != object_name(generation)) or (
            kind == _OFFER and not is_alive(int(number))
        ):
            directory.remove(name)
