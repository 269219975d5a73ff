"""Header fields as they come from the parser, made into what everybody reads: lower-case names, one value each.

It knows the names of fields; what several lines of a field mean is known by `fairvisor/reading.py`.
"""

from __future__ import annotations

from typing import Final

from fairvisor.reading import Repeated, read_fields

_REMEMBERED: Final = 1024


class HeaderNames(dict[bytes, str]):
    """Header names in lower case, each worked out once; bounded, since clients can make names up."""

    def __missing__(self, name: bytes) -> str:
        if len(self) >= _REMEMBERED:
            self.clear()
        known = self[name] = name.decode("latin-1").lower()
        return known


_NAMES: Final = HeaderNames()


def read_headers(pairs: list[tuple[bytes, bytes]]) -> tuple[dict[str, bytes], Repeated | None]:
    """Read field lines as `read_fields` does, their names as they were sent."""
    return read_fields([(_NAMES[name], value) for name, value in pairs])
