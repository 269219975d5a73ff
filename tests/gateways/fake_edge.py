"""An edge that answers what a test wants, or fails in the ways an edge can: no answer for two seconds, an answer that
is none, or no edge at all.
"""

from __future__ import annotations

import asyncio
import threading

from edge_server import reserve_port

SLOW = "slow"
SLOW_S = 2
GARBAGE = {
    "bytes": b"\x00\xff\xfe\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "nothing": b"",
    "half an answer": b"HTTP/1.1 204 No Con",
    "no status": b"HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n",
}
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nX-Fairvisor-Reason: engine_error\r\n"
    b"Retry-After: 1\r\nContent-Length: 2\r\n\r\n{}"
)
WAYS = ("dead", SLOW, "unavailable", *GARBAGE)
ALLOW = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def carried(status: int, body: bytes, *lines: str) -> bytes:
    """A reject as nginx gets it, with more header lines."""
    head = b"X-Fairvisor-Status: %d\r\nX-Fairvisor-Body: %b\r\n" % (status, body)
    head += "".join(f"{line}\r\n" for line in lines).encode()
    return b"HTTP/1.1 403 Forbidden\r\n%bContent-Length: 0\r\n\r\n" % head


class FakeEdge:
    """Fails as `way` says, or answers; can be told another way while it runs.

    `asked` is the head of the last question.
    """

    asked = b""

    def __init__(self) -> None:
        self._reserved = reserve_port()
        self.port: int = self._reserved.getsockname()[1]
        self._way = "dead"
        self._answers = {**GARBAGE, "unavailable": UNAVAILABLE}
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def fail(self, way: str) -> None:
        """From now on fail this way."""
        asyncio.run_coroutine_threadsafe(self._become(way), self._loop).result()

    def answer(self, answer: bytes) -> None:
        """From now on answer this."""
        self._answers["as told"] = answer
        self.fail("as told")

    async def _become(self, way: str) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        self._way = way
        if way != "dead":
            self._server = await asyncio.start_server(
                self._answer, "127.0.0.1", self.port, reuse_address=True
            )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked = await reader.readuntil(b"\r\n\r\n")
            if self._way == SLOW:
                await asyncio.sleep(SLOW_S)
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            else:
                writer.write(self._answers[self._way])
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the gateway left: it had waited long enough, or only looked whether somebody listens
        finally:
            writer.close()

    async def _end_answers(self) -> None:
        """End the answers that are still waited for."""
        answers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in answers:
            task.cancel()
        await asyncio.gather(*answers, return_exceptions=True)

    def stop(self) -> None:
        self.fail("dead")
        asyncio.run_coroutine_threadsafe(self._end_answers(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reserved.close()
