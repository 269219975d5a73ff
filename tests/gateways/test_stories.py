"""The same requests through every gateway: what the client sees, and that it cannot choose what it is counted by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from edge_server import Edge
from gateway_servers import KINDS, Gateway, StartGateway
from request_script import Exchange, Script
from stories import ORDINARY, SETTINGS, SPOOFING, play


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.needs(KINDS[name].program)) for name in KINDS],
)
def gateway(
    request: pytest.FixtureRequest, start_edge: Callable[..., Edge], start_gateway: StartGateway
) -> Gateway:
    """Each gateway, failing closed."""
    return start_gateway(request.param, start_edge("stories", **SETTINGS).bind[1])


@pytest.mark.parametrize("script", [pytest.param(each, id=each.path.stem) for each in ORDINARY])
def test_what_the_client_sees(script: Script, gateway: Gateway) -> None:
    found = play(script, gateway)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("script", [pytest.param(each, id=each.path.stem) for each in SPOOFING])
def test_a_client_cannot_choose_what_it_is_counted_by(script: Script, gateway: Gateway) -> None:
    found = play(script, gateway)
    assert not found, "\n" + "\n".join(found)


def test_a_header_named_in_connection_is_lost_to_nobody_but_its_client(gateway: Gateway) -> None:
    """`Connection: X` asks the next hop to drop X: it must not drop what the gateway itself says about the client."""
    headers = "X-Forwarded-For, X-Original-URI, X-Original-Method, X-Forwarded-Uri, X-Forwarded-Method"
    raw = b"GET /address HTTP/1.1\r\nHost: edge\r\nX-Forwarded-For: 203.0.113.30\r\nConnection: %s\r\n\r\n"
    for _ in range(6):
        received = gateway.ask(raw % headers.encode())
    assert received.status in (400, 429), received


@pytest.mark.parametrize("path", ["/plain/%00", "/../../plain", "/%2e%2e/plain", "/plain/../../plain"])
def test_no_path_above_the_root_passes_uncounted(path: str, gateway: Gateway) -> None:
    """It is refused, or it is what the gateway makes of it, and that is counted and passed on."""
    raw = f"GET {path} HTTP/1.1\r\nHost: edge\r\nX-API-Key: {path}\r\n\r\n".encode()
    received = gateway.ask(raw)
    if received.status == 200:
        assert [gateway.ask(raw).status for _ in range(3)] == [200, 200, 429]
        assert b'"target": "/plain"' in received.body
    else:
        # 500: Kong asks about its own error page, whose path is the malformed one.
        assert received.status in (400, 403), received
        assert received.header("x-application-count") is None


def test_there_are_forty_requests() -> None:
    assert sum(step.times for each in ORDINARY for step in each.steps if isinstance(step, Exchange)) >= 40
