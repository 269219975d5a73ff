"""Which worker takes a connection: the board, holding back, the limit, and what is told to come again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest

from fairvisor.http.accept import UNSENT_BYTES, Acceptor, Board


class Worker:
    """An acceptor on the running loop whose connections do nothing."""

    def __init__(self, board: Board, listener: socket.socket, max_connections: int = 100) -> None:
        self.seat = board.claim()
        self.taken: list[asyncio.BaseTransport] = []
        loop = asyncio.get_running_loop()
        self.acceptor = Acceptor(loop, [listener], board, self.seat, self._make, max_connections)

    def _make(self) -> asyncio.Protocol:
        worker = self

        class Taken(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                worker.taken.append(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                worker.acceptor.closed()

        return Taken()


class Scene:
    """One listening socket, shared as after a fork, and its clients."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.setblocking(False)
        self.board = Board()
        self._workers: list[Worker] = []

    async def end(self) -> None:
        """Nothing is left open."""
        for worker in self._workers:
            worker.acceptor.stop()
            await worker.acceptor.settle()
        for worker in self._workers:
            for transport in worker.taken:
                transport.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def worker(self, max_connections: int = 100) -> Worker:
        copy = self._stack.enter_context(self.listener.dup())
        worker = Worker(self.board, copy, max_connections)
        worker.acceptor.start()
        self._workers.append(worker)
        return worker

    def connect(self, number: int) -> list[socket.socket]:
        return [
            self._stack.enter_context(socket.create_connection(self.listener.getsockname()))
            for _ in range(number)
        ]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def run(scene: Scene, story: Callable[[], Awaitable[None]]) -> None:
    async def told() -> None:
        try:
            await asyncio.wait_for(story(), 20)
        finally:
            await scene.end()

    asyncio.run(told())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_seats_are_given_out_once_and_again_when_free() -> None:
    board = Board()
    seats = [board.claim() for _ in range(3)]
    assert len(set(seats)) == 3
    board.give_back(seats[1])
    assert board.claim() == seats[1]


def test_the_board_counts_those_that_are_there() -> None:
    board = Board()
    first, second, absent = board.claim(), board.claim(), board.claim()
    board.write(first, 7)
    board.write(second, 2)
    assert board.least() == 2
    assert board.share() == 5
    board.leave(second)
    assert board.share() == 7
    board.give_back(first)
    assert board.share() == 0
    assert absent not in (first, second)


def test_connections_that_come_at_once_are_shared_evenly(scene: Scene) -> None:
    async def story() -> None:
        one, other = scene.worker(), scene.worker()
        scene.connect(32)
        await until(lambda: len(one.taken) + len(other.taken) == 32)
        assert abs(len(one.taken) - len(other.taken)) <= 2

    run(scene, story)


def test_a_worker_that_does_not_come_is_not_waited_for(scene: Scene) -> None:
    async def story() -> None:
        scene.board.write(scene.board.claim(), 0)  # there, with no connections, and stopped
        worker = scene.worker()
        scene.connect(3)
        await until(lambda: len(worker.taken) == 3)

    run(scene, story)


def test_at_its_limit_a_worker_takes_none_until_one_ends(scene: Scene) -> None:
    async def story() -> None:
        worker = scene.worker(max_connections=2)
        clients = scene.connect(3)
        await until(lambda: len(worker.taken) == 2)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(worker.taken) == 2
        clients[0].close()
        await until(lambda: len(worker.taken) == 3)

    run(scene, story)


def test_stopping_takes_what_has_connected_already(scene: Scene) -> None:
    async def story() -> None:
        worker = scene.worker()
        scene.connect(5)
        worker.acceptor.stop()
        await worker.acceptor.settle()
        assert len(worker.taken) == 5
        assert scene.board.share() == 0

    run(scene, story)


def test_what_is_too_much_is_told_to_come_again(scene: Scene) -> None:
    async def story() -> None:
        worker = scene.worker()
        scene.connect(16)
        await until(lambda: len(worker.taken) == 16)
        assert worker.acceptor.excess() == 0
        scene.board.write(scene.board.claim(), 0)
        assert worker.acceptor.excess() == 8
        scene.board.write(scene.board.claim(), 30)  # 46 on three workers: 16 each
        assert worker.acceptor.excess() == 0

    run(scene, story)


def test_the_kernel_keeps_little_for_a_client_that_does_not_read(scene: Scene) -> None:
    async def story() -> None:
        worker = scene.worker()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(scene.listener.getsockname())
            await until(lambda: len(worker.taken) == 1)
            transport = worker.taken[0]
            assert isinstance(transport, asyncio.Transport)
            transport.write(bytes(1 << 20))
            kept_by_us = transport.get_write_buffer_size()
            assert (1 << 20) - kept_by_us < 2 * UNSENT_BYTES
            transport.abort()

    run(scene, story)
