"""Where the elements of a JSON array begin and end, so that an array of any length is read one element at a time.

Only strings, brackets and braces are looked at: what an element means, and whether it is JSON at all, is found out by
whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

LONGEST_BYTES: Final = 64 << 20  # of one element, and of what stands between two

# Group 1 ends a string; a string without it goes on in what has not come yet (no group then).
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(")|"|([\[{])|([\]}])|([^\s,:\[\]{}"]+)', re.DOTALL)
_STRING, _OPENS, _CLOSES, _SCALAR = 1, 2, 3, 4


class Elements:
    """The values that stand `depth` brackets deep; with a `name`, only in the member of that name one level above.

    Depth 0 is documents that follow each other, 1 the elements of arrays, 3 with `"entries"` those of an HTTP Archive.
    """

    def __init__(self, depth: int, name: str = "") -> None:
        self._depth = depth
        self._name = f'"{name}"'.encode() if name else b""
        # between two pieces
        self._rest = b""
        self._begin = -1  # of an element, in `_rest`
        self._next = 0  # what has not been looked at, in `_rest`
        self._level = 0
        self._member = b""

    @property
    def unfinished(self) -> bool:
        """Whether more must come."""
        return self._level > 0 or self._begin >= 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the elements that end in this piece. Raises ValueError for one that is too long."""
        text = self._rest + data
        begin, level, depth, after = self._begin, self._level, self._depth, len(text)
        inside = not self._name or self._member == self._name
        for token in _TOKEN.finditer(text, self._next):
            kind = token.lastindex
            if kind is None or (kind == _SCALAR and token.end() == len(text)):
                after = token.start()
                break
            if kind == _OPENS:
                if level == depth and inside:
                    begin = token.start()
                level += 1
            elif kind == _CLOSES:
                level = max(0, level - 1)
                if level == depth and begin >= 0:
                    yield text[begin : token.end()]
                    begin = -1
            elif level == depth and inside:
                yield token[0]
            elif level == depth - 1 and kind == _STRING and self._name:
                self._member = token[0]
                inside = self._member == self._name
        kept = after if begin < 0 else begin
        self._rest, self._next, self._level = text[kept:], after - kept, level
        self._begin = -1 if begin < 0 else 0
        if len(self._rest) > LONGEST_BYTES:
            raise ValueError(f"an element of its JSON is longer than {LONGEST_BYTES >> 20} MiB")
