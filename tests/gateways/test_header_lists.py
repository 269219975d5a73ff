"""What each gateway's files do with headers is what the tables of docs/headers.md say.

The real gateways are asked with every header that a client may send, and answered with every header that the edge may
answer with. Of LiteLLM's callback the functions that choose headers are called.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from edge_server import ROOT
from fake_edge import ALLOW, FakeEdge
from gateway_servers import CONFIGURATIONS, KINDS, Gateway, StartGateway

from fairvisor.http.gateways import FORWARDED, ORIGINAL, SIZE_HEADER, URL_HEADER, decision_endpoints
from fairvisor.setting_values import HINTS

# Of each column the gateways that it stands for, the endpoint that they ask, and what describes the request there.
COLUMNS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "nginx": (("nginx", "kong-injection"), "/v1/auth-request/once", ORIGINAL),
    "ingress-nginx": (("ingress-nginx",), "/v1/auth-url", (ORIGINAL.method, URL_HEADER)),
    "Envoy": (("envoy", "envoy-bodies"), "/v1/ext-authz/", ()),
    "Caddy": (("caddy", "caddy-2.11", "caddy-short", "caddy-short-2.11"), "/v1/forward-auth", FORWARDED),
    "HAProxy": (("haproxy", "haproxy-2.8"), "/v1/decision", ORIGINAL),
    "Traefik": (("traefik",), "/v1/forward-auth", FORWARDED),
    "Kong": (("kong",), "/v1/decision", ORIGINAL),
    "LiteLLM": ((), "/v1/decision", ORIGINAL),
}
ENDPOINTS = decision_endpoints(request_ids=True)
GATEWAYS = [
    pytest.param(column, name, marks=pytest.mark.needs(KINDS[name].program), id=name)
    for column, (names, _, _) in COLUMNS.items()
    for name in names
]
# What no client may choose at any endpoint.
BELIEVED = {"x-forwarded-for", "forwarded", *HINTS}

Table = dict[str, dict[str, str]]  # of a header what each column says


def table_of(heading: str) -> Table:
    """The table below a heading of docs/headers.md, a row for each header that it names."""
    text = (ROOT / "docs" / "headers.md").read_text()
    section = text.partition(f"### {heading}\n")[2].partition("\n#")[0]
    first, _, *rest = (line.strip("|").split("|") for line in section.splitlines() if line.startswith("|"))
    columns = [cell.strip() for cell in first[1:]]
    return {
        name: dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        for names, *cells in rest
        for name in re.findall("`([^`]+)`", names)
    }


SENT = table_of("From a client to Fairvisor")
SHOWN = table_of("From Fairvisor to a client")
OF_BOTH = [
    *("RateLimit", "RateLimit-Policy", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"),
    *("X-Fairvisor-Loop-Count", "X-Fairvisor-Debug-Decision"),
]
ALWAYS = {"Cache-Control": "no-store"}
OF_AN_ALLOW = [*OF_BOTH, "X-Fairvisor-Warning", "X-Fairvisor-Reservation"]
OF_A_REJECT = [
    *OF_BOTH,
    *("X-Fairvisor-Reason", "Retry-After", "X-Should-Retry", "WWW-Authenticate", "Cache-Control"),
]


def test_every_gateway_has_a_column() -> None:
    assert sorted(name for names, _, _ in COLUMNS.values() for name in names) == sorted(KINDS)
    assert all(list(row) == list(COLUMNS) for row in (*SENT.values(), *SHOWN.values()))


@pytest.fixture(scope="module")
def edge() -> Iterator[FakeEdge]:
    fake = FakeEdge()
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def started(edge: FakeEdge, start_gateway: StartGateway) -> Callable[[str], Gateway]:
    running: dict[str, Gateway] = {}

    def start(name: str) -> Gateway:
        if name not in running:
            edge.answer(ALLOW)
            running[name] = start_gateway(name, edge.port)
        return running[name]

    return start


def lines(names: list[str]) -> list[str]:
    """A header line for each name, with a value of its own where the name has not always the same."""
    return [f"{name}: {ALWAYS.get(name, f'mine-{number}')}" for number, name in enumerate(names)]


def fate(values: list[str], own: str) -> str:
    """What became of a header with the value `own`, by the values that arrived under its name."""
    if not values:
        return "dropped"
    if values == [own]:
        return "sent"
    return "appended to" if own in values[0] else "set"


@pytest.mark.parametrize(("column", "name"), GATEWAYS)
def test_what_reaches_the_edge(
    column: str, name: str, edge: FakeEdge, started: Callable[[str], Gateway]
) -> None:
    gateway = started(name)
    edge.answer(ALLOW)
    sent = lines(list(SENT))
    gateway.ask("\r\n".join(["GET /nothing HTTP/1.1", "Host: edge", *sent, "", ""]).encode())
    arrived = [line.partition(": ") for line in edge.asked.decode("latin-1").split("\r\n")[1:-2]]
    found = {
        header: fate(
            [value for key, _, value in arrived if key.lower() == header.lower()], line.partition(": ")[2]
        )
        for header, line in zip(SENT, sent, strict=True)
    }
    assert found == {header: row[column] for header, row in SENT.items()}


@pytest.mark.parametrize("column", COLUMNS)
def test_no_client_chooses_what_the_endpoint_believes(column: str) -> None:
    by_name = {header.lower(): row[column] for header, row in SENT.items()}
    _, path, describing = COLUMNS[column]
    believed = (
        BELIEVED | set(describing) | ({"x-fairvisor-request-id"} if ENDPOINTS[path].reads_id else set())
    )
    believed |= {SIZE_HEADER} & set(ENDPOINTS[path].size_headers)
    assert {by_name[header] for header in believed} <= {"set", "dropped", "appended to"}
    assert by_name["x_country_code"] == "dropped"


@pytest.mark.parametrize(("column", "name"), GATEWAYS)
def test_what_the_client_sees(
    column: str, name: str, edge: FakeEdge, started: Callable[[str], Gateway]
) -> None:
    gateway = started(name)
    raw = b"GET /nothing HTTP/1.1\r\nHost: edge\r\n\r\n"
    allow, reject = lines(OF_AN_ALLOW), lines(OF_A_REJECT)
    edge.answer(answer("200 OK", *allow, "Content-Length: 0"))
    allowed = seen(gateway, raw, allow)
    if ENDPOINTS[COLUMNS[column][1]].carrier:
        edge.answer(answer("403 Forbidden", *reject, "X-Fairvisor-Status: 429", "X-Fairvisor-Body: {}"))
    else:
        edge.answer(answer("429 Too Many Requests", *reject))
    rejected = seen(gateway, raw, reject)
    words = {(True, True): "both", (True, False): "allow", (False, True): "reject", (False, False): "never"}
    found = {header: words[header in allowed, header in rejected] for header in SHOWN}
    assert found == {header: expected(row[column], gateway) for header, row in SHOWN.items()}


def answer(status: str, *told: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *told, "Connection: close", "", ""]).encode()


def seen(gateway: Gateway, raw: bytes, told: list[str]) -> set[str]:
    """The names of those of the edge's header lines that reach a client."""
    received = gateway.ask(raw)
    pairs = {(name.lower(), value) for name, value in received.headers}
    return {
        name for name, _, value in (line.partition(": ") for line in told) if (name.lower(), value) in pairs
    }


