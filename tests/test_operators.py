"""The admin listener of one worker heals by itself: the one that leads opens it again when nobody can reach it."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_admin_listener import Api, send

from fairvisor import notes
from fairvisor.clock import Now
from fairvisor.http.admin_listener import AdminServer, AdminSocket
from fairvisor.http.admin_tokens import AdminTokens
from fairvisor.http.operators import Operators, is_answered, open_or_tell
from fairvisor.memory import InstanceMemory
from fairvisor.notes import Notes
from fairvisor.settings import Bind

NOW = Now(0, 10**18)
REQUEST = b"GET /x HTTP/1.1\r\nHost: e\r\n\r\n"


class Worker:
    """One worker's side of it; `leads` may be changed."""

    def __init__(self, bind: Bind, inherited: AdminSocket | None, board: Notes) -> None:
        self.leads = True
        self.failures = 0
        self.operators = Operators(
            bind, inherited, self.serve, lambda: self.leads, board, lambda: NOW, self.fail
        )

    def fail(self) -> None:
        self.failures += 1

    def serve(self, listener: socket.socket) -> AdminServer:
        return AdminServer(listener, Api(), AdminTokens((), None), lambda: NOW)


@pytest.fixture
def board() -> Iterator[Notes]:
    found = Notes(InstanceMemory.make(f"test-{uuid.uuid4().hex}"))
    yield found
    found._directory.remove_all()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "edge.admin"


def test_what_was_inherited_is_served_and_left_alone(path: Path, board: Notes) -> None:
    bind = Bind(path=str(path))
    inherited = AdminSocket(bind)
    worker = Worker(bind, inherited, board)
    worker.operators.start()
    worker.operators.step()
    assert send(path, REQUEST)[0] == 200
    worker.operators.stop()
    assert inherited.is_there
    inherited.close()


def test_a_socket_that_was_removed_is_opened_again_by_the_worker_that_leads(path: Path, board: Notes) -> None:
    bind = Bind(path=str(path))
    inherited = AdminSocket(bind)
    worker = Worker(bind, inherited, board)
    worker.leads = False
    worker.operators.start()
    for removed in range(2):
        path.unlink()
        worker.leads = False
        worker.operators.step()
        assert not path.exists(), removed
        worker.leads = True
        worker.operators.step()
        assert send(path, REQUEST)[0] == 200
    worker.operators.stop()
    assert not path.exists()
    inherited.close()


def test_one_that_could_not_be_opened_is_opened_when_it_can_be(path: Path, board: Notes) -> None:
    path.parent.write_text("in the way")
    bind = Bind(path=str(path))
    assert open_or_tell(bind, board, NOW) is None
    worker = Worker(bind, None, board)
    worker.operators.step()
    note = board.get(notes.ADMIN)
    assert note is not None
    assert "cannot be opened" in note.text
    path.parent.unlink()
    worker.operators.step()
    assert board.get(notes.ADMIN) is None
    assert send(path, REQUEST)[0] == 200
    worker.operators.start()
    worker.operators.stop()


def test_while_another_master_is_reached_there_nothing_is_opened(path: Path, board: Notes) -> None:
    bind = Bind(path=str(path))
    older = AdminSocket(bind)
    newer = AdminSocket(bind)
    worker = Worker(bind, older, board)
    worker.operators.step()
    assert newer.is_there
    newer.socket.close()  # killed: the file stays, and nobody answers
    assert not is_answered(bind)
    worker.operators.step()
    assert send(path, REQUEST)[0] == 200
    worker.operators.start()
    worker.operators.stop()
    older.close()


def test_a_tcp_listener_is_looked_for_too() -> None:
    opened = AdminSocket(Bind(host="127.0.0.1", port=0))
    host, port = opened.socket.getsockname()
    bind = Bind(host=host, port=port)
    assert is_answered(bind)
    opened.close()
    assert not is_answered(bind)
