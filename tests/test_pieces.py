"""Reading from a client in pieces, with the loops and sockets that a worker has."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import pytest
import uvloop

from fairvisor.http.pieces import read_in_pieces

PIECE_BYTES = 16 * 1024
SENT = bytes(range(256)) * 4096  # 1 MiB


class Reader(asyncio.Protocol):
    """Reads in pieces after its first read; `reads` is what each read gave."""

    def __init__(self, buffer: memoryview) -> None:
        self.reads: list[bytes] = []
        self.events: list[str] = []
        self.over = asyncio.get_running_loop().create_future()
        self._buffer = buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)
        self.transport.pause_reading()
        read_in_pieces(self.transport, self, self._buffer)
        self.transport.resume_reading()

    def eof_received(self) -> bool:
        self.events.append("end")
        return False

    def pause_writing(self) -> None:
        self.events.append("full")

    def resume_writing(self) -> None:
        self.events.append("free")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.over.set_result(None)


async def _converse() -> Reader:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, reader = await loop.create_connection(lambda: Reader(memoryview(bytearray(PIECE_BYTES))), sock=ours)
    await loop.sock_sendall(theirs, SENT)
    reader.transport.set_write_buffer_limits(1024)
    reader.transport.write(SENT)  # more than the socket takes
    received = 0
    while received < len(SENT):
        received += len(await loop.sock_recv(theirs, 1 << 20))
    theirs.shutdown(socket.SHUT_WR)
    await reader.over
    theirs.close()
    return reader


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_client_that_sends_much_is_read_in_pieces_and_nothing_else_changes(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    loop = new_loop()
    try:
        reader = loop.run_until_complete(_converse())
    finally:
        loop.close()
    assert b"".join(reader.reads) == SENT
    assert max(map(len, reader.reads[1:])) <= PIECE_BYTES
    assert reader.events == ["full", "free", "end", "lost"]