def expected(word: str, gateway: Gateway) -> str:
    """What the table says of a gateway, and of the variant of it that shows nothing of an allow."""
    return word if gateway.kind.shows_allows else {"both": "reject", "allow": "never"}.get(word, word)


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """LiteLLM's callback, without LiteLLM."""
    for name in ("httpx", "fastapi", "litellm", "litellm.integrations", "litellm.integrations.custom_logger"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    stub: Any = sys.modules
    stub["fastapi"].HTTPException = Exception
    stub["httpx"].Response = stub["httpx"].AsyncClient = object
    stub["litellm.integrations.custom_logger"].CustomLogger = object
    spec = importlib.util.spec_from_file_location("edge_guard", CONFIGURATIONS / "litellm" / "edge_guard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_reaches_the_edge_from_litellm(callback: ModuleType) -> None:
    sent = dict(line.split(": ") for line in lines(list(SENT)))
    question = callback._question(
        {"url": "http://edge/nothing", "headers": sent},
        {"metadata": {"requester_ip_address": "192.0.2.1"}},
        SimpleNamespace(),
    )
    found = {
        header: fate([question[header.lower()]] if header.lower() in question else [], own)
        for header, own in sent.items()
    }
    assert found == {header: row["LiteLLM"] for header, row in SENT.items()}


def test_what_a_client_of_litellm_sees(callback: ModuleType) -> None:
    shown = {name for name in OF_A_REJECT if name.lower() in callback._REFUSAL}
    found = {header: "reject" if header in shown else "never" for header in SHOWN}
    assert found == {header: row["LiteLLM"] for header, row in SHOWN.items()}
