"""A JSON object of which only the beginning is there, made whole: what the cut left open is closed.

The edge reads no more of a body than FAIRVISOR_MAX_BODY, and a gateway may cut earlier. What the beginning says must
count all the same, or padding would be a way around every limit that looks into the body. Kept is what stands before
the last comma or bracket, and of a text that was cut what is there of it. Reading is bounded: an object of very many
small parts counts as cut where the reading stopped. This module knows JSON (RFC 8259); it must not know what the
members mean.
"""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from typing import Final, NamedTuple

# A step takes 0.4 us: a hostile body costs no more than a few milliseconds. An escaped quote is a step as well.
MAX_SIGNS: Final = 20_000

_SIGN: Final = re.compile(rb'["{}\[\],]')
_HALF_ESCAPE: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_LONGEST_HALF: Final = 5  # bytes: a backslash, u, three digits
_CLOSERS: Final = {b"{": b"}", b"[": b"]"}


class Mended(NamedTuple):
    """JSON text, and how many bytes at the end of the original it leaves out."""

    text: bytes
    unread_bytes: int


def mend(body: bytes) -> Mended | None:
    """Return the beginning of a JSON object as a whole one; None: it is no object, or no text.

    Blank text may become an object: `{}`.
    """
    try:
        data = getincrementaldecoder(json.detect_encoding(body))().decode(body).encode()
    except UnicodeError:
        return None
    start = data.lstrip(b" \t\r\n")
    if start[:1] not in (b"", b"{"):
        return None
    scan = _Scan(data)
    text = scan.run()
    return Mended(text or b"{}", len(data) - scan.read)


class _Scan:
    """One pass over the signs of the document. `read` is where what is kept ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._open: list[bytes] = []  # the closing brackets that are missing
        self._steps = 0
        self.read = 0

    def run(self) -> bytes:
        """Return what can be kept, closed."""
        position = 0
        while self._steps < MAX_SIGNS:
            self._steps += 1
            match = _SIGN.search(self._data, position)
            if match is None:
                break
            position = match.end()
            if match[0] == b'"':
                end = self._string_end(position)
                if self._data[end : end + 1] == b'"':
                    position = end + 1
                elif self._is_value(match.start()):
                    self.read = end
                    return self._closed(b'"')
                else:
                    break
            elif not self._structure(match[0], match.start()):
                break
        return self._closed(b"")

    def _structure(self, sign: bytes, start: int) -> bool:
        """A bracket or comma: what stands before it is complete. False: the object has ended, or is none."""
        if sign == b",":
            self.read = start
        elif sign in _CLOSERS:
            self._open.append(_CLOSERS[sign])
            self.read = start + 1
        elif self._open and self._open[-1] == sign:
            self._open.pop()
            self.read = start + 1
        else:
            return False
        return bool(self._open)

    def _string_end(self, position: int) -> int:
        """Where the closing quote stands of the string whose inside begins here.

        Without one: where the last whole character or escape ends that was read.
        """
        data = self._data
        while (end := data.find(b'"', position)) >= 0:
            if not _ends_in_backslash(data[position:end]):
                return end
            position = end + 1
            self._steps += 1
            if self._steps >= MAX_SIGNS:
                return position
        half = _HALF_ESCAPE.search(data, max(position, len(data) - _LONGEST_HALF))
        if half is not None and _ends_in_backslash(data[position : half.start() + 1]):
            return half.start()
        return len(data)

    def _is_value(self, start: int) -> bool:
        """Whether the string that begins here is no key."""
        return bool(self._open) and (
            self._open[-1] == b"]" or self._data[self.read : start].rstrip().endswith(b":")
        )

    def _closed(self, ending: bytes) -> bytes:
        return self._data[: self.read] + ending + b"".join(reversed(self._open))


def _ends_in_backslash(inside: bytes) -> bool:
    """Whether a part of a string ends in a backslash that escapes what follows."""
    return (len(inside) - len(inside.rstrip(b"\\"))) % 2 == 1
