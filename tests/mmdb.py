"""Writes small MaxMind-format databases for tests, after the format's published specification, version 2.0.

Record size 32 bits, IPv6 tree (IPv4 networks at ::/96), data of strings, maps and unsigned integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

_TEXT, _UINT16, _UINT32, _MAP, _UINT64, _ARRAY = 2, 5, 6, 7, 9, 11
_SHORT = ("binary_format_major_version", "binary_format_minor_version", "ip_version", "record_size")
_MARKER = b"\xab\xcd\xefMaxMind.com"


def _encode(value: Any, kind: int = _UINT32) -> bytes:
    if isinstance(value, str):
        return _control(_TEXT, len(value.encode())) + value.encode()
    if isinstance(value, int):
        data = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return _control(kind, len(data)) + data
    if isinstance(value, list):
        return _control(_ARRAY, len(value)) + b"".join(map(_encode, value))
    kinds = {"build_epoch": _UINT64} | dict.fromkeys(_SHORT, _UINT16)
    pairs = (_encode(key) + _encode(each, kinds.get(key, _UINT32)) for key, each in value.items())
    return _control(_MAP, len(value)) + b"".join(pairs)


def _control(kind: int, size: int) -> bytes:
    assert size < 285
    head, extra = (size, b"") if size < 29 else (29, bytes([size - 29]))
    return bytes([kind << 5 | head]) + extra if kind <= 7 else bytes([head, kind - 7]) + extra


def database(networks: Mapping[str, Mapping[str, Any]], kind: str = "Test") -> bytes:
    """The bytes of a database in which each network has its record; none contains another."""
    nodes: list[list[Any]] = [[None, None]]
    data = b""
    for text, record in networks.items():
        network = ip_network(text)
        bits = network.network_address.packed
        length = network.prefixlen
        if isinstance(network, IPv4Network):
            bits, length = b"\0" * 12 + bits, length + 96
        path = [bits[position // 8] >> (7 - position % 8) & 1 for position in range(length)]
        node = 0
        for bit in path[:-1]:
            if nodes[node][bit] is None:
                nodes.append([None, None])
                nodes[node][bit] = len(nodes) - 1
            node = nodes[node][bit]
        nodes[node][path[-1]] = ("data", len(data))
        data += _encode(record)
    metadata = {
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 1_700_000_000,
        "database_type": kind,
        "description": {"en": "test"},
        "ip_version": 6,
        "languages": ["en"],
        "node_count": len(nodes),
        "record_size": 32,
    }
    tree = b"".join(_pointer(side, len(nodes)) for node in nodes for side in node)
    return tree + b"\0" * 16 + data + _MARKER + _encode(metadata)


def _pointer(side: Any, count: int) -> bytes:
    if side is None:
        return count.to_bytes(4, "big")
    return (count + 16 + side[1] if isinstance(side, tuple) else side).to_bytes(4, "big")


def write(path: Path, networks: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write such a database; the path, for chaining."""
    path.write_bytes(database(networks))
    return path
