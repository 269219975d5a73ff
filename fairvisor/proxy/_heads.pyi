"""The heads of plain HTTP/1.1 messages that are passed on, read in one pass of C. `_heads.c` says what plain means."""

def request(
    data: bytes, fields: dict[bytes, tuple[str, int]], dropped: int, rare: int, /
) -> tuple[str, str, bytes, bytes, bytes, dict[str, bytes], int, int, int] | None:
    """(method, target, start, host, lines, headers, flags, length, size_bytes), or None: leave it to `heads.py`."""

def response(
    data: bytes, fields: dict[bytes, tuple[str, int]], dropped: int, rare: int, /
) -> tuple[int, bytes, bytes, dict[str, bytes], int, int, int] | None:
    """(status, start, lines, special, flags, length, size_bytes), or None: leave it to `heads.py`."""
