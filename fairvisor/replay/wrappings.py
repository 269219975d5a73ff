"""Lines inside lines: what syslog, container runtimes and collectors put around each line of a log.

A wrapping takes the line out, whatever its format is: that is found out and read as if the line had come alone.
Runtimes cut long lines into parts, which are put together again here, each stream (stdout, stderr) by itself. The time
that a wrapping has is when the line was collected, so it is not used: the line's own says when the request was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

import orjson

LONGEST_BYTES: Final = 1 << 20  # of a line that comes in parts
_CUT_BYTES: Final = 16 << 10  # where Docker cuts a line

_STAMP: Final = rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
_PRIORITY: Final = rb"<\d{1,3}>"
# RFC 5424 6: version, time, host, application, process, message id, structured data.
_RFC5424: Final = (
    rb"1 (?:-|%b) \S+ \S+ \S+ \S+ (?:-|(?:\[(?:[^\]\\\"]|\\.|\"(?:[^\"\\]|\\.)*\")*\])+)(?: (?:\xef\xbb\xbf)?|\Z)"
    % _STAMP
)
# RFC 3164 4.1 as syslog daemons write it to files: the host may be missing, the time may be ISO 8601.
_RFC3164: Final = (
    rb"(?:[A-Z][a-z]{2} [ \d]\d(?: \d{4})? \d\d:\d\d:\d\d(?:\.\d+)?|%b) (?:\S*[^\s:] )?[^\s:\[\]]+(?:\[\d*\])?:(?: |\Z)"
    % _STAMP
)
_SYSLOG: Final = re.compile(rb"(?:%b)?(?:%b|%b)|%b" % (_PRIORITY, _RFC5424, _RFC3164, _PRIORITY))
# The log format of the Kubernetes container runtime interface: time, stream, tags (F: full, P: partial).
_CRI: Final = re.compile(rb"%b (stdout|stderr) ([FP])(?::\S*)? (.*)" % _STAMP, re.DOTALL)
_STAMPED: Final = re.compile(rb"%b\s" % _STAMP)  # docker logs -t, kubectl logs --timestamps
_COMPOSE: Final = re.compile(rb"\S+ +\| ")  # docker compose logs
# Members that hold a line: Docker's json-file and Fluent Bit, Filebeat and Vector, journalctl -o json, Google Cloud.
_MEMBERS: Final = ("log", "message", "MESSAGE", "textPayload")


Take = Callable[
    [bytes], tuple[bytes, bytes, bool]
]  # of a line: its stream, the text inside, whether that ends it


class Wrapping:
    """Take lines out of one log's lines; what is kept of a line whose end has not come is in `unfinished`."""

    def __init__(self, name: str) -> None:
        self._take = WRAPPINGS[name]()
        self.unfinished: dict[bytes, bytes] = {}  # by stream

    def unwrapped(self, line: bytes) -> bytes | None:
        """Return the line inside; None when more of it is to come. Raises ValueError for a line that is not wrapped."""
        stream, text, ends = self._take(line)
        if self.unfinished or not ends:
            text = self.unfinished.pop(stream, b"") + text
            if len(text) > LONGEST_BYTES:
                raise ValueError(f"its parts are longer than {LONGEST_BYTES >> 20} MiB")
            if not ends:
                self.unfinished[stream] = text
                return None
        return text


def _after(prefix: re.Pattern[bytes]) -> Take:
    """Return what takes a prefix off."""

    def take(line: bytes) -> tuple[bytes, bytes, bool]:
        match = prefix.match(line)
        if match is None:
            raise ValueError("it does not begin as the log's lines do")
        return b"", line[match.end() :], True

    return take


def _from_runtime(line: bytes) -> tuple[bytes, bytes, bool]:
    match = _CRI.match(line)
    if match is None:
        raise ValueError("it does not begin with a time, a stream and a tag")
    return match[1], match[3].rstrip(b"\r"), match[2] == b"F"


class _Documents:
    """Take lines out of JSON: a text, or an object that holds one.

    Docker ends a line with a line feed and cuts it after 16 KiB, so that a part has none; Fluent Bit keeps the tag of
    the runtime. Collectors that take the line feeds off write no parts.
    """

    def __init__(self) -> None:
        self._line_feeds = False

    def take(self, line: bytes) -> tuple[bytes, bytes, bool]:
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from None
        if isinstance(document, str):
            return b"", document.encode(), True
        name = next((name for name in _MEMBERS if name in document), "") if isinstance(document, dict) else ""
        if not name:
            raise ValueError(f"it has no {', '.join(_MEMBERS)}")
        text = _text(document[name])
        if "logtag" in document:
            ends = document["logtag"] != "P"
        else:
            self._line_feeds = self._line_feeds or text.endswith(b"\n")
            ends = text.endswith(b"\n") or not (self._line_feeds or len(text) >= _CUT_BYTES)
        return str(document.get("stream")).encode(), text.rstrip(b"\r\n"), ends


def _text(value: object) -> bytes:
    """Return a text as bytes; journald writes one that is not UTF-8 as a list of them."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        try:
            return bytes(value)
        except (TypeError, ValueError):
            pass
    raise ValueError("what it holds is not a line of text")


WRAPPINGS: Final[Mapping[str, Callable[[], Take]]] = {
    "syslog": lambda: _after(_SYSLOG),
    "cri": lambda: _from_runtime,
    "json": lambda: _Documents().take,
    "timestamps": lambda: _after(_STAMPED),
    "compose": lambda: _after(_COMPOSE),
}
