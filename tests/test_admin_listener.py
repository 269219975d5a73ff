"""The operators' listener: who gets in, what is read, what malformed input gets, and what becomes of the socket."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairvisor.actor import By
from fairvisor.clock import Now
from fairvisor.errors import NotFound, RequestError, SettingsError
from fairvisor.http import admin_listener
from fairvisor.http.admin_listener import (
    AUTHENTICATED_WITHIN_NS,
    MAX_AUTHENTICATED,
    MAX_UNAUTHENTICATED,
    AdminServer,
    AdminSocket,
    short_path,
)
from fairvisor.http.admin_tokens import AdminTokens, check_tokens
from fairvisor.http.request import Request
from fairvisor.response import Answer, error_answer
from fairvisor.settings import Bind

TOKEN, BEFORE = "t" * 32, "b" * 32
ALICES = "3f0c5d" * 8
CIS = "91be27" * 8


class Api:
    """Answers with what it was asked; `/fail` is a fault of ours, `/none` a refusal, `/wait` waits to be let go."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.let_go = threading.Event()
        self.refused: list[tuple[str, str]] = []
        self.who = By({})

    def answer(self, request: Request, who: By, now: Now) -> Answer:
        self.who = who
        if request.target == "/fail":
            raise RuntimeError("broken on purpose")
        if request.target == "/none":
            raise NotFound("nothing")
        if request.target == "/wait":
            self.waiting.set()
            self.let_go.wait(10)
        body = f"{request.method} {request.target} {len(request.body or b'')}"
        return Answer(200, "X-Told: yes\r\n", body.encode())

    def refusal(self, error: RequestError, address: str, now: Now) -> Answer:
        self.refused.append((error.reason, address))
        return error_answer(error)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A path that is longer than the address of a unix socket."""
    folder = tmp_path / ("x" * 120)
    return folder / "edge.admin"


@pytest.fixture
def unix(place: Path, api: Api) -> Iterator[AdminServer]:
    opened = AdminSocket(Bind(path=str(place)))
    server = AdminServer(opened.socket, api, AdminTokens((TOKEN, BEFORE), None), lambda: Now(0, 0))
    server.start()
    yield server
    server.stop()
    opened.close()


@pytest.fixture
def tcp(api: Api) -> Iterator[tuple[str, int]]:
    opened = AdminSocket(Bind(host="127.0.0.1", port=0))
    server = AdminServer(opened.socket, api, AdminTokens((TOKEN, BEFORE), None), lambda: Now(0, 0))
    server.start()
    yield opened.socket.getsockname()
    server.stop()
    opened.close()


def send(address: Path | tuple[str, int], data: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to these bytes."""
    if isinstance(address, Path):
        connection = socket.socket(socket.AF_UNIX)
        with short_path(address) as short:
            connection.connect(short)
    else:
        connection = socket.create_connection(address)
    connection.settimeout(10)
    with connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert not head or b"\r\nCache-Control: no-store\r\n" in head, "no cache may keep an operator's answer"
    return (int(head.split(b" ")[1]) if head else 0), body


def test_a_request_is_handed_on_and_its_answer_sent(unix: AdminServer, place: Path) -> None:
    request = b"PUT /v1/x?a=b HTTP/1.1\r\nHost: e\r\nContent-Length: 5\r\n\r\nhello"
    assert send(place, request) == (200, b"PUT /v1/x?a=b 5")
    assert send(place, b"GET / HTTP/1.0\r\n\r\n") == (200, b"GET / 0")


