r"""Text for people, with everything escaped that a terminal or a log reader would act on instead of showing.

Clients choose header values, claims, hosts and model names, and operators read them. A control character moves the
cursor, sets the window's title or begins a line that nobody wrote (C0, ESC, DEL, C1; ECMA-48), a bidirectional control
turns a line around (Unicode TR 36), a line separator splits it. Each character that is not printable (those that `repr`
escapes) is written as `repr` writes it: `\x1b`, `\n`, `\u202e`. It knows nothing of what is shown.
"""

from __future__ import annotations

import re
from typing import Final

# In JSON text structure is ASCII, and what is below U+0020 in a string is escaped already (RFC 8259 7).
_NOT_PLAIN: Final = re.compile("[^\x00-\x7e]")


def visible(text: str) -> str:
    """Return the text on one line, with every character that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(
        [char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text]
    )


def visible_json(document: bytes) -> bytes:
    """Return JSON text with the same characters escaped as JSON does it; it stays the same document."""
    if document.isascii() and b"\x7f" not in document:
        return document
    return _NOT_PLAIN.sub(_escaped, document.decode()).encode()


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if char.isprintable():
        return char
    units = char.encode("utf-16-be")  # beyond U+FFFF two units, as JSON writes them
    return "".join([f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)])
