"""HAProxy, in both versions: whatever a head looks like, HAProxy lives, and fail-open lets nothing pass uncounted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edge_server import Edge, token_bucket
from fake_edge import ALLOW, FakeEdge
from gateway_servers import KINDS, Edits, Gateway, StartGateway
from random_heads import LIMIT, REFILL, VERSIONS, exhaust, rejects

named = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs(KINDS[name].program)) for name in VERSIONS]
)
NEAR_THE_BOUND = range(84, 106)  # HAProxy takes up to 101 lines, the question has up to 90 of the client's
READ: Edits = (("# setenv EDGE_HEADERS", "setenv EDGE_HEADERS"),)


@pytest.fixture(scope="module")
def limited(start_edge: Callable[..., Edge], tmp_path_factory: pytest.TempPathFactory) -> Edge:
    """An edge that lets LIMIT requests pass, whoever asks."""
    path = tmp_path_factory.mktemp("limited") / "bundle.json"
    path.write_text(json.dumps(token_bucket(LIMIT, REFILL)))
    return start_edge(path)


@pytest.fixture
def asked() -> Iterator[FakeEdge]:
    """An edge that allows everything."""
    fake = FakeEdge()
    fake.answer(ALLOW)
    yield fake
    fake.stop()


def head(*lines: str) -> bytes:
    return "\r\n".join(["GET /nothing HTTP/1.1", "Host: edge", *lines, "", ""]).encode()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, fail_open), marks=pytest.mark.needs(KINDS[name].program), id=f"{name} {word}")
        for name in VERSIONS
        for word, fail_open in (("closed", False), ("open", True))
    ],
)
def exhausted(request: pytest.FixtureRequest, limited: Edge, start_gateway: StartGateway) -> Gateway:
    """A HAProxy whose limit is exhausted: what passes now was not decided."""
    name, fail_open = request.param
    gateway = start_gateway(name, limited.bind[1], fail_open=fail_open)
    exhaust(gateway)
    return gateway


def test_no_number_of_lines_ends_haproxy_or_passes_uncounted(exhausted: Gateway) -> None:
    for line in ("X-A: 1", "X-{}: 1", "X-Forwarded-{}: 1", "Cookie: a{}=1", "{}:"):
        statuses = [
            exhausted.ask(head(*(line.format(number) for number in range(count)))).status
            for count in NEAR_THE_BOUND
        ]
        assert set(statuses) <= {400, 429, 431}
    assert exhausted.process.poll() is None


def test_more_lines_than_the_question_has_room_for_are_a_reject_that_says_so(exhausted: Gateway) -> None:
    received = exhausted.ask(head(*["X-A: 1"] * 91))
    assert (received.status, received.header("cache-control")) == (431, "no-store")
    assert b"too many header lines" in received.body
    assert exhausted.ask(head(*["X-A: 1"] * 90)).status == 429


def test_random_heads_are_decided_or_rejected(exhausted: Gateway) -> None:
    """`make campaign-haproxy` sends more of them."""
    assert {429, 431} <= set(rejects(exhausted, seed=2, count=200))


@pytest.mark.needs("curl")
def test_no_number_of_fields_of_http_2_does_either(exhausted: Gateway, tmp_path: Path) -> None:
    """HAProxy 2.6 takes more than tune.http.maxhdr fields here."""
    fields = tmp_path / "fields"
    for count in (*NEAR_THE_BOUND, 200):
        fields.write_text("".join(f"X-{number}: 1\n" for number in range(count)))
        command = [
            "curl",
            "--silent",
            "--http2-prior-knowledge",
            "--header",
            f"@{fields}",
            "--output",
            "/dev/null",
        ]
        url = "http://{}:{}/".format(*exhausted.address)
        done = subprocess.run(
            [*command, "--write-out", "%{http_code}", url], capture_output=True, check=False
        )
        assert done.stdout in (b"000", b"400", b"429", b"431")  # 000: the stream was reset
    assert exhausted.process.poll() is None


@named
def test_a_question_that_fits_into_no_buffer_is_a_reject(
    name: str, asked: FakeEdge, start_gateway: StartGateway
) -> None:
    """What the question has more than the request, here a long token, counts too (tune.bufsize)."""
    token: Edits = (
        (
            "setenv EDGE_TIMEOUT_MS",
            f"setenv FAIRVISOR_DECISION_TOKEN {'t' * 900}\n    setenv EDGE_TIMEOUT_MS",
        ),
    )
    gateway = start_gateway(name, asked.port, fail_open=True, edits=token)
    assert gateway.ask(head("X-A: " + "a" * 14_000)).status == 200
    received = gateway.ask(head("X-A: " + "a" * 15_200))
    assert (received.status, received.header("cache-control")) == (431, "no-store")
    assert b'"code":431' in received.body
    assert received.header("x-application-count") is None


@named
def test_only_the_headers_that_policies_read_are_sent(
    name: str, asked: FakeEdge, start_gateway: StartGateway
) -> None:
    """With EDGE_HEADERS, and then the others do not count as lines."""
    gateway = start_gateway(name, asked.port, edits=READ)
    others = [f"X-{number}: 1" for number in range(93)]
    lines = ["X-API-Key: k", "X-API-Key: l", "Cookie: a=b", "X-Forwarded-For: 203.0.113.9"]
    assert gateway.ask(head(*lines, *others)).status == 200
    sent = {line.partition(":")[0].lower() for line in asked.asked.decode().split("\r\n")[1:-2]}
    own = {
        "x-original-method",
        "x-original-uri",
        "x-original-host",
        "x-forwarded-for",
        "x-fairvisor-request-id",
    }
    assert sent - own - {"host", "user-agent", "accept", "connection"} == {"x-api-key"}
    assert b"203.0.113.9" not in asked.asked


@named
def test_a_header_that_no_client_may_choose_is_not_sent_because_it_is_named(
    name: str, asked: FakeEdge, start_gateway: StartGateway
) -> None:
    hint: Edits = (('# setenv EDGE_HEADERS "', 'setenv EDGE_HEADERS "X-Country-Code X-API-Key '),)
    gateway = start_gateway(name, asked.port, edits=hint)
    assert gateway.ask(head("X-Country-Code: NO", "X-API-Key: k")).status == 200
    assert b"x-api-key: k" in asked.asked.lower()
    assert b"country" not in asked.asked.lower()
