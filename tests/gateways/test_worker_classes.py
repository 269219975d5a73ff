"""The gateways in front of the WSGI application: meinheld and gunicorn's threads answer as the edge worker does."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import pytest
from crowd import statuses
from edge_server import Edge, ask
from gateway_servers import KINDS, StartGateway
from stories import ORDINARY, SETTINGS, SPOOFING, play

needs = pytest.mark.needs
CLASSES = [
    pytest.param("gthread", id="gthread"),
    pytest.param("meinheld", id="meinheld", marks=needs("meinheld")),
]
GATEWAYS = [
    pytest.param(name, marks=needs(KINDS[name].program))
    for name in ("nginx", "envoy", "caddy", "haproxy", "kong")
]


@pytest.mark.parametrize("worker_class", CLASSES)
@pytest.mark.parametrize("name", GATEWAYS)
def test_what_the_client_sees_is_the_same(
    name: str, worker_class: str, start_edge: Callable[..., Edge], start_gateway: StartGateway
) -> None:
    edge = start_edge("stories", FAIRVISOR_WORKER_CLASS=worker_class, **SETTINGS)
    gateway = start_gateway(name, edge.bind[1])
    found = [problem for script in (*ORDINARY, *SPOOFING) for problem in play(script, gateway)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("worker_class", CLASSES)
def test_exactly_the_burst_passes(worker_class: str, start_edge: Callable[..., Edge]) -> None:
    edge = start_edge("crowd", FAIRVISOR_WORKER_CLASS=worker_class)
    requests = repeat(ask("/", "GET", "X-API-Key: crowd"), 10_000)
    assert statuses(edge.bind, requests, 32) == {204: 5000, 429: 5000}


@pytest.mark.parametrize(
    ("worker_class", "expected"),
    [
        ("edge", [200, 200, 200, 429]),
        ("gthread", [200, 200, 200, 429]),
        pytest.param("meinheld", [400] * 4, marks=needs("meinheld")),
    ],
)
def test_a_path_encoded_twice_stays_in_its_policy(
    worker_class: str, expected: list[int], start_edge: Callable[..., Edge]
) -> None:
    """meinheld tells the path decoded only, and twice: it is refused rather than resolved."""
    edge = start_edge("stories", FAIRVISOR_WORKER_CLASS=worker_class)
    raw = b"GET /v1/ext-authz/plain/%252e%252e/x HTTP/1.1\r\nHost: h\r\nX-API-Key: twice\r\n\r\n"
    assert [edge.status(raw) for _ in range(4)] == expected
