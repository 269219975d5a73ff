"""Real workers in reverse proxy mode: listeners, limits over workers, a graceful stop in the middle of an answer."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge_server import PATIENCE_S, Client, Edge, StartEdge, reserve_port, token_bucket, wait_until

MEBIBYTE = b"x" * (1 << 20)
LARGE_BYTES = 100 << 20
GET = b"GET /anything HTTP/1.1\r\nHost: example.com\r\n\r\n"


class Upstream:
    """Answers every request with 200 `ok`; to /slow it sends the second half when it is told to; /large takes a body of
    LARGE_BYTES in chunks, and answers with one."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.requests = 0
        self.received = 0
        self.go_on = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        with connection:
            while True:
                while b"\r\n\r\n" not in data:
                    more = connection.recv(65536)
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                self.requests += 1
                if head.startswith(b"POST /large"):
                    self.received = self._take_chunks(connection, data)
                    self._send_large(connection)
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                if head.startswith(b"GET /slow"):
                    connection.sendall(b"o")
                    self.go_on.wait(PATIENCE_S)
                    connection.sendall(b"k")
                else:
                    connection.sendall(b"ok")

    def _take_chunks(self, connection: socket.socket, data: bytes) -> int:
        """Read to the last chunk; how many bytes that took."""
        taken, end = 0, data
        while not end.endswith(b"0\r\n\r\n"):
            taken += len(data)
            data = connection.recv(1 << 20)
            end = end[-5:] + data[-5:]
        return taken + len(data)

    def _send_large(self, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_BYTES)
        for _ in range(LARGE_BYTES // len(MEBIBYTE)):
            connection.sendall(MEBIBYTE)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.go_on.set()
    server.listener.close()


class Proxied:
    """An edge in proxy mode and where its health is."""

    def __init__(self, edge: Edge, health: Any) -> None:
        self.edge = edge
        self.health = health

    def page(self, path: str) -> tuple[int, bytes]:
        client = Client(socket.create_connection(self.health, timeout=PATIENCE_S))
        try:
            client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            status, _, body = client.answer()
            return status, body
        finally:
            client.close()

    def is_ready(self) -> bool:
        assert self.edge.process.poll() is None, self.edge.log.read_text()
        try:
            return self.page("/readyz")[0] == 200
        except OSError:
            return False


def start(start_edge: StartEdge, upstream: Upstream, bundle: object, **more: Any) -> Proxied:
    reserved = reserve_port()
    health = reserved.getsockname()
    edge = start_edge(
        bundle,
        ready=False,
        FAIRVISOR_MODE="reverse_proxy",
        FAIRVISOR_BACKEND_URL=f"http://127.0.0.1:{upstream.port}",
        FAIRVISOR_HEALTH_BIND=f"{health[0]}:{health[1]}",
        **more,
    )
    proxied = Proxied(edge, health)
    wait_until(proxied.is_ready)
    reserved.close()
    return proxied


def test_two_workers_admit_exactly_what_the_limit_says(start_edge: StartEdge, upstream: Upstream) -> None:
    proxied = start(start_edge, upstream, token_bucket(50), workers=2)
    statuses = [proxied.edge.status(GET) for _ in range(80)]
    assert (statuses.count(200), statuses.count(429)) == (50, 30)
    assert upstream.requests == 50


def test_every_path_is_the_upstreams_and_the_pages_have_their_own_listener(
    start_edge: StartEdge, upstream: Upstream
) -> None:
    proxied = start(start_edge, upstream, token_bucket(50))
    client = proxied.edge.connect()
    paths = ["/livez", "/readyz", "/metrics", "/v1/decision", "/v1/usage", "/v1/debug/session"]
    for path in paths:
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert client.answer()[2] == b"ok"
    assert upstream.requests == len(paths)
    assert json.loads(proxied.page("/readyz")[1])["status"] == "ok"
    assert b"fairvisor_upstream_failures_total" in proxied.page("/metrics")[1]
    assert proxied.page("/anything")[0] == 404


def test_a_debug_session_is_opened_at_the_proxy_when_there_is_a_secret(
    start_edge: StartEdge, upstream: Upstream
) -> None:
    proxied = start(
        start_edge, upstream, token_bucket(50), FAIRVISOR_DEBUG_SESSION_SECRET="open-sesame-open-sesame"
    )
    client = proxied.edge.connect()
    client.send(
        b"POST /v1/debug/session HTTP/1.1\r\nHost: a\r\nX-Fairvisor-Debug-Secret: open-sesame-open-sesame\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    status, headers, _ = client.answer()
    assert status == 204
    cookie = headers["set-cookie"].partition(";")[0]
    client.send(f"GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n".encode())
    status, headers, _ = client.answer()
    assert (status, headers["x-fairvisor-debug-decision"]) == (200, "allow")
    assert upstream.requests == 1


def test_a_graceful_stop_finishes_the_answer_that_is_under_way(
    start_edge: StartEdge, upstream: Upstream
) -> None:
    proxied = start(start_edge, upstream, token_bucket(50))
    client = proxied.edge.connect()
    client.send(GET.replace(b"/anything", b"/slow"))
    wait_until(lambda: upstream.requests == 1)
    proxied.edge.signal(signal.SIGTERM)
    wait_until(lambda: not proxied_accepts(proxied))
    upstream.go_on.set()
    assert client.answer()[2] == b"ok"
    assert proxied.edge.end() == 0


def peak_kib(pid: int) -> int:
    """The most memory that the process ever had, in KiB."""
    return int(re.findall(r"^VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[0])


def test_bodies_of_100_mb_pass_in_both_directions_without_being_held(
    start_edge: StartEdge, upstream: Upstream
) -> None:
    """Also where a policy looks into bodies: it sees the beginning."""
    rule = {"name": "t", "limit_keys": [], "algorithm": "token_bucket_llm",
            "algorithm_config": {"tokens_per_minute": 1_000_000_000}}  # fmt: skip
    spec = {"selector": {"pathPrefix": "/"}, "rules": [rule]}
    bundle = {"bundle_version": 1, "policies": [{"id": "p", "spec": spec}]}
    proxied = start(start_edge, upstream, bundle)
    (worker,) = proxied.edge.workers()
    assert not isinstance(proxied.edge.bind, str)
    before_kib = peak_kib(worker)
    with socket.create_connection(proxied.edge.bind, timeout=PATIENCE_S) as client:
        client.sendall(b"POST /large HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(LARGE_BYTES // len(MEBIBYTE)):
            client.sendall(b"%x\r\n%b\r\n" % (len(MEBIBYTE), MEBIBYTE))
        client.sendall(b"0\r\n\r\n")
        got = 0
        while got < LARGE_BYTES:
            data = client.recv(1 << 20)
            assert data
            got += len(data)
    assert upstream.received > LARGE_BYTES
    assert peak_kib(worker) - before_kib < 25 << 10


def proxied_accepts(proxied: Proxied) -> bool:
    assert not isinstance(proxied.edge.bind, str)
    try:
        socket.create_connection(proxied.edge.bind, timeout=PATIENCE_S).close()
    except OSError:
        return False
    return True


def test_without_a_bundle_nothing_passes(start_edge: StartEdge, upstream: Upstream) -> None:
    edge = start_edge(
        None,
        ready=False,
        FAIRVISOR_MODE="reverse_proxy",
        FAIRVISOR_BACKEND_URL=f"http://127.0.0.1:{upstream.port}",
        FAIRVISOR_HEALTH_BIND="unix:/dev/null/none",
    )
    assert edge.end() != 0
    assert upstream.requests == 0
