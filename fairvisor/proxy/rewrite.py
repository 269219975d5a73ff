"""Heads as they are sent on: what ends at this hop is gone (`heads` left it out), what this hop must say is added.

Requests get X-Forwarded-For, -Proto, -Host and Via (RFC 9110 7.6.3), responses Via, the framing of this hop and the
headers of the decision. The module knows fields, not where they go.
"""

from __future__ import annotations

from typing import Final

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
)

PSEUDONYM: Final = b"fairvisor"  # who we are in Via
_BODYLESS: Final = frozenset(
    {"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"}
)  # say no length when they have no body

__all__ = ["content_type", "request_head", "request_line", "response_head", "without"]


def request_head(
    head: RequestHead,
    *,
    peer: str,
    trusted: bool,
    length: int,
    continues: bool,
    coding: bytes | None,
) -> bytes:
    """The fields for the upstream, with the empty line that ends them; `request_line` comes before.

    `length` is the body's, or CHUNKED; `coding`, when not None, the content codings that are asked for; `continues`
    passes Expect on.
    """
    lines: list[bytes] = []
    headers, flags = head.headers, head.flags
    if coding is None:
        lines += head.lines
    else:
        lines += without(head.lines, b"accept-encoding") if flags & ACCEPT else head.lines
        lines.append(b"Accept-Encoding: " + coding)
    lines += _forwarded(headers, head.host, peer.encode("ascii", "replace"), trusted and flags & FORWARDED)
    via = headers["via"] + b", " if flags & VIA else b""
    lines.append(b"Via: %b%b %b" % (via, head.version, PSEUDONYM))
    if head.upgrades:
        lines.append(b"Connection: Upgrade\r\nUpgrade: " + headers["upgrade"])
    elif flags & TE and b"trailers" in headers["te"].lower():
        lines.append(b"Connection: TE\r\nTE: trailers")
    if continues and flags & EXPECT:
        lines.append(b"Expect: 100-continue")
    if length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n\r\n")
    elif length or head.method not in _BODYLESS or flags & LENGTH:
        lines.append(b"Content-Length: %d\r\n\r\n" % length)
    else:
        lines.append(b"\r\n")
    return b"\r\n".join(lines)


def request_line(head: RequestHead, host: bytes) -> bytes:
    """The first line for the upstream, and Host, which depends on which upstream it is."""
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n" % (
        head.method.encode("ascii"),
        head.target.encode("latin-1"),
        host,
    )


def _forwarded(headers: dict[str, bytes], host: bytes, peer: bytes, believed: int) -> list[bytes]:
    """Who the client is: a trusted peer's word with the peer added, otherwise the peer alone."""
    if not believed:
        lines = [b"X-Forwarded-Proto: http"]
        if peer:
            lines.append(b"X-Forwarded-For: " + peer)
        if host:
            lines.append(b"X-Forwarded-Host: " + host)
        return lines
    before = headers.get("x-forwarded-for")
    chain = b", ".join(part for part in (before, peer) if part)
    lines = [b"X-Forwarded-Proto: " + headers.get("x-forwarded-proto", b"http")]
    if chain:
        lines.append(b"X-Forwarded-For: " + chain)
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
            lines, *(line.partition(":")[0].lower().encode() + b":" for line in extra.split("\r\n")[:-1])
        )
    if edited:
        lines = without(lines, b"content-encoding", b"etag", b"content-md5", b"digest", b"content-digest")
    end = "Via: 1.1 fairvisor\r\n" + extra + connection
    if length == CHUNKED:
        end += "Transfer-Encoding: chunked\r\n"
    elif length != UNTIL_CLOSE:
        end += _length_line(head, length)
    start = b"HTTP/1.1%b%b\r\n" % (head.start[8:], b" " if len(head.start) == 12 else b"")
    fields = b"\r\n".join(lines)
    return b"%b%b%b%b\r\n" % (start, fields, b"\r\n" if lines else b"", end.encode("latin-1"))


def _length_line(head: ResponseHead, length: int) -> str:
    """Content-Length: of the body, or, where there is none, what the upstream says a GET would have got."""
    if head.status == 204 or head.status < 200:
        return ""
    if length:
        return f"Content-Length: {length}\r\n"
    if head.flags & LENGTH:
        return f"Content-Length: {head.special['content-length'].decode('ascii')}\r\n"
    return "" if head.status == 304 or head.flags & CODING else "Content-Length: 0\r\n"


def without(lines: list[bytes], *starts: bytes) -> list[bytes]:
    """The lines whose names do not begin like this (lower case)."""
    return [line for line in lines if not line.lower().startswith(starts)]


def content_type(head: ResponseHead) -> str:
    """The media type of a response, "" when it says none."""
    return head.special["content-type"].decode("latin-1") if head.flags & TYPE else ""
