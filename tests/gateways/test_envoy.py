"""Envoy with the shipped files: gRPC calls, kept connections, and the limits that the application shows itself."""

from __future__ import annotations

import gzip
import re
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from email.message import Message
from pathlib import Path

import pytest
from application import Application, Fields
from edge_server import PATIENCE_S, Edge, reserve_port
from fake_edge import ALLOW, WAYS, FakeEdge
from gateway_servers import CONFIGURATIONS, KINDS, Gateway, Kind, StartGateway
from request_checks import Received

from fairvisor.settings import Settings

pytestmark = pytest.mark.needs("envoy")

FILES = sorted((CONFIGURATIONS / "envoy").glob("*.yaml"))
CALL = "POST {path} HTTP/1.1\r\nHost: edge\r\nX-API-Key: {key}\r\nContent-Type: {kind}\r\nContent-Length: 0\r\n\r\n"


def call(
    gateway: Gateway, key: str, path: str = "/plain/pkg.Service/M", kind: str = "application/grpc"
) -> Received:
    return gateway.ask(CALL.format(path=path, key=key, kind=kind).encode())


@pytest.mark.parametrize("name", ["envoy", "envoy-bodies"])
@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto"])
def test_a_grpc_call_is_rejected_in_its_own_terms(
    name: str, kind: str, edge: Edge, start_gateway: StartGateway
) -> None:
    """Envoy answers with status 200, as gRPC does."""
    gateway = start_gateway(name, edge.bind[1])
    received = [call(gateway, f"{name} {kind}", kind=kind) for _ in range(4)][-1]
    assert (received.status, received.body) == (200, b"")
    assert received.header("grpc-status") == "8"
    assert received.header("grpc-message") == (
        "Too many requests. Wait for the time in Retry-After and send the request again."
    )
    assert received.header("content-type") == "application/grpc"
    assert received.header("retry-after") is not None


def test_what_a_client_says_of_its_content_type_does_not_count(
    edge: Edge, start_gateway: StartGateway
) -> None:
    """Neither for the edge, nor for the application, which does not see it."""
    gateway = start_gateway("envoy", edge.bind[1])
    raw = CALL.format(
        path="/plain", key="posing", kind="text/plain\r\nX-Original-Content-Type: application/grpc"
    )
    received = [gateway.ask(raw.encode()) for _ in range(4)]
    assert b"x-original-content-type" not in received[0].body
    assert received[-1].status == 429
    assert received[-1].header("grpc-status") is None


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *((way, "application/grpc") for way in WAYS),
        ("dead", "Application/Grpc"),
        ("dead", "application/grpc+json"),
    ],
)
def test_no_content_type_passes_an_undecided_request(
    way: str, kind: str, fake_edge: FakeEdge, closed: Gateway
) -> None:
    """Envoy turns its own errors into a status of 200 where a question says that it is a gRPC call."""
    fake_edge.fail(way)
    received = call(closed, "k", kind=kind)
    assert received.header("x-application-count") is None
    assert (received.status, received.header("grpc-status")) in ((503, None), (200, "14"))


@pytest.fixture(scope="module")
def closed(fake_edge: FakeEdge, start_gateway: StartGateway) -> Gateway:
    return start_gateway("envoy", fake_edge.port, patient=False)


BURST = 2_000_000  # of bundles/tokens.json


def test_of_a_body_that_is_cut_all_bytes_count(
    start_edge: Callable[..., Edge], start_gateway: StartGateway
) -> None:
    """The mebibyte that is sent, and a token for four bytes of what is not."""
    gateway = start_gateway("envoy-bodies", start_edge("tokens").bind[1])
    body = b'{"model": "m", "prompt": "%b"}' % (b"pad " * 750_000)
    head = "POST /v1/completions HTTP/1.1\r\nHost: edge\r\nX-API-Key: k\r\nX-Fairvisor-Body-Bytes: 1\r\n"
    received = gateway.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert received.status == 200
    assert BURST - int(received.header("ratelimit-remaining") or 0) > 3_000_000 // 5
    assert b"x-fairvisor-body-bytes" not in received.body


def test_a_compressed_body_is_read(start_edge: Callable[..., Edge], start_gateway: StartGateway) -> None:
    gateway = start_gateway("envoy-bodies", start_edge("tokens").bind[1])
    body = gzip.compress(b'{"model": "m", "prompt": "a", "max_tokens": 2000}')
    head = "POST /v1/completions HTTP/1.1\r\nHost: edge\r\nX-API-Key: k\r\nContent-Encoding: gzip\r\n"
    received = gateway.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert BURST - int(received.header("ratelimit-remaining") or 0) > 2_000


# Kept connections


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_envoy_gives_a_connection_up_before_the_edge_does(path: Path) -> None:
    (idle_s,) = re.findall(r"idle_timeout: (\d+)s", path.read_text())
    assert 2 * 1000 * int(idle_s) <= Settings.load({}, {}).idle_timeout_ms


def test_envoy_closes_a_connection_that_is_not_used(application: int, tmp_path: Path) -> None:
    """The edge keeps it, as it does for FAIRVISOR_IDLE_TIMEOUT_MS: it never closes one that Envoy is sending on."""
    (tmp_path / "files").mkdir()
    text = (CONFIGURATIONS / "envoy" / "envoy.yaml").read_text()
    (tmp_path / "files" / "envoy.yaml").write_text(
        re.sub("idle_timeout: [0-9]+s", "idle_timeout: 0.1s", text)
    )
    kind = Kind("envoy", ((tmp_path / "files", "."),), "envoy.yaml", "", KINDS["envoy"].command)
    with reserve_port() as listener, ExitStack() as ends:
        listener.listen()
        listener.settimeout(PATIENCE_S)
        place = tmp_path / "envoy"
        gateway = Gateway(kind, kind.closed, place, listener.getsockname()[1], application, patient=True)
        ends.callback(gateway.stop)
        received: list[Received] = []
        client = threading.Thread(target=lambda: received.append(call(gateway, "k")))
        client.start()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(PATIENCE_S)
            read_until(connection, b"\r\n\r\n")
            connection.sendall(ALLOW)
            client.join()
            assert connection.recv(1) == b"", "closed by Envoy"
    assert received[0].status == 200


def read_until(connection: socket.socket, end: bytes) -> None:
    read = b""
    while not read.endswith(end):
        read += connection.recv(65536)


# The application's own limits

LIMITS = ["ratelimit", "ratelimit-policy", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"]


def own_limits(_: Message) -> tuple[Fields, bytes]:
    return [(name, "99") for name in LIMITS], b"{}"


def test_no_limit_of_the_application_contradicts_ours(fake_edge: FakeEdge, tmp_path: Path) -> None:
    """Also not in the form that FAIRVISOR_RATELIMIT_HEADERS leaves out."""
    with ExitStack() as ends:
        application = Application()
        ends.callback(application.stop)
        application.respond = own_limits
        kind = KINDS["envoy"]
        gateway = Gateway(kind, kind.closed, tmp_path, fake_edge.port, application.port, patient=True)
        ends.callback(gateway.stop)
        fake_edge.answer(b'HTTP/1.1 200 OK\r\nRateLimit: "plain";r=2;t=3\r\nContent-Length: 0\r\n\r\n')
        received = call(gateway, "k", kind="text/plain")
    assert [(name, value) for name, value in received.headers if name.lower() in LIMITS] == [
        ("ratelimit", '"plain";r=2;t=3')
    ]
