"""Sockets that the edge is started with: systemd's, by their names, and those of the master that it replaces."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from edge_server import PATIENCE_S, Client, Edge, ask, attach, free_port, token_bucket, wait_until

from fairvisor.counters.layout import Word

READYZ = b"GET /readyz HTTP/1.1\r\nHost: edge\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: edge\r\n\r\n"

Start = Callable[..., Edge]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an edge with so many sockets of systemd, listening already, which have these names."""
    edges: list[Edge] = []
    sockets: list[socket.socket] = []

    def start(number: int = 1, names: str = "", **environ: str) -> Edge:
        sockets.extend(socket.create_server(("127.0.0.1", 0)) for _ in range(number))
        settings = {
            "FAIRVISOR_WORKER_PROCESSES": "1",
            **({"LISTEN_FDNAMES": names} if names else {}),
            **environ,
        }
        edges.append(Edge(tmp_path, token_bucket(1000), settings, handed=sockets))
        return edges[-1]

    yield start
    for edge in edges:
        edge.clean_up()
    for each in sockets:
        each.close()


def status(port: int, data: bytes) -> int:
    """The status of the answer at a port; waits while nobody listens there."""
    wait_until(lambda: is_open(port))
    client = Client(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
    try:
        return client.status(data)
    finally:
        client.close()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ports(edge: Edge) -> list[int]:
    handed: Sequence[socket.socket] = edge._handed
    return [each.getsockname()[1] for each in handed]


@pytest.mark.parametrize("names", ["", "fairvisor.socket:fairvisor.socket", "decision:unknown"])
def test_every_socket_of_systemd_serves_decisions(start: Start, names: str) -> None:
    edge = start(2, names)
    for port in ports(edge):
        assert status(port, ask()) == 204
        assert status(port, READYZ) == 200


def test_the_listener_for_probes_is_opened_beside_a_socket_of_systemd(start: Start) -> None:
    health = free_port()
    (port,) = ports(start(1, FAIRVISOR_HEALTH_BIND=f"127.0.0.1:{health}"))
    assert [status(health, data) for data in (READYZ, METRICS, ask())] == [200, 200, 404]
    assert [status(port, data) for data in (READYZ, ask())] == [404, 204]


def test_a_socket_is_for_probes_by_its_name_whatever_its_place(start: Start) -> None:
    unused = free_port()
    health, port = ports(start(2, "health:decision", FAIRVISOR_HEALTH_BIND=f"127.0.0.1:{unused}"))
    assert [status(health, data) for data in (READYZ, METRICS, ask())] == [200, 200, 404]
    assert [status(port, data) for data in (READYZ, ask())] == [404, 204]
    assert not is_open(unused)


def test_where_only_the_socket_for_probes_is_handed_over_the_other_is_opened(start: Start) -> None:
    edge = start(1, "health")
    edge.wait_ready()
    assert edge.status(ask()) == 204
    assert status(ports(edge)[0], ask()) == 404


class Upstream(BaseHTTPRequestHandler):
    """Answers everything with 202."""

    def do_GET(self) -> None:
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_clients_of_the_proxy_get_no_page_of_ours_on_any_socket(start: Start) -> None:
    with HTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        serving = Thread(target=upstream.serve_forever, args=(0.01,))
        serving.start()
        health = free_port()
        edge = start(
            2,
            FAIRVISOR_MODE="reverse_proxy",
            FAIRVISOR_BACKEND_URL=f"http://127.0.0.1:{upstream.server_port}",
            FAIRVISOR_HEALTH_BIND=f"127.0.0.1:{health}",
        )
        try:
            assert [status(port, METRICS) for port in ports(edge)] == [202, 202]
            assert status(health, READYZ) == 200
        finally:
            edge.clean_up()
            upstream.shutdown()
            serving.join()


@pytest.mark.parametrize(
    ("mode", "name", "allowed"),
    [("decision_service", "metrics", "decision"), ("reverse_proxy", "decision", "proxy")],
)
def test_a_socket_of_an_unknown_name_stops_the_start(
    start: Start, mode: str, name: str, allowed: str
) -> None:
    edge = start(2, f"health:{name}", FAIRVISOR_MODE=mode, FAIRVISOR_BACKEND_URL="http://127.0.0.1:1")
    assert edge.end() != 0
    (line,) = edge.log.read_text().splitlines()
    assert f"LISTEN_FDNAMES: '{name}' is wrong: FileDescriptorName= of a socket may be {allowed} " in line


@pytest.mark.parametrize("by_systemd", [False, True])
def test_a_master_that_replaces_another_has_its_sockets_by_their_names(
    start: Start, by_systemd: bool
) -> None:
    """Both listen on: no connection is refused meanwhile."""
    health = free_port()
    number = 1 if by_systemd else 0
    edge = start(number, FAIRVISOR_HEALTH_BIND=f"127.0.0.1:{health}")
    port = ports(edge)[0] if by_systemd else edge.bind[1]
    assert isinstance(port, int)
    assert status(port, ask()) == 204
    table, old = attach(edge.instance).table, edge.process.pid
    edge.signal(signal.SIGUSR2)
    wait_until(lambda: table.word_get(Word.MASTER_PID) != old)
    new = table.word_get(Word.MASTER_PID)
    wait_until(lambda: Path(f"/proc/{new}/task/{new}/children").read_text() != "")
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    try:
        assert [status(health, data) for data in (READYZ, ask())] == [200, 404]
        assert [status(port, data) for data in (READYZ, ask())] == [404, 204]
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{new}").exists())
