"""Request and response heads, read strictly: what could be read in two ways is not read at all.

Request smuggling lives on heads that two parsers understand differently. So there is one form only: lines end with
CRLF, no line is folded, names are tokens directly before their colon, no control characters, one Host, one way to say
how long the body is (RFC 9112 2 to 6, without what it lets a lenient recipient repair). What is accepted here every
other parser reads the same; the tests compare with llhttp. Heads that are beyond doubt, nearly all, are read by
`_heads.c` in one pass; what it leaves is read here. The module knows fields and framing, no sockets.
"""

from __future__ import annotations

import re
from typing import Final

from fairvisor.bounded_cache import BoundedCache
from fairvisor.errors import FairvisorError, MethodNotProxied, RequestError
from fairvisor.proxy import _heads
from fairvisor.reading import Repeated

CHUNKED: Final = -1  # as the length of a body: it is sent in chunks
UNTIL_CLOSE: Final = -2  # of a response: it ends when the connection does

# What a field means for a proxy; 0 for nearly all.
HOST: Final = 1
LENGTH: Final = 2
CODING: Final = 4
CONNECTION: Final = 8
HOP: Final = 16  # ends at the next hop (RFC 9110 7.6.1)
EXPECT: Final = 32
UPGRADE: Final = 64
FORWARDED: Final = 128  # who the client is: only a trusted peer may say
ACCEPT: Final = 256  # which content codings the client takes
TYPE: Final = 512
CONTENT_CODING: Final = 1024
OURS: Final = 2048  # what our answer says itself
VIA: Final = 4096
TE: Final = 8192
UNDERSCORED: Final = 16384  # servers that make variables of names take `x_api_key` for `x-api-key`

_FLAGS: Final = {
    "host": HOST,
    "content-length": LENGTH,
    "transfer-encoding": CODING,
    "connection": CONNECTION,
    "keep-alive": HOP,
    "proxy-connection": HOP,
    "proxy-authenticate": HOP,
    "proxy-authorization": HOP,
    "te": TE,
    "expect": EXPECT,
    "upgrade": UPGRADE,
    "forwarded": FORWARDED,
    "x-real-ip": FORWARDED,
    "accept-encoding": ACCEPT,
    "content-type": TYPE,
    "content-encoding": CONTENT_CODING,
    "ratelimit": OURS,
    "ratelimit-policy": OURS,
    "ratelimit-limit": OURS,
    "ratelimit-remaining": OURS,
    "ratelimit-reset": OURS,
    "via": VIA,
}

_REMEMBERED: Final = 1024
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?", re.DOTALL)
_ABSOLUTE: Final = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
# Everything that may stand in a head, except the line ends.
_TEXT: Final = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
_MAX_DIGITS: Final = 15

# A client must not have these taken from its request by naming them in Connection.
_KEPT: Final = frozenset({
    b"host", b"content-length", b"authorization", b"cookie", b"forwarded", b"via", b"content-type", b"range",
})  # fmt: skip


# CONNECT is for forward proxies; TRACE would send back what was meant for the upstream (RFC 9110 9.3.8).
_NOT_PROXIED: Final = frozenset({b"CONNECT", b"TRACE"})
_BODYLESS: Final = frozenset({204, 304})  # statuses of responses without a body (RFC 9112 6.3)


class BadResponse(FairvisorError):
    """What the upstream sent is no response that may be passed on."""


def _field(name: bytes) -> tuple[str, int]:
    """A field name as it was sent, in lower case, with its flags. Raises ValueError for what is no name."""
    if not _TOKEN.fullmatch(name):
        raise ValueError
    text = name.decode("ascii").lower()
    # Servers that make variables of names cannot distinguish X_Forwarded_For from X-Forwarded-For.
    same = text.replace("_", "-")
    flags = _FLAGS.get(same, 0)
    if same.startswith("x-forwarded-"):
        flags = FORWARDED
    elif same.startswith(("x-fairvisor-", "x-ratelimit-", "anthropic-ratelimit-")):
        flags = OURS
    if same != text and flags & (LENGTH | CODING | HOST):
        raise ValueError
    if same != text:  # never what it poses as: dropped, or left to those who know which names count
        flags = FORWARDED if flags else UNDERSCORED
    return text, flags


