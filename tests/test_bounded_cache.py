"""What is remembered of texts that clients choose is bounded by number and by bytes, in every cache that they reach."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import pytest
from test_addresses import GATEWAY, addresses

from fairvisor.bounded_cache import LONGEST, BoundedCache
from fairvisor.errors import RequestError
from fairvisor.http.gateways import ORIGINAL, FamilySource
from fairvisor.http.headers import read_headers
from fairvisor.http.request import Peer, Request
from fairvisor.identity.bots import Bots
from fairvisor.llm.dialect import dialect_of
from fairvisor.llm.request import read_request
from fairvisor.proxy.heads import FIELDS
from fairvisor.reading import HOSTS, METHODS, normal_host
from fairvisor.route import Routes

FLOOD = 2000
LENGTH = 14_000
KEPT_BYTES = 4 << 20  # of a flood of 28 MB


def test_a_value_is_worked_out_once() -> None:
    asked: list[str] = []
    cache = BoundedCache[str, int](lambda text: asked.append(text) or len(text), 2)
    assert [cache["a"], cache["bb"], cache["a"]] == [1, 2, 1]
    assert asked == ["a", "bb"]


def test_a_full_cache_starts_again() -> None:
    cache = BoundedCache[str, int](len, 2)
    for text in ("a", "bb", "ccc"):
        assert cache[text] == len(text)
    assert cache.known == {"ccc": 3}


def test_a_long_text_is_not_kept() -> None:
    cache = BoundedCache[bytes, int](len, 2)
    assert cache[b"x" * (LONGEST + 1)] == LONGEST + 1
    assert cache.known == {}
    assert cache[b"x" * LONGEST] == LONGEST
    assert len(cache.known) == 1


def test_what_cannot_be_read_is_raised_and_not_kept() -> None:
    cache = BoundedCache[str, str](normal_host, 2)
    with pytest.raises(RequestError):
        cache["a, b"]
    assert cache.known == {}


def described(method: str, target: str, host: bytes) -> Request:
    headers = {ORIGINAL.method: b"GET", ORIGINAL.target: target.encode(), ORIGINAL.host: host}
    return Request(method, "/v1/auth-request", headers, Peer("", trusted=True), None)


CLIENTS = addresses()
BOTS = Bots()
ROUTES: Routes[object] = Routes(())
SOURCE = FamilySource(ORIGINAL)
LLM = b'{"model": "m"}'

FLOODS: dict[str, Callable[[str], object]] = {
    "X-Forwarded-For": lambda text: CLIENTS.client(GATEWAY, {"x-forwarded-for": text.encode()}),
    "header names": lambda text: read_headers([(text.encode(), b"")]),
    "hosts": lambda text: SOURCE.describe(described("GET", "/", b"a.test:" + text.encode())),
    "methods": lambda text: SOURCE.describe(described(text, "/", b"a.test")),
    "header names in the proxy": lambda text: FIELDS[text.encode()],
    "user agents": BOTS.bot,
    "paths": lambda text: ROUTES.plan("GET", "a.test", "/" + text),
    "paths of rejects": lambda text: dialect_of("/" + text),
    "paths of LLM requests": lambda text: read_request("/" + text, LLM),
    "methods of a log or the proxy": lambda text: METHODS[text.encode()],
    "hosts of a log or the proxy": lambda text: HOSTS[b"a.test:" + text.encode()],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_long_texts_is_not_remembered(flood: str) -> None:
    ask = FLOODS[flood]
    ask("1")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(FLOOD):
            with suppress(RequestError):
                ask(f"{number:0{LENGTH}}")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < KEPT_BYTES
