"""What a client gets while the edge cannot decide: what the variant of the configuration promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from edge_server import Edge
from fake_edge import SLOW, WAYS, FakeEdge
from gateway_servers import KINDS, Gateway, StartGateway

REQUEST = b"GET /plain?a=1 HTTP/1.1\r\nHost: api.example.com\r\nX-API-Key: k\r\n\r\n"
POST = b"POST /plain HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\n\r\nhello"


def gateways(*, fail_open: bool) -> list[object]:
    return [
        pytest.param(name, marks=pytest.mark.needs(kind.program), id=name)
        for name, kind in KINDS.items()
        if kind.open or not fail_open
    ]


@pytest.fixture(scope="module")
def edge() -> Iterator[FakeEdge]:
    fake = FakeEdge()
    yield fake
    fake.stop()


@pytest.fixture(scope="module", params=gateways(fail_open=False))
def closed(request: pytest.FixtureRequest, edge: FakeEdge, start_gateway: StartGateway) -> Gateway:
    return start_gateway(request.param, edge.port, patient=False)


@pytest.fixture(scope="module", params=gateways(fail_open=True))
def opened(request: pytest.FixtureRequest, edge: FakeEdge, start_gateway: StartGateway) -> Gateway:
    return start_gateway(request.param, edge.port, fail_open=True, patient=False)


@pytest.mark.parametrize("way", WAYS)
def test_fail_closed_refuses(way: str, edge: FakeEdge, closed: Gateway) -> None:
    edge.fail(way)
    received = closed.ask(REQUEST)
    if way == SLOW and closed.kind.waits:
        assert received.status == 200, received
        return
    assert received.status in closed.kind.undecided, received
    assert received.header("x-application-count") is None


@pytest.mark.parametrize("way", WAYS)
def test_fail_open_lets_pass(way: str, edge: FakeEdge, opened: Gateway) -> None:
    edge.fail(way)
    for request in (REQUEST, POST):
        received = opened.ask(request)
        assert received.status == 200, received
        assert received.header("x-application-count") is not None
    assert b'"body_bytes": 5' in received.body


@pytest.mark.parametrize("name", gateways(fail_open=True))
def test_fail_open_still_refuses_what_was_decided(
    name: str, start_edge: Callable[..., Edge], start_gateway: StartGateway
) -> None:
    """An edge that answers is obeyed: refused is refused, and what it calls malformed does not pass."""
    gateway = start_gateway(name, start_edge("stories").bind[1], fail_open=True)
    assert [gateway.ask(REQUEST).status for _ in range(4)] == [200, 200, 200, 429]
    malformed = gateway.ask(REQUEST.replace(b"/plain", b"/plain/%00"))
    assert malformed.status == 400, malformed
    failed = gateway.ask(REQUEST.replace(b"X-API-Key: k", b"X-Want-Status: 500"))
    assert failed.status == 500
    assert failed.header("x-application-count") is not None