FIELDS: Final = BoundedCache[bytes, tuple[str, int]](_field, _REMEMBERED)


class RequestHead:
    """A request's head. `headers` are all its fields, `repeated` those that came on several lines.

    For the upstream: `start` is the request line, `lines` the fields that pass as they are, each with its CRLF.
    `target` is in origin form, `length` the size of the body or CHUNKED. `size_bytes` is what the head took on the
    wire, 0 where the reader was not asked.
    """

    __slots__ = ("flags", "headers", "host", "keep_alive", "length", "lines", "method", "repeated", "size_bytes",
                 "start", "target", "version")  # fmt: skip

    def __init__(
        self,
        method: str,
        target: str,
        start: bytes,
        host: bytes,
        lines: bytes,
        headers: dict[str, bytes],
        flags: int,
        length: int,
        size_bytes: int = 0,
        version: bytes = b"1.1",
        keep_alive: bool = True,
        repeated: Repeated | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.start = start
        self.host = host
        self.lines = lines
        self.headers = headers
        self.flags = flags
        self.length = length
        self.size_bytes = size_bytes
        self.version = version
        self.keep_alive = keep_alive
        self.repeated = repeated

    @property
    def continues(self) -> bool:
        """Whether the client waits for 100 (Continue) before it sends the body."""
        return bool(self.flags & EXPECT) and self.length != 0

    @property
    def upgrades(self) -> bool:
        """Whether it asks for another protocol. h2c is not passed on: what follows could not be decided."""
        if not self.flags & UPGRADE or self.length or self.version != b"1.1":
            return False
        tokens = connection_tokens(self.headers.get("connection", b""))
        return b"upgrade" in tokens and b"h2c" not in self.headers["upgrade"].lower()


class ResponseHead:
    """A response's head. `start` is the status line, `lines` what passes to the client as it is, both with CRLF;
    `special` holds the fields with flags. `length` is the size of the body, CHUNKED or UNTIL_CLOSE."""

    __slots__ = ("flags", "keep_alive", "length", "lines", "size_bytes", "special", "start", "status")

    def __init__(
        self,
        status: int,
        start: bytes,
        lines: bytes,
        special: dict[str, bytes],
        flags: int,
        length: int,
        size_bytes: int = 0,
        keep_alive: bool = True,
    ) -> None:
        self.status = status
        self.start = start
        self.lines = lines
        self.special = special
        self.flags = flags
        self.length = length
        self.size_bytes = size_bytes
        self.keep_alive = keep_alive and length != UNTIL_CLOSE


_DROPPED_REQUEST: Final = (
    LENGTH | CODING | CONNECTION | HOP | EXPECT | UPGRADE | FORWARDED | HOST | TE | VIA | OURS
)
_DROPPED_RESPONSE: Final = LENGTH | CODING | CONNECTION | HOP | UPGRADE
# What `_heads.c` leaves to the functions here: what must be looked at more closely.
_RARE_REQUEST: Final = CODING | EXPECT | UPGRADE
_RARE_RESPONSE: Final = UPGRADE | OURS


def plain_request_head(data: bytes) -> RequestHead | None:
    """The head that `data` begins with; None when it is not whole, or must be read by `read_request_head`."""
    read = _heads.request(data, FIELDS.known, _DROPPED_REQUEST, _RARE_REQUEST)
    if read is None:
        return None
    method, target, start, host, lines, headers, flags, length, size_bytes = read
    return RequestHead(method, target, start, host, lines, headers, flags, length, size_bytes)


def read_request_head(raw: bytes) -> RequestHead:
    """The head in `raw`, without the empty line that ends it. Raises RequestError for anything but the one form.

    Its `size_bytes` is 0: whoever cut `raw` out knows it.
    """
    first, *fields = raw.split(b"\r\n")
    if raw.translate(None, _TEXT) != b"\r\n" * len(fields) or b"\t" in first:
        raise RequestError("malformed HTTP: a control character or a bare line end in the head")
    if not first.isascii():  # not a URI (RFC 3986 2); readers differ on what it means
        raise RequestError("malformed HTTP: the request line holds a byte that is not ASCII")
    parts = first.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise RequestError("malformed HTTP: the request line is not `METHOD target HTTP/1.1`")
    if parts[0].upper() in _NOT_PROXIED:
        raise MethodNotProxied(f"{parts[0].decode('ascii').upper()} is not passed on")
    lines: list[bytes] = []
    headers: dict[str, bytes] = {}
    repeated: dict[str, list[bytes]] = {}
    flags = 0
    for line in fields:
        name, colon, value = line.partition(b":")
        try:
            text, flag = FIELDS[name]
        except ValueError:
            raise RequestError("malformed HTTP: a header name is not a token") from None
        if not colon:
            raise RequestError("malformed HTTP: a header without a colon")
        value = value.strip(b" \t")
        flags |= flag
        if text in headers:
            repeated.setdefault(text, [headers[text]]).append(value)
            headers[text] += b", " + value
        else:
            headers[text] = value
        if not flag & _DROPPED_REQUEST:
            lines.append(line)
    return _request(parts, lines, headers, flags, repeated)


def _request(
    parts: list[bytes],
    lines: list[bytes],
    headers: dict[str, bytes],
    flags: int,
    repeated: dict[str, list[bytes]],
) -> RequestHead:
    """The head as its fields say, each of them checked."""
    version = parts[2][5:]
    target, host = _target_and_host(parts[0], parts[1], version, headers, repeated)
    keep_alive = version == b"1.1"
    if flags & CONNECTION:
        tokens = connection_tokens(headers["connection"])
        keep_alive = b"close" not in tokens and (keep_alive or b"keep-alive" in tokens)
        if tokens - _USUAL_TOKENS:
            if any(token in _KEPT or token.startswith((b"x-f", b"x-r")) for token in tokens):
                raise RequestError("Connection must not name a header that belongs to the whole request")
            lines = [line for line in lines if line.partition(b":")[0].lower() not in tokens]
    if flags & EXPECT and headers["expect"].lower() != b"100-continue":
        raise RequestError("the only expectation known is 100-continue")
    return RequestHead(
        parts[0].decode("ascii"),
        target.decode("latin-1"),
        b"%b %b HTTP/1.1\r\n" % (parts[0], target),
        host,
        joined(lines),
        headers,
        flags,
        _request_length(flags, headers, repeated, version),
        0,
        version,
        keep_alive,
        Repeated(repeated) if repeated else None,
    )


def joined(lines: list[bytes]) -> bytes:
    """Field lines as they are sent, each with its CRLF."""
    return b"".join([line + b"\r\n" for line in lines])


_USUAL_TOKENS: Final = frozenset({b"close", b"keep-alive", b"upgrade", b"te"})


def connection_tokens(value: bytes) -> frozenset[bytes]:
    """The tokens of a Connection field, in lower case."""
    return frozenset(token.strip(b" \t") for token in value.lower().split(b","))


def _target_and_host(
    method: bytes, target: bytes, version: bytes, headers: dict[str, bytes], repeated: dict[str, list[bytes]]
) -> tuple[bytes, bytes]:
    """The target in origin form, and the host. Raises RequestError when it is unclear which host is meant."""
    if "host" in repeated:
        raise RequestError("more than one Host")
    host = headers.get("host")
    if host is None and version == b"1.1":
        raise RequestError("the header Host is missing")
    host = host or b""
    if not _HOST.fullmatch(host):
        raise RequestError("Host is not a host")
    if target[:1] != b"/" and (target != b"*" or method != b"OPTIONS"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or absolute[1].lower() != host.lower():
            raise RequestError("the request target is neither a path nor a URL on the host that Host names")
        target = absolute[2] if absolute[2][:1] == b"/" else b"/" + absolute[2]
    if b"#" in target:
        raise RequestError("the request target has a fragment")
    return target, host


def _request_length(
    flags: int, headers: dict[str, bytes], repeated: dict[str, list[bytes]], version: bytes
) -> int:
    """How long the body is (RFC 9112 6.3), when only one answer is possible."""
    if flags & CODING:
        if flags & LENGTH:
            raise RequestError("Content-Length and Transfer-Encoding together")
        if version != b"1.1" or headers.get("transfer-encoding", b"").lower() != b"chunked":
            raise RequestError("Transfer-Encoding is not chunked, or not HTTP/1.1")
        return CHUNKED
    if not flags & LENGTH:
        return 0
    length = headers.get("content-length", b"")
    if "content-length" in repeated or not length.isdigit() or len(length) > _MAX_DIGITS:
        raise RequestError("Content-Length is not one number")
    return int(length)


def plain_response_head(data: bytes, *, to_head: bool) -> ResponseHead | None:
    """The head that `data` begins with; None when it is not whole, or must be read by `read_response_head`."""
    read = _heads.response(data, FIELDS.known, _DROPPED_RESPONSE, _RARE_RESPONSE)
    if read is None:
        return None
    status, start, lines, special, flags, length, size_bytes = read
    if to_head or status in _BODYLESS:
        length = 0
    return ResponseHead(status, start, lines, special, flags, length, size_bytes)


def read_response_head(raw: bytes, *, to_head: bool) -> ResponseHead:
    """The head of a response, without its last empty line; `to_head`: the request was a HEAD. Raises BadResponse."""
    start, *fields = raw.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(start)
    if match is None or raw.translate(None, _TEXT) != b"\r\n" * len(fields):
        raise BadResponse("the upstream's response is malformed")
    lines: list[bytes] = []
    special: dict[str, bytes] = {}
    flags = 0
    for line in fields:
        name, colon, value = line.partition(b":")
        try:
            text, flag = FIELDS[name]
        except ValueError:
            raise BadResponse("a header name in the upstream's response is not a token") from None
        if not colon:
            raise BadResponse("a header in the upstream's response has no colon")
        if flag:
            flags |= flag
            value = value.strip(b" \t")
            special[text] = special[text] + b", " + value if text in special else value
            if flag & _DROPPED_RESPONSE:
                continue
        lines.append(line)
    keep_alive = match[1] == b"1"
    if flags & CONNECTION:
        tokens = connection_tokens(special["connection"])
        keep_alive = b"close" not in tokens and (keep_alive or b"keep-alive" in tokens)
        if tokens - _USUAL_TOKENS:
            lines = [line for line in lines if line.partition(b":")[0].lower() not in tokens]
    status = int(match[2])
    length = _response_length(status, flags, special, to_head)
    start = b"HTTP/1.1%b%b\r\n" % (start[8:], b" " if len(start) == 12 else b"")
    return ResponseHead(status, start, joined(lines), special, flags, length, 0, keep_alive)


def _response_length(status: int, flags: int, special: dict[str, bytes], to_head: bool) -> int:
    """How long the body is; what would make a cache or a client see another end is refused."""
    if flags & CODING:
        if flags & LENGTH or special["transfer-encoding"].lower() != b"chunked":
            raise BadResponse("the upstream's response has an unclear length")
    elif flags & LENGTH:
        length = special["content-length"]
        if not length.isdigit() or len(length) > _MAX_DIGITS:
            raise BadResponse("the upstream's Content-Length is not one number")
    if to_head or status < 200 or status in _BODYLESS:
        return 0
    if flags & CODING:
        return CHUNKED
    return int(special["content-length"]) if flags & LENGTH else UNTIL_CLOSE
