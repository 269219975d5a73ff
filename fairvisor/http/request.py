"""One HTTP request as it arrived, and who sent it: what the transports hand to the service.

The edge worker and the WSGI application make these; `gateways.py` reads the original request out of them. It knows
nothing of sockets, parsers or policies.
"""

from __future__ import annotations

from fairvisor.reading import Repeated


class Peer:
    """The other end of a connection: its address as text ("" on a unix socket), and whether it may be believed."""

    __slots__ = ("address", "trusted")

    def __init__(self, address: str, trusted: bool) -> None:
        self.address = address
        self.trusted = trusted


class Request:
    """A request. `target` is the request target as sent, read as Latin-1 so that every byte keeps its identity.

    Header names are lower-case text, values the bytes that arrived, repeated lines joined with ", " (RFC 9110 5.3);
    `repeated` has the lines that were joined, None where none were.
    `body` is None when none was sent or none came in time, and cut where the endpoint reads no further; `cut_bytes` is
    how much is missing of it then.
    """

    __slots__ = ("body", "cut_bytes", "headers", "method", "peer", "repeated", "target")

    def __init__(
        self,
        method: str,
        target: str,
        headers: dict[str, bytes],
        peer: Peer,
        body: bytes | None = None,
        cut_bytes: int = 0,
        repeated: Repeated | None = None,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.peer = peer
        self.body = body
        self.cut_bytes = cut_bytes
        self.repeated = repeated
