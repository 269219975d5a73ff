"""The listener for probes and scrapers: its clients have the limits that all clients have."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from proxy_bench import run
from test_connection import ASK, Loop, Service

from fairvisor.http.hub import Limits
from fairvisor.http.side import SideListener

HEADER_TIMEOUT_MS = 40  # the tick comes four times as often


async def listening(clock: Loop, limits: Limits) -> tuple[SideListener, Any]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    side = SideListener(asyncio.get_running_loop(), [listener], Service(), limits, clock.now)
    side.start()
    return side, listener.getsockname()


@pytest.mark.parametrize("data", [b"\r\n", b"GET / HTTP/1.1\r\nHo"])
def test_a_request_that_does_not_come_is_given_up(data: bytes) -> None:
    async def test() -> None:
        clock = Loop()
        side, address = await listening(clock, Limits(HEADER_TIMEOUT_MS, 300_000, 10))
        reader, writer = await asyncio.open_connection(*address)
        writer.write(ASK % 1)
        assert b"204" in await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        rest = asyncio.ensure_future(reader.read())
        while not rest.done():
            clock.seconds += 1
            await asyncio.wait({rest}, timeout=0.01)
        assert b" 408 " in rest.result()
        writer.close()
        side.stop()

    run(test())


def test_what_is_larger_than_a_head_may_be_is_refused() -> None:
    async def test() -> None:
        side, address = await listening(Loop(), Limits(10_000, 300_000, 10, max_head_bytes=20_000))
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert b" 431 " in await reader.readuntil(b"\r\n")
        writer.close()
        side.stop()

    run(test())
