"""What is known of an address: country, network (ASN) and its type, Tor exit or not.

The facts come from files that the operator keeps up to date: MaxMind-format databases, an ASN-to-type table, a list of
Tor exits. They are followed off the request path, each new file taking the place of the old by one assignment; a file
that is broken leaves the one before it in use and is reported. Gateways that know better may say so in headers
(`Hints`), which are believed only when the operator named them and the peer is trusted, and then win over the files.

Databases are read into memory of our own, so that a file overwritten in place cannot pull a mapping away from under a
worker.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import maxminddb

from fairvisor.identity.addresses import Address, Client, parse_address
from fairvisor.identity.watched import Watched, read_bounded

# The largest of today's country and ASN tables have some 10 MB.
_MAX_TABLE_BYTES: Final = 64 << 20

_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")  # ISO 3166-1 alpha-2
_ASN: Final = re.compile(r"(?:[Aa][Ss])?0*([1-9][0-9]{0,9})")  # RFC 6793: 32 bits
_TYPE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FLAGS: Final = {"true": "true", "1": "true", "yes": "true", "false": "false", "0": "false", "no": "false"}

Database = Any  # maxminddb.Reader of the C extension or of the Python module, which share no base


class Place:
    """What the files of one moment say of an address; None is not known. `facts` tells which files those were."""

    __slots__ = ("asn", "asn_type", "country", "facts", "tor")

    def __init__(
        self, facts: _Facts, country: str | None, asn: str | None, asn_type: str | None, tor: str | None
    ) -> None:
        self.facts = facts
        self.country = country
        self.asn = asn
        self.asn_type = asn_type
        self.tor = tor


class _Facts:
    """The content of all files at one moment; replaced whole, never changed."""

    __slots__ = ("asns", "countries", "exits", "types")

    def __init__(
        self,
        countries: Database | None,
        asns: Database | None,
        types: Mapping[str, str],
        exits: frozenset[Address] | None,
    ) -> None:
        self.countries = countries
        self.asns = asns
        self.types = types
        self.exits = exits

    def place(self, address: Address | None) -> Place:
        if address is None:
            return Place(self, None, None, None, None)
        asn = _asn_of(_record(self.asns, address))
        return Place(
            self,
            _country_of(_record(self.countries, address)),
            asn,
            self.types.get(asn) if asn is not None else None,
            None if self.exits is None else ("true" if address in self.exits else "false"),
        )


class Places:
    """Looks addresses up in the operator's files; each path may be None. Reads them once when made."""

    def __init__(
        self, geoip_db: Path | None, asn_db: Path | None, asn_types: Path | None, tor_exits: Path | None
    ) -> None:
        self._countries = None if geoip_db is None else Watched(geoip_db, load_database)
        self._asns = None if asn_db is None else Watched(asn_db, load_database)
        self._types = None if asn_types is None else Watched(asn_types, load_types)
        self._exits = None if tor_exits is None else Watched(tor_exits, load_exits)
        self._files = [
            each for each in (self._countries, self._asns, self._types, self._exits) if each is not None
        ]
        self._facts = _Facts(None, None, {}, None)
        self.refresh()

    def refresh(self) -> None:
        """Take over the files that changed. Reads files: not for the request path."""
        changed = [each.check() for each in self._files]
        if any(changed):
            self._facts = _Facts(
                self._countries.content if self._countries else None,
                self._asns.content if self._asns else None,
                (self._types.content if self._types else None) or {},
                self._exits.content if self._exits else None,
            )

    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the files as they are now."""
        return tuple(each.problem for each in self._files if each.problem)

    def place(self, client: Client) -> Place:
        """What is known of the client; kept with the client until a file changes."""
        place = client.place
        if place is None or place.facts is not self._facts:
            place = client.place = self._facts.place(client.ip)
        return place

    def asn_type(self, asn: str) -> str | None:
        """The type of a network that a gateway named."""
        return self._facts.types.get(asn)


class Hints:
    """Reads the headers that say what the gateway knows of a client. A value that is not of its form is not used."""

    def __init__(self, trusted: frozenset[str]) -> None:
        self._trusted = trusted

    def country(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """X-Country-Code in upper case."""
        return self._read("x-country-code", client, headers, country_code)

    def asn(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """X-ASN as digits: `13335` for `AS13335`."""
        return self._read("x-asn", client, headers, asn_digits)

    def asn_type(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """X-ASN-Type in lower case."""
        return self._read("x-asn-type", client, headers, _network_type)

    def tor(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """X-Tor-Exit as "true" or "false"."""
        return self._read("x-tor-exit", client, headers, lambda text: _FLAGS.get(text.lower()))

    def _read(
        self, name: str, client: Client, headers: Mapping[str, bytes], parse: Callable[[str], str | None]
    ) -> str | None:
        if name not in self._trusted or not client.described:
            return None
        value = headers.get(name)
        return None if value is None else parse(value.decode("latin-1").strip())


def country_code(text: str) -> str | None:
    """An ISO 3166-1 code in upper case; None when it is none."""
    return text.upper() if _COUNTRY.fullmatch(text) else None


def asn_digits(text: str) -> str | None:
    """`13335` for `13335` and `AS13335`; None when it is no network number."""
    match = _ASN.fullmatch(text)
    return match[1] if match else None


def load_database(path: Path) -> Database:
    """A MaxMind-format database, copied into memory.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a database.

    """
    descriptor = os.memfd_create(path.name)
    try:
        with path.open("rb") as source, os.fdopen(os.dup(descriptor), "wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
        return _open_database(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)  # the mapping stays


def load_types(path: Path) -> dict[str, str]:
    """An ASN-to-type table: a line is `13335 hosting`, `AS13335,hosting` or, as in an nginx map, `13335 hosting;`.

    Empty lines and `#` comments are skipped, and so is a heading or nginx's `default`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, or no line of it is of that form.

    """
    types = {}
    for line in _lines(path):
        first, *rest = re.split(r"[\s,;]+", line.rstrip("; "))
        asn = asn_digits(first)
        kind = _network_type(rest[0].strip("\"'")) if rest else None
        if asn is not None and kind is not None:
            types[asn] = kind
    if not types:
        raise ValueError('it has no line such as "13335 hosting"')
    return types


def load_exits(path: Path) -> frozenset[Address]:
    """Addresses one a line, or the Tor project's `ExitAddress 192.0.2.1 2026-01-01 00:00:00` lines; others are skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too large, or holds no address although it is not empty.

    """
    lines = list(_lines(path))
    words = (line.split() for line in lines)
    found = (
        parse_address(word[1] if word[0] == "ExitAddress" and len(word) > 1 else word[0]) for word in words
    )
    exits = frozenset(address for address in found if address is not None)
    if lines and not exits:
        raise ValueError("it has lines, but no address")
    return exits


def _lines(path: Path) -> list[str]:
    text = read_bounded(path, _MAX_TABLE_BYTES).decode("utf-8", "replace")
    return [bare for line in text.splitlines() if (bare := line.partition("#")[0].strip())]


def _open_database(path: str) -> Database:
    try:
        database = maxminddb.open_database(path)
        database.get("192.0.2.1")
    except maxminddb.InvalidDatabaseError as error:
        raise ValueError(f"it is not a MaxMind-format database ({error})") from None
    return database


def _record(database: Database | None, address: Address) -> Mapping[str, Any]:
    if database is None:
        return {}
    try:
        record = database.get(address)
    except (maxminddb.InvalidDatabaseError, ValueError):
        return {}  # a damaged record, or an IPv6 address and a database of IPv4: nothing is known
    return record if isinstance(record, dict) else {}


def _country_of(record: Mapping[str, Any]) -> str | None:
    """Return the country of an address: GeoLite2 and DB-IP nest an `iso_code`; IPinfo has the code itself.

    Addresses that are used in many places (anycast, as 1.1.1.1) have only the country in which they are registered. It
    is taken for theirs: without one such clients would pass every limit that counts by country.
    """
    country = record.get("country") or record.get("registered_country")
    code = country.get("iso_code") if isinstance(country, dict) else record.get("country_code", country)
    return country_code(code) if isinstance(code, str) else None


def _asn_of(record: Mapping[str, Any]) -> str | None:
    """GeoLite2 and DB-IP have a number, IPinfo text such as AS13335."""
    number = record.get("autonomous_system_number", record.get("asn"))
    return asn_digits(str(number)) if isinstance(number, (int, str)) else None


def _network_type(text: str) -> str | None:
    return text.lower() if _TYPE.fullmatch(text) else None
