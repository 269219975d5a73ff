"""Files to requests: the records of a file, their format found out, and what cannot be read, counted.

A record that cannot be read is never the end: it is counted, and the first few are kept with their numbers and what is
the matter with them. A log of which nothing can be read is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Final, NamedTuple

import orjson

from fairvisor.errors import RequestError
from fairvisor.replay.detection import KNOWN, Inside, find
from fairvisor.replay.elements import Elements
from fairvisor.replay.fields import Logged, Maker
from fairvisor.replay.files import LogError, LogFile

HAR: Final = "har"
NAMES: Final = (*KNOWN, HAR)
KEPT_COMPLAINTS: Final = 5
_LOOKED_AT: Final = 1000  # records from which the format is found out
_LOOKED_AT_BYTES: Final = 64 << 20  # of them; the record that goes beyond is the last one
_START_BYTES: Final = 4096  # from which it is found out what a record is
_SHOWN_BYTES: Final = 100

_ARRAY: Final = re.compile(rb'\s*\[\s*(?:[{"\]]|\Z)')
_ARCHIVE: Final = re.compile(rb'\s*\{\s*"log"\s*:\s*\{')
_SPREAD: Final = re.compile(rb"\s*\{\s*\n")  # a document over many lines


class Complaint(NamedTuple):
    """A record that could not be read. Numbers start at 1; of JSON arrays and HAR files the elements are numbered."""

    line: int
    reason: str
    text: str


class RequestLog:
    """The requests of one log file; `-` is standard input.

    `log_format` is "" to find it out, one of NAMES, or a server's format string; `mapping` gives fields a meaning
    (`{"x_key": "header:x-api-key"}`). A context manager: inside, the file is open. Raises LogError there and from the
    iteration.
    """

    def __init__(self, name: str, log_format: str, mapping: Mapping[str, str], maker: Maker) -> None:
        self.name = name
        self.format = log_format
        self.unreadable = 0
        self.complaints: list[Complaint] = []
        self._mapping = mapping
        self._maker = maker
        self._file = LogFile(name)

    def __enter__(self) -> RequestLog:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    @property
    def size_bytes(self) -> int:
        """How large the file is; 0 when that is not known."""
        return self._file.size_bytes

    @property
    def cut_short(self) -> str:
        """Why the file ends before its end, "" when it does not."""
        return self._file.cut_short

    def position_bytes(self) -> int:
        """Return how much of the file has been read; 0 where that cannot be said."""
        return self._file.position_bytes()

    def requests(self) -> Iterator[Logged]:
        """Yield every request that can be read, in the order of the file."""
        records = self._records()
        first = list(_beginning(records))
        reader = self._reader(first)
        yield from self._read(chain(first, records), reader)

    # records

    def _records(self) -> Iterator[bytes]:
        """Yield the lines, or where the file is one piece of JSON, the elements that hold requests."""
        pieces = self._file.text()
        start = b""
        for piece in pieces:
            start += piece
            if len(start.lstrip()) >= _START_BYTES:
                break
        every = chain((start,), pieces)
        if self.format == HAR or (not self.format and _is_archive(start)):
            self.format = HAR
            return self._file.elements(every, Elements(3, "entries"))
        if _ARRAY.match(start):
            return self._file.elements(every, Elements(1))
        if _SPREAD.match(start):
            return self._file.elements(every, Elements(0))
        return self._file.lines(every)

    def _reader(self, first: list[bytes]) -> Inside:
        """Return the reader of the format. Raises LogError: it is not known, or cannot be used."""
        begin = next((record for record in first if record.strip()), None)
        if begin is None:
            raise LogError(f"{self.name} holds no request: it is empty{self._ending()}")
        archive = self.format == HAR
        try:
            found = find(first, "json" if archive else self.format, self._mapping, self._maker)
        except ValueError as error:
            raise LogError(f"the log format {self.format!r} cannot be used: {error}") from None
        if found is None:
            raise LogError(
                f'cannot tell the format of {self.name}, which starts with "{_shown(begin)}": give --log-format, '
                f"one of {', '.join(NAMES)}, or the server's own format string"
            )
        if not archive:
            self.format = found[0]
        return found[1]

    def _read(self, records: Iterator[bytes], reader: Inside) -> Iterator[Logged]:
        read = reader.read
        number = without = 0
        for number, record in enumerate(records, 1):
            try:
                logged = read(record)
            except (ValueError, RequestError) as error:
                without += 1
                if record.strip():
                    self._complain(number, str(error), record)
                continue
            if logged is None:
                without += 1
            else:
                yield logged
        for begun in reader.unfinished():
            self._complain(number, "its last part is missing", begun)
        if without == number:
            raise LogError(self._nothing())

    def _complain(self, number: int, reason: str, record: bytes) -> None:
        self.unreadable += 1
        if len(self.complaints) < KEPT_COMPLAINTS:
            self.complaints.append(Complaint(number, reason, _shown(record)))

    def _nothing(self) -> str:
        if not self.unreadable:
            return f"{self.name} ({self.format}) holds no request{self._ending()}"
        first = self.complaints[0]
        return (
            f"nothing of {self.name} ({self.format}) could be read{self._ending()}: {self.unreadable:,} "
            f"{'line' if self.unreadable == 1 else 'lines'}, line {first.line}: {first.reason}: {first.text}"
        )

    def _ending(self) -> str:
        return f" ({self.cut_short})" if self.cut_short else ""


def _beginning(records: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the records from which the format is found out."""
    size_bytes = 0
    for record in islice(records, _LOOKED_AT):
        yield record
        size_bytes += len(record)
        if size_bytes > _LOOKED_AT_BYTES:
            return


def _is_archive(start: bytes) -> bool:
    """Return whether this begins an HTTP Archive, and not a line that is a document with a `log` of another kind."""
    if not _ARCHIVE.match(start):
        return False
    line, ends, _ = start.lstrip().partition(b"\n")
    try:
        return not ends or "entries" in orjson.loads(line)["log"]
    except orjson.JSONDecodeError:
        return True


def _shown(record: bytes) -> str:
    return record[:_SHOWN_BYTES].decode("utf-8", "backslashreplace").strip()
