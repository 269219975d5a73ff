"""Who sent a request: the client's address behind the proxies that are trusted to tell it.

A header names the client only when the peer that sent it is trusted. The header is then read from the right, because
every proxy appends what it saw: entries of trusted proxies are skipped, the first other one is the client. What stands
further left came from the client and is never looked at, however it is written. Configuration chooses one header: a
list (X-Forwarded-For, or Forwarded of RFC 7239), one place in the list counted from the right, or a header that holds a
single address.

IPv4-mapped IPv6 is IPv4, ports, brackets and zone ids are not part of an address, and IPv6 clients are counted by
their network, because one subscriber usually holds a whole /64. This module knows nothing of countries or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import TYPE_CHECKING, Final

from fairvisor.bounded_cache import LONGEST
from fairvisor.identity.recent import Recent

if TYPE_CHECKING:
    from fairvisor.identity.places import Place

Address = IPv4Address | IPv6Address
Entries = Callable[[str], "Iterator[str | None]"]  # of a header's value, from the right; None: not an address
Network = IPv4Network | IPv6Network

# More hops than any real chain of proxies has: bounds what one hostile header can cost.
MAX_HOPS: Final = 64
# The longest address with zone, brackets and port is far below this; longer text is not an address.
_MAX_NODE: Final = 100

_REMEMBERED_CLIENTS: Final = 8192
_REMEMBERED_PEERS: Final = 4096

# RFC 7239 section 6: a port is digits, or "_" and an obfuscated name.
_PORT: Final = re.compile(r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")

# RFC 7239 section 4, forwarded-pair. Unquoted addresses with ":" or "[" are not tokens, but proxies send them.
_PAIR: Final = re.compile(
    r"""[ \t;]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;\\]*))[ \t]*(?:;|\Z)"""
)
_ESCAPED: Final = re.compile(r"\\(.)")


class Client:
    """Where a request comes from.

    `text` is the full address, `key` what is counted: the address (IPv4) or its network (IPv6); both are "" when the
    address is not known, as on a unix socket without a header. `ip` is the parsed address. `described` says that a
    trusted peer spoke for the client. `place` is what the databases say of it, worked out on first use.
    """

    __slots__ = ("described", "ip", "key", "place", "text")

    def __init__(self, ip: Address | None, ipv6_prefix: int, *, described: bool = False) -> None:
        self.ip = ip
        self.text = "" if ip is None else str(ip)
        self.key = self.text
        self.described = described
        self.place: Place | None = None
        if isinstance(ip, IPv6Address) and ipv6_prefix < 128:
            self.key = str(ip_network((ip, ipv6_prefix), strict=False))

    def __repr__(self) -> str:
        return f"Client({self.text!r})"


class Addresses:
    """Finds the client of a request; see the module's text for the rule.

    `form` says which header is read and how, as FAIRVISOR_CLIENT_IP_HEADER writes it in lower case. A peer on a unix
    socket, whose address is "", is trusted if `unix_trusted`: the permissions of the socket decide who that is.
    """

    def __init__(
        self,
        form: str,
        trusted_peers: Sequence[Network],
        trusted_proxies: Sequence[Network],
        ipv6_prefix: int,
        *,
        unix_trusted: bool = True,
    ) -> None:
        self._header, self._entries = client_header(form)
        self._trusted_peers = tuple(trusted_peers)
        self._trusted_proxies = tuple(trusted_proxies)
        self._ipv6_prefix = ipv6_prefix
        self._unix_trusted = unix_trusted
        self._clients: Recent[tuple[str, bytes | None], Client] = Recent(_REMEMBERED_CLIENTS)
        self._trust: Recent[str, bool] = Recent(_REMEMBERED_PEERS)

    def client(self, peer: str, headers: dict[str, bytes]) -> Client:
        """The client of a request from `peer` (the address of the other end of the connection) with these headers."""
        value = headers.get(self._header)
        return self._clients.young.get((peer, value)) or self._find(peer, value)

    def trusted_peer(self, peer: str) -> bool:
        """Whether this peer may describe a request."""
        trusted = self._trust.get(peer)
        if trusted is None:
            address = parse_address(peer)
            trusted = (
                self._unix_trusted
                if peer == ""
                else address is not None and in_any(address, self._trusted_peers)
            )
            self._trust.put(peer, trusted)
        return trusted

    def _find(self, peer: str, value: bytes | None) -> Client:
        described = self.trusted_peer(peer)
        if not described:
            value = None  # kept once for the peer, whatever it writes into the header
        client = self._clients.get((peer, value))
        if client is None:
            client = Client(self._address(peer, value), self._ipv6_prefix, described=described)
            if value is None or len(value) <= LONGEST:  # no chain of proxies is longer
                self._clients.put((peer, value), client)
        return client

    def _address(self, peer: str, value: bytes | None) -> Address | None:
        found = parse_address(peer)
        if value is None:
            return found
        for entry in islice(self._entries(value.decode("latin-1")), MAX_HOPS):
            address = None if entry is None else parse_node(entry)
            if address is None:
                return found
            found = address
            if not in_any(address, self._trusted_proxies):
                return found
        return found


def client_header(form: str) -> tuple[str, Entries]:
    """Return the lower-case name of the header that a form of the setting reads, and its reader.

    For `none` the name is empty, which no header has: a client may send one that is called "none".
    """
    if form == "none":
        return "", forwarded_for_entries
    if form == "forwarded":
        return form, forwarded_entries
    if form == "x-forwarded-for":
        return form, forwarded_for_entries
    kind, colon, hops = form.partition(":")
    if not colon:
        return form, single_entry
    assert kind == "hops", "the settings accept no other"
    return "x-forwarded-for", _hop_reader(int(hops))


def _hop_reader(hops: int) -> Entries:
    """Return a reader that gives the entry `hops` from the right, if there are as many."""
    return lambda header: islice(forwarded_for_entries(header), hops - 1, hops)


def in_any(address: Address, networks: Sequence[Network]) -> bool:
    """Whether the address is in one of the networks; the two IP versions never match each other."""
    return any(address in network for network in networks)


def parse_address(text: str) -> Address | None:
    """An address without port or brackets; None when it is none. A zone id (RFC 4007) is dropped."""
    if len(text) > _MAX_NODE:
        return None
    bare, mark, zone = text.partition("%")
    if mark and (":" not in bare or not zone):
        return None
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def parse_node(text: str) -> Address | None:
    """An address as proxies write it: plain, `192.0.2.1:4711`, `[2001:db8::1]`, `[2001:db8::1]:4711`."""
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in text:
            return None
    elif text.count(":") == 1:
        text, colon, number = text.partition(":")
        port = colon + number
    else:
        port = ""
    return parse_address(text) if _PORT.fullmatch(port) else None


def forwarded_for_entries(header: str) -> Iterator[str | None]:
    """The entries of X-Forwarded-For from the right; empty ones are not entries (RFC 9110 section 5.6.1)."""
    end = len(header)
    while end >= 0:
        comma = header.rfind(",", 0, end)
        if entry := header[comma + 1 : end].strip(" \t"):
            yield entry
        end = comma


def single_entry(header: str) -> Iterator[str | None]:
    """The one address of a header that holds a single one; None where it came twice, or as a list, and differs."""
    addresses = {address.strip(" \t") for address in header.split(",")}
    yield addresses.pop() if len(addresses) == 1 else None


def forwarded_entries(header: str) -> Iterator[str | None]:
    """The `for=` of each element of Forwarded (RFC 7239) from the right; None for one that is malformed or has none.

    Elements are told apart from the right too, so that a quote which the client left open cannot swallow what the
    proxies appended after it.
    """
    end = len(header)
    while end >= 0:
        comma = _last_comma(header, end)
        if element := header[comma + 1 : end].strip(" \t"):
            yield _forwarded_for(element)
        end = comma


def _last_comma(header: str, end: int) -> int:
    """The last comma before `end` that is not inside a quoted string that closes before `end`; -1 when none."""
    while True:
        comma = header.rfind(",", 0, end)
        quote = header.rfind('"', 0, end)
        if comma >= quote:
            return comma
        end = _opening_quote(header, quote)
        if end < 0:
            return -1


def _opening_quote(header: str, closing: int) -> int:
    """Where the quoted string that ends at `closing` begins; -1 when it does not."""
    start = header.rfind('"', 0, closing)
    while start > 0 and _is_escaped(header, start):
        start = header.rfind('"', 0, start)
    return start


def _is_escaped(header: str, position: int) -> bool:
    """Whether an odd number of backslashes stands before `position`."""
    run = position
    while run > 0 and header[run - 1] == "\\":
        run -= 1
    return (position - run) % 2 == 1


def _forwarded_for(element: str) -> str | None:
    found: str | None = None
    position = 0
    while position < len(element):
        pair = _PAIR.match(element, position)
        if pair is None:
            return None
        name, quoted, token = pair.groups()
        if name.lower() == "for":
            if found is not None:
                return None
            found = token if quoted is None else _ESCAPED.sub(r"\1", quoted)
        position = pair.end()
    return found
