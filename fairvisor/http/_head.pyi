"""The head of a plain HTTP/1.1 request, read in one pass of C. `_head.c` says what plain means."""

def parse(data: bytes, /) -> tuple[str, str, dict[str, bytes]] | None:
    """(method, target, headers with lower-case names), or None: leave `data` to the complete parser."""
