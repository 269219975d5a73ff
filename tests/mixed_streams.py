"""Streams that end in every way one can end: what the provider does, and when the client leaves.

A request says in a header which of `WAYS` the provider takes. `Mixed` plays the provider, `stream` one client. The
test of them is `test_proxy_soak.py`, the long run of them `perf/streams.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

Writer = asyncio.StreamWriter

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORD = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
USED = 14
LEAVING = ("stays", "before", "during", "after")  # when the client goes, as seen from the first byte


def usage(prompt: int, completion: int) -> bytes:
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return b"data: " + json.dumps({"id": "c", "choices": [], "usage": told}).encode() + b"\n\n"


async def send(writer: Writer, content: bytes, piece_bytes: int) -> None:
    """Content in chunks of so many bytes."""
    for at in range(0, len(content), piece_bytes):
        piece = content[at : at + piece_bytes]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(0)


def whole(content: bytes, piece_bytes: int = 200) -> Callable[[Writer], Awaitable[bool]]:
    """A stream that comes to its end."""

    async def answer(writer: Writer) -> bool:
        writer.write(HEAD)
        await send(writer, content, piece_bytes)
        writer.write(b"0\r\n\r\n")
        return True

    return answer


def broken(content: bytes, *, hangs: bool) -> Callable[[Writer], Awaitable[bool]]:
    """A stream that stands still, or breaks off, after its head and this content; without content, before its head."""

    async def answer(writer: Writer) -> bool:
        if content:
            writer.write(HEAD)
            await send(writer, content, 200)
        if not hangs:
            writer.transport.abort()
        return False

    return answer


def status(line: str) -> Callable[[Writer], Awaitable[bool]]:
    async def answer(writer: Writer) -> bool:
        body = b'{"error":{"message":"no"}}'
        head = f"HTTP/1.1 {line}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return True

    return answer


STREAM = WORD * 5 + usage(9, 5) + DONE
# What the provider does, and what comes of the reservation when the client stays: which counter counts it.
WAYS: dict[str, tuple[Callable[[Writer], Awaitable[bool]], str]] = {
    "whole": (whole(STREAM), "settled"),
    "in single bytes": (whole(STREAM, 1), "settled"),
    "400": (status("400 Bad Request"), "failed_upstream"),
    "429": (status("429 Too Many Requests"), "failed_upstream"),
    "500": (status("500 Internal Server Error"), "failed_upstream"),
    "reset at once": (broken(b"", hangs=False), "failed_upstream"),
    "reset in the middle": (broken(WORD * 3, hangs=False), "failed_upstream"),
    "hang at once": (broken(b"", hangs=True), "failed_upstream"),
    "hang in the middle": (broken(WORD * 3, hangs=True), "failed_upstream"),
    "malformed events": (whole(WORD + b"data: {broken\n\nnonsense\n\ndata: {}}\n\n" + DONE), "no_usage"),
    "no usage": (whole(WORD * 5 + DONE), "no_usage"),
    "negative usage": (whole(WORD * 5 + usage(-9, -5) + DONE), "no_usage"),
}


class Mixed:
    """The provider. `open` is how many connections it has."""

    def __init__(self) -> None:
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        """One connection."""
        self.open += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                await reader.readexactly(_field(head, "content-length"))
                answer, _ = list(WAYS.values())[_field(head, "x-way")]
                if not await answer(writer):
                    await reader.read()  # until the proxy gives up
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()


def _field(head: str, name: str) -> int:
    return int(head.partition(f"\r\n{name}: ")[2].partition("\r\n")[0])


def request(way: int) -> bytes:
    """A streamed chat whose provider goes this way, the number of one of WAYS."""
    ask = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 50,
        "stream": True,
    }
    body = json.dumps(ask).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Way: {way}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def stream(port: int, way: int, leaving: str) -> None:
    """One client on a connection of its own, until the response has ended, is cut, or the client has left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request(way))
        await writer.drain()
        if leaving == "before":
            writer.close()  # not a reset, which may overtake the request
            return
        head = await reader.readuntil(b"\r\n\r\n")
        if leaving == "during":
            return
        if leaving == "after":
            await reader.read(100)
        elif b"chunked" in head:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            await reader.read(1000)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        if leaving != "before":
            writer.transport.abort()
