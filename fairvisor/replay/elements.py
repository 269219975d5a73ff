"""Where the elements of a JSON array begin and end, so that an array of any length is read one element at a time.

Only strings, brackets and braces are looked at: what an element means, and whether it is JSON at all, is found out by
whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

LONGEST_BYTES: Final = 64 << 20  # of one element

# A string without group 1 does not end in what has come so far.
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(")?|([\[{])|([\]}])|([^\s,:\[\]{}"]+)', re.DOTALL)
_STRING, _OPENS, _CLOSES, _SCALAR = 1, 2, 3, 4
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*(")?', re.DOTALL)

Token = tuple[int, int, int]  # kind, start, end


class Elements:
    """Find the values that are `depth` brackets deep; with a `name`, only in the member of that name one level above.

    Depth 0 is documents that follow each other, 1 the elements of arrays, 3 with `"entries"` those of an HTTP Archive.
    """

    def __init__(self, depth: int, name: str = "") -> None:
        self._depth = depth
        self._name = f'"{name}"'.encode() if name else b""
        # between two pieces
        self._text = b""  # that is still needed
        self._next = 0  # what has not been looked at, in `_text`
        self._begin = -1  # of an element that has not ended
        self._string = -1  # of a string that has not ended
        self._level = 0
        self._inside = not name

    @property
    def unfinished(self) -> bool:
        """Whether more must come."""
        return self._level > 0 or self._string >= 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the elements that end in this piece. Raises ValueError for one that is too long."""
        text = self._text = self._text + data
        depth, begin, level = self._depth, self._begin, self._level
        for kind, start, end in self._tokens(text):
            if kind == _OPENS:
                if level == depth and self._inside:
                    begin = start
                level += 1
            elif kind == _CLOSES:
                level = max(0, level - 1)
                if level == depth and begin >= 0:
                    yield text[begin:end]
                    begin = -1
            elif level == depth and self._inside:
                yield text[start:end]
            elif level == depth - 1 and kind == _STRING and self._name:
                self._inside = text[start:end] == self._name
        self._begin, self._level = begin, level
        self._forget()

    def _tokens(self, text: bytes) -> Iterator[Token]:
        """Yield the tokens that are whole."""
        if self._string >= 0:
            rest = _REST_OF_STRING.match(text, self._next)
            assert rest is not None, "it may be empty"
            self._next = rest.end()
            if not rest[1]:
                return
            yield _STRING, self._string, self._next
            self._string = -1
        for token in _TOKEN.finditer(text, self._next):
            kind = token.lastindex
            if kind is None:
                self._string, self._next = token.span()
                return
            if kind == _SCALAR and token.end() == len(text):
                self._next = token.start()
                return
            yield kind, token.start(), token.end()
        self._next = len(text)

    def _forget(self) -> None:
        """Drop what has been read."""
        needed = min(each for each in (self._begin, self._string, self._next) if each >= 0)
        self._text = self._text[needed:]
        self._next -= needed
        self._begin = max(-1, self._begin - needed)
        self._string = max(-1, self._string - needed)
        if len(self._text) > LONGEST_BYTES:
            raise ValueError(f"an element of its JSON is longer than {LONGEST_BYTES >> 20} MiB")
