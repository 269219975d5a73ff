"""Country, network and Tor exit of an address: from files that change or break, and from gateways that are trusted."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import mmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.identity.addresses import Client
from fairvisor.identity.places import Hints, Places, asn_digits, country_code, load_exits, load_types


def client(text: str, *, described: bool = True) -> Client:
    return Client(ip_address(text), 64, described=described)


def replace(path: Path, data: bytes) -> None:
    """As updaters do it: write beside, rename over."""
    beside = path.with_suffix(".new")
    beside.write_bytes(data)
    os.replace(beside, path)


COUNTRIES = {
    "192.0.2.0/24": {"country": {"iso_code": "DE", "names": {"en": "Germany"}}},
    "198.51.100.0/24": {"registered_country": {"iso_code": "FR"}},
    "2001:db8::/32": {"country": {"iso_code": "NL"}, "registered_country": {"iso_code": "US"}},
    "203.0.113.0/25": {"country": "US", "asn": "AS64500"},
    "203.0.113.128/25": {"country_code": "gb"},
}
ASNS = {
    "192.0.2.0/24": {"autonomous_system_number": 64496, "autonomous_system_organization": "Example"},
    "203.0.113.0/25": {"asn": "AS64500"},
    "2001:db8::/32": {"autonomous_system_number": 4200000000},
    "198.51.100.0/24": {"autonomous_system_number": 0},
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    types, exits = tmp_path / "types.txt", tmp_path / "exits.txt"
    types.write_text("# number type\n64496 hosting\nAS64500,isp\n")
    exits.write_text("192.0.2.66\n")
    return {
        "geoip_db": mmdb.write(tmp_path / "country.mmdb", COUNTRIES),
        "asn_db": mmdb.write(tmp_path / "asn.mmdb", ASNS),
        "asn_types": types,
        "tor_exits": exits,
    }


@pytest.mark.parametrize(
    ("address", "country", "asn", "asn_type", "tor"),
    [
        ("192.0.2.1", "DE", "64496", "hosting", "false"),
        ("192.0.2.66", "DE", "64496", "hosting", "true"),
        ("203.0.113.5", "US", "64500", "isp", "false"),  # IPinfo's way to write it
        ("203.0.113.200", "GB", None, None, "false"),
        ("2001:db8::1", "NL", "4200000000", None, "false"),
        (
            "198.51.100.1",
            "FR",
            None,
            None,
            "false",
        ),  # GeoLite2 has 1.1.1.1 so: registered somewhere, used anywhere
        ("9.9.9.9", None, None, None, "false"),
        ("2a00::1", None, None, None, "false"),
    ],
)
def test_what_the_files_say(
    files: dict[str, Path],
    address: str,
    country: str | None,
    asn: str | None,
    asn_type: str | None,
    tor: str | None,
) -> None:
    places = Places(**files)
    place = places.place(client(address))
    assert (place.country, place.asn, place.asn_type, place.tor) == (country, asn, asn_type, tor)
    assert places.warnings() == ()


def test_without_files_nothing_is_known() -> None:
    place = Places(None, None, None, None).place(client("192.0.2.1"))
    assert (place.country, place.asn, place.asn_type, place.tor) == (None, None, None, None)


def test_without_an_address_nothing_is_known(files: dict[str, Path]) -> None:
    place = Places(**files).place(Client(None, 64))
    assert (place.country, place.asn, place.asn_type, place.tor) == (None, None, None, None)


def test_a_changed_file_is_taken_over_also_for_clients_already_known(files: dict[str, Path]) -> None:
    places = Places(**files)
    known = client("192.0.2.1")
    assert places.place(known).country == "DE"
    assert places.place(known) is places.place(known)
    replace(files["geoip_db"], mmdb.database({"192.0.2.0/24": {"country": {"iso_code": "AT"}}}))
    replace(files["tor_exits"], b"192.0.2.1\n192.0.2.2\n")
    assert places.place(known).country == "DE"  # until the refresh, which is not on a request's way
    places.refresh()
    assert (places.place(known).country, places.place(known).tor) == ("AT", "true")


@pytest.mark.parametrize("broken", [b"", b"not a database", b"\0" * 5000, b"\xab\xcd\xefMaxMind.com", "half"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_broken_database_keeps_the_old_one_and_is_reported(
    files: dict[str, Path], broken: bytes | str, in_place: bool
) -> None:
    path = files["geoip_db"]
    whole = path.read_bytes()
    data = whole[: len(whole) // 2] if isinstance(broken, str) else broken
    places = Places(**files)
    if in_place:
        path.write_bytes(data)
    else:
        replace(path, data)
    places.refresh()
    assert places.place(client("192.0.2.1")).country == "DE"
    assert places.place(client("203.0.113.5")).country == "US"
    assert [str(path) in text for text in places.warnings()] == [True]
    replace(path, whole)
    places.refresh()
    assert places.warnings() == ()


def test_a_file_that_goes_away_keeps_its_content_and_is_reported(files: dict[str, Path]) -> None:
    places = Places(**files)
    files["tor_exits"].unlink()
    places.refresh()
    assert places.place(client("192.0.2.66")).tor == "true"
    assert "No such file" in places.warnings()[0]


def test_a_file_that_is_missing_at_start_is_reported_and_taken_when_it_comes(tmp_path: Path) -> None:
    places = Places(tmp_path / "later.mmdb", None, None, None)
    assert len(places.warnings()) == 1
    assert places.place(client("192.0.2.1")).country is None
    mmdb.write(tmp_path / "later.mmdb", COUNTRIES)
    places.refresh()
    assert places.warnings() == ()
    assert places.place(client("192.0.2.1")).country == "DE"


def test_a_damaged_record_is_nothing_known(tmp_path: Path) -> None:
    data = mmdb.database(COUNTRIES)
    path = tmp_path / "damaged.mmdb"
    path.write_bytes(data.replace(b"\x47country", b"\x3f\xff\xff\xff\xff..."))  # a pointer out of the file
    assert Places(path, None, None, None).place(client("192.0.2.1")).country is None
    path.write_bytes(data.replace(b"Germany", b"Ger\xff\xffny"))  # not UTF-8
    assert Places(path, None, None, None).place(client("192.0.2.1")).country is None


def test_types_are_read_in_every_usual_form(tmp_path: Path) -> None:
    path = tmp_path / "types"
    path.write_text(
        'asn,type\n1 isp\nAS2,Hosting\n as3\teducation # campus\n4 "business";\ndefault unknown;\n\n5\nx y\n6;hosting\n'
    )
    assert load_types(path) == {"1": "isp", "2": "hosting", "3": "education", "4": "business", "6": "hosting"}


def test_a_table_without_any_type_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "types"
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="no line"):
        load_types(path)


def test_exits_are_read_in_both_published_forms(tmp_path: Path) -> None:
    path = tmp_path / "exits"
    path.write_text(
        "# list\n192.0.2.1\n2001:db8::1\n::ffff:192.0.2.9\n\nExitNode 00AA\nExitAddress 198.51.100.7 2026-01-01\n"
    )
    expected = {"192.0.2.1", "2001:db8::1", "192.0.2.9", "198.51.100.7"}
    assert load_exits(path) == {ip_address(text) for text in expected}


def test_an_empty_exit_list_is_a_list_but_an_error_page_is_not(tmp_path: Path) -> None:
    path = tmp_path / "exits"
    path.write_text("# nobody today\n")
    assert load_exits(path) == frozenset()
    path.write_text("<html>404 Not Found</html>")
    with pytest.raises(ValueError, match="no address"):
        load_exits(path)


ALL_HINTS = frozenset({"x-country-code", "x-asn", "x-asn-type", "x-tor-exit"})
HEADERS = {"x-country-code": b"fr", "x-asn": b"AS64511", "x-asn-type": b"Business", "x-tor-exit": b"TRUE"}


def hinted(hints: Hints, by: Client, headers: dict[str, bytes]) -> list[str | None]:
    return [read(by, headers) for read in (hints.country, hints.asn, hints.asn_type, hints.tor)]


def test_hints_are_believed_when_named_and_from_a_trusted_peer() -> None:
    assert hinted(Hints(ALL_HINTS), client("192.0.2.1"), HEADERS) == ["FR", "64511", "business", "true"]


def test_hints_that_nobody_named_are_the_clients_and_not_read() -> None:
    assert hinted(Hints(frozenset()), client("192.0.2.1"), HEADERS) == [None] * 4
    assert hinted(Hints(frozenset({"x-asn"})), client("192.0.2.1"), HEADERS) == [None, "64511", None, None]


def test_hints_from_a_peer_that_is_not_trusted_are_not_read() -> None:
    assert hinted(Hints(ALL_HINTS), client("192.0.2.1", described=False), HEADERS) == [None] * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-country-code", b"DEU"),
        ("x-country-code", b""),
        ("x-country-code", b"DE, FR"),
        ("x-country-code", b"D\xc9"),
        ("x-asn", b"AS"),
        ("x-asn", b"0"),
        ("x-asn", b"-1"),
        ("x-asn", b"64500, 64501"),
        ("x-asn-type", b"a b"),
        ("x-asn-type", b"x" * 65),
        ("x-tor-exit", b"maybe"),
        ("x-tor-exit", b"true, false"),
    ],
)
def test_a_hint_that_is_not_of_its_form_is_not_used(name: str, value: bytes) -> None:
    assert hinted(Hints(ALL_HINTS), client("192.0.2.1"), {name: value}) == [None] * 4


@given(st.text(max_size=20))
def test_forms_of_codes_and_numbers(text: str) -> None:
    code, asn = country_code(text), asn_digits(text)
    assert code is None or (len(code) == 2 and code.isascii() and code.isupper())
    assert asn is None or (asn.isascii() and asn.isdigit() and asn[0] != "0")
