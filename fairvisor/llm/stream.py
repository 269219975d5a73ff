"""The usage in a response that arrives in pieces: JSON, or server-sent events (WHATWG HTML 9.2).

The reader is fed the body as it comes, split anywhere, and knows at any time what the provider has counted so far:
the last usage that can be believed. OpenAI's, Gemini's and the Responses API's stand alone in a chunk or event;
Anthropic's come in two, which are laid over each other: the fields of `message_delta` are cumulative, so they are set,
never added. Whatever the bytes are, the reader neither raises nor keeps more than a bounded part of them.

It must not know what becomes of the body (it changes nothing), compression, or what usage is worth.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from fairvisor.llm.request import whole_number
from fairvisor.llm.scan import UsageScanner
from fairvisor.llm.usage import Usage, find_usage, usage_of

MAX_DOCUMENT_BYTES: Final = 262_144
"""A JSON document (a response, or the data of one event) up to this size is parsed whole, a larger one is scanned."""

_SCANNED_MORE: Final = 1024  # bytes at once, beyond those that came: a hostile document takes 1 us for each
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BLANK_LINES: Final = (b"\n\n", b"\r\n\r\n")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_CUMULATIVE_EVENTS: Final = frozenset(("message_start", "message_delta"))


class UsageReader:
    """Reads the body of one response. `content_type` is the response's header, "" when it has none."""

    def __init__(self, content_type: str) -> None:
        self._latest = _Latest()
        is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
        self._body: _Events | _Document = _Events(self._latest) if is_stream else _Document(self._latest)

    @property
    def usage(self) -> Usage | None:
        """What the provider has said so far; None: nothing yet. Of a JSON body nothing is known before `finish`."""
        return self._latest.usage

    def feed(self, data: bytes) -> None:
        """The next bytes of the body, decompressed."""
        self._body.feed(data)

    @property
    def waiting(self) -> bool:
        """Whether something that came was not looked at yet: `read_on` does, and `finish` in any case."""
        return self._body.waiting

    def read_on(self) -> None:
        """Look at one more slice of what waits."""
        self._body.read_on(_SCANNED_MORE)

    def finish(self) -> Usage | None:
        """The body has ended, or broken off: the usage it told, None when there was none to be believed."""
        self._body.finish()
        return self._latest.usage


class _Latest:
    """The usage that counts so far."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._fields: dict[str, object] = {}  # Anthropic's, laid over each other

    def see(self, document: object) -> None:
        """A whole response, chunk or event."""
        if isinstance(document, list):  # Gemini without alt=sse: an array of chunks
            for chunk in document:
                if isinstance(chunk, dict):
                    self.see(chunk)
            return
        fields = find_usage(document)
        if fields is not None and isinstance(document, dict):
            event = document.get("type")
            self._take(fields, cumulative=isinstance(event, str) and event in _CUMULATIVE_EVENTS)

    def see_found(self, holder: str, fields: dict[str, object]) -> None:
        """A usage object found in a document that was not parsed."""
        self._take(fields, cumulative=holder == "message")

    def _take(self, fields: dict[str, object], *, cumulative: bool) -> None:
        if cumulative:
            fields = self._fields = {**self._fields, **self._news(fields)}
        self.usage = usage_of(fields) or self.usage

    def _news(self, fields: dict[str, object]) -> dict[str, object]:
        """What a further event tells: a null, zero or hostile number takes nothing back.

        Some servers tell the input in only one of the events, with zeros in the other.
        """
        return {
            name: value
            for name, value in fields.items()
            if whole_number(value) or isinstance(value, dict) or (value and name not in self._fields)
        }


class _Document:
    """One JSON document: parsed whole at its end, or scanned when it is too large or broken."""

    def __init__(self, latest: _Latest) -> None:
        self._latest = latest
        self._text = bytearray()
        self._scanner: UsageScanner | None = None

    @property
    def empty(self) -> bool:
        """Nothing of the document has come yet."""
        return not self._text and self._scanner is None

    def feed(self, data: bytes) -> None:
        """The next bytes of the document."""
        self._text += data
        if self._scanner is not None:
            self.read_on(len(data) + _SCANNED_MORE)
        elif len(self._text) > MAX_DOCUMENT_BYTES:
            self._scanner = UsageScanner(self._latest.see_found)

    @property
    def waiting(self) -> bool:
        """Whether a part of a document that is scanned was not looked at yet."""
        return self._scanner is not None and bool(self._text)

    def read_on(self, size_bytes: int) -> None:
        """Scan so many more bytes of what waits."""
        if self._scanner is not None:
            self._scanner.feed(bytes(self._text[:size_bytes]))
            del self._text[:size_bytes]

    def finish(self) -> None:
        """The document is over; this object is as new and can read the next one."""
        if self._scanner is None and b"usage" in self._text:
            try:
                self._latest.see(orjson.loads(self._text))
            except orjson.JSONDecodeError:
                self._scanner = UsageScanner(self._latest.see_found)
        self.read_on(len(self._text))
        self._text.clear()
        self._scanner = None


class _Events:
    """A stream of server-sent events; only their data is of interest, each a JSON document."""

    def __init__(self, latest: _Latest) -> None:
        # per stream
        self._after_cr = False
        # per event
        self._data = _Document(latest)
        # per line
        self._head = b""  # the first bytes, until they tell what the line is
        self._is_data: bool | None = None

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        if not data or (b"usage" not in data and data.endswith(_BLANK_LINES) and self._between_events()):
            return  # nothing, or whole events without a usage: nearly all of a stream
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
        self._after_cr = data[-1:] == b"\r"
        *lines, rest = _LINE_END.split(data)
        for line in lines:
            self._part_of_line(line)
            self._end_line()
        self._part_of_line(rest)

    @property
    def waiting(self) -> bool:
        """Whether a part of an event's data was not looked at yet."""
        return self._data.waiting

    def read_on(self, size_bytes: int) -> None:
        """Look at so many more bytes of it."""
        self._data.read_on(size_bytes)

    def finish(self) -> None:
        """The stream has ended; an event that its blank line did not close counts all the same."""
        self._end_line()
        self._data.finish()

    def _between_events(self) -> bool:
        return self._is_data is None and not self._head and not self._after_cr and self._data.empty

    def _part_of_line(self, part: bytes) -> None:
        if self._is_data is None:
            part = self._head + part
            if _BYTE_ORDER_MARK.startswith(part[:3]) or b"data:".startswith(part[:5]):
                part = part.removeprefix(_BYTE_ORDER_MARK)
                if len(part) < 5:
                    self._head = part
                    return
            self._is_data = part.startswith(b"data:")
            part = b"\n" + part[5:]  # events may have several lines of data; white space is nothing to JSON
        if self._is_data:
            self._data.feed(part)

    def _end_line(self) -> None:
        if self._is_data is None and not self._head:
            self._data.finish()
        self._head, self._is_data = b"", None
