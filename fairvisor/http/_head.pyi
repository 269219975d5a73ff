"""A plain HTTP/1.1 request, read in one pass of C. `_head.c` says what plain means."""

def parse(data: bytes, /) -> tuple[str, str, dict[str, bytes], bytes | None] | None:
    """(method, target, headers with lower-case names, body), or None: leave `data` to the complete parser."""
