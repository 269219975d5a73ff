"""nginx with servers of one's own around the shipped files: whose error it is, and what a reject looks like there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edge_server import Edge
from fake_edge import FakeEdge, carried
from gateway_servers import CONFIGURATIONS, KINDS, Gateway, Kind
from request_checks import Received

pytestmark = pytest.mark.needs("nginx")

SITES = Kind(
    "nginx",
    ((CONFIGURATIONS / "nginx", "."), (Path(__file__).parent / "nginx", ".")),
    "sites.conf undecided=fairvisor/fail-closed",
    "sites.conf undecided=open",
    KINDS["nginx"].command,
)

StartSites = Callable[..., Gateway]


@pytest.fixture(scope="module")
def start_sites(tmp_path_factory: pytest.TempPathFactory, application: int) -> Iterator[StartSites]:
    """Starts nginx with nginx/sites.conf: `start_sites(edge_port)`, with `fail_open=True` in that variant."""
    gateways: list[Gateway] = []

    def start(edge: int, *, fail_open: bool = False, application: int = application) -> Gateway:
        variant = SITES.open if fail_open else SITES.closed
        gateways.append(Gateway(SITES, variant, tmp_path_factory.mktemp("sites"), edge, application, True))
        return gateways[-1]

    yield start
    for gateway in gateways:
        gateway.stop()


@pytest.fixture(scope="module")
def allows_with_200(start_edge: Callable[..., Edge]) -> Edge:
    return start_edge("stories", FAIRVISOR_ALLOW_STATUS="200")


@pytest.fixture(scope="module", params=["closed", "open", "open, allows with 200"])
def sites(
    request: pytest.FixtureRequest, edge: Edge, allows_with_200: Edge, start_sites: StartSites
) -> Gateway:
    """Whose error it is does not depend on what happens to undecided requests, or on the status of an allow."""
    port = (allows_with_200 if "200" in request.param else edge).bind[1]
    return start_sites(port, fail_open=request.param != "closed")


@pytest.fixture
def fake_edge() -> Iterator[FakeEdge]:
    fake = FakeEdge()
    yield fake
    fake.stop()


def ask(gateway: Gateway, path: str, *lines: str, method: str = "GET", host: str = "edge") -> Received:
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", *lines]
    return gateway.ask("\r\n".join([*head, "", ""]).encode())


@pytest.mark.parametrize(
    ("status", "path", "line", "method"),
    [
        (403, "/return-403/", "", "GET"),
        (403, "/if-403/", "User-Agent: badbot", "GET"),
        (403, "/deny/", "", "GET"),
        (403, "/method/", "", "DELETE"),
        (401, "/return-401/", "", "GET"),
        (401, "/password/", "", "GET"),
        (500, "/return-500/", "", "GET"),
        (403, "/pages/secret/", "", "GET"),
        (404, "/pages/none", "", "GET"),
        (500, "/rewritten-forever/a", "", "GET"),
        (500, "/redirected-forever/a", "", "GET"),
        (403, "/again/", "", "GET"),
        (403, "/recursive/", "", "GET"),
    ],
)
def test_an_error_of_nginx_s_own_stays_what_it_is(
    status: int, path: str, line: str, method: str, sites: Gateway
) -> None:
    """Before the question, after it, on an internal redirect: with the page that nginx has for it."""
    received = ask(sites, path, *filter(None, [line]), method=method)
    assert received.status == status
    assert b"<center>nginx/" in received.body
    assert received.header("content-type") == "text/html"
    assert received.header("x-fairvisor-reason") is None
    assert received.header("x-application-count") is None


def test_a_limit_of_nginx_s_own_keeps_its_status(sites: Gateway) -> None:
    statuses = [ask(sites, "/frequent/", f"X-API-Key: {sites.address[1]}").status for _ in range(2)]
    assert statuses == [200, 403]


@pytest.mark.parametrize(("status", "path"), [(403, "/return-403/"), (500, "/return-500/")])
def test_an_error_of_nginx_s_own_stays_what_it_is_below_a_protected_server(
    status: int, path: str, sites: Gateway
) -> None:
    assert ask(sites, path, host="whole").status == status


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_an_intercepted_error_of_the_application_keeps_its_status(status: int, sites: Gateway) -> None:
    assert ask(sites, "/intercepted/", f"X-Want-Status: {status}").status == status


def test_an_error_page_of_the_location_is_shown(sites: Gateway) -> None:
    received = ask(sites, "/own-page/none")
    assert (received.status, received.body) == (404, b"this location's page\n")


@pytest.mark.parametrize(("host", "path"), [("edge", "/plain"), ("whole", "/plain/again")])
def test_a_reject_is_whole_beside_error_pages_and_headers_of_the_location(
    host: str, path: str, sites: Gateway
) -> None:
    """protect.conf is in the location: the location's own error_page and add_header do not replace its lines."""
    key = f"X-API-Key: {host} {sites.address[1]}"
    received = [ask(sites, path, key, host=host) for _ in range(4)]
    assert [each.status for each in received] == [200, 200, 200, 429]
    assert int(received[3].header("retry-after") or 0) > 0
    assert received[3].header("x-fairvisor-reason") == "rate_limit_exceeded"
    assert received[3].header("content-type") == "application/json"
    assert [each.header("ratelimit-remaining") for each in received] == ["2", "1", "0", "0"]