def test_only_the_owner_may_connect_to_the_socket(unix: AdminServer, place: Path) -> None:
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Authorization: Bearer {TOKEN}", 200),
        (f"authorization: bearer {TOKEN}", 200),
        (f"Authorization: Bearer {BEFORE}", 200),
        (f"Authorization: Bearer {TOKEN}x", 403),
        (f"Authorization: Basic {TOKEN}", 403),
        ("Authorization: Bearer \xff", 403),
        ("Authorization: Bearer", 403),
        ("X: y", 403),
    ],
)
def test_over_tcp_the_token_is_asked_for(tcp: tuple[str, int], api: Api, header: str, status: int) -> None:
    data = f"GET / HTTP/1.1\r\nHost: e\r\n{header}\r\n\r\n".encode("latin-1")
    assert send(tcp, data)[0] == status
    assert api.refused == ([] if status == 200 else [("wrong_secret", "127.0.0.1")])


UNDECIDED = {
    400: "malformed",
    404: "not_found",
    413: "body_too_large",
    431: "head_too_large",
    501: "method_not_allowed",
}


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /none HTTP/1.1\r\nHost: e\r\n\r\n", 404),
        (b"GET /fail HTTP/1.1\r\nHost: e\r\n\r\n", 500),
        (b"BREW / HTTP/1.1\r\nHost: e\r\n\r\n", 501),
        (b"GET / HTTP/3.9 nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nshort", 400),
        (b"PUT / HTTP/1.1\r\nContent-Length: 67108865\r\n\r\n" + b"x" * 500_000, 413),
        (b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * 20_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_cannot_be_answered_gets_a_json_error_and_nothing_dies(
    unix: AdminServer, api: Api, place: Path, data: bytes, status: int
) -> None:
    answered, body = send(place, data)
    assert (answered, body[:10]) == (status, b'{"error":{')
    assert api.refused == ([] if status == 500 else [(UNDECIDED[status], "")])
    assert send(place, b"GET / HTTP/1.1\r\nHost: e\r\n\r\n")[0] == 200


def test_a_stop_lets_the_request_that_is_under_way_end(place: Path, api: Api) -> None:
    opened = AdminSocket(Bind(path=str(place)))
    server = AdminServer(opened.socket, api, AdminTokens((), None), lambda: Now(0, 0))
    server.start()
    answers: list[tuple[int, bytes]] = []
    client = threading.Thread(target=lambda: answers.append(send(place, b"GET /wait HTTP/1.1\r\n\r\n")))
    client.start()
    assert api.waiting.wait(10)
    threading.Timer(0.05, api.let_go.set).start()
    server.stop()
    client.join(10)
    assert answers == [(200, b"GET /wait 0")]
    opened.close()


def test_no_more_operators_than_there_is_room_for_are_answered(
    place: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_listener, "MAX_AUTHENTICATED", 1)
    opened = AdminSocket(Bind(path=str(place)))
    server = AdminServer(opened.socket, api, AdminTokens((), None), lambda: Now(0, 0))
    server.start()
    client = threading.Thread(target=lambda: send(place, b"GET /wait HTTP/1.1\r\n\r\n"))
    client.start()
    assert api.waiting.wait(10)
    assert send(place, b"GET / HTTP/1.1\r\n\r\n")[0] == 503
    api.let_go.set()
    client.join(10)
    server.stop()
    opened.close()


# connections without the token


class Served:
    """A listener over TCP on a clock that the test moves."""

    def __init__(self, api: Api) -> None:
        self.now = Now(0, 0)
        self._opened = AdminSocket(Bind(host="127.0.0.1", port=0))
        self.server = AdminServer(
            self._opened.socket, api, AdminTokens((TOKEN, BEFORE), None), lambda: self.now
        )
        self.server.start()
        self.address: tuple[str, int] = self._opened.socket.getsockname()

    def connect(self, data: bytes = b"G") -> socket.socket:
        connection = socket.create_connection(self.address, 10)
        connection.sendall(data)
        return connection

    def close(self) -> None:
        self.server.stop()
        self._opened.close()


@pytest.fixture
def served(api: Api) -> Iterator[Served]:
    found = Served(api)
    yield found
    found.close()


ASKED = f"GET / HTTP/1.1\r\nHost: e\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
WRONG = b"PUT / HTTP/1.1\r\nHost: e\r\nAuthorization: Bearer x\r\nContent-Length: 60000000\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nA: b\r\n", WRONG])
def test_connections_without_the_token_keep_no_operator_out(served: Served, begun: bytes) -> None:
    """However many there are, and whether they are silent, begin a head, or go on after they were rejected."""
    strangers = [served.connect(begun) for _ in range(MAX_UNAUTHENTICATED + 60)]
    for _ in range(MAX_AUTHENTICATED + 1):
        assert send(served.address, ASKED)[0] == 200
    assert (
        sum(thread.name.startswith("admin-request-") for thread in threading.enumerate())
        <= MAX_UNAUTHENTICATED + 1
    )
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nA: b\r\n", WRONG])
def test_a_connection_without_the_token_ends_in_time(served: Served, begun: bytes) -> None:
    stranger = served.connect(begun)
    assert send(served.address, ASKED)[0] == 200, "connections are taken in their order"
    served.now = Now(AUTHENTICATED_WITHIN_NS, 0)
    answer = b""
    while data := _received(stranger):
        answer += data
    assert answer.partition(b"\r\n")[0] in (b"", b"HTTP/1.1 403 Forbidden")
    stranger.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""


