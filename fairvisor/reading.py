"""One reading of a request, the same for every transport: method, host, header fields, cookies, query.

Decision endpoints, WSGI, the proxy, `explain` and replay all make what policies see with the functions here, so that no
spelling of a request is counted under one name by one transport and under another by the next. A value that comes more
than once, with different contents, has no single reading: which of them the application uses is not known. What names a
counter or an amount is then ambiguous (`AmbiguousValue`); `match` and kill switches look at every value.

This module knows HTTP fields (RFC 9110), cookies (RFC 6265) and queries (WHATWG URL). It knows neither gateways nor
policies.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import unquote_plus

from fairvisor.bounded_cache import BoundedCache
from fairvisor.errors import AmbiguousValue, RequestError

_REMEMBERED: Final = 4096  # methods, and hosts

_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # a token, RFC 9110 5.6.2
# RFC 3986 3.2.2, without a comma
_HOST: Final = re.compile(r"[a-z0-9._~!$&'()*+;=%-]{1,255}|\[[0-9a-f:.]{2,45}\]")

MAX_CREDENTIALS: Final = 4  # different ones of a request that are looked at; each may cost a signature check
# What servers split a credential at, where RFC 9110 11.4 has spaces only: also tabs, and the white space of Latin-1.
CREDENTIAL_SPACE: Final = rb"(?:[ \t\x85\xa0]|\xc2[\x85\xa0])"
_CREDENTIAL: Final = re.compile(rb"([!-+.-~-]+)%b+(.*)" % CREDENTIAL_SPACE, re.DOTALL)
_BEARER: Final = re.compile(rb"bearer%b" % CREDENTIAL_SPACE, re.IGNORECASE)

# An escape in a quoted cookie, as Python's http.cookies and what is made of it read them.
_QUOTED: Final = re.compile(r"\\(?:([0-3][0-7]{2})|.)", re.DOTALL)

# Fields whose value is a list (RFC 9110, RFC 9111), and those that gateways append to: several lines are one list.
LIST_FIELDS: Final = frozenset({
    "accept", "accept-charset", "accept-encoding", "accept-language", "accept-ranges", "allow", "cache-control",
    "connection", "content-encoding", "content-language", "expect", "forwarded", "if-match", "if-none-match", "link",
    "pragma", "prefer", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade", "vary", "via", "warning",
    "www-authenticate", "x-forwarded-for",
})  # fmt: skip
# Fields of one value that may hold a comma: where lines arrive joined, their comma is not taken for a line's end.
_WITH_COMMA: Final = LIST_FIELDS | {
    "user-agent", "date", "expires", "if-modified-since", "if-range", "if-unmodified-since", "last-modified",
    "retry-after",
}  # fmt: skip


def normal_method(value: bytes) -> str:
    """Return the method in upper case, so that no spelling of it escapes a policy. Raises RequestError (400)."""
    if not _METHOD.fullmatch(value):
        raise RequestError(f"the method {value[:80]!r} is not a token")
    return value.decode("ascii").upper()


def normal_host(text: str) -> str:
    """Return a Host value without port and trailing dot, in lower case; an IPv6 literal in its canonical spelling.

    Raises RequestError (400) for what cannot be a host (RFC 9110 7.2, RFC 3986 3.2.2), two joined values included.
    """
    host = text.strip().lower()
    name, colon, port = host.rpartition(":")
    if colon and (port == "" or (port.isascii() and port.isdigit())) and not name.endswith(":"):
        host = name if "]" in name or ":" not in name else host
    if not _HOST.fullmatch(host):
        raise RequestError(f"the host {text[:80]!r} is not a host name or address")
    if host.startswith("["):
        return _normal_ipv6(host, text)
    host = host.removesuffix(".")
    if not host:
        raise RequestError(f"the host {text[:80]!r} is not a host name or address")
    return host


def _normal_ipv6(host: str, text: str) -> str:
    try:
        return f"[{IPv6Address(host[1:-1])}]"
    except ValueError:
        raise RequestError(f"the host {text[:80]!r} is not an IPv6 address") from None


# Bound once in each process; what they remember is derived from the requests, and bounded.
METHODS: Final = BoundedCache[bytes, str](normal_method, _REMEMBERED)
HOSTS: Final = BoundedCache[bytes, str](lambda value: normal_host(value.decode("latin-1")), _REMEMBERED)


def header_text(value: bytes) -> str:
    """Return header bytes as text: UTF-8 where they are, else Latin-1, so that every value has one reading
    (RFC 9110 5.5)."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


# Header fields


