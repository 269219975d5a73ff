"""Networks: addresses and CIDR blocks as a bundle writes them, and an index that finds those an address is in.

The index is keyed by IP version and prefix length, so that ten thousand networks cost a look-up one dictionary probe
for each length that occurs. It knows addresses only: not what is kept for a network, nor whose address is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Generic, TypeVar

from fairvisor.identity.addresses import Address, Network

T = TypeVar("T")


def parse_network(text: str) -> Network:
    """Return an address or CIDR block as a network; IPv4-mapped IPv6 is IPv4, as clients' addresses are.

    Raises ValueError, also for host bits that are set.
    """
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


class NetworkIndex(Generic[T]):
    """What is kept for networks, found by an address in them."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], dict[int, list[T]]] = {}

    def add(self, network: Network, kept: T) -> None:
        """Keep this too for the network."""
        part = self._parts.setdefault((network.version, network.prefixlen), {})
        part.setdefault(int(network.network_address), []).append(kept)

    def find(self, address: Address) -> Iterator[T]:
        """Yield what is kept for every network that the address is in."""
        bits = address.max_prefixlen
        for (version, length), part in self._parts.items():
            if version == address.version:
                yield from part.get(int(address) >> (bits - length) << (bits - length), ())

    def covers(self, address: Address | None) -> bool:
        """Return whether the address is in any of the networks; one that is not known is in none."""
        return address is not None and next(self.find(address), None) is not None

    def parts(self) -> list[dict[Any, Any]]:
        """Return the dictionaries of the index, for whoever frees it piece by piece."""
        return list(self._parts.values())

    def __bool__(self) -> bool:
        return bool(self._parts)
