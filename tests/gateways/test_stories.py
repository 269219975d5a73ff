"""The same requests through every gateway: what the client sees, and that it cannot choose what it is counted by.

The files of `requests/` and `spoofing/` follow the format of `tests/requests/`; `{{key}}` is an API key of their own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from edge_server import Edge
from gateway_servers import KINDS, Gateway, StartGateway
from request_checks import problems
from request_script import Exchange, Expectation, Script, read_script, request_bytes

HERE = Path(__file__).parent
ORDINARY = [read_script(path) for path in sorted((HERE / "requests").glob("*.http"))]
SPOOFING = [read_script(path) for path in sorted((HERE / "spoofing").glob("*.http"))]

# What an answer tells of an allow; a gateway that cannot show it loses these lines and no others.
OF_AN_ALLOW = ("ratelimit", "x-fairvisor-warning", "x-fairvisor-loop-count")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.needs(KINDS[name].program)) for name in KINDS]
)
def gateway(request: pytest.FixtureRequest, start_edge: Callable[..., Edge], start_gateway: StartGateway) -> Gateway:
    """Each gateway, failing closed, in front of an edge that would believe a country if a client could send one."""
    edge = start_edge(
        "stories",
        FAIRVISOR_TRUSTED_HINTS="x-country-code,x-asn,x-asn-type,x-tor-exit,x-token-estimate",
        FAIRVISOR_REQUEST_ID="true",
    )
    return start_gateway(request.param, edge.bind[1])


def play(script: Script, gateway: Gateway) -> list[str]:
    """Send the requests of a file in order; everything that is wrong with the answers."""
    key = f"{script.path.parent.name}-{script.path.name[:3]}"
    claims = base64.urlsafe_b64encode(json.dumps({"sub": key}).encode()).rstrip(b"=").decode()
    names = {"key": key, "token": f"eyJhbGciOiJIUzI1NiJ9.{claims}.c2lnbmVk"}
    found = []
    for step in script.steps:
        assert isinstance(step, Exchange)
        for _ in range(step.times):
            received = gateway.ask(request_bytes(step.lines, names))
            expected = step.expected if gateway.kind.shows_allows else without_allows(step.expected)
            wrong = problems(received, expected, names)
            found += ["\n    ".join([f"line {step.line}: {step.lines[0]}", *wrong, str(received)])] if wrong else []
    return found


def without_allows(expected: Expectation) -> Expectation:
    """What remains of an expectation where the client cannot see the headers of an allow."""
    if expected.status == 429:
        return expected
    exact, patterns = (
        [pair for pair in pairs if not pair[0].lower().startswith(OF_AN_ALLOW)]
        for pairs in (expected.exact, expected.patterns)
    )
    return Expectation(expected.status, exact, patterns, expected.absent, body_members=expected.body_members)


@pytest.mark.parametrize("script", [pytest.param(each, id=each.path.stem) for each in ORDINARY])
def test_what_the_client_sees(script: Script, gateway: Gateway) -> None:
    found = play(script, gateway)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("script", [pytest.param(each, id=each.path.stem) for each in SPOOFING])
def test_a_client_cannot_choose_what_it_is_counted_by(script: Script, gateway: Gateway) -> None:
    found = play(script, gateway)
    assert not found, "\n" + "\n".join(found)


def test_there_are_forty_requests() -> None:
    assert sum(step.times for each in ORDINARY for step in each.steps if isinstance(step, Exchange)) >= 40
