"""The index of networks finds what a comparison with each network one after another would find."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.identity.networks import Address, Network, NetworkIndex, parse_network

V4 = st.builds(IPv4Address, st.integers(0, 255).map(lambda low: 0x0A000000 + low))
V6 = st.builds(IPv6Address, st.integers(0, 255).map(lambda low: (0x20010DB8 << 96) + low))


def around(address: Address, shorter: int) -> Network:
    return ip_network((address, address.max_prefixlen - shorter), strict=False)


NETWORKS = st.builds(around, V4 | V6, st.integers(0, 32))


@given(st.lists(NETWORKS, max_size=12), V4 | V6)
def test_it_finds_every_network_that_holds_the_address(networks: list[Network], address: Address) -> None:
    index: NetworkIndex[Network] = NetworkIndex()
    for network in networks:
        index.add(network, network)
    holding = [network for network in networks if address in network]
    assert sorted(index.find(address), key=str) == sorted(holding, key=str)
    assert index.covers(address) == bool(holding)
    assert bool(index) == bool(networks)


def test_an_address_that_is_not_known_is_in_no_network() -> None:
    index: NetworkIndex[str] = NetworkIndex()
    index.add(ip_network("0.0.0.0/0"), "all")
    assert not index.covers(None)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/64", "::/64"),
        ("2001:db8::/32", "2001:db8::/32"),
    ],
)
def test_mapped_networks_are_ipv4(text: str, network: str) -> None:
    assert parse_network(text) == ip_network(network)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "2001:db8::1/64", "10.0.0.0/33", "10.0.0.*", "", "a"])
def test_what_is_no_network_raises(text: str) -> None:
    with pytest.raises(ValueError, match=r"network|host bits"):
        parse_network(text)
