"""The requests of `tests/requests/` in other spellings, and through the proxy: what an outcome must not depend on.

A spelling changes how a request is written and not what it asks: the case of host and method, a port, a trailing dot,
absolute form, lines that come twice, folded cookies, tabs, percent-encoding. Each works on the place where the endpoint
of the request has its method, target and host: the request line, or one family of headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from request_checks import Received
from request_transports import EdgeTransport, ServiceTransport, World, split_head, split_request

from fairvisor.errors import RequestError
from fairvisor.http.gateways import ENVOY_PREFIXES, FORWARDED, ORIGINAL, Family
from fairvisor.proxy.gate import Gate, Passage
from fairvisor.proxy.heads import read_request_head

Pair = tuple[str, bytes]
OF_A_DECISION = re.compile(
    r"(?:https?://[^/]*)?(/v1/(?:ext-authz/|decision/|decision|auth-request|forward-auth))(?:\?|$|)"
)


class Asked(NamedTuple):
    """A request to a deciding endpoint, taken apart. `family` is None where its own request line is the original."""

    method: str
    target: str
    pairs: list[Pair]
    body: bytes | None
    prefix: str
    family: Family | None

    def raw(self) -> bytes:
        """Return its bytes."""
        lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in self.pairs)
        head = f"{self.method} {self.target} HTTP/1.1\r\n".encode("latin-1") + lines + b"\r\n"
        return head + (self.body or b"")

    def change(self, name: str, change: Callable[[bytes], bytes]) -> Asked:
        """Return it with one header changed wherever it comes."""
        return self._replace(pairs=[(n, change(v) if n.lower() == name else v) for n, v in self.pairs])

    def change_original(self, part: str, change: Callable[[bytes], bytes]) -> Asked:
        """Return it with the method, target or host of the original request changed."""
        if self.family is not None:
            return self.change(getattr(self.family, part), change)
        if part == "host":
            return self.change("host", change)
        if part == "method":
            return self._replace(method=change(self.method.encode()).decode())
        kept = len(self.prefix) - 1
        target = change(self.target[kept:].encode("latin-1")).decode("latin-1")
        return self._replace(target=self.target[:kept] + target)


def taken_apart(raw: bytes) -> Asked | None:
    """Return the parts of a request to a deciding endpoint; None for another request."""
    method, target, pairs, body = split_request(raw)
    prefix = next((each for each in ENVOY_PREFIXES if target.startswith(each)), "")
    names = {name.lower() for name, _ in pairs}
    family: Family | None = None
    if not prefix:
        path = target.partition("?")[0]
        if path not in ("/v1/decision", "/v1/auth-request", "/v1/auth-request/once", "/v1/forward-auth"):
            return None
        family = ORIGINAL if path.startswith("/v1/auth") or names & {*ORIGINAL} else FORWARDED
        family = FORWARDED if path == "/v1/forward-auth" else family
    return Asked(method, target, pairs, body, prefix, family)


def _encoded(target: bytes) -> bytes:
    """Return a target with the letters of its path and its query percent-encoded."""
    if target[:1] != b"/":
        return target
    path, mark, query = target.partition(b"?")
    return _encode(path, rb"(?<![%0-9A-Fa-f])[A-Za-z]") + mark + _encode(query, rb"(?<![%0-9A-Fa-f])[A-Za-z]")


def _encode(text: bytes, letters: bytes) -> bytes:
    return re.sub(letters, lambda match: b"%%%02X" % match[0][0], text)


def _absolute(asked: Asked) -> Asked:
    if asked.family is None:  # Envoy puts its prefix before a path
        return asked
    return asked.change_original(
        "target", lambda target: b"http://any.test" + target if target[:1] == b"/" else target
    )


def _repeated(asked: Asked) -> Asked:
    """Every line that is not framing or the description of the request comes twice."""
    kept = {"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "x-fairvisor-token",
            "x-fairvisor-request-id", "cookie", *ORIGINAL, *FORWARDED, "x-forwarded-for", "forwarded"}  # fmt: skip
    single = {name.lower() for name, _ in asked.pairs}
    pairs = [
        pair for name, value in asked.pairs for pair in [(name, value)] * (1 if name.lower() in kept else 2)
    ]
    lists = {"accept", "via", "x-token-estimate"}
    return asked if single & lists else asked._replace(pairs=pairs)


def _folded(asked: Asked) -> Asked:
    """Cookies on a line each, with spaces around names and values."""
    pairs: list[Pair] = []
    for name, value in asked.pairs:
        parts = re.split(rb"; ?|, ", value) if name.lower() == "cookie" else []
        pairs += [(name, re.sub(rb"^\s*([^=\s]+)=(.*?)\s*$", rb" \1 = \2 ", part)) for part in parts] or [
            (name, value)
        ]
    return asked._replace(pairs=pairs)


def _tabs(asked: Asked) -> Asked:
    pairs = [
        (name, re.sub(rb"(?i)^(bearer) +", rb"\1 \t ", value) if name.lower() == "authorization" else value)
        for name, value in asked.pairs
    ]
    kept = {"content-length", "transfer-encoding", "host", "connection"}
    return asked._replace(pairs=[(n, v if n.lower() in kept else b"\t " + v + b" \t") for n, v in pairs])


def _port(host: bytes) -> bytes:
    return host if not host or re.search(rb":\d*$", host) or b", " in host else host.rstrip() + b":8443"


def _dot(host: bytes) -> bytes:
    return host if re.search(rb"[]:.]", host[-1:] or b".") or b":" in host else host + b"."


SPELLINGS: dict[str, Callable[[Asked], Asked]] = {
    "method in lower case": lambda asked: asked.change_original("method", bytes.lower),
    "host in upper case": lambda asked: asked.change_original("host", bytes.upper),
    "a port": lambda asked: asked.change_original("host", _port),
    "a trailing dot": lambda asked: asked.change_original("host", _dot),
    "absolute form": _absolute,
    "lines that come twice": _repeated,
    "folded cookies": _folded,
    "tabs": _tabs,
    "percent-encoding": lambda asked: asked.change_original("target", _encoded),
}


class Respelling:
    """A transport that writes requests in another spelling."""

    def __init__(self, transport: Any, spelling: Callable[[Asked], Asked]) -> None:
        self._transport = transport
        self._spell = spelling

    def ask(self, raw: bytes, peer: str) -> Received:
        asked = taken_apart(raw)
        if asked is None:
            return self._transport.ask(raw, peer)
        spelled = self._spell(asked)
        if isinstance(self._transport, EdgeTransport):  # llhttp knows methods in upper case only
            spelled = spelled._replace(method=asked.method)
        return self._transport.ask(spelled.raw(), peer)  # type: ignore[no-any-return]


class ProxyTransport:
    """The proxy's reading and decision of the original request itself; what decides nothing goes to the service."""

    def __init__(self, world: World) -> None:
        self._service = world.service
        self._others = ServiceTransport(world)
        self._allow_status = world.settings.allow_status
        self._gate = Gate(world.settings, world._segment, world._identity, world._active, world.now)

    def ask(self, raw: bytes, peer: str) -> Received:
        asked = taken_apart(raw)
        request = self._original(asked) if asked is not None else None
        if asked is None or request is None:
            return self._others.ask(raw, peer)
        head, body = request
        try:
            outcome = self._gate.decide(head, self._gate.peer(peer), body, whole=True)
        except RequestError as error:
            outcome = self._gate.refusal(error, self._gate.peer(peer))
        if isinstance(outcome, Passage):
            status = 200 if asked.prefix else self._allow_status
            return Received(status, split_head(outcome.head), b"", outcome.delay_ms)
        return Received(outcome.status, split_head(outcome.head), outcome.body, outcome.delay_ms)

    def _original(self, asked: Asked) -> tuple[Any, bytes | None] | None:
        """Return the original request as the proxy reads it; None for one that its gateway did not describe."""
        method, target, host = asked.method, asked.target[len(asked.prefix) - 1 :], b""
        names = [name.lower() for name, _ in asked.pairs]
        values = {name.lower(): value.strip() for name, value in asked.pairs}
        if asked.family is not None:
            if any(names.count(name) > 1 for name in asked.family):
                return None
            described = [values.get(name, b"") for name in asked.family]
            method, target, host = described[0].decode(), described[1].decode("latin-1"), described[2]
        else:
            host = values.get("host", b"")
        pairs = [
            (n, v)
            for n, v in asked.pairs
            if n.lower() not in {"host", "transfer-encoding", *ORIGINAL, *FORWARDED}
        ]
        lines = [f"{method} {target} HTTP/1.1".encode("latin-1"), b"Host: " + host]
        lines += [name.encode() + b": " + value for name, value in pairs]
        try:
            return read_request_head(b"\r\n".join(lines)), asked.body
        except RequestError:
            return None


def outcome(received: Received) -> tuple[Any, ...]:
    """Return what an answer says of the decision, whatever transport it came by."""
    status = int(received.header("x-fairvisor-status") or received.status)
    names = (
        "x-fairvisor-reason",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "x-should-retry",
        "x-fairvisor-warning",
    )
    return 200 if status == 204 else status, *(received.header(name) for name in names), received.held_ms
