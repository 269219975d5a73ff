"""The real worker under real clients: exactness, order, misuse, stopping. Each test has a server of its own."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest
from crowd import statuses
from edge_server import (
    Client,
    Edge,
    StartEdge,
    ask,
    attach,
    memory_of,
    open_files,
    throttle,
    token_bucket,
    wait_until,
)

from fairvisor.counters.registry import Registry

SHORT = {"FAIRVISOR_HEADER_TIMEOUT_MS": "300", "FAIRVISOR_IDLE_TIMEOUT_MS": "400"}
MANY = token_bucket(1_000_000, rate=1_000_000)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One server for the tests that leave it as it was."""
    started = Edge(tmp_path_factory.mktemp("edge"), MANY, {"FAIRVISOR_WORKER_PROCESSES": "1"})
    try:
        started.wait_ready()
        yield started
    finally:
        started.clean_up()


class Others:
    """Clients that go on asking while something else happens; every one of their answers is counted."""

    def __init__(self, edge: Edge, clients: int = 2) -> None:
        self.statuses: Counter[int | str] = Counter()
        self._stop = threading.Event()
        self._clients = [edge.connect() for _ in range(clients)]
        self._threads = [threading.Thread(target=self._ask, args=(client,)) for client in self._clients]

    def __enter__(self) -> Others:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def _ask(self, client: Client) -> None:
        while not self._stop.is_set():
            try:
                self.statuses[client.status(ask())] += 1
            except (OSError, AssertionError) as error:
                self.statuses[str(error)] += 1
                return

    def served_on(self) -> None:
        """They have been answered since, and only with allows."""
        before = self.statuses[204]
        wait_until(lambda: self.statuses[204] > before + 20)
        assert set(self.statuses) == {204}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_limit_admits_exactly_its_burst(start_edge: StartEdge, workers: int) -> None:
    edge = start_edge(token_bucket(200), workers=workers)
    assert isinstance(edge.bind, tuple)
    assert statuses(edge.bind, repeat(ask(), 800), 8) == {204: 200, 429: 600}


def test_requests_that_come_together_share_the_limit_exactly(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(200))
    clients = [edge.connect() for _ in range(8)]
    for client in clients:
        client.send(ask() * 100)
    assert Counter(client.answer()[0] for client in clients for _ in range(100)) == {204: 200, 429: 600}


def test_connections_spread_evenly_over_the_workers(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, workers=2)
    wait_until(lambda: all(is_serving(edge, pid) for pid in edge.workers()))
    clients = [edge.connect() for _ in range(32)]
    assert {client.status(ask()) for client in clients} == {204}
    shares = sorted(len(established(pid)) for pid in edge.workers())
    assert sum(shares) == 32
    assert shares[0] >= 12, shares


def test_a_worker_that_came_late_gets_its_share(start_edge: StartEdge) -> None:
    """Connections that gathered on one worker are told to come again, between two requests and a few at a time."""
    edge = start_edge(MANY, workers=2)
    first, second = edge.workers()
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: second not in edge.workers())
    clients = [edge.connect() for _ in range(16)]
    assert {client.status(ask()) for client in clients} == {204}

    def are_even() -> bool:
        assert {client.status(ask()) for client in clients} == {204}  # who was told to close comes again
        shares = [len(established(pid)) for pid in edge.workers()]
        return len(shares) == 2 and min(shares) >= 6

    wait_until(are_even)
    assert first in edge.workers()


def is_serving(edge: Edge, pid: int) -> bool:
    """Whether this worker takes connections: of some that are opened at once it has one."""
    clients = [edge.connect() for _ in range(4)]
    for client in clients:
        client.status(b"GET /livez HTTP/1.1\r\n\r\n")
    serving = bool(established(pid))
    for client in clients:
        client.close()
    return serving