def test_an_operator_has_the_time_that_a_request_takes(served: Served, api: Api) -> None:
    operator = served.connect(ASKED.replace(b"GET /", b"GET /wait"))
    assert api.waiting.wait(10)
    served.now = Now(2 * AUTHENTICATED_WITHIN_NS, 0)
    stranger = served.connect()
    assert send(served.address, ASKED)[0] == 200
    served.now = Now(4 * AUTHENTICATED_WITHIN_NS, 0)
    assert _received(stranger) == b"", "by now what was too old was closed"
    api.let_go.set()
    assert operator.recv(4096).startswith(b"HTTP/1.1 200 ")
    operator.close()
    stranger.close()


def test_a_stop_waits_for_no_stranger(served: Served) -> None:
    stranger = served.connect()
    assert send(served.address, ASKED)[0] == 200
    served.server.stop()
    assert _received(stranger) == b""
    stranger.close()


# the socket


def test_a_newer_master_takes_the_place_and_the_older_leaves_it_alone(place: Path) -> None:
    older = AdminSocket(Bind(path=str(place)))
    assert older.is_there
    newer = AdminSocket(Bind(path=str(place)))
    assert (older.is_there, newer.is_there) == (False, True)
    older.close()
    assert place.exists()
    newer.close()
    assert not place.exists()


def test_a_socket_that_was_removed_is_missed(place: Path) -> None:
    opened = AdminSocket(Bind(path=str(place)))
    place.unlink()
    assert not opened.is_there
    opened.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(FileExistsError, match="not a socket"):
        AdminSocket(Bind(path=str(file)))
    assert file.read_text() == "data"
    assert os.listdir(tmp_path) == ["precious"]


def test_empty_lines_are_no_request(unix: AdminServer, place: Path) -> None:
    connection = socket.socket(socket.AF_UNIX)
    with short_path(place) as short, connection:
        connection.connect(short)
        connection.settimeout(10)
        connection.sendall(b"\r\n")
        assert connection.recv(1) == b""


def test_a_connection_is_for_one_request(unix: AdminServer, place: Path) -> None:
    """So nobody can ask for more than one answer without reading it."""
    assert send(place, b"GET /1 HTTP/1.1\r\nHost: e\r\n\r\n" * 1000) == (200, b"GET /1 0")


def test_over_a_unix_socket_the_kernel_says_who_asks(unix: AdminServer, place: Path, api: Api) -> None:
    assert send(place, b"GET / HTTP/1.1\r\nHost: e\r\nAuthorization: Bearer x\r\n\r\n")[0] == 200
    assert api.who.actor == {"kind": "user", "name": pwd.getpwuid(os.getuid()).pw_name, "uid": os.getuid()}


