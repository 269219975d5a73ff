"""Message bodies as they come off the wire: so many bytes, chunks, or everything until the end.

A body is fed the bytes after its head, split anywhere, and gives what is content and what belongs to the next message.
Chunks are read in one form only (RFC 9112 7.1 without lenience): what is sent on is framed anew, so neither extensions
nor sizes written in an unusual way pass through. The module knows nothing of connections or heads.
"""

from __future__ import annotations

import re
from typing import Final

from fairvisor.proxy.heads import CHUNKED, FIELDS, UNTIL_CLOSE

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_MAX_SIZE_LINE: Final = 1024
_MAX_EXTENSIONS: Final = 16 * 1024  # of one body: they are thrown away, so many of them are an attack
_MAX_TRAILERS: Final = 64
_MAX_TRAILER_BYTES: Final = 8 * 1024
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Fields that mean something before the body only (RFC 9110 6.5.1).
_NO_TRAILERS: Final = frozenset({
    "authorization", "cookie", "set-cookie", "content-range", "trailer", "cache-control", "max-forwards",
    "www-authenticate", "if-match", "if-none-match", "if-range", "range", "location", "age", "expires", "date", "vary",
})  # fmt: skip

LAST_CHUNK: Final = b"0\r\n\r\n"


class BadBody(ValueError):
    """The body is not framed as it should be."""


class Body:
    """A body that is being read. `trailers` are complete lines, there when it is done."""

    __slots__ = ("done", "trailers")

    def __init__(self, *, done: bool = False) -> None:
        self.done = done
        self.trailers = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Content, and what comes after the body. Raises BadBody."""
        raise NotImplementedError


def body_of(length: int) -> Body:
    """The reader for a body of this length (see `heads`)."""
    if length == CHUNKED:
        return ChunkedBody()
    return OpenBody() if length == UNTIL_CLOSE else SizedBody(length)


class SizedBody(Body):
    """A body of a known size."""

    __slots__ = ("_left",)

    def __init__(self, size_bytes: int) -> None:
        super().__init__(done=size_bytes == 0)
        self._left = size_bytes

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Content, and what comes after it."""
        left = self._left = self._left - len(data)
        if left > 0:
            return data, b""
        self.done, self._left = True, 0
        return (data, b"") if left == 0 else (data[:left], data[left:])


class OpenBody(Body):
    """A body that ends with its connection."""

    __slots__ = ()

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """All is content."""
        return data, b""


class ChunkedBody(Body):
    """A body in chunks."""

    __slots__ = ("_extensions", "_held", "_in_trailers", "_left", "_trailer_count")

    def __init__(self) -> None:
        super().__init__()
        self._held = b""  # a line that is not whole yet
        self._left = 0  # of the chunk that is open, its CRLF included
        self._in_trailers = False
        self._extensions = 0
        self._trailer_count = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Content, and what comes after the last chunk and its trailers."""
        if self._held:
            data, self._held = self._held + data, b""
        content: list[bytes] = []
        position = 0
        while not self.done:
            if self._left:
                if position >= len(data):
                    break
                position = self._chunk(data, position, content)
                continue
            end = data.find(b"\r\n", position)
            if end < 0:
                self._hold(data[position:])
                position = len(data)
                break
            line = data[position:end]
            position = end + 2
            if self._in_trailers:
                self._trailer(line)
            else:
                self._size(line)
        return b"".join(content), data[position:]

    def _chunk(self, data: bytes, position: int, content: list[bytes]) -> int:
        """A part of the open chunk; the last two bytes of it must be its CRLF."""
        size = self._left - 2
        if size > 0:
            piece = data[position : position + size]
            content.append(piece)
            self._left -= len(piece)
            return position + len(piece)
        expected = b"\r\n"[2 - self._left]
        if data[position] != expected:
            raise BadBody("a chunk does not end where it says")
        self._left -= 1
        return position + 1

    def _hold(self, rest: bytes) -> None:
        if len(rest) > _MAX_SIZE_LINE or b"\n" in rest or b"\r" in rest[:-1]:
            raise BadBody("a chunk's size line is too long, or not ended by CRLF")
        self._held = rest

    def _size(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None or len(line) > _MAX_SIZE_LINE:
            raise BadBody("a chunk's size is not a number")
        self._extensions += len(line) - len(match[1])
        if self._extensions > _MAX_EXTENSIONS:
            raise BadBody("too many chunk extensions")
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        name, colon, value = line.partition(b":")
        try:
            text, flags = FIELDS[name]
        except ValueError:
            raise BadBody("the name of a trailer is not a token") from None
        if not colon or _CONTROL.search(value):
            raise BadBody("a trailer is malformed")
        if not flags and text not in _NO_TRAILERS:
            self.trailers += line + b"\r\n"
        self._extensions += len(line)
        self._trailer_count += 1
        if (
            self._trailer_count > _MAX_TRAILERS
            or self._extensions > _MAX_EXTENSIONS
            or len(self.trailers) > _MAX_TRAILER_BYTES
        ):
            raise BadBody(
                f"more than {_MAX_TRAILERS} trailers, or more than {_MAX_TRAILER_BYTES} bytes of them"
            )


def chunk(content: bytes) -> bytes:
    """Content as one chunk; nothing for nothing, since an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(content), content) if content else b""


def last_chunk(trailers: bytes) -> bytes:
    """The end of a body in chunks."""
    return b"0\r\n" + trailers + b"\r\n" if trailers else LAST_CHUNK
