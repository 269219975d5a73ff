"""Many clients at once, from one thread: each sends its next request when it has read the answer to the last."""

from __future__ import annotations

import selectors
import socket
from collections import Counter
from collections.abc import Iterator

from edge_server import PATIENCE_S


class Caller:
    """One member of the crowd. Told to close the connection, it comes again on a new one."""

    def __init__(
        self, address: tuple[str, int], requests: Iterator[bytes], selector: selectors.BaseSelector
    ) -> None:
        self._address = address
        self._requests = requests
        self._selector = selector
        self._read = b""
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.create_connection(self._address, PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def leave(self) -> None:
        self._selector.unregister(self._socket)
        self._socket.close()

    def ask(self) -> None:
        """Send the next request; leave when there is none."""
        request = next(self._requests, None)
        if request is None:
            self.leave()
        else:
            self._socket.sendall(request)

    def answer(self) -> tuple[int, dict[str, str]] | None:
        """The answer, status and headers, once it is whole; then the next request is on its way."""
        data = self._socket.recv(65536)
        assert data, "closed without an answer"
        self._read += data
        head, end, rest = self._read.partition(b"\r\n\r\n")
        if not end:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self._read = rest[length:]
        if headers.get("connection") == "close":
            self.leave()
            self._connect()
        self.ask()
        return int(first[9:12]), headers


def answers(
    address: tuple[str, int], requests: Iterator[bytes], connections: int
) -> Iterator[tuple[int, dict[str, str]]]:
    """Every answer to `requests`, asked over so many connections."""
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            Caller(address, requests, selector).ask()
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            assert ready, "no answer came"
            for key, _ in ready:
                answer = key.data.answer()
                if answer is not None:
                    yield answer


def statuses(address: tuple[str, int], requests: Iterator[bytes], connections: int) -> Counter[int]:
    """How often each status was answered."""
    return Counter(status for status, _ in answers(address, requests, connections))
