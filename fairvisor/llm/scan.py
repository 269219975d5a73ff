"""The usage objects of a JSON document that is too large, or too broken, to be parsed whole.

A response with embeddings or pictures may have many megabytes, with its usage at the end, and one that was cut off is
no JSON at all. The scanner goes through the bytes as they come, follows only strings and brackets, and keeps nothing
but the objects under the keys that hold usage: at the root, in `response` or `message` there, or in the objects of a
root array (Gemini). What a model wrote cannot pose as usage: it stands deeper or inside a string. The scanner must not
know what a usage means, nor where the bytes come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import orjson

# Keys as they are kept: with the quote that closes them.
_USAGE_KEYS: Final = frozenset((b'usage"', b'usageMetadata"'))
_HOLDER_KEYS: Final = frozenset((b'response"', b'message"'))
MAX_OBJECT_BYTES: Final = 65_536
"""A usage object larger than this is none: real ones have less than one kilobyte."""

_MAX_KEY: Final = 32
_MAX_BRACKETS: Final = 8  # no usage stands deeper than in four
_OUTSIDE: Final = re.compile(rb'["{}\[\]]')
_INSIDE: Final = re.compile(rb'["\\]')


class UsageScanner:
    """Call `feed` with the pieces of one document; `found(holder, usage)` is called for every usage object in it.

    `holder` is the key that the usage was found in: "response", "message", or "" for the root.
    """

    def __init__(self, found: Callable[[str, dict[str, object]], None]) -> None:
        self._found = found
        # per document
        self._depth = 0
        self._brackets = bytearray()  # the outermost of those that are open
        self._root_depth = 1  # 2 when the root is an array
        self._holder = b""  # the key whose object is open one below the root object
        # per token
        self._string: bytearray | None = None  # the string that is open: its first bytes, as written
        self._escaped = False
        self._key = b""  # the last string that was closed, up to its quote
        # per usage object
        self._object: bytearray | None = None
        self._object_depth = 0

    def feed(self, data: bytes) -> None:
        """The next bytes of the document."""
        position = 0
        while position < len(data):
            if self._escaped:
                self._escaped = False
                end = position + 1
            elif self._string is not None:
                end = self._inside(data, position)
            elif self._object is not None:
                end = self._outside(data, position)
            else:
                end = self._to_string(data, position)
            if self._object is not None:
                self._keep(data, position, end)
            position = end

    def _inside(self, data: bytes, position: int) -> int:
        """In a string: go to its end or behind the next backslash."""
        assert self._string is not None, "only called inside a string"
        match = _INSIDE.search(data, position)
        end = match.end() if match else len(data)
        if len(self._string) <= _MAX_KEY:
            self._string += data[position : min(end, position + _MAX_KEY + 1)]
        if match is not None:
            if match[0] == b"\\":
                self._escaped = True
            else:
                self._key, self._string = bytes(self._string), None
        return end

    def _to_string(self, data: bytes, position: int) -> int:
        """Between strings, with no usage open: go behind the next quote, or the bracket that opens a usage.

        Below the outermost brackets, where no usage stands, the depth is all that changes.
        """
        for match in _OUTSIDE.finditer(data, position):
            sign = match[0]
            if sign == b'"':
                self._string = bytearray()
                return match.end()
            if self._depth > _MAX_BRACKETS:
                self._depth += 1 if sign in b"{[" else -1
            elif sign in b"{[":
                self._open(sign)
                if self._object is not None:
                    return match.end()
            else:
                self._close()
        return len(data)

    def _close(self) -> None:
        self._depth -= 1
        del self._brackets[max(0, self._depth) :]
        self._key = b""

    def _outside(self, data: bytes, position: int) -> int:
        """Between strings: go behind the next quote or bracket."""
        match = _OUTSIDE.search(data, position)
        if match is None:
            return len(data)
        sign = match[0]
        if sign == b'"':
            self._string = bytearray()
        elif sign in b"{[":
            self._open(sign)
        else:
            self._close()
        return match.end()

    def _open(self, sign: bytes) -> None:
        # Inside an object the string before a bracket is the key of what opens; in an array it is a neighbour.
        in_object = self._brackets[self._depth - 1 : self._depth] == b"{" if self._depth > 0 else False
        key = self._key if sign == b"{" and in_object else b""
        self._key = b""
        if len(self._brackets) < _MAX_BRACKETS:
            self._brackets += sign
        self._depth += 1
        if self._object is not None:
            return
        if self._depth == 1:
            self._root_depth = 2 if sign == b"[" else 1
        level = self._depth - self._root_depth
        if level == 1:
            self._holder = key if key in _HOLDER_KEYS else b""
        if key in _USAGE_KEYS and (level == 1 or (level == 2 and self._holder)):
            self._object = bytearray(b"{")
            self._object_depth = self._depth

    def _keep(self, data: bytes, position: int, end: int) -> None:
        """Collect the open usage object; hand it on when its bracket has closed."""
        assert self._object is not None, "only called while a usage object is open"
        if self._object == b"{" and data[end - 1 : end] == b"{" and self._depth == self._object_depth:
            return  # its own opening bracket
        self._object += data[position:end]
        if len(self._object) > MAX_OBJECT_BYTES:
            self._object = None
        elif self._depth < self._object_depth:
            text, self._object = bytes(self._object), None
            self._hand_on(text, "" if self._depth == self._root_depth else self._holder[:-1].decode())

    def _hand_on(self, text: bytes, holder: str) -> None:
        try:
            usage = orjson.loads(text)
        except orjson.JSONDecodeError:
            return
        if isinstance(usage, dict):
            self._found(holder, usage)
