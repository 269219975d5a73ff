"""The operators' listener: a socket that the master opens, served by a thread in every worker.

By default it is a unix socket that only the user of the edge can connect to (0600); over TCP a token is asked for. It
has nothing to do with the loop that answers requests, so it works with every worker class, and a push that takes
seconds holds nobody up. Requests are read by the standard library's HTTP server, one thread for each connection; what
they mean is `admin.py`'s business.

A connection is unauthenticated until its head has come and its token is right. Until then it has little time and little
room, and of too many such connections the oldest is closed for a new one, so they cannot keep an operator out. No body
is read before the token was checked.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer, ThreadingMixIn
from typing import Any, BinaryIO, Final, Protocol, cast

from fairvisor import actor
from fairvisor.actor import By
from fairvisor.bundle.syntax import MAX_BUNDLE_BYTES
from fairvisor.clock import NS_PER_S, Now
from fairvisor.errors import BodyTooLarge, Busy, RequestError, WrongSecret
from fairvisor.http.admin_tokens import AdminTokens
from fairvisor.http.request import Peer, Request
from fairvisor.http.wire import NO_STORE
from fairvisor.response import Answer, json_answer
from fairvisor.settings import Bind

MAX_AUTHENTICATED: Final = 16  # connections per worker
MAX_UNAUTHENTICATED: Final = 64  # connections per worker
AUTHENTICATED_WITHIN_NS: Final = (
    5 * NS_PER_S
)  # from the connection to the right token; a wrong one is answered within it
MAX_HEAD: Final = 16 << 10  # bytes
TIMEOUT_S: Final = 60.0  # an operator's connection that is silent for so long is closed
LINGER_S: Final = 1.0  # how long a client that was refused may go on sending
STOPPED_WITHIN_S: Final = 6.0  # a push that is under way is answered after 5 s
_POLL_S: Final = 0.25
_READ_BYTES: Final = 1 << 16  # of a body at a time: other threads run in between
_BACKLOG: Final = 64
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid
_BUSY: Final = "admin-request-"  # begins the names of threads that answer

_log = logging.getLogger(__name__)


class Answering(Protocol):
    """What the listener needs of the API."""

    def answer(self, request: Request, who: By, now: Now, /) -> Answer: ...
    def refusal(self, error: RequestError, address: str, now: Now, /) -> Answer: ...


class AdminSocket:
    """The listening socket, held by the master and inherited by its workers. Raises OSError when it cannot be had."""

    def __init__(self, bind: Bind) -> None:
        self.bind = bind
        self._path = Path(bind.path) if bind.path else None
        self.socket = _bind_tcp(bind) if self._path is None else _bind_unix(self._path)
        self._identity = _identity(self._path)
        self.socket.setblocking(False)  # every worker is woken, and one of them gets the connection

    @property
    def is_there(self) -> bool:
        """Whether clients find it: a unix socket may have been removed, or replaced by that of a newer master."""
        return self._identity == _identity(self._path)

    def close(self) -> None:
        """Let go of it; the file goes too, unless it is another master's by now."""
        self.socket.close()
        if self._path is not None and self.is_there:
            self._path.unlink(missing_ok=True)


def _identity(path: Path | None) -> tuple[int, int]:
    """Which file is at a path: device and inode; zeros where there is none."""
    try:
        status = path.stat() if path is not None else None
    except OSError:
        status = None
    return (status.st_dev, status.st_ino) if status is not None else (0, 0)


