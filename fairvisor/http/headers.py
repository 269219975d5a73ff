"""Header fields as they come from the parser, made into what everybody reads: lower-case names, one value each.

It knows the names of fields; what several lines of a field mean is known by `fairvisor/reading.py`.
"""

from __future__ import annotations

from typing import Final

from fairvisor.bounded_cache import BoundedCache
from fairvisor.reading import Repeated, read_fields

_REMEMBERED: Final = 1024


_NAMES: Final = BoundedCache[bytes, str](lambda name: name.decode("latin-1").lower(), _REMEMBERED)


def read_headers(pairs: list[tuple[bytes, bytes]]) -> tuple[dict[str, bytes], Repeated | None]:
    """Read field lines as `read_fields` does, their names as they were sent."""
    return read_fields([(_NAMES[name], value) for name, value in pairs])
