"""The application's RateLimit headers and Fairvisor's: a client sees one set, never both."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from edge_server import Edge
from gateway_servers import KINDS, StartGateway

DRAFT = {"ratelimit", "ratelimit-policy"}
LEGACY = {"ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"}
OF_THE_APPLICATION = {
    "RateLimit": '"app";r=99;t=9',
    "ratelimit-policy": '"app";q=99;w=9',
    "RateLimit-Limit": "99",
    "RATELIMIT-REMAINING": "99",
    "RateLimit-Reset": "99",
}
SHOWING = ("nginx", "ingress-nginx", "caddy", "caddy-2.11", "haproxy", "haproxy-2.8", "kong")
REMOVING = ("envoy", "envoy-bodies")  # wherever the application sent one
WANTED = "|".join(f"{name}: {value}" for name, value in OF_THE_APPLICATION.items())


def shown(start_gateway: StartGateway, name: str, edge: Edge, path: str) -> dict[str, str]:
    """What a client sees of RateLimit headers; fails where it sees one twice."""
    raw = f"GET {path} HTTP/1.1\r\nHost: edge\r\nX-API-Key: {name}\r\nX-Want-Lines: {WANTED}\r\n\r\n"
    received = start_gateway(name, edge.bind[1]).ask(raw.encode())
    assert received.status == 200, received
    found = [(key.lower(), value) for key, value in received.headers if key.lower().startswith("ratelimit")]
    assert len(dict(found)) == len(found), found
    return dict(found)


def named(*names: str) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.needs(KINDS[name].program)) for name in names]


@pytest.fixture(scope="module", params=["both", "draft", "legacy"])
def form(request: pytest.FixtureRequest) -> str:
    """Which headers Fairvisor shows: the application's go in either form."""
    return str(request.param)


@pytest.fixture(scope="module")
def edge(form: str, start_edge: Callable[..., Edge]) -> Edge:
    return start_edge("stories", FAIRVISOR_RATELIMIT_HEADERS=form)


@pytest.fixture(scope="module")
def plain_edge(start_edge: Callable[..., Edge]) -> Edge:
    return start_edge("stories")


@pytest.mark.parametrize("name", named(*SHOWING, *REMOVING))
def test_what_fairvisor_shows_takes_the_place_of_the_applications(
    name: str, form: str, edge: Edge, start_gateway: StartGateway
) -> None:
    found = shown(start_gateway, name, edge, "/plain")
    assert set(found) == {"both": DRAFT | LEGACY, "draft": DRAFT, "legacy": LEGACY}[form]
    assert not any("99" in value for value in found.values())


@pytest.mark.parametrize(
    "name",
    named(*SHOWING, "caddy-short", "caddy-short-2.11", "traefik"),
)
def test_where_fairvisor_shows_none_the_applications_stay(
    name: str, plain_edge: Edge, start_gateway: StartGateway
) -> None:
    """Where no limit was evaluated, and with a gateway that cannot show what is left of it."""
    path = "/nothing" if KINDS[name].shows_allows else "/plain"
    found = shown(start_gateway, name, plain_edge, path)
    assert found == {key.lower(): value for key, value in OF_THE_APPLICATION.items()}
