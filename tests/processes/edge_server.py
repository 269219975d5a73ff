"""Real servers for the tests: on a free port, with a segment of their own, and gone afterwards whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fairvisor.clock import NS_PER_S, read_now
from fairvisor.counters.layout import Word
from fairvisor.counters.registry import Registry
from fairvisor.counters.segment import Segment
from fairvisor.memory import InstanceMemory

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, str(Path(__file__).with_name("run_fairvisor.py")), "serve"]
# What systemd does between fork and exec: sd_listen_fds(3).
HAND_OVER = """
import os, sys
kept = [os.dup(int(number)) for number in sys.argv[1].split(",")]
kept = [os.dup2(each, 200 + number) for number, each in enumerate(kept)]
for number, each in enumerate(kept):
    os.dup2(each, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept))}
os.execv(sys.argv[2], sys.argv[2:])
"""
_pause = threading.Event()
PATIENCE_S = 30  # how long anything may take before a test gives up; nothing waits that long when all is well


def token_bucket(burst: float, rate: float = 0.001, **rule: Any) -> dict[str, Any]:
    """A bundle of one policy on every path: one bucket, nearly without refill."""
    config = {"tokens_per_second": rate, "burst": burst}
    rules = [
        {"name": "bucket", "limit_keys": [], "algorithm": "token_bucket", "algorithm_config": config, **rule}
    ]
    return bundle_of({"id": "all", "spec": {"selector": {"pathPrefix": "/"}, "rules": rules}})


def throttle(delay_ms: int, budget: int = 1_000_000) -> dict[str, Any]:
    """A bundle that holds every answer."""
    stages = [{"threshold_percent": 0, "action": "throttle", "delay_ms": delay_ms}]
    config = {"budget": budget, "period": "1d", "staged_actions": stages}
    rules = [{"name": "slow", "limit_keys": [], "algorithm": "cost_based", "algorithm_config": config}]
    return bundle_of({"id": "slow", "spec": {"selector": {"pathPrefix": "/slow"}, "rules": rules}})


def bundle_of(*policies: dict[str, Any], version: int = 1) -> dict[str, Any]:
    return {"bundle_version": version, "policies": list(policies)}


def ask(path: str = "/", method: str = "GET", *lines: str) -> bytes:
    """A question as a custom caller puts it."""
    head = (f"X-Original-Method: {method}", f"X-Original-URI: {path}", "X-Original-Host: example.com", *lines)
    return (
        b"GET /v1/decision HTTP/1.1\r\nHost: edge\r\n"
        + "".join(f"{line}\r\n" for line in head).encode()
        + b"\r\n"
    )


def stand_still(pid: int) -> None:
    """Stop a process; afterwards no thread of it runs. One thread is told and tells the others, which run on until
    then, and could take a connection along."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_until(lambda: all(_stands_still(task) for task in tasks.iterdir()))