def test_a_reject_says_when_and_why_where_a_location_has_lost_the_error_pages_of_its_server(
    sites: Gateway,
) -> None:
    """docs/gateways/nginx.md says so: it is nginx's own 403, with our headers."""
    key = f"X-API-Key: lost {sites.address[1]}"
    received = [ask(sites, "/plain/lost", key, host="whole") for _ in range(4)]
    assert [each.status for each in received] == [200, 200, 200, 403]
    assert int(received[3].header("retry-after") or 0) > 0
    assert received[3].header("x-fairvisor-reason") == "rate_limit_exceeded"
    assert received[0].header("retry-after") is None


ALL_HEADERS = (
    "X-Fairvisor-Reason: budget_exhausted",
    "Retry-After: 7",
    "X-Should-Retry: false",
    "X-Fairvisor-Loop-Count: 3",
    "Cache-Control: no-store",
    'WWW-Authenticate: Bearer error="invalid_token"',
    'RateLimit: "a";r=0;t=7',
    'RateLimit-Policy: "a";q=1;w=7',
    "RateLimit-Limit: 1",
    "RateLimit-Remaining: 0",
    "RateLimit-Reset: 7",
)
BODY = b'{"error":{"message":"A \\"quoted\\" word.","code":"x"}}'


@pytest.mark.parametrize("fail_open", [False, True], ids=["closed", "open"])
def test_a_reject_keeps_its_status_its_headers_and_its_body(
    fail_open: bool, fake_edge: FakeEdge, start_sites: StartSites
) -> None:
    gateway = start_sites(fake_edge.port, fail_open=fail_open)
    for status in (400, 401, 402, 403, 404, 409, 413, 422, 429, 451):
        fake_edge.answer(carried(status, BODY, *ALL_HEADERS))
        for method in ("GET", "POST"):
            received = ask(gateway, "/", "Content-Length: 0", method=method)
            assert (received.status, received.body) == (status, BODY)
            for name, _, value in (line.partition(": ") for line in ALL_HEADERS):
                assert received.header(name) == value, name
            assert received.header("content-type") == "application/json"
            assert received.header("x-fairvisor-body") is None


@pytest.mark.parametrize("status", [405, 410, 418, 499])
def test_a_reject_with_a_status_that_nginx_is_not_set_up_for_is_still_a_reject(
    status: int, fake_edge: FakeEdge, start_sites: StartSites
) -> None:
    gateway = start_sites(fake_edge.port, fail_open=True)
    fake_edge.answer(carried(status, BODY, "Retry-After: 7"))
    received = ask(gateway, "/")
    assert (received.status, received.body, received.header("retry-after")) == (403, BODY, "7")


@pytest.mark.parametrize(("answered", "shown"), [(400, 400), (404, 400), (431, 431)])
@pytest.mark.parametrize("fail_open", [False, True], ids=["closed", "open"])
def test_a_question_that_is_answered_with_an_error_of_the_client_does_not_pass(
    answered: int, shown: int, fail_open: bool, fake_edge: FakeEdge, start_sites: StartSites
) -> None:
    """Whoever wrote the answer: a worker of gunicorn answers a head that is too large with HTML."""
    gateway = start_sites(fake_edge.port, fail_open=fail_open)
    fake_edge.answer(b"HTTP/1.1 %d No\r\nContent-Type: text/html\r\nContent-Length: 1\r\n\r\nx" % answered)
    assert ask(gateway, "/").status == shown


OURS = (
    'RateLimit: "ours";r=2;t=1',
    'RateLimit-Policy: "ours";q=3;w=3',
    "RateLimit-Limit: 3",
    "RateLimit-Remaining: 2",
    "RateLimit-Reset: 1",
)
THEIRS = tuple(line.replace("ours", "theirs").replace("2", "99") for line in OURS)


@pytest.mark.parametrize("ours", [OURS, OURS[:2], OURS[2:], ()], ids=["both", "draft", "legacy", "off"])
@pytest.mark.parametrize("place", ["/", "whole"])
def test_the_application_s_limits_are_shown_only_where_we_have_none(
    ours: tuple[str, ...], place: str, fake_edge: FakeEdge, start_sites: StartSites
) -> None:
    warning = "X-Fairvisor-Warning: budget_warn"
    application = FakeEdge()
    try:
        gateway = start_sites(fake_edge.port, application=application.port)
        fake_edge.answer(answer(204, *ours, warning))
        application.answer(answer(200, *THEIRS, "X-Fairvisor-Warning: theirs", "X-Fairvisor-Loop-Count: 9"))
        received = ask(gateway, "/", host="whole" if place == "whole" else "edge")
    finally:
        application.stop()
    assert received.status == 200
    told = {f"{name}: {value}" for name, value in received.headers if name.lower().startswith("ratelimit")}
    assert told == set(ours or THEIRS)
    assert received.header("x-fairvisor-warning") == "budget_warn"
    assert received.header("x-fairvisor-loop-count") is None


def answer(status: int, *lines: str) -> bytes:
    length = () if status == 204 else ("Content-Length: 0",)
    return "\r\n".join([f"HTTP/1.1 {status} Done", *lines, *length, "", ""]).encode()