def established(pid: int) -> list[str]:
    """The open TCP connections of a process: its sockets, less the listening one."""
    links = open_files(pid)
    sockets = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}
    with open(f"/proc/{pid}/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return [row[9] for row in rows if row[9] in sockets and row[3] == "01"]


def test_it_serves_on_a_unix_socket(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, unix=True)
    assert edge.status(ask()) == 204
    assert isinstance(edge.bind, str)
    assert stat.S_IMODE(os.stat(edge.bind).st_mode) == 0o660


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"POST /v1/decision HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_malformed_input_is_answered_and_closed(edge: Edge, data: bytes) -> None:
    with Others(edge) as others:
        client = edge.connect()
        assert client.status(data) == 400
        assert client.rest() == b""
        others.served_on()


def test_an_oversized_head_is_refused(edge: Edge) -> None:
    with Others(edge) as others:
        client = edge.connect()
        client.send(ask("/", "GET", "X-Filler: " + "a" * 70_000))
        assert client.answer()[0] == 431
        others.served_on()


def test_an_oversized_body_is_refused(edge: Edge) -> None:
    client = edge.connect()
    client.send(b"POST /v1/usage HTTP/1.1\r\nContent-Length: 70000\r\n\r\n" + b"a" * 70_000)
    assert client.answer()[0] == 413


def test_a_client_that_sends_byte_by_byte_too_slowly_is_given_up(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, FAIRVISOR_HEADER_TIMEOUT_MS="300")
    slow = edge.connect()
    with Others(edge) as others:
        wait_until(lambda: drips(slow))
        assert slow.answer()[0] == 408
        others.served_on()


def drips(client: Client) -> bool:
    """Send one more byte of a header that never ends; True when the other end has had enough."""
    client.send(b"GET / HTTP/1.1\r\nA: " if not getattr(client, "begun", False) else b"a")
    client.begun = True  # type: ignore[attr-defined]
    client.socket.settimeout(0.05)
    try:
        return bool(client.socket.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        client.socket.settimeout(30)


def test_an_unused_connection_is_closed_by_the_server(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, **SHORT)
    assert edge.connect().rest() == b""


def test_a_half_closed_client_gets_its_answers(start_edge: StartEdge) -> None:
    edge = start_edge(throttle(200))
    client = edge.connect()
    client.send(ask("/slow") + ask("/fast"))
    client.socket.shutdown(socket.SHUT_WR)
    statuses = [client.answer()[0], client.answer()[0]]
    assert statuses == [204, 204]
    assert client.rest() == b""


def test_a_throttled_request_holds_neither_others_nor_their_order(start_edge: StartEdge) -> None:
    edge = start_edge(throttle(2_000))
    waiting, other = edge.connect(), edge.connect()
    waiting.send(ask("/slow") + ask("/fast"))
    assert [other.status(ask("/fast")) for _ in range(10)] == [204] * 10
    waiting.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        waiting.socket.recv(1)
    waiting.socket.settimeout(30)
    assert waiting.answer()[1]["x-fairvisor-warning"] == "budget_throttle"
    assert "x-fairvisor-warning" not in waiting.answer()[1]


def test_aborted_clients_leave_the_worker_serving(start_edge: StartEdge) -> None:
    edge = start_edge(throttle(5_000))
    with Others(edge) as others:
        for _ in range(50):
            client = edge.connect()
            client.send(ask("/slow") + ask("/fast") + b"GET /half")
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()  # a reset, not an orderly end
        others.served_on()
    (worker,) = edge.workers()
    wait_until(lambda: established(worker) == [])


def test_a_client_that_does_not_read_does_not_fill_the_memory(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, **SHORT)
    deaf = edge.connect()
    deaf.socket.settimeout(0.2)
    sent = 0
    with Others(edge) as others, pytest.raises((TimeoutError, ConnectionResetError, BrokenPipeError)):
        while sent < 1 << 30:
            sent += deaf.socket.send(ask() * 500)
        others.served_on()
    assert sent < 64 << 20


def test_at_the_limit_of_connections_a_new_one_waits_for_an_old_one_to_end(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, FAIRVISOR_MAX_CONNECTIONS="4")
    clients = [edge.connect() for _ in range(4)]
    assert [client.status(ask()) for client in clients] == [204] * 4
    late = edge.connect()
    late.send(ask())
    late.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        late.socket.recv(1)
    clients[0].close()
    late.socket.settimeout(30)
    assert late.answer()[0] == 204


def test_a_stop_finishes_what_is_in_flight(start_edge: StartEdge) -> None:
    edge = start_edge(throttle(700), workers=2)
    waiting = [edge.connect() for _ in range(6)]
    for client in waiting:
        client.send(ask("/slow"))
    used = edge.connect()
    assert used.status(ask("/fast")) == 204
    edge.signal(signal.SIGTERM)
    wait_until(lambda: is_told_to_close(used))
    assert [client.answer()[0] for client in waiting] == [204] * 6
    assert edge.end() == 0


def is_told_to_close(client: Client) -> bool:
    client.send(ask("/fast"))
    status, headers, _ = client.answer()
    assert status == 204
    return headers.get("connection") == "close"


def test_a_stop_under_load_drops_no_request(start_edge: StartEdge) -> None:
    """Whoever was told to close is answered first; nobody is cut off between question and answer."""
    edge = start_edge(MANY, workers=2)
    endings: list[str] = []

    def ask_on(client: Client) -> None:
        while True:
            try:
                if is_told_to_close(client):
                    endings.append("told")
                    return
            except (OSError, AssertionError) as error:
                endings.append(repr(error))
                return

    threads = [threading.Thread(target=ask_on, args=(edge.connect(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    edge.status(ask())
    edge.signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert endings == ["told"] * 8
    assert edge.end() == 0


def test_a_killed_worker_is_replaced_and_its_counts_stay(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(5), workers=1)
    assert [edge.status(ask()) for _ in range(3)] == [204] * 3
    (worker,) = edge.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: edge.workers() not in ([], [worker]))
    edge.wait_ready()
    assert [edge.status(ask()) for _ in range(3)] == [204, 204, 429]


def test_counts_outlive_a_restart(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(2))
    assert edge.status(ask()) == 204
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    edge.start_again()
    assert [edge.status(ask()) for _ in range(2)] == [204, 429]


def test_workers_end_when_the_master_is_killed(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, workers=2)
    workers = edge.workers()
    edge.signal(signal.SIGKILL)
    edge.end()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def test_an_edge_without_a_bundle_is_alive_and_goes_to_work_when_the_file_appears(
    start_edge: StartEdge,
) -> None:
    edge = start_edge()
    assert edge.status(b"GET /readyz HTTP/1.1\r\n\r\n") == 503
    client = edge.connect()
    client.send(ask())
    status, headers, _ = client.answer()
    assert (status, headers["x-fairvisor-reason"]) == (503, "no_bundle_loaded")
    edge.write(MANY)
    wait_until(lambda: edge.status(b"GET /readyz HTTP/1.1\r\n\r\n") == 200)
    assert edge.status(ask()) == 204


def test_a_second_master_of_the_same_instance_is_refused(start_edge: StartEdge) -> None:
    edge = start_edge(MANY)
    second = start_edge(MANY, ready=False, FAIRVISOR_INSTANCE=edge.instance)
    assert second.end() == 1
    assert "already" in second.log.read_text()
    assert edge.status(ask()) == 204


def test_a_wrong_setting_stops_the_start_with_one_line(start_edge: StartEdge) -> None:
    edge = start_edge(MANY, ready=False, FAIRVISOR_MAX_BODY="huge")
    assert edge.end() == 1
    assert edge.log.read_text().splitlines() == [
        "Error: FAIRVISOR_MAX_BODY: 'huge' is wrong: allowed are 0 to 67108864 bytes, such as 1048576, 512k or 48m"
    ]


def test_a_wsgi_worker_gives_the_same_answers_and_tells_what_it_could_not_wait(start_edge: StartEdge) -> None:
    edge = start_edge(throttle(700), FAIRVISOR_WORKER_CLASS="sync")
    client = edge.connect()
    client.send(ask("/slow"))
    status, headers, _ = client.answer()
    assert status == 204
    assert headers["x-fairvisor-throttle-ms"] == "700"
    assert headers["x-fairvisor-warning"] == "budget_throttle"
    wait_until(lambda: "cannot hold an answer" in edge.log.read_text())


def test_any_wsgi_server_can_serve_the_application(start_edge: StartEdge) -> None:
    """Started by gunicorn itself, without a master of ours, on the counters of the instance."""
    edge = start_edge(
        token_bucket(2), command=[sys.executable, "-m", "gunicorn", "fairvisor.http.wsgi:application"]
    )
    assert [edge.status(ask()) for _ in range(3)] == [204, 204, 429]


def test_an_interrupt_from_the_terminal_is_a_clean_stop(start_edge: StartEdge) -> None:
    """Ctrl-C goes to every process at once; the master then stops the workers."""
    edge = start_edge(token_bucket(5), workers=2)
    for pid in [*edge.workers(), edge.process.pid]:
        os.kill(pid, signal.SIGINT)
    assert edge.end() == 0
    assert "was sent" not in edge.log.read_text()


def test_a_worker_class_that_is_not_there_is_one_line(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(5), ready=False, FAIRVISOR_WORKER_CLASS="nonsense")
    assert edge.end() == 1
    (line,) = edge.log.read_text().splitlines()
    assert line.startswith("Error: FAIRVISOR_WORKER_CLASS: 'nonsense' is wrong: ")


def test_every_start_says_that_claims_are_read_unverified(start_edge: StartEdge) -> None:
    """Also with a bundle that is active already: the settings of the start decide."""
    bundle = token_bucket(5, limit_keys=["jwt:sub"])
    edge = start_edge(bundle)
    said = "limit_keys[0]: jwt:sub is read unverified"
    wait_until(lambda: edge.log.read_text().count(said) == 1)
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    edge.start_again()
    wait_until(lambda: edge.log.read_text().count(said) == 2)


def test_the_heartbeat_of_a_worker_is_in_memory(edge: Edge) -> None:
    """So that a read-only file system will do, and a slow disk kills no worker."""
    (worker,) = edge.workers()
    opened = [os.readlink(fd) for fd in Path(f"/proc/{worker}/fd").iterdir() if fd.is_symlink()]
    assert [path for path in opened if "wgunicorn" in path and path.startswith("/dev/shm/")]


HANGS = """
import threading
from fairvisor.cli.main import main
from fairvisor.http.operators import Operators
Operators.start = lambda self: threading.Event().wait()
main()
"""


def test_a_worker_that_hangs_before_it_serves_ends_with_its_master(tmp_path: Path) -> None:
    """As one does whose thread found no memory to begin with. It would keep the port from the next master."""
    environ = {"FAIRVISOR_WORKER_PROCESSES": "1", "FAIRVISOR_ADMIN_BIND": f"unix:{tmp_path}/admin"}
    edge = Edge(tmp_path, MANY, environ, program=[sys.executable, "-c", HANGS, "serve"])
    try:
        wait_until(lambda: memory_of(edge.instance).exists("segment"))
        registry = Registry(attach(edge.instance).table)
        wait_until(lambda: any(worker.generation for worker in registry.workers()))
        (worker,) = edge.workers()
        edge.signal(signal.SIGKILL)
        edge.end()
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
    finally:
        edge.clean_up()
