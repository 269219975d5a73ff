"""Header fields as they come from the parser, made into what everybody reads: lower-case names, one value each.

It knows the rules of fields (RFC 9110 5), not what any of them means.
"""

from __future__ import annotations

from typing import Final

_REMEMBERED: Final = 1024


class HeaderNames(dict[bytes, str]):
    """Header names in lower case, each worked out once; bounded, since clients can make names up."""

    def __missing__(self, name: bytes) -> str:
        if len(self) >= _REMEMBERED:
            self.clear()
        known = self[name] = name.decode("latin-1").lower()
        return known


_NAMES: Final = HeaderNames()


def read_headers(pairs: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """Names in lower case, values without the white space around them, repeated ones joined in order (5.3, 5.5)."""
    headers = {_NAMES[name]: value.strip() for name, value in pairs}
    if len(headers) == len(pairs):
        return headers
    headers.clear()
    for raw, value in pairs:
        name = _NAMES[raw]
        headers[name] = headers[name] + b", " + value.strip() if name in headers else value.strip()
    return headers