def _bind_tcp(bind: Bind) -> socket.socket:
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    with _closed_on_error(socket.socket(family, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEPORT, 1
        )  # during an upgrade there are two masters
        listener.bind((bind.host, bind.port))
        listener.listen(_BACKLOG)
    return listener


def _bind_unix(path: Path) -> socket.socket:
    """Bound beside its place and renamed, so that clients find the old socket or the new one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(0, "it exists and is not a socket", str(path))
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with _closed_on_error(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        os.fchmod(listener.fileno(), 0o600)  # the file takes it over: it is open to others at no moment
        with short_path(new) as address:
            listener.bind(address)
        listener.listen(_BACKLOG)
        new.rename(path)
    return listener


@contextmanager
def _closed_on_error(listener: socket.socket) -> Iterator[socket.socket]:
    try:
        yield listener
    except OSError:
        listener.close()
        raise


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """The address of a unix socket, however long its path is: an address holds no more than 107 bytes (unix(7))."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class AdminServer(ThreadingMixIn, BaseServer):
    """Serves a listening socket from `start` to `stop`, with `api`, in threads of this process."""

    daemon_threads = True

    def __init__(
        self, listener: socket.socket, api: Answering, tokens: AdminTokens, read_now: Callable[[], Now]
    ) -> None:
        """Over TCP clients must send one of `tokens`; on a unix socket its permissions decide."""
        super().__init__(("", 0), _Exchange)
        self.api = api
        self.tokens = tokens
        self.guarded = listener.family != socket.AF_UNIX
        self.read_now = read_now
        self._listener = listener
        self._lock = threading.Lock()
        self._unauthenticated: dict[socket.socket, int] = {}  # since when (monotonic, ns), in this order
        self._authenticated: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), name="admin", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more connections, and let the requests that are under way end."""
        if self._thread.is_alive():  # it may not even have begun
            self.shutdown()
        with self._lock:
            self._evict(len(self._unauthenticated))
        for thread in self._busy():
            thread.join(STOPPED_WITHIN_S)

    def _busy(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith(_BUSY)]

    def admit(self, connection: socket.socket) -> None:
        """Take note that a connection is authenticated. Raises Busy when too many are."""
        with self._lock:
            if len(self._authenticated) >= MAX_AUTHENTICATED:
                raise Busy(f"{MAX_AUTHENTICATED} requests are being answered already; try again")
            if self._unauthenticated.pop(connection, None) is not None:  # else it was just closed
                self._authenticated.add(connection)

    def _evict(self, number: int) -> None:
        """Shut down the oldest unauthenticated connections; their threads end. The lock is held."""
        for connection in [*self._unauthenticated][: max(0, number)]:
            del self._unauthenticated[connection]
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # socketserver calls these

    def fileno(self) -> int:
        return self._listener.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        client, address = self._listener.accept()
        client.setblocking(True)
        return client, address

    def service_actions(self) -> None:
        """Close what has been unauthenticated for too long; called at least every _POLL_S."""
        latest_ns = self.read_now().mono_ns - AUTHENTICATED_WITHIN_NS
        with self._lock:
            self._evict(sum(since_ns <= latest_ns for since_ns in self._unauthenticated.values()))

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._evict(len(self._unauthenticated) + 1 - MAX_UNAUTHENTICATED)
            self._unauthenticated[request] = self.read_now().mono_ns
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        threading.current_thread().name = f"{_BUSY}{threading.get_ident()}"
        super().process_request_thread(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Closing with unread input would reset the connection and could destroy the answer on its way."""
        client = cast(socket.socket, request)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)
            client.settimeout(LINGER_S)
            for _ in range(MAX_BUNDLE_BYTES // _READ_BYTES):
                if not client.recv(_READ_BYTES):
                    break
        with self._lock:
            self._unauthenticated.pop(client, None)
            self._authenticated.discard(client)
        client.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("an operator's connection broke", exc_info=True)


class _Input:
    """Reads what a client sends: the lines of a bounded head, and a body."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_HEAD
        self.read = file.read
        self.close = file.close

    def readline(self, limit: int = -1) -> bytes:
        line = self._file.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException(f"the head exceeds {MAX_HEAD} bytes")
        return line


class _Unreadable(RequestError):
    """A request that the standard library rejects, with the status that it gives."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = _UNREADABLE.get(status, RequestError.reason)


_UNREADABLE: Final[dict[int, str]] = {
    HTTPStatus.REQUEST_URI_TOO_LONG: "head_too_large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "head_too_large",
    HTTPStatus.NOT_IMPLEMENTED: "method_not_allowed",
}


class _Exchange(BaseHTTPRequestHandler):
    """One connection, which is for one request: so a worker that stops waits for no idle one."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    command = ""
    server: AdminServer

    def setup(self) -> None:
        super().setup()
        self.rfile: Any = _Input(self.rfile)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except HTTPException as error:  # in the request line: in the fields, the parent says it
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, str(error))

    def do_GET(self) -> None:
        """Answer one request, whatever its method."""
        server = self.server
        try:
            who = self._who()
            server.admit(self.connection)
            request = Request(self.command, self.path, {}, Peer(self._address(), trusted=True), self._body())
            answer = server.api.answer(request, who, server.read_now())
        except RequestError as error:
            answer = server.api.refusal(error, self._address(), server.read_now())
        except Exception:  # a fault of ours: an operator must learn of it, the worker must not die of it
            _log.exception("an operator's request failed: %s %s", self.command, self.path)
            answer = json_answer(
                HTTPStatus.INTERNAL_SERVER_ERROR, {"error": {"message": "it failed; see the log"}}
            )
        self._send(answer)

    do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = do_GET

    def _who(self) -> By:
        """Return the client: the user of a unix socket, over TCP the holder of a token. Raises WrongSecret."""
        if not self.server.guarded:
            _, uid, _ = _CREDENTIALS.unpack(
                self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            return actor.user(uid)
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        name = self.server.tokens.name_of(given) if kind.lower() == "bearer" else ""
        if not name:
            raise WrongSecret(
                "the token in Authorization: Bearer is missing or wrong (FAIRVISOR_ADMIN_TOKEN, "
                "FAIRVISOR_ADMIN_TOKENS_FILE)"
            )
        return actor.token(name, self._address())

    def _body(self) -> bytes | None:
        if "Transfer-Encoding" in self.headers:
            raise RequestError("the body must come with a Content-Length, not in chunks")
        length = self.headers.get("Content-Length", "0").strip()
        if not (length.isascii() and length.isdigit()):
            raise RequestError(f"the Content-Length {length[:40]!r} is not a number")
        if len(length) > 12 or int(length) > MAX_BUNDLE_BYTES:
            raise BodyTooLarge(f"the body exceeds {MAX_BUNDLE_BYTES} bytes")
        left = int(length)
        pieces = []
        while left:
            piece = self.rfile.read(min(left, _READ_BYTES))
            if not piece:
                raise RequestError("the body ended early")
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces) if pieces else None

    def _send(self, answer: Answer) -> None:
        self.close_connection = True
        self.request_version = (
            self.protocol_version
        )  # to what cannot be read the parent answers as in HTTP/0.9
        self.send_response_only(answer.status)
        self.send_header("Date", self.date_time_string())
        for line in (NO_STORE + answer.head).splitlines():
            name, _, value = line.partition(": ")
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library says to malformed HTTP, in our form."""
        error = _Unreadable(code, message or HTTPStatus(code).phrase)
        self._send(self.server.api.refusal(error, self._address(), self.server.read_now()))

    def _address(self) -> str:
        """Return the client's address, "" on a unix socket."""
        return str(self.client_address[0]) if isinstance(self.client_address, tuple) else ""

    def log_message(self, format: str, *args: Any) -> None:  # the parent's name for it
        _log.debug(format, *args)
