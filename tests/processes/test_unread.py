"""A standard error that is not read: decisions go on, workers are replaced, a stop is a stop, and lines come later."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edge_server import PROGRAM, Edge, wait_until

BUNDLE = {
    "bundle_version": 1,
    "policies": [
        {
            "id": "all",
            "spec": {
                "selector": {"pathPrefix": "/"},
                "rules": [
                    {
                        "name": "r",
                        "limit_keys": [],
                        "algorithm": "token_bucket",
                        "algorithm_config": {"tokens_per_second": 1000, "burst": 1000},
                    }
                ],
            },
        }
    ],
}
ASK = b"GET /v1/decision HTTP/1.1\r\nX-Original-Method: GET\r\nX-Original-URI: /\r\n\r\n"
STOPPED_WITHIN_S = 20.0  # the machine may be slow; what is held for ever is not


def full_pipe() -> tuple[int, int]:
    """A pipe without room."""
    reader, writer = os.pipe()
    fill(writer)
    return reader, writer


def full_socket() -> tuple[int, int]:
    """A socket, as journald's, that takes no more."""
    one, other = socket.socketpair()
    fill(other.fileno())
    return one.detach(), other.detach()


def stopped_terminal() -> tuple[int, int]:
    """A terminal after Ctrl-S."""
    reader, writer = pty.openpty()
    termios.tcflow(writer, termios.TCOOFF)
    return reader, writer


def fill(descriptor: int) -> None:
    """Write until nothing more goes, then let writers wait again."""
    os.set_blocking(descriptor, False)
    size = 4096
    while size:
        try:
            os.write(descriptor, b"." * size)
        except BlockingIOError:
            size //= 2
    os.set_blocking(descriptor, True)


class UnreadEdge(Edge):
    """An edge whose standard error is a descriptor of the test's choice."""

    stderr = 2

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            PROGRAM, env=self.environ, stdout=subprocess.DEVNULL, stderr=self.stderr, cwd=self.policy.parent
        )


@pytest.fixture(params=[full_pipe, full_socket, stopped_terminal])
def unread(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[UnreadEdge, int]]:
    """An edge, and the descriptor at which its lines could be read."""
    make: Callable[[], tuple[int, int]] = request.param
    reader, UnreadEdge.stderr = make()
    settings = {"FAIRVISOR_WORKER_PROCESSES": "2", "FAIRVISOR_TRUSTED_PEERS": "127.0.0.1"}
    edge = UnreadEdge(tmp_path, BUNDLE, settings)
    yield edge, reader
    os.close(reader)  # a write that still waits ends
    os.close(UnreadEdge.stderr)
    edge.clean_up()


def test_nothing_waits_for_a_log_that_is_not_read(unread: tuple[UnreadEdge, int]) -> None:
    edge, reader = unread
    edge.log.touch()
    edge.wait_ready()
    wait_until(lambda: edge.registered() == 2)
    for number in range(8):
        assert stranger(edge) == 403
        assert edge.status(ASK) == 204, number
    killed = edge.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in edge.workers() and edge.registered() == 2)
    assert [edge.status(ASK) for _ in range(8)] == [204] * 8
    assert stranger(edge) == 403  # what the killed worker had to say went with it
    if os.isatty(reader):
        termios.tcflow(UnreadEdge.stderr, termios.TCOON)
    assert_told(reader)
    fill(UnreadEdge.stderr)
    edge.signal(signal.SIGTERM)
    assert edge.process.wait(STOPPED_WITHIN_S) == 0


def stranger(edge: Edge) -> int:
    """Ask from an address that is not trusted."""
    assert not isinstance(edge.bind, str)
    with socket.create_connection(edge.bind, source_address=("127.0.0.2", 0)) as connection:
        connection.sendall(ASK)
        return int(connection.recv(4096).split()[1])


def assert_told(reader: int) -> None:
    """Read until the line about the stranger comes."""
    read = b""
    while b"FAIRVISOR_TRUSTED_PEERS" not in read:
        read += os.read(reader, 1 << 16)