class Repeated:
    """The fields of a request that came on several lines: their values in order, by lower-case name.

    `joined` says that whatever handed the request on has joined repeated lines with commas (WSGI servers, Envoy), so
    that a comma may end a line.
    """

    __slots__ = ("joined", "lines")

    def __init__(self, lines: dict[str, list[bytes]], *, joined: bool = False) -> None:
        self.lines = lines
        self.joined = joined

    def values(self, name: str, value: bytes) -> list[bytes]:
        """Return the different values of a field whose joined value is `value`; for a list, the whole list first."""
        lines = self.lines.get(name, [value])
        if name in LIST_FIELDS:
            lines = [value, *lines]
        elif self.joined and name not in _WITH_COMMA:
            lines = [part.strip() for line in lines for part in line.split(b",")]
        return list(dict.fromkeys(lines))

    def single(self, name: str, value: bytes) -> bytes:
        """Return the only value of a field, a list as a whole. Raises AmbiguousValue when lines differ."""
        if name in LIST_FIELDS:
            return value
        values = self.values(name, value)
        if len(values) > 1:
            raise AmbiguousValue(f"header:{name}")
        return values[0]

    def credentials(self, value: bytes) -> list[bytes]:
        """Return the different credentials of an Authorization field whose joined value is `value`.

        Raises AmbiguousValue for more than MAX_CREDENTIALS: no signature is checked then.
        """
        lines = self.lines.get("authorization", [value])
        if self.joined:
            lines = [part for line in lines for part in _split_credentials(line)]
        different = {_same_credential(line): line for line in reversed(lines)}
        if len(different) > MAX_CREDENTIALS:
            raise AmbiguousValue("header:authorization")
        return list(reversed(different.values()))


JOINED: Final = Repeated({}, joined=True)


def read_fields(pairs: list[tuple[str, bytes]]) -> tuple[dict[str, bytes], Repeated | None]:
    """Read field lines, names in lower case: each field's value, and what came on several lines (None: nothing).

    Values lose the white space around them; those of repeated lines are joined in order (RFC 9110 5.3, 5.5).
    """
    headers = {name: value.strip() for name, value in pairs}
    if len(headers) == len(pairs):
        return headers, None
    lines: dict[str, list[bytes]] = {}
    for name, value in pairs:
        lines.setdefault(name, []).append(value.strip())
    headers = {name: b", ".join(values) for name, values in lines.items()}
    return headers, Repeated({name: values for name, values in lines.items() if len(values) > 1})


def _split_credentials(value: bytes) -> list[bytes]:
    """Return what was joined with commas, where one of the parts is a Bearer credential: its token holds no comma,
    while the parameters of other schemes are lists themselves (RFC 9110 11.4)."""
    if b"," not in value:
        return [value]
    parts = [part.strip() for part in value.split(b",")]
    return parts if any(_BEARER.match(part) for part in parts) else [value]


def _same_credential(value: bytes) -> bytes:
    """Return a credential in one spelling: scheme in lower case, one space, no padding of the token."""
    found = _CREDENTIAL.fullmatch(value)
    return value if found is None else found[1].lower() + b" " + found[2].rstrip(b"= \t")


# Cookies and queries


class Pairs:
    """Names with values, as cookies and queries have them: the first and the last value of each name.

    `several` holds all values of the names that have different ones, in the order in which they came.
    """

    __slots__ = ("first", "last", "several")

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.last: dict[str, str] = dict(pairs)
        self.first: dict[str, str] = self.last
        self.several: dict[str, list[str]] = {}
        if len(self.last) < len(pairs):
            self.first = dict(reversed(pairs))
            values: dict[str, list[str]] = {}
            for name, value in pairs:
                values.setdefault(name, []).append(value)
            self.several = {name: each for name, each in values.items() if len(set(each)) > 1}

    def every(self, name: str) -> list[str]:
        """Return every value of a name; empty ones are none."""
        value = self.first.get(name)
        return [each for each in self.several.get(name, [value]) if each] if value is not None else []


def parse_query(target: str) -> Pairs:
    """Read the query of `target` (WHATWG urlencoded parsing, `&` only), percent-decoded once."""
    _, mark, query = target.partition("#")[0].partition("?")
    pairs: list[tuple[str, str]] = []
    if mark:
        for pair in query.split("&"):
            name, _, value = pair.partition("=")
            pairs.append((unquote_plus(name), unquote_plus(value)))
    return Pairs(pairs)


def _unquoted(match: re.Match[str]) -> str:
    """Return the character that is escaped in a quoted value: `\\162` is r, `\\r` too."""
    return chr(int(match[1], 8)) if match[1] else match[0][1:]


def parse_cookies(header: bytes, joined: bool) -> Pairs:
    """Read the pairs of a Cookie field (RFC 6265 4.2.1), percent-decoded once.

    Names and values lose the spaces around them, as servers read them; quotes around a value are not part of it, and
    escapes between them are what they escape. A comma and a space end a pair too, `joined` lines are also parted at a
    bare comma.
    """
    text = header_text(header).replace(",", ";") if joined else header_text(header).replace(", ", "; ")
    pairs: list[tuple[str, str]] = []
    for pair in text.split(";"):
        name, mark, value = pair.partition("=")
        if mark:
            value = value.strip()
            if value[:1] == '"':  # servers cut the last character too, some whatever it is
                value = _QUOTED.sub(_unquoted, value[1:-1]).strip()
            pairs.append((name.strip(), unquote_plus(value.replace("+", "%2B"))))
    return Pairs(pairs)
