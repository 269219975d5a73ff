"""The running edge, as commands ask it: over its admin listener, a unix socket or TCP with a token.

Which edge is meant: `--edge-url` or FAIRVISOR_EDGE_URL, else the admin listener of the settings, which the same
environment as the server's names. Where that is the default and not there, the only one in the state directory is
taken. An edge that cannot be reached is told apart from one that says no.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

import click
import orjson

from fairvisor.errors import FairvisorError, Problem
from fairvisor.http.admin_listener import short_path
from fairvisor.secret_values import Secret
from fairvisor.settings import Settings, environment

TIMEOUT_S: Final = 120.0  # validating a large bundle takes seconds, a busy publisher half a minute

Command = TypeVar("Command", bound=Callable[..., Any])
Parameters = Sequence[tuple[str, str]]


class Unreachable(FairvisorError):
    """No edge answers there."""


class Refused(FairvisorError):
    """The edge answered, and said no. `status` is the HTTP status, `error` what it said, as plain data."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        problems = [
            str(Problem(problem["path"], problem["message"])) for problem in error.get("problems", ())
        ]
        super().__init__(str(error.get("message", f"HTTP {status}")), *problems)
        self.status = status
        self.error = error


class Reply(NamedTuple):
    """An answer of the edge, whatever its status; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Edge:
    """One edge, by `http://host:port`, `https://host:port` or `unix:/path`."""

    def __init__(self, url: str, token: Secret) -> None:
        self.url = url
        self._token = token

    def ask(self, method: str, path: str, parameters: Parameters = (), body: bytes | None = None) -> Any:
        """The document that the admin API answers with. Raises Unreachable or Refused."""
        return self._document(self._admin(method, path, parameters, body))

    def fetch(self, path: str) -> bytes:
        """What stands at a path of the admin API, as it is. Raises Unreachable or Refused."""
        return self._admin("GET", path).body

    def _admin(self, method: str, path: str, parameters: Parameters = (), body: bytes | None = None) -> Reply:
        query = f"?{urlencode(parameters)}" if parameters else ""
        reply = self.send(method, f"/v1/admin/{path}{query}", body)
        if reply.status != 200:
            document = self._document(reply)
            raise Refused(reply.status, document.get("error", {}) if isinstance(document, dict) else {})
        return reply

    def _document(self, reply: Reply) -> Any:
        try:
            return orjson.loads(reply.body)
        except orjson.JSONDecodeError:
            return {"error": {"message": f"{self.url} answered with HTTP {reply.status}"}}

    def send(self, method: str, target: str, body: bytes | None = None) -> Reply:
        """One request. Raises Unreachable."""
        connection = self._connection()
        headers = {"Authorization": f"Bearer {self._token[0]}"} if self._token else {}
        try:
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, told, response.read())
        except (OSError, HTTPException) as error:
            why = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
            raise Unreachable(f"no edge answers at {self.url}: {why}") from None
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        if self.url.startswith("unix:"):
            return _UnixConnection(Path(self.url.removeprefix("unix:")))
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


class _UnixConnection(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("edge", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        with short_path(self._path) as address:
            self.sock.connect(address)


def edge_option(command: Command) -> Command:
    """Adds `--edge-url`, the parameter `edge_url`."""
    return click.option(
        "--edge-url",
        metavar="URL",
        help="The edge to ask: http://host:port or unix:/path. Default: the admin listener of the settings.  "
        "[FAIRVISOR_EDGE_URL]",
    )(command)


def open_edge(edge_url: str | None) -> Edge:
    """The edge that a command asks. Raises SettingsError, or Unreachable when there is no admin listener."""
    flags = {"edge_url": edge_url} if edge_url else {}
    settings = Settings.load(environment(), flags)
    return Edge(settings.edge_url or _admin_url(settings), settings.admin_token)


def _admin_url(settings: Settings) -> str:
    address = settings.admin_address
    if address is None:
        raise Unreachable("FAIRVISOR_ADMIN_BIND is none: there is no admin listener to ask; see --edge-url")
    if not address.path:
        return f"http://{address}"
    path = Path(address.path)
    if not path.exists():
        others = sorted(settings.state_dir.glob("*.admin"))
        if path.parent == settings.state_dir and len(others) == 1:
            path = others[0]
    return f"unix:{path}"
