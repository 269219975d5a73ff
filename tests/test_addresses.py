"""Who the client is: the address behind trusted proxies, whatever the client writes into the header."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.identity.addresses import (
    MAX_HOPS,
    Addresses,
    forwarded_entries,
    forwarded_for_entries,
    parse_address,
    parse_node,
)

GATEWAY = "10.0.0.1"
PEERS = (ip_network("10.0.0.0/8"), ip_network("fe80::/10"))
PROXIES = (ip_network("192.168.0.0/16"), ip_network("2001:db8:ffff::/48"))


def addresses(header: str = "x-forwarded-for", ipv6_prefix: int = 64) -> Addresses:
    return Addresses(header, PEERS, PROXIES, ipv6_prefix)


def client_of(value: str | None, header: str = "x-forwarded-for", peer: str = GATEWAY) -> str:
    headers = {} if value is None else {header: value.encode("latin-1")}
    return addresses(header).client(peer, headers).text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, GATEWAY),
        ("", GATEWAY),
        (" , ", GATEWAY),
        ("203.0.113.7", "203.0.113.7"),
        ("1.1.1.1, 203.0.113.7", "203.0.113.7"),  # what stands left of it is the client's word
        ("1.1.1.1, 203.0.113.7, 192.168.0.5", "203.0.113.7"),
        ("203.0.113.7,192.168.0.5,192.168.9.9", "203.0.113.7"),
        ("203.0.113.7, , 192.168.0.5,", "203.0.113.7"),
        ("192.168.0.9, 192.168.0.5", "192.168.0.9"),  # all trusted: the left-most
        ("1.1.1.1, nonsense", GATEWAY),
        ("1.1.1.1, nonsense, 192.168.0.5", "192.168.0.5"),  # the last good hop
        ("1.1.1.1, unknown", GATEWAY),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("203.0.113.7:", GATEWAY),
        ("203.0.113.7:port", GATEWAY),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1", GATEWAY),
        ("[203.0.113.7]", GATEWAY),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:80", "203.0.113.7"),
        ("203.0.113.7, ::ffff:192.168.0.5", "203.0.113.7"),  # a mapped proxy is the IPv4 proxy
        ("fe80::1%eth0", "fe80::1"),
        ("203.0.113.7%eth0", GATEWAY),
        ("fe80::1%", GATEWAY),
        ("0203.0.113.7", GATEWAY),  # an octal spelling is no address
        ("203.0.113", GATEWAY),
        ("3405803783", GATEWAY),
        ("203.0.113.\xb2", GATEWAY),
        ("203.0.113.7 9.9.9.9", GATEWAY),
        ("for=203.0.113.7", GATEWAY),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(value: str | None, expected: str) -> None:
    assert client_of(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, GATEWAY),
        ("", GATEWAY),
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("192.168.0.5", "192.168.0.5"),  # a trusted proxy that is the client itself
        ("203.0.113.7, 203.0.113.8", GATEWAY),  # a list, or two lines: whose is it?
        ("203.0.113.7,203.0.113.7", "203.0.113.7"),  # the same one twice is one
        ("203.0.113.7, 203.0.113.7, 6.6.6.6", GATEWAY),
        ("203.0.113.7,", GATEWAY),
        ("unknown", GATEWAY),
    ],
)
def test_a_header_with_one_address_names_the_client_unless_it_holds_several(
    value: str | None, expected: str
) -> None:
    assert client_of(value, "cf-connecting-ip") == expected


@pytest.mark.parametrize(
    ("hops", "value", "expected"),
    [
        (1, "6.6.6.6, 203.0.113.7", "203.0.113.7"),
        (2, "6.6.6.6, 203.0.113.7, 192.168.0.5", "203.0.113.7"),
        (2, "6.6.6.6, 203.0.113.7, 198.51.100.9", "203.0.113.7"),  # whoever the hops are
        (3, "6.6.6.6, 7.7.7.7, 203.0.113.7, 192.168.0.5, 192.168.0.6", "203.0.113.7"),
        (2, "6.6.6.6, 203.0.113.7, , 192.168.0.5,", "203.0.113.7"),  # empty entries are none
        (2, "203.0.113.7", GATEWAY),  # it came another way than through all hops
        (2, "6.6.6.6, nonsense, 192.168.0.5", GATEWAY),
        (64, "6.6.6.6, " * 64 + "203.0.113.7", "6.6.6.6"),
    ],
)
def test_hops_count_from_the_right_of_x_forwarded_for(hops: int, value: str, expected: str) -> None:
    found = addresses(f"hops:{hops}").client(GATEWAY, {"x-forwarded-for": value.encode()})
    assert found.text == expected


@pytest.mark.parametrize("form", ["x-real-ip", "hops:1"])
def test_these_too_only_from_trusted_peers(form: str) -> None:
    headers = {"x-real-ip": b"203.0.113.7", "x-forwarded-for": b"203.0.113.7"}
    assert addresses(form).client("198.51.100.1", headers).text == "198.51.100.1"


@given(
    st.lists(st.from_regex(r"[ -~]{0,20}", fullmatch=True), max_size=3),
    st.integers(1, 3),
)
def test_what_the_client_writes_moves_no_counted_hop(written: list[str], hops: int) -> None:
    appended = ["203.0.113.7", "192.168.0.5", "192.168.0.6"][:hops]
    value = ", ".join([*written, *appended]).encode()
    assert addresses(f"hops:{hops}").client(GATEWAY, {"x-forwarded-for": value}).text == "203.0.113.7"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=203.0.113.7;proto=https;by=203.0.113.43", "203.0.113.7"),
        ("proto=https; FOR=203.0.113.7", "203.0.113.7"),
        ('for="203.0.113.7:4711"', "203.0.113.7"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for="[2001:db8::1]:_port"', "2001:db8::1"),
        ('for="\\[2001:db8::1]"', "2001:db8::1"),  # a quoted pair is the character itself
        ("for=[2001:db8::1]", "2001:db8::1"),  # not a token, but seen
        ("for=1.1.1.1, for=203.0.113.7", "203.0.113.7"),
        ("for=1.1.1.1, for=203.0.113.7, for=192.168.0.5", "203.0.113.7"),
        ('for=1.1.1.1, for=203.0.113.7;host="a,b;for=6.6.6.6", for=192.168.0.5', "203.0.113.7"),
        ("for=203.0.113.7;", "203.0.113.7"),
        ("for=203.0.113.7,", "203.0.113.7"),
        ("for=1.1.1.1, for=unknown", GATEWAY),
        ("for=1.1.1.1, for=_hidden", GATEWAY),
        ("for=1.1.1.1, for=_hidden, for=192.168.0.5", "192.168.0.5"),
        ("for=1.1.1.1, proto=https", GATEWAY),  # a hop that does not say
        ("for=1.1.1.1;for=2.2.2.2", GATEWAY),
        ("203.0.113.7", GATEWAY),
        ('for="203.0.113.7', GATEWAY),
        ("for=", GATEWAY),
        ("xfor=203.0.113.7", GATEWAY),
        # quotes that the client leaves open do not swallow what the proxy appended
        ('for="1.1.1.1, for=203.0.113.7', "203.0.113.7"),
        ('for="1.1.1.1, for="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for=1.1.1.1;x="\\", for=203.0.113.7', "203.0.113.7"),
        ('for=1.1.1.1;x="\\, for=203.0.113.7;by="_x", for=192.168.0.5', "203.0.113.7"),
    ],
)
def test_forwarded_is_read_from_the_right(value: str, expected: str) -> None:
    assert client_of(value, "forwarded") == expected


def test_only_the_configured_header_is_read() -> None:
    headers = {
        "x-forwarded-for": b"203.0.113.7",
        "forwarded": b"for=203.0.113.8",
        "none": b"203.0.113.9",
    }
    assert addresses("x-forwarded-for").client(GATEWAY, headers).text == "203.0.113.7"
    assert addresses("forwarded").client(GATEWAY, headers).text == "203.0.113.8"
    assert addresses("none").client(GATEWAY, headers).text == GATEWAY


@pytest.mark.parametrize("peer", ["8.8.8.8", "2001:db8::5", "192.168.0.5"])
def test_a_peer_that_is_not_trusted_is_the_client_whatever_it_sends(peer: str) -> None:
    found = addresses()
    assert found.client(peer, {"x-forwarded-for": b"203.0.113.7"}).text == peer
    assert found.client(peer, {"x-forwarded-for": b"10.0.0.9"}).text == peer
    assert found.client(peer, {}).text == peer
    assert not found.client(peer, {"x-forwarded-for": b"203.0.113.7"}).described


def test_an_untrusted_peer_cannot_profit_from_what_a_trusted_one_made_known() -> None:
    found = addresses()
    assert found.client(GATEWAY, {"x-forwarded-for": b"203.0.113.7"}).text == "203.0.113.7"
    assert found.client("8.8.8.8", {"x-forwarded-for": b"203.0.113.7"}).text == "8.8.8.8"


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("fe80::1%eth0", True),
        ("", True),  # a unix socket
        ("11.0.0.1", False),
        ("::1", False),
        ("nonsense", False),
    ],
)
def test_who_may_describe_a_request(peer: str, trusted: bool) -> None:
    found = addresses()
    assert found.trusted_peer(peer) is trusted
    assert found.trusted_peer(peer) is trusted  # remembered


def test_a_unix_socket_without_header_has_no_address() -> None:
    client = addresses().client("", {})
    assert (client.text, client.key, client.ip) == ("", "", None)
    assert addresses().client("", {"x-forwarded-for": b"203.0.113.7"}).text == "203.0.113.7"


@pytest.mark.parametrize(
    ("value", "prefix", "key"),
    [
        ("203.0.113.7", 64, "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", 64, "2001:db8:1:3::/64"),
        ("2001:db8:1:2:3:4:5:6", 48, "2001:db8:1::/48"),
        ("2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"),
        ("::ffff:203.0.113.7", 64, "203.0.113.7"),
    ],
)
def test_ipv6_clients_are_counted_by_their_network(value: str, prefix: int, key: str) -> None:
    client = addresses(ipv6_prefix=prefix).client(GATEWAY, {"x-forwarded-for": value.encode()})
    assert client.key == key
    assert client.ip == parse_address(value)


def test_the_same_client_is_found_again_without_parsing() -> None:
    found = addresses()
    headers = {"x-forwarded-for": b"203.0.113.7"}
    assert found.client(GATEWAY, headers) is found.client(GATEWAY, dict(headers))


def test_a_chain_longer_than_any_real_one_stops_at_a_good_hop() -> None:
    hops = [f"192.168.{n // 256}.{n % 256}" for n in range(2 * MAX_HOPS)]
    assert client_of(", ".join(["203.0.113.7", *hops])) == hops[-MAX_HOPS]


@given(st.ip_addresses(), st.integers(0, 65535))
def test_every_way_to_write_an_address_is_that_address(address: object, port: int) -> None:
    expected = parse_address(str(address))
    host = str(address) if isinstance(address, IPv4Address) else f"[{address}]"
    assert parse_node(str(address)) == parse_node(f"{host}:{port}") == expected


hostile = st.text(alphabet=st.sampled_from('0123456789.:abcf[]%"\\,;= \tfor_-\xff'), max_size=60) | st.text(
    alphabet=st.characters(max_codepoint=255), max_size=200
)


@given(hostile)
def test_no_header_makes_the_reading_fail(value: str) -> None:
    for header in ("x-forwarded-for", "forwarded"):
        ip_address(client_of(value, header))


@given(hostile)
def test_nothing_that_the_client_sends_changes_what_the_proxy_appended(value: str) -> None:
    assert client_of(value + ", 203.0.113.7") == "203.0.113.7"
    assert client_of(value + ", for=203.0.113.7", "forwarded") == "203.0.113.7"
    assert client_of(value + ', for="[2001:db8::1]:80"', "forwarded") == "2001:db8::1"


@given(st.lists(st.text(alphabet="abc.:", min_size=1, max_size=5), max_size=6))
def test_entries_come_from_right_to_left(entries: list[str]) -> None:
    assert list(forwarded_for_entries(", ".join(entries))) == entries[::-1]
    assert list(forwarded_entries(", ".join(f"for={entry}" for entry in entries))) == entries[::-1]


def test_a_flood_of_clients_keeps_the_memory_bounded_and_the_answers_right() -> None:
    found = addresses()
    for number in range(40_000):
        text = str(IPv4Address(0x2D000000 + number))
        assert found.client(GATEWAY, {"x-forwarded-for": text.encode()}).text == text
    assert len(found._clients) <= 2 * 8192
