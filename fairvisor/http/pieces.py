"""Reading from a client in pieces.

The loop reads as much as 256 KB for one call of `data_received`, and from every client that has sent so much before it
comes to the others: two hundred of them cost 20 ms. A proxy reads in pieces of TURN_BYTES always, a worker that decides
from a client that has sent much at once: a piece costs a call more. The module knows transports, no protocol.
"""

from __future__ import annotations

import asyncio


class Pieces(asyncio.BufferedProtocol):
    """What a transport gives to `protocol`, no more than `buffer` at once. All connections of a loop may share it: what
    was read is taken out of it before the loop reads on."""

    __slots__ = ("_buffer", "_protocol")

    def __init__(self, protocol: asyncio.Protocol, buffer: memoryview) -> None:
        self._protocol = protocol
        self._buffer = buffer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)


def read_in_pieces(transport: asyncio.Transport, protocol: asyncio.Protocol, buffer: memoryview) -> None:
    """Read no more than `buffer` at once from now on. Reading must be paused: the loop may hold the old way to read."""
    if not isinstance(transport.get_protocol(), Pieces):
        transport.set_protocol(Pieces(protocol, buffer))
