"""Heads as they are sent on: what ends at this hop is gone (`heads` left it out), what this hop must say is added.

Requests get X-Forwarded-For, -Proto, -Host and Via (RFC 9110 7.6.3), responses Via, the framing of this hop and the
headers of the decision. The module knows fields, not where they go.
"""

from __future__ import annotations

from typing import Final

from fairvisor.http.request import Peer
from fairvisor.proxy.heads import (
    ACCEPT,
    CHUNKED,
    CODING,
    EXPECT,
    FORWARDED,
    LENGTH,
    OURS,
    TE,
    TYPE,
    UNTIL_CLOSE,
    VIA,
    RequestHead,
    ResponseHead,
    joined,
)

UNKNOWN: Final = b"unknown"  # the client's address, on a unix socket (RFC 7239 6.2 has the same word)
_BODYLESS: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})  # say no length when they have no body

__all__ = ["Hop", "content_type", "request_head", "response_head"]


class Hop:
    """What this hop says of one client's requests: where they come from, and which way they came."""

    __slots__ = ("_address", "_host", "_lines", "_pseudonym", "_told")

    def __init__(self, peer: Peer, pseudonym: bytes) -> None:
        """`pseudonym` is this instance's own name in Via (RFC 9110 7.6.3)."""
        self._address = peer.address.encode("ascii", "replace")
        self._pseudonym = pseudonym
        self._told = VIA | FORWARDED if peer.trusted else VIA  # what the client may say of hops before it
        # of the latest request, when the next one's are the same
        self._host = b""
        self._lines = b""

    def has_passed(self, head: RequestHead) -> bool:
        """Whether this instance has forwarded the request before, as its Via says."""
        return any(
            entry.split()[1:2] == [self._pseudonym] for entry in head.headers.get("via", b"").split(b",")
        )

    def lines(self, head: RequestHead) -> bytes:
        """X-Forwarded-* and Via, each line with its CRLF."""
        if head.flags & self._told or head.version != b"1.1":
            return self._make(head)
        if not self._lines or head.host != self._host:
            self._host, self._lines = head.host, self._make(head)
        return self._lines

    def _make(self, head: RequestHead) -> bytes:
        headers, flags = head.headers, head.flags
        lines = _forwarded(headers, head.host, self._address, flags & self._told & FORWARDED)
        via = headers["via"] + b", " if flags & VIA else b""
        lines.append(b"Via: %b%b %b" % (via, head.version, self._pseudonym))
        return joined(lines)


def request_head(
    head: RequestHead,
    host: bytes,
    hop: Hop,
    *,
    length: int,
    continues: bool,
    coding: bytes | None,
) -> bytes:
    """The head for the upstream.

    `length` is the body's, or CHUNKED; `coding`, when not None, the content codings that are asked for; `continues`
    passes Expect on.
    """
    flags, lines = head.flags, head.lines
    if coding is not None:
        if flags & ACCEPT:
            lines = without(lines, b"accept-encoding:")
        lines += b"Accept-Encoding: %b\r\n" % coding
    end = b""
    if flags:
        if head.upgrades:
            end = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.headers["upgrade"]
        elif flags & TE and b"trailers" in head.headers["te"].lower():
            end = b"Connection: TE\r\nTE: trailers\r\n"
        if continues and flags & EXPECT:
            end += b"Expect: 100-continue\r\n"
    if length == CHUNKED:
        end += b"Transfer-Encoding: chunked\r\n"
    elif length or head.method not in _BODYLESS or flags & LENGTH:
        end += b"Content-Length: %d\r\n" % length
    return b"".join((head.start, b"Host: ", host, b"\r\n", lines, hop.lines(head), end, b"\r\n"))


def _forwarded(headers: dict[str, bytes], host: bytes, peer: bytes, believed: int) -> list[bytes]:
    """Who the client is: a trusted peer's word with the peer added, otherwise the peer alone."""
    if not believed:
        lines = [b"X-Forwarded-Proto: http", b"X-Forwarded-For: " + (peer or UNKNOWN)]
        if host:
            lines.append(b"X-Forwarded-Host: " + host)
        return lines
    before = headers.get("x-forwarded-for")
    chain = b", ".join([part for part in (before, peer) if part])
    lines = [
        b"X-Forwarded-Proto: " + headers.get("x-forwarded-proto", b"http"),
        b"X-Forwarded-For: " + (chain or UNKNOWN),
    ]
    named = headers.get("x-forwarded-host", host)
    if named:
        lines.append(b"X-Forwarded-Host: " + named)
    lines += [
        b"%b: %b" % (name.title().encode("ascii"), headers[name])
        for name in ("forwarded", "x-real-ip", "x-forwarded-port")
        if name in headers
    ]
    return lines


def response_head(head: ResponseHead, extra: str, length: int, connection: str, *, edited: bool) -> bytes:
    """The head for the client. `length` is the body's on this hop: a size, CHUNKED, or UNTIL_CLOSE; `edited` says
    that the body is not the upstream's byte for byte, so its validators and coding do not describe it."""
    lines = head.lines
    if extra and head.flags & OURS:
        lines = without(
            lines, *[line.partition(":")[0].lower().encode() + b":" for line in extra.split("\r\n")[:-1]]
        )
    if edited:
        lines = without(
            lines, b"content-encoding:", b"etag:", b"content-md5:", b"digest:", b"content-digest:"
        )
    if length == CHUNKED:
        framing = "Transfer-Encoding: chunked\r\n"
    else:
        framing = "" if length == UNTIL_CLOSE else _length_line(head, length)
    end = f"Via: 1.1 fairvisor\r\n{extra}{connection}{framing}\r\n"
    return b"".join((head.start, lines, end.encode("latin-1")))


def _length_line(head: ResponseHead, length: int) -> str:
    """Content-Length: of the body, or, where there is none, what the upstream says a GET would have got."""
    if head.status == 204 or head.status < 200:
        return ""
    if length:
        return f"Content-Length: {length}\r\n"
    if head.flags & LENGTH:
        return f"Content-Length: {head.special['content-length'].decode('ascii')}\r\n"
    return "" if head.status == 304 or head.flags & CODING else "Content-Length: 0\r\n"


def without(lines: bytes, *starts: bytes) -> bytes:
    """The lines that do not begin like this (lower case)."""
    return joined([line for line in lines.split(b"\r\n")[:-1] if not line.lower().startswith(starts)])


def content_type(head: ResponseHead) -> str:
    """The media type of a response, "" when it says none."""
    return head.special["content-type"].decode("latin-1") if head.flags & TYPE else ""
