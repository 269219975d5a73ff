"""The application behind the gateways: tells in JSON what reached it, or does what the request asks for.

    python upstream.py PORT

`X-Want-Status: 403` asks for that status, `X-Want-Body: {...}` for that body (JSON, or a stream with `\\n` written out
in it), `X-Want-Lines: A: 1|B: 2` for those header lines. Every answer says in `x-application-count` how many requests
arrived before it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import count

import httptools

ARRIVED = count()


class Connection(asyncio.Protocol):
    """One connection of a gateway."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}
        self.body_bytes = 0

    def on_url(self, data: bytes) -> None:
        self.target += data

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self.body_bytes += len(data)

    def on_headers_complete(self) -> None:
        if self.headers.get("expect", "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_message_complete(self) -> None:
        seen = {
            "method": self.parser.get_method().decode(),
            "target": self.target.decode("latin-1"),
            "headers": self.headers,
            "body_bytes": self.body_bytes,
        }
        wanted = self.headers.get("x-want-body")
        body = json.dumps(seen).encode() if wanted is None else wanted.replace("\\n", "\n").encode()
        lines = self.headers.get("x-want-lines")
        head = (
            f"HTTP/1.1 {self.headers.get('x-want-status', '200')} Done\r\n"
            f"Content-Type: {'text/event-stream' if wanted and wanted[0] != '{' else 'application/json'}\r\n"
            f"Content-Length: {len(body)}\r\nX-Application-Count: {next(ARRIVED)}\r\n"
            + ("".join(f"{line}\r\n" for line in lines.split("|")) if lines else "")
            + "\r\n"
        )
        self.transport.write(head.encode() + (b"" if seen["method"] == "HEAD" else body))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