def test_a_user_with_a_very_great_number_is_named_by_it(
    unix: AdminServer, place: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User namespaces and directories of users give numbers beyond 2^31."""
    uid = 2**32 - 16
    monkeypatch.setattr(
        socket.socket, "getsockopt", lambda *_: struct.pack("iII", 1, uid, uid), raising=False
    )
    assert send(place, b"GET / HTTP/1.1\r\nHost: e\r\n\r\n")[0] == 200
    assert api.who.actor == {"kind": "user", "name": str(uid), "uid": uid}


class TestNamedTokens:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "tokens"
        self.write(file, f"# operators\n\nalice {ALICES}\nci\t{CIS}\nalice  {ALICES[::-1]}\n")
        return file

    def write(self, file: Path, text: str) -> None:
        """Replace the file, as editors and secret managers do."""
        new = file.with_name("new")
        new.write_text(text)
        new.chmod(0o600)
        new.rename(file)

    def test_the_holder_of_a_token_is_known_by_its_name(self, file: Path) -> None:
        tokens = AdminTokens((TOKEN,), file)
        given = [TOKEN, ALICES, ALICES[::-1], CIS, CIS[:-1], "", "admin"]
        assert [tokens.name_of(each.encode()) for each in given] == [
            "admin",
            "alice",
            "alice",
            "ci",
            "",
            "",
            "",
        ]

    def test_a_request_over_tcp_is_its_holders(self, file: Path, api: Api) -> None:
        opened = AdminSocket(Bind(host="127.0.0.1", port=0))
        server = AdminServer(opened.socket, api, AdminTokens((), file), lambda: Now(0, 0))
        server.start()
        try:
            request = f"GET / HTTP/1.1\r\nHost: e\r\nAuthorization: Bearer {CIS}\r\n\r\n".encode()
            assert send(opened.socket.getsockname(), request)[0] == 200
            assert send(opened.socket.getsockname(), request.replace(CIS.encode(), b""))[0] == 403
        finally:
            server.stop()
            opened.close()
        assert api.who.actor == {"kind": "token", "name": "ci", "address": "127.0.0.1"}

    def test_the_file_is_read_again_when_it_changed(self, file: Path) -> None:
        tokens = AdminTokens((), file)
        self.write(file, f"ci {CIS}\n")
        assert [tokens.name_of(each.encode()) for each in (ALICES, CIS)] == ["", "ci"]

    @pytest.mark.parametrize("how", ["a typing error", "open to others", "gone"])
    def test_a_file_that_cannot_be_used_admits_no_one_and_says_so_once(
        self, file: Path, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokens = AdminTokens((TOKEN,), file)
        if how == "a typing error":
            self.write(file, f"ci {CIS}\nalice\n")
        elif how == "gone":
            file.unlink()
        else:
            file.chmod(0o644)
        assert [tokens.name_of(each.encode()) for each in (ALICES, CIS, TOKEN, CIS)] == ["", "", "admin", ""]
        assert len(caplog.records) == 1
        assert ALICES not in caplog.text
        self.write(file, f"ci {CIS}\n")
        assert tokens.name_of(CIS.encode()) == "ci"

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("", "it holds no token"),
            ("# nobody\n", "it holds no token"),
            ("alice short\n", "line 1: the token of alice is wrong: it is too easy to guess"),
            (f"\nalice {'0123' * 16} more\n", "line 2: allowed is a name"),
            (f"-a {'0123abcd' * 8}\n", "line 1: allowed is a name"),
            (f"admin {'0123abcd' * 8}\n", "line 1: admin is wrong"),
            (f"a {'0123abcd' * 8}\nb {'0123abcd' * 8}\n", "line 2: b is wrong"),
        ],
    )
    def test_a_wrong_file_stops_the_start_and_shows_no_token(self, file: Path, text: str, why: str) -> None:
        self.write(file, text)
        with pytest.raises(SettingsError) as caught:
            check_tokens(file)
        assert str(caught.value).startswith(f"FAIRVISOR_ADMIN_TOKENS_FILE: '{file}' is wrong: {why}")
        assert "0123" not in str(caught.value)
