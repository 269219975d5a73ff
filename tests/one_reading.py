"""Draws requests whose identity is written in many ways, and holds what comes of them against the plain value.

A draw takes one kind of identity (a header, a cookie, a query parameter, a claim, host, method, path, an address) with
a fresh value, writes it into five requests in ways that a client may choose, and sends each by one of the transports
to one world. What must hold: a request with one value is counted under that value, whatever its spelling and
transport; one with different values is rejected as ambiguous, or counted as `on_ambiguous` says; three of a value pass
and no more.
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from edge import bucket, bundle, policy
from request_checks import Received
from request_spellings import ProxyTransport
from request_transports import EdgeTransport, ServiceTransport, World, WsgiTransport

LIMIT = 3
REQUESTS = 5
PAUSE_NS = 10 * 10**9
CLIENT = "10.0.0.1"
GATEWAY = "127.0.0.1"


class Kind(NamedTuple):
    """A kind of identity: its descriptor, the path that counts by it, and what is done with several values."""

    name: str
    descriptor: str
    choice: str = "reject"


KINDS = (
    Kind("header", "header:x-api-key"),
    Kind("credential", "header:authorization"),
    Kind("claim", "jwt:sub"),
    Kind("cookie", "cookie:session"),
    Kind("cookie-first", "cookie:session", "first"),
    Kind("cookie-last", "cookie:session", "last"),
    Kind("query", "query:key"),
    Kind("query-first", "query:key", "first"),
    Kind("query-last", "query:key", "last"),
    Kind("host", "request:host"),
    Kind("method", "request:method"),
    Kind("path", "request:path"),
    Kind("address", "ip:address"),
)


def document() -> dict[str, Any]:
    """Return the bundle: a policy for each kind, each with one rule."""
    policies = [
        policy(
            each.name,
            bucket("r", each.descriptor, rate=0.0001, burst=LIMIT, on_ambiguous=each.choice)
            | {"algorithm_config": {"tokens_per_second": 0.0001, "burst": LIMIT}},
            path=f"/{each.name}",
        )
        for each in KINDS
    ]
    return bundle(*policies)


class Written(NamedTuple):
    """A request as a gateway describes it; `values` are the different identities in it, in order."""

    method: str
    target: str
    host: str
    lines: list[tuple[str, str]]
    values: list[str]


class OneReading:
    """A world with all transports, and the draws in it."""

    def __init__(self, folder: Path) -> None:
        (folder / "bundle.json").write_text(json.dumps(document()))
        environ = {"FAIRVISOR_TRUSTED_PEERS": f"{GATEWAY},{CLIENT}", "FAIRVISOR_TRUSTED_PROXIES": GATEWAY}
        self.world = World(folder, folder, environ, 1_800_000_000 * 10**9)
        self.world.load("bundle.json")
        self.transports: dict[str, Any] = {
            "service": ServiceTransport(self.world),
            "edge": EdgeTransport(self.world),
            "wsgi": WsgiTransport(self.world),
            "proxy": ProxyTransport(self.world),
        }
        self.draws = 0

    def draw(self, chance: random.Random) -> tuple[Any, ...]:
        """Make one draw and check it; returns what it was like. Raises AssertionError."""
        self.draws += 1
        self.world.elapsed_ns += PAUSE_NS  # buckets of earlier draws are full again before the table is
        kind = chance.choice(KINDS)
        value, admitted, trail = f"v{self.draws}x", 0, []
        for number in range(REQUESTS):
            written = _WRITERS[kind.descriptor](chance, kind, value, f"{value}j{number}")
            way, endpoint = chance.choice(list(self.transports)), chance.choice(("uri", "forwarded"))
            raw = _raw(written, endpoint)
            received = self.transports[way].ask(raw, GATEWAY)
            trail.append((way, endpoint, raw, received.status))
            counted = _counted(kind, written.values)
            if counted is None:
                assert _is_ambiguous(received), (kind.name, trail)
                continue
            passed = received.status in (200, 204)
            if counted != value:  # another value's counter, which is fresh
                assert passed, (kind.name, trail)
                continue
            assert passed == (admitted < LIMIT), (kind.name, trail)
            assert passed or received.header("x-fairvisor-reason") == "rate_limit_exceeded", (
                kind.name,
                trail,
            )
            admitted += passed
        return kind.name, admitted, tuple(step[3] for step in trail)


def _counted(kind: Kind, values: list[str]) -> str | None:
    """Return the value that a request is counted under; None where it must be rejected."""
    different = list(dict.fromkeys(values))
    if len(different) == 1:
        return different[0]
    if kind.choice == "reject":
        return None
    return values[0] if kind.choice == "first" else values[-1]


def _is_ambiguous(received: Received) -> bool:
    return received.status == 400 and received.header("x-fairvisor-reason") == "ambiguous_request"


def _raw(written: Written, endpoint: str) -> bytes:
    lines = [("Host", "edge"), *written.lines]
    if endpoint == "uri":
        path = "/v1/decision"
        names = ("X-Original-Method", "X-Original-URI", "X-Original-Host")
    else:
        path = "/v1/forward-auth"
        names = ("X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Host")
    lines += zip(names, (written.method, written.target, written.host), strict=True)
    text = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"GET {path} HTTP/1.1\r\n{text}\r\n".encode("latin-1")


# How a client may write each kind


def _space(chance: random.Random) -> str:
    return chance.choice(("", "", " ", "\t", "  \t"))


def _case(chance: random.Random, text: str) -> str:
    return "".join(chance.choice((char.lower(), char.upper())) for char in text)


def _encode(chance: random.Random, text: str) -> str:
    return "".join(f"%{ord(char):02x}" if chance.random() < 0.2 else char for char in text)


def _escape(chance: random.Random, text: str) -> str:
    return "".join(
        chance.choice((f"\\{ord(char):03o}", f"\\{char}" if not char.isdigit() else char))
        if chance.random() < 0.2
        else char
        for char in text
    )


def _several(chance: random.Random, value: str, junk: str) -> list[str]:
    """Return the values of one request: mostly one, or it again and again, sometimes another one among them."""
    values = [value] * chance.choice((1, 1, 1, 2, 3))
    if chance.random() < 0.3:
        values.insert(chance.randrange(len(values) + 1), junk)
    return values


def _noise(chance: random.Random) -> list[tuple[str, str]]:
    """Return lines that say nothing of who it is."""
    lines = [
        ("Accept", "text/html, */*"),
        ("User-Agent", "a, b"),
        ("Via", "1.1 a"),
        ("Via", "1.1 b"),
        ("X-Other", "1"),
    ]
    return chance.sample(lines, chance.randrange(4))


def _plain(kind: Kind, lines: list[tuple[str, str]], values: list[str], target: str = "") -> Written:
    return Written("GET", target or f"/{kind.name}/a", "api.test", lines, values)


def _header(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    values = _several(chance, value, junk)
    lines = [(_case(chance, "x-api-key"), _space(chance) + each + _space(chance)) for each in values]
    lines += _noise(chance)
    return _plain(kind, lines, values)


def _bearer(chance: random.Random, token: str) -> str:
    return (
        _case(chance, "bearer")
        + chance.choice((" ", "  ", "\t", " \t "))
        + token
        + chance.choice(("", "", "=", "=="))
    )


def _token(value: str) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in
             ({"alg": "none"}, {"sub": value})]  # fmt: skip
    return ".".join([*parts, "x"])


def _claim(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    values = _several(chance, value, junk)
    lines = [("Authorization", _bearer(chance, _token(each))) for each in values]
    if len(lines) == 1 and chance.random() < 0.3:
        lines = [("Authorization", lines[0][1] + chance.choice((" x", "\t x y", "\xa0", "!", "=x")))]
    return _plain(kind, lines + _noise(chance), values)


def _credential(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    """A header that is counted as a whole: only white space around it may vary."""
    values = _several(chance, value, junk)
    return _plain(kind, [("authorization", _space(chance) + f"Basic {each}") for each in values], values)


def _cookie(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    values = _several(chance, value, junk)
    pairs = []
    for each in values:
        text = _encode(chance, each)
        text = f'"{_escape(chance, text)}"' if chance.random() < 0.3 else text
        space = chance.choice(("", " "))
        pairs.append(f"{space}session{space}={space}{text}{space}")
    for _ in range(chance.randrange(3)):
        pairs.insert(chance.randrange(len(pairs) + 1), chance.choice(("a=b", "Session=x", "c", "sessions=1")))
    lines: list[list[str]] = [[]]
    for pair in pairs:
        if lines[-1] and chance.random() < 0.3:
            lines.append([])
        lines[-1].append(pair)
    return _plain(kind, [("Cookie", ";".join(line)) for line in lines] + _noise(chance), values)


def _query(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    values = _several(chance, value, junk)
    pairs = [f"{_encode(chance, 'key')}={_encode(chance, each)}" for each in values]
    for _ in range(chance.randrange(3)):
        pairs.insert(chance.randrange(len(pairs) + 1), chance.choice(("a=b", "Key=x", "c", "keys=1", "")))
    return _plain(kind, _noise(chance), values, f"/{kind.name}?{'&'.join(pairs)}")


def _host(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    host = _case(chance, f"{value}.test") + chance.choice(("", ".", ":80", ":", ".:8443"))
    return Written("GET", "/host", host, _noise(chance), [value])


def _method(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    return Written(_case(chance, value), "/method", "a.test", _noise(chance), [value])


def _path(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    steps = ["path", _encode(chance, value)]
    if chance.random() < 0.5:
        steps.insert(1, chance.choice((".", "", "x/..", "%2e", "y%2F..", "%2E%2e/path")))
    path = "/" + chance.choice(("/", "%2F", "\\", ";z/")).join(steps)
    path += chance.choice(("", "/", ";1", ";a=b", "%2F", "//", "/.", "?x=1"))
    return Written("GET", path, "a.test", _noise(chance), [value])


def _address(chance: random.Random, kind: Kind, value: str, junk: str) -> Written:
    number = int(value[1:-1])
    plain = f"203.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    spelled = chance.choice((plain, f"::ffff:{plain}", f"{plain}:1234", f" {plain}\t"))
    spoofed = [f"198.51.100.{chance.randrange(256)}" for _ in range(chance.randrange(3))]
    entries = [*spoofed, spelled]
    lines = [("X-Forwarded-For", each) for each in entries] if chance.random() < 0.5 else [
        ("X-Forwarded-For", ", ".join(entries))
    ]  # fmt: skip
    return _plain(kind, lines + _noise(chance), [value])


_WRITERS = {
    "header:x-api-key": _header,
    "header:authorization": _credential,
    "jwt:sub": _claim,
    "cookie:session": _cookie,
    "query:key": _query,
    "request:host": _host,
    "request:method": _method,
    "request:path": _path,
    "ip:address": _address,
}
