"""Another user of the machine can neither stop, slow nor mislead an edge: two real users, one real edge."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from edge_server import ROOT, Edge, ask, bundle_of, token_bucket, wait_until
from users import OWNER, STRANGER, as_user, program_as

from fairvisor.cli.edge import Edge as Admin
from fairvisor.counters import objects
from fairvisor.counters.segment import Segment
from fairvisor.memory import SHM_DIR, InstanceMemory, plain_path

pytestmark = pytest.mark.needs("root")

PAGES = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
NOTE = json.dumps({"text": "\x1b[2Jthis was made up", "since_ns": 1, "about": ""}).encode()
METRICS = b"GET /metrics HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n"

Start = Callable[..., Edge]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the owner's files are."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    os.chown(place, OWNER, OWNER)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def name() -> str:
    return f"test-{os.urandom(6).hex()}"


@pytest.fixture
def start(place: Path, name: str) -> Iterator[Start]:
    """Starts the owner's edge."""
    edges: list[Edge] = []

    def start(bundle: object = None, **environ: str) -> Edge:
        settings = {
            "PYTHONPATH": PAGES,
            "FAIRVISOR_INSTANCE": name,
            "FAIRVISOR_WORKER_PROCESSES": "1",
            **environ,
        }
        bundle = bundle or token_bucket(1000)
        edges.append(Edge(place, bundle, settings, program=program_as(OWNER, "serve")))
        edges[-1].wait_ready()
        wait_until(lambda: edges[-1].workers() != [])
        return edges[-1]

    yield start
    for edge in edges:
        edge.clean_up()
    directory = InstanceMemory.find(name, OWNER)
    Segment.unlink(directory)
    directory.remove_all()
    for left in SHM_DIR.glob(f"fairvisor-*{name}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def admin(edge: Edge) -> Admin:
    state = edge.environ["FAIRVISOR_STATE_DIR"]
    return Admin(f"unix:{state}/{edge.environ['FAIRVISOR_INSTANCE']}.admin", None)


def metrics(edge: Edge) -> str:
    client = edge.connect()
    client.send(METRICS)
    return client.rest().decode()


def put_everywhere(name: str) -> None:
    """Whatever a stranger can put under the names that an instance has, or had in version 0.1."""
    old = f"fairvisor-{name}"
    for suffix in ("", "+lock", "+bundle-1", *(f"+bundle-{number}" for number in range(2, 40))):
        (SHM_DIR / f"{old}{suffix}").write_bytes(b"theirs")
    (SHM_DIR / f"{old}.next").symlink_to("/etc/passwd")
    os.mkfifo(SHM_DIR / f"{old}+note-audit_log", 0o666)
    for note in ("snapshot", "reload", "state_dir"):
        (SHM_DIR / f"{old}+note-{note}").write_bytes(NOTE)
    plain = plain_path(name, OWNER)
    for path in (plain, plain.with_name(f"{plain.name}+{'0' * 16}")):
        path.mkdir(0o777)
        (path / "instance").write_text(name)
        (path / "segment").write_text(f"{plain.name}+segment-{'0' * 32}")
        (path / "segment-lock").touch(0o666)
        os.mkfifo(path / "note-audit_log", 0o666)
        (path / "note-snapshot").write_bytes(NOTE)
    (SHM_DIR / f"{plain.name}+segment-{'0' * 32}").write_bytes(b"theirs")


def test_nothing_that_was_there_before_the_start_is_used_or_waited_for(start: Start, name: str) -> None:
    """Its locks are held, too; everything works, a restart included."""
    as_user(STRANGER, lambda: put_everywhere(name))
    theirs = [path for path in SHM_DIR.glob(f"fairvisor-*{name}*") if not path.is_dir()]
    locks = [os.open(path, os.O_RDWR) for path in SHM_DIR.glob(f"fairvisor-*{name}*/segment-lock")]
    locks.append(os.open(SHM_DIR / f"fairvisor-{name}+lock", os.O_RDWR))
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    edge = start(token_bucket(3))
    assert [edge.status(ask()) for _ in range(2)] == [204, 204]
    directory = InstanceMemory.find(name, OWNER)
    assert directory.path.lstat().st_uid == OWNER
    assert (SHM_DIR / objects.find(directory)).lstat().st_uid == OWNER
    assert (
        admin(edge).ask("PUT", "bundle", body=json.dumps(token_bucket(3) | {"bundle_version": 2}).encode())[
            "generation"
        ]
        == 2
    )
    assert admin(edge).ask("GET", "status")["faults"] == {}
    edge.process.terminate()
    assert edge.end() == 0
    edge.start_again()
    assert [edge.status(ask()) for _ in range(2)] == [204, 429]
    assert all(path.lstat().st_uid == STRANGER for path in theirs)
    for lock in locks:
        os.close(lock)


def test_nothing_that_comes_while_it_runs_is_used_or_waited_for(start: Start, name: str) -> None:
    """Neither a push nor a page nor the audit log of the worker that follows."""
    switched = {"kill_switches": [{"scope_key": "header:x-key", "scope_value": "bad", "reason": "stolen"}]}
    edge = start(token_bucket(1000) | switched)

    def put() -> None:
        with suppress(FileExistsError):
            put_everywhere(name)

    as_user(STRANGER, put)
    (worker,) = edge.workers()
    os.kill(worker, 9)
    wait_until(lambda: edge.workers() not in ([], [worker]))
    edge.wait_ready()
    assert "made up" not in metrics(edge)
    assert 'fairvisor_fault{part="snapshot"} 0.0' in metrics(edge)
    for version in range(2, 5):
        pushed = token_bucket(1000) | switched | {"bundle_version": version}
        admin(edge).ask("PUT", "bundle", body=json.dumps(pushed).encode())
    assert [edge.status(ask("/", "GET", "X-Key: bad")) for _ in range(8)] == [429] * 8
    assert edge.status(ask()) == 204
    wait_until(lambda: logged(edge) == 8)
    assert "fairvisor_audit_dropped_total 0.0" in metrics(edge)


def logged(edge: Edge) -> int:
    """How many rejects the audit log tells of."""
    with suppress(FileNotFoundError):
        lines = Path(edge.environ["FAIRVISOR_STATE_DIR"], "audit.log").read_text().splitlines()
        events: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return sum(event["count"] for event in events if event["action"] == "reject")
    return 0


def test_a_state_directory_that_others_can_write_is_not_believed_and_is_a_fault(
    start: Start, place: Path, name: str
) -> None:
    state, secret = place / "state", place / "secret"
    state.mkdir()
    state.chmod(0o777)
    secret.write_text("ours\n")
    os.chown(secret, OWNER, OWNER)

    def put() -> None:
        (state / f"{name}.bundle").write_text(json.dumps(bundle_of(version=100)))
        (state / "audit.log").symlink_to(secret)

    as_user(STRANGER, put)
    edge = start(token_bucket(1))
    assert [edge.status(ask()) for _ in range(2)] == [204, 429]
    report = admin(edge).ask("GET", "status")
    assert report["bundle"]["version"] == 1
    assert "other users can write it (mode 0777, chmod go-w)" in report["faults"]["state_dir"]["text"]
    wait_until(lambda: "audit_log" in admin(edge).ask("GET", "status")["faults"])
    assert secret.read_text() == "ours\n"
    (state / "audit.log").unlink()
    state.chmod(0o755)
    os.chown(state, OWNER, OWNER)
    wait_until(lambda: set(admin(edge).ask("GET", "status")["faults"]) <= {"audit_log"})
    wait_until(lambda: logged(edge) == 1)


def reset(edge: Edge) -> tuple[int, str]:
    """What root is told: exit code and all lines."""
    program = [sys.executable, str(ROOT / "tests" / "processes" / "run_fairvisor.py"), "reset"]
    done = subprocess.run(program, env=edge.environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_root_resets_the_instance_of_the_state_directorys_owner(start: Start, name: str) -> None:
    edge = start(token_bucket(1))
    assert [edge.status(ask()) for _ in range(2)] == [204, 429]
    directory = InstanceMemory.find(name, OWNER)
    code, said = reset(edge)
    assert code == 1
    assert f"fairvisor-{name} is in use by process {edge.process.pid}: stop it first" in said
    edge.process.terminate()
    edge.end()
    code, said = reset(edge)
    assert code == 0
    assert f"removed {directory.path}" in said.splitlines()
    assert list(SHM_DIR.glob(f"*{name}*")) == []
