"""An application that answers as a test says, and keeps what reached it last."""

from __future__ import annotations

import threading
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fields = list[tuple[str, str]]
Respond = Callable[[Message], tuple[Fields, bytes]]


class Application:
    """A running application. `respond` makes header fields and a body of the header of a request."""

    def __init__(self) -> None:
        self.respond: Respond = nothing
        self.headers = Message()
        self.body = b""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        application = self

        class Handler(BaseHTTPRequestHandler):
            """One connection of a gateway. It ends with the answer, so that no thread outlives the test."""

            def do_GET(self) -> None:
                application.headers = self.headers
                application.body = self._body()
                fields, body = application.respond(self.headers)
                self.send_response(200)
                for name, value in [*fields, ("Content-Length", str(len(body)))]:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def log_message(self, *_: object) -> None: ...

        return Handler


def nothing(_: Message) -> tuple[Fields, bytes]:
    """Answer with an empty JSON object."""
    return [("Content-Type", "application/json")], b"{}"
