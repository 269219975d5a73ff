"""The world of a request file behind a real WSGI server: what `tests/gateways/test_request_servers.py` starts.

    python -m gunicorn -k gthread -w 1 request_host:application

Requests under /-/ are the test's own: they begin a file and do what stands between its requests, on the simulated
clock. All others go to the edge's WSGI application as this server tells them, except for the peer, which the test
chooses. One process, one file at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from request_script import read_script
from request_transports import World

from fairvisor.http.wsgi import Application


class Host:
    """The file that is being played, as a WSGI application."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._world: World | None = None
        self._application: Application | None = None
        self._peer = ""

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/-/"):
            length = int(environ.get("CONTENT_LENGTH") or 0)
            self._direct(path.removeprefix("/-/"), environ["wsgi.input"].read(length).decode())
        if path.startswith("/-/") or self._application is None:
            start_response("200 OK", [("Content-Length", "0")])
            return []
        environ["REMOTE_ADDR"] = self._peer
        return self._application(environ, start_response)

    def _direct(self, word: str, text: str) -> None:
        if word == "begin":
            self._world = World.of(read_script(Path(text)), Path(self._place.name))
            self._application = Application(self._world.service, self._world.now)
        elif word == "peer":
            self._peer = text
        else:
            assert self._world is not None
            self._world.direct({"at": "@"}.get(word, word), text)


application = Host()
