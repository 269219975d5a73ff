"""The keys of an identity provider that is down, slow or wrong: real workers, a real provider."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_server import StartEdge, remove_shared_memory
from outage import ANSWERS, DISTURBANCES, RIGHT, Provider, ask_with, bundle, outage, provider, use_up
from test_fetch import Authority
from test_jwks import Issuer
from test_tokens import signed

READY = b"GET /readyz HTTP/1.1\r\n\r\n"
ASKS = 30


@pytest.fixture
def source() -> Iterator[Provider]:
    with provider() as made:
        yield made


def test_no_token_loses_its_limit_while_its_provider_fails_and_workers_come_and_go(
    start_edge: StartEdge, source: Provider
) -> None:
    edge = start_edge(bundle(), workers=2, FAIRVISOR_JWKS_URL=source.url)
    token = source.token("ann")
    use_up(edge, token)
    for source.answer, disturb in zip(ANSWERS, DISTURBANCES, strict=True):
        assert outage(edge, token, ASKS, disturb) == Counter({RIGHT: ASKS})
        assert edge.status(READY) == 200
    assert ask_with(edge, source.token("bob"))[0] == 204


def test_the_first_start_waits_for_a_provider_that_is_slow(start_edge: StartEdge, source: Provider) -> None:
    source.answer, source.slow_s = "is slow", 1.0
    edge = start_edge(bundle(), workers=2, FAIRVISOR_JWKS_URL=source.url)
    use_up(edge, source.token("ann"))
    assert source.asked == 1, "one worker fetches for all"


def test_keys_are_there_after_a_reboot_without_the_provider(start_edge: StartEdge, source: Provider) -> None:
    edge = start_edge(bundle(), workers=1, FAIRVISOR_JWKS_URL=source.url)
    assert ask_with(edge, source.token("ann"))[0] == 204
    edge.signal(signal.SIGTERM)
    edge.end()
    remove_shared_memory(edge.instance)
    source.answer = "answers 500"
    edge.start_again()
    use_up(edge, source.token("bob"))


def test_the_issuers_of_a_bundle_are_fetched_over_tls_from_networks_that_are_listed(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    server = Issuer(authority.context)
    try:
        issuers = [{"issuer": "https://a.example", "url": server.url}]
        settings = {
            "FAIRVISOR_JWKS_CA": str(authority.file),
            "FAIRVISOR_JWKS_NETWORKS": "127.0.0.0/8",
        }
        edge = start_edge({**bundle(), "jwt_issuers": issuers}, workers=2, **settings)
        token = signed({"sub": "ann", "iss": "https://a.example"}, "ES256", kid="k1").decode()
        use_up(edge, token.removeprefix("Bearer "))
        forged = signed({"sub": "ann", "iss": "https://b.example"}, "ES256", kid="k1").decode()
        assert ask_with(edge, forged.removeprefix("Bearer ")) == (429, "descriptor_missing")
        assert len(server.requests) == 1
    finally:
        server.close()
