"""An upstream's reading of what it gets, independent of the proxy's: strict, one request after the other.

It is written from RFC 9112 alone and shares no line with `fairvisor.proxy`; llhttp reads the same bytes beside it, and
the two must agree on how many requests there are. What they do not agree on is where requests are smuggled.
"""

from __future__ import annotations

import re

import httptools

_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_CHUNK = re.compile(rb"[0-9a-f]{1,12}")


class NotOneRequest(Exception):
    """What was forwarded is not what one strict reader takes for one request at a time."""


class _Counting:
    """What llhttp finds."""

    def __init__(self) -> None:
        self.whole = 0

    def on_message_complete(self) -> None:
        self.whole += 1


def read_requests(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole requests in `data`, and what is there of the next. Raises NotOneRequest for anything else."""
    found: list[bytes] = []
    rest = data
    while rest:
        end = _end_of_request(rest)
        if end < 0:
            break
        found.append(rest[:end])
        rest = rest[end:]
    counting = _Counting()
    parser = httptools.HttpRequestParser(counting)
    try:
        parser.feed_data(data)
    except (httptools.HttpParserUpgrade, httptools.HttpParserInvalidMethodError):
        return found, rest  # what follows is no longer HTTP, or a method that llhttp does not know
    except httptools.HttpParserError as error:
        raise NotOneRequest(f"llhttp says {error}: {data!r}") from None
    if counting.whole != len(found):
        raise NotOneRequest(f"llhttp finds {counting.whole} requests, not {len(found)}: {data!r}")
    return found, rest


def _end_of_request(data: bytes) -> int:
    """Where the first request ends, -1 when it is not whole."""
    head, mark, _ = data.partition(b"\r\n\r\n")
    if not mark:
        return -1
    line, *fields = head.split(b"\r\n")
    if not _LINE.fullmatch(line):
        raise NotOneRequest(f"no request line: {line!r}")
    values: dict[bytes, list[bytes]] = {}
    for field in fields:
        match = _FIELD.fullmatch(field)
        if match is None:
            raise NotOneRequest(f"no field: {field!r}")
        values.setdefault(match[1].lower(), []).append(match[2])
    start = len(head) + 4
    lengths, codings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    if len(values.get(b"host", [])) != 1 or len(lengths) + len(codings) > 1:
        raise NotOneRequest(f"an unclear head: {head!r}")
    if codings:
        return _end_of_chunks(data, start)
    length = int(lengths[0]) if lengths else 0
    return start + length if len(data) >= start + length else -1


def _end_of_chunks(data: bytes, at: int) -> int:
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return -1
        if not _CHUNK.fullmatch(data[at:end]):
            raise NotOneRequest(f"no size of a chunk: {data[at:end]!r}")
        size = int(data[at:end], 16)
        at = end + 2
        if not size:
            break
        if len(data) < at + size + 2:
            return -1
        if data[at + size : at + size + 2] != b"\r\n":
            raise NotOneRequest("a chunk does not end where it says")
        at += size + 2
    while not data.startswith(b"\r\n", at):
        end = data.find(b"\r\n", at)
        if end < 0:
            return -1
        if not _FIELD.fullmatch(data[at:end]):
            raise NotOneRequest(f"no trailer: {data[at:end]!r}")
        at = end + 2
    return at + 2