def _stands_still(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return True  # it has ended


def open_files(pid: int) -> set[str]:
    """What the descriptors of a process are, as links: those that it does not close meanwhile."""
    links = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.add(os.readlink(descriptor))
    return links


def wait_until(condition: Callable[[], bool]) -> None:
    """Until `condition` holds; fails when it never does."""
    end = read_now().mono_ns + PATIENCE_S * NS_PER_S
    while not condition():
        assert read_now().mono_ns < end, "it never came true"
        _pause.wait(0.002)  # what is waited for needs the processor too


class Client:
    """A connection that sends bytes and reads whole answers.

    Told to close it, as workers do that have more than their share, it comes again on a new one if `again` makes one.
    """

    def __init__(self, connection: socket.socket, again: Callable[[], socket.socket] | None = None) -> None:
        self.socket = connection
        self.socket.settimeout(PATIENCE_S)
        self._again = again
        self._told_to_close = False
        self._read = b""

    def send(self, data: bytes) -> None:
        if self._told_to_close and self._again is not None:
            self.socket.close()
            self.socket = self._again()
            self.socket.settimeout(PATIENCE_S)
            self._told_to_close = False
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers (lower-case names), body."""
        while b"\r\n\r\n" not in self._read:
            self._more()
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._read) < length:
            self._more()
        body, self._read = self._read[:length], self._read[length:]
        self._told_to_close = headers.get("connection") == "close"
        return int(first.split(" ")[1]), headers, body

    def status(self, data: bytes) -> int:
        """Ask, and the status of the answer."""
        self.send(data)
        return self.answer()[0]

    def rest(self) -> bytes:
        """Everything until the other end closes."""
        while True:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return self._read
            self._read += data

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, f"closed in the middle of an answer: {self._read!r}"
        self._read += data

    def close(self) -> None:
        self.socket.close()


class Edge:
    """A running server. `bind` is host and port, or the path of a unix socket."""

    def __init__(
        self,
        place: Path,
        bundle: object,
        environ: dict[str, str],
        unix: bool = False,
        command: list[str] | None = None,
        program: list[str] = PROGRAM,
        handed: Sequence[socket.socket] = (),
    ) -> None:
        """`command` is another server, which is told with -b where to listen; `program` our own, started otherwise.

        `handed`: sockets that the process inherits as 3, 4 and so on, as from systemd.
        """
        self.instance = f"test-{uuid.uuid4().hex[:12]}"
        self.policy = place / f"{self.instance}.json"
        self.log = place / f"{self.instance}.log"
        if bundle is not None:
            self.write(bundle)
        self._reserved = reserve_port()
        self.bind: tuple[str, int] | str = str(place / "edge.sock") if unix else self._reserved.getsockname()
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FAIRVISOR_")},
            "PYTHONPATH": str(ROOT),
            "FAIRVISOR_CONFIG_FILE": str(self.policy),
            "FAIRVISOR_BIND": f"unix:{self.bind}"
            if isinstance(self.bind, str)
            else f"127.0.0.1:{self.bind[1]}",
            "FAIRVISOR_INSTANCE": self.instance,
            "FAIRVISOR_STATE_DIR": str(place / "state"),
            "FAIRVISOR_SHARED_DICT_SIZE": "4m",
            **environ,
        }
        self._handed = handed
        if handed:
            program = [
                sys.executable,
                "-c",
                HAND_OVER,
                ",".join(str(each.fileno()) for each in handed),
                *program,
            ]
        self.command = program if command is None else [*command, "-b", f"127.0.0.1:{self.bind[1]}"]
        self._clients: list[Client] = []
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command,
                env=self.environ,
                stdout=log,
                stderr=log,
                cwd=self.policy.parent,
                pass_fds=[each.fileno() for each in self._handed],
            )

    def start_again(self) -> None:
        """A new master after the old one ended."""
        self.process = self._start()
        self.wait_ready()

    def write(self, bundle: object) -> None:
        self.policy.write_text(json.dumps(bundle))

    def is_answering(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.status(b"GET /livez HTTP/1.1\r\n\r\n") == 200
        except (ConnectionError, FileNotFoundError):  # nobody listens, or a worker that ended had it
            return False

    def wait_ready(self) -> None:
        wait_until(self.is_answering)

    def connect(self) -> Client:
        client = Client(self._connection(), self._connection)
        self._clients.append(client)
        return client

    def forget(self, client: Client) -> None:
        """A connection that was closed need not be closed again."""
        self._clients.remove(client)

    def _connection(self) -> socket.socket:
        if not isinstance(self.bind, str):
            return socket.create_connection(self.bind, timeout=PATIENCE_S)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.bind)
        except OSError:
            connection.close()
            raise
        return connection

    def status(self, data: bytes) -> int:
        """One question on a connection of its own."""
        client = self.connect()
        try:
            return client.status(data)
        finally:
            client.close()

    def registered(self) -> int:
        """How many workers have taken their place among those who switch bundles: they serve, or are about to."""
        return len(Registry(attach(self.environ["FAIRVISOR_INSTANCE"]).table).workers())

    def workers(self) -> list[int]:
        """The pids of the workers that are there now."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def leader(self) -> int:
        """The pid of the worker that leads, as soon as one does."""
        table = attach(self.instance).table
        wait_until(lambda: table.word_get(Word.LEADER_PID) in self.workers())
        return table.word_get(Word.LEADER_PID)

    def follower(self) -> int:
        """The pid of a worker that does not lead. A leader that is stopped may hold the right to publish, which it
        takes for a moment each second."""
        leader = self.leader()
        return next(pid for pid in self.workers() if pid != leader)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """The exit code after the server ended by itself or by a signal sent before."""
        return self.process.wait(PATIENCE_S)

    def clean_up(self) -> None:
        """Nothing is left: connections, processes, shared memory."""
        for client in self._clients:
            client.close()
        self._reserved.close()
        workers = self.workers()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in workers:
            kill_quietly(pid)
        remove_shared_memory(self.environ["FAIRVISOR_INSTANCE"])


def remove_shared_memory(instance: str) -> None:
    """Everything that an instance has in shared memory, as after a reboot."""
    directory = memory_of(instance)
    Segment.unlink(directory)
    directory.remove_all()


def memory_of(instance: str) -> InstanceMemory:
    """The directory of an instance that this user runs."""
    return InstanceMemory.find(instance, os.geteuid())


def attach(instance: str) -> Segment:
    """The segment of an instance that this user runs."""
    return Segment.attach(memory_of(instance))


def kill_quietly(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def reserve_port(address: str = "127.0.0.1") -> socket.socket:
    """A socket that keeps a free port from everybody but a server that binds it with SO_REUSEADDR, as gunicorn does.

    `address` is what the server binds: a port that is free on one address may be taken on another.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((address, 0))
    return reserved


def free_port() -> int:
    """A port that nobody has at this moment."""
    with reserve_port() as reserved:
        port: int = reserved.getsockname()[1]
        return port


StartEdge = Callable[..., Edge]
