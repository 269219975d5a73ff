"""Through every gateway a limit of 5,000 admits 5,000 of 10,000 concurrent requests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import pytest
from crowd import statuses
from edge_server import Edge
from gateway_servers import KINDS, StartGateway

CONNECTIONS = 32
VARIANTS = (
    "envoy-bodies",
    "caddy-short",
    "caddy-short-2.11",
    "kong-injection",
)  # of gateways that are there already


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.needs(KINDS[name].program))
        for name in KINDS
        if name not in VARIANTS
    ],
)
def test_exactly_the_burst_passes(
    name: str, start_edge: Callable[..., Edge], start_gateway: StartGateway
) -> None:
    edge = start_edge("crowd")
    gateway = start_gateway(name, edge.bind[1])
    request = b"GET /a HTTP/1.1\r\nHost: api.example.com\r\nX-API-Key: crowd\r\n\r\n"
    assert statuses(gateway.address, repeat(request, 10_000), CONNECTIONS) == {200: 5000, 429: 5000}
