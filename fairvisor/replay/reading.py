"""Files to requests: plain or gzip, the format found out from the first lines, and what cannot be read, counted.

A line that cannot be read is never the end: it is counted, and the first few are kept with their numbers and what is
the matter with them. How far the reading has come is told in bytes of the file, for a progress bar.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import orjson

from fairvisor.errors import FairvisorError, RequestError
from fairvisor.replay.documents import Document, DocumentFormat, archived
from fairvisor.replay.fields import Logged, Maker
from fairvisor.replay.formats import FORMATS, LineFormat

if TYPE_CHECKING:
    from io import BufferedReader

KEPT_COMPLAINTS: Final = 5
_LOOKED_AT: Final = 50  # lines from which the format is found out
_BATCH_BYTES: Final = 1 << 18
_SHOWN_BYTES: Final = 100
_HAR_START_BYTES: Final = 4096  # within which an archive says that it is one
_GZIP: Final = b"\x1f\x8b"


class LogError(FairvisorError):
    """A log that cannot be read at all."""


class Complaint(NamedTuple):
    """A line that could not be read. Numbers start at 1; in a HAR file entries are numbered."""

    line: int
    reason: str
    text: str


class Format(Protocol):
    """What the reading needs of a format."""

    def read(self, line: bytes, /) -> Logged: ...


class RequestLog:
    """The requests of one log file; `-` is standard input.

    `log_format` is "" to find it out, "json", "har", a name of FORMATS, or a format string of nginx or Envoy; `mapping`
    gives fields a meaning (`{"x_key": "header:x-api-key"}`). A context manager: inside, the file is open. Raises
    LogError there and from the iteration.
    """

    def __init__(self, name: str, log_format: str, mapping: Mapping[str, str], maker: Maker) -> None:
        self.name = name
        self.format = log_format
        self.unreadable = 0
        self.complaints: list[Complaint] = []
        self.cut_short = ""
        self.size_bytes = 0  # of the file; 0 when that is not known
        self._mapping = mapping
        self._maker = maker
        self._raw: BufferedReader
        self._stream: BufferedReader | gzip.GzipFile

    def __enter__(self) -> RequestLog:
        try:
            self._raw = os.fdopen(os.dup(0), "rb") if self.name == "-" else Path(self.name).open("rb")
            status = os.fstat(self._raw.fileno())
            packed = self._raw.peek(2)[:2] == _GZIP
        except OSError as error:
            raise LogError(f"cannot read {self.name}: {error.strerror}") from None
        self.size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else 0
        self._stream = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
        return self

    def __exit__(self, *unused: object) -> None:
        self._raw.close()

    def position_bytes(self) -> int:
        """How much of the file has been read; 0 where that cannot be said."""
        return self._raw.tell() if self.size_bytes else 0

    def requests(self) -> Iterator[Logged]:
        """Every request that can be read, in the order of the file."""
        lines = self._lines()
        first = [line for _, line in zip(range(_LOOKED_AT), lines, strict=False)]
        every = chain(first, lines)
        if self.format == "har" or (not self.format and _looks_like_har(first)):
            self.format = "har"
            yield from self._archived(b"".join(every))
        else:
            yield from self._read(every, self._line_format(first).read)

    def _lines(self) -> Iterator[bytes]:
        """The lines without their ends; what a damaged file gives before its damage counts."""
        begun: list[bytes] = []  # pieces of a line whose end has not come
        while True:
            try:
                data = self._stream.read1(_BATCH_BYTES)
            except (EOFError, OSError, zlib.error) as error:
                self.cut_short = str(error)
                data = b""
            if not data:
                break
            first, *lines = data.split(b"\n")
            begun.append(first)
            if lines:
                yield b"".join(begun)
                begun = [lines.pop()]
                yield from lines
        if last := b"".join(begun):
            yield last

    def _read(self, lines: Iterator[bytes], read: Callable[[bytes], Logged]) -> Iterator[Logged]:
        for number, line in enumerate(lines, 1):
            try:
                yield read(line)
            except (ValueError, RequestError) as error:
                if line.strip():
                    self._complain(number, str(error), line)

    def _archived(self, data: bytes) -> Iterator[Logged]:
        try:
            entries = archived(orjson.loads(data))
        except ValueError as error:
            raise LogError(f"{self.name} is not a HAR file: {error}") from None
        logged = DocumentFormat(self._mapping, self._maker).logged
        for number, entry in enumerate(entries, 1):
            try:
                yield logged(entry)
            except (ValueError, RequestError) as error:
                self._complain(number, str(error), _shown_entry(entry))

    def _complain(self, number: int, reason: str, line: bytes) -> None:
        self.unreadable += 1
        if len(self.complaints) < KEPT_COMPLAINTS:
            text = line[:_SHOWN_BYTES].decode("utf-8", "backslashreplace").strip()
            self.complaints.append(Complaint(number, reason, text))

    def _line_format(self, first: list[bytes]) -> Format:
        """The format that was named, else the one that most of the first lines have."""
        if self.format == "json":
            return DocumentFormat(self._mapping, self._maker)
        if self.format in FORMATS:
            return self._named(FORMATS[self.format], open_end=True)
        if self.format:
            return self._named(self.format, open_end=False)
        if any(map(_is_document, first)):
            self.format = "json"
            return DocumentFormat(self._mapping, self._maker)
        return self._found(first)

    def _named(self, format_string: str, *, open_end: bool) -> LineFormat:
        try:
            return LineFormat(format_string, self._mapping, self._maker, open_end=open_end)
        except ValueError as error:
            raise LogError(f"the log format {format_string!r} cannot be used: {error}") from None

    def _found(self, first: list[bytes]) -> LineFormat:
        """Raises LogError: none of the known formats."""
        if not any(line.strip() for line in first):
            raise LogError(f"{self.name} is empty" + (f" ({self.cut_short})" if self.cut_short else ""))
        plain = Maker(self._maker.client_ip_header, self._maker.default_host)
        fitting = {
            name: sum(_fits(LineFormat(text, {}, plain, open_end=True), line) for line in first)
            for name, text in FORMATS.items()
        }
        self.format = max(fitting, key=fitting.__getitem__)
        if not fitting[self.format]:
            shown = next(line for line in first if line.strip())[:_SHOWN_BYTES].decode(
                "utf-8", "backslashreplace"
            )
            raise LogError(
                f"cannot tell the format of {self.name}, which starts with {shown.strip()!r}: give --log-format, "
                f"one of {', '.join(FORMATS)}, json, har, or the server's own format string"
            )
        return self._named(FORMATS[self.format], open_end=True)


def _fits(line_format: LineFormat, line: bytes) -> bool:
    try:
        line_format.read(line)
    except (ValueError, RequestError):
        return False
    return True


def _document(data: bytes) -> Document | None:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _is_document(line: bytes) -> bool:
    return bool(_document(line))


def _looks_like_har(first: list[bytes]) -> bool:
    """Whether the first line is a whole archive, or begins one that goes on over many lines."""
    lines = [line for line in first if line.strip()]
    if not lines or not lines[0].lstrip().startswith(b"{"):
        return False
    document = _document(lines[0])
    if document is None:
        return b'"log"' in b"".join(lines)[:_HAR_START_BYTES]
    return isinstance(document.get("log"), dict) and "entries" in document["log"]


def _shown_entry(entry: Document) -> bytes:
    return f"{entry.get('method', '')} {entry.get('url', '')}".encode("utf-8", "replace")
