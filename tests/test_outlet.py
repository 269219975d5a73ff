"""Lines that may not be read: no caller waits, and what is lost is counted and logged."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fairvisor.linefile import STDERR, LineFile, PartlyWritten
from fairvisor.outlet import MAX_BYTES, Outlet, unblocked_stderr

WITHIN_S = 30.0
LINE = b"x" * 99 + b"\n"


class Pipe:
    """A pipe that is not read until the test does."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> int:
        """Write until it is full; how many bytes."""
        os.set_blocking(self.writer, False)
        filled = 0
        try:
            while True:
                filled += os.write(self.writer, b"." * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)
            return filled

    def read(self, end: bytes) -> bytes:
        """Read until what came ends so."""
        read = b""
        while not read.endswith(end):
            read += os.read(self.reader, 1 << 20)
        return read


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for descriptor in (pipe.reader, pipe.writer):
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.EBADF


class Target:
    """Takes lines, or fails."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.failing: list[OSError] = []
        self.whole = 0  # lines written before it fails

    def append(self, lines: Sequence[bytes]) -> None:
        if self.failing:
            self.lines += lines[: self.whole]
            raise PartlyWritten(self.whole, self.failing.pop(0))
        self.lines += lines


def lost_line(lines: int) -> bytes:
    return b"%d lines lost\n" % lines


def outlet(target: object) -> Outlet:
    return Outlet(target, lost_line)  # type: ignore[arg-type]


def test_lines_are_written_in_their_order(pipe: Pipe) -> None:
    lines = outlet(LineFile(None, descriptor=pipe.writer))
    for number in range(1000):
        lines.put(b"%d\n" % number)
    assert pipe.read(b"999\n") == b"".join(b"%d\n" % number for number in range(1000))
    assert lines.flush(WITHIN_S)


def test_a_pipe_that_is_full_keeps_nobody_waiting_and_what_finds_no_room_is_counted_and_said(
    pipe: Pipe,
) -> None:
    filled = pipe.fill()
    lines, lost = outlet(LineFile(None, descriptor=pipe.writer)), []
    room = MAX_BYTES // len(LINE)
    for number in range(room + 1000):
        if number == room + 500:
            lines.count_losses(lost.append)
        lines.put(LINE)
    assert not lines.flush(0)
    assert sum(lost) == 1000
    read = pipe.read(b"lost\n")
    assert read[filled:] == LINE * room + b"1000 lines lost\n"
    lines.put(b"more\n")
    assert pipe.read(b"\n") == b"more\n", "it is said once"


def test_a_reader_that_is_gone_costs_the_lines_and_nothing_else(pipe: Pipe) -> None:
    lines, lost = outlet(LineFile(None, descriptor=pipe.writer)), []
    lines.count_losses(lost.append)
    os.close(pipe.reader)
    for _ in range(10):
        lines.put(LINE)
    assert lines.flush(WITHIN_S)
    assert sum(lost) == 10


def test_a_full_disk_costs_what_it_did_not_take_and_that_is_said_when_there_is_room() -> None:
    target, lost = Target(), []
    lines = outlet(target)
    lines.count_losses(lost.append)
    target.failing.append(OSError(errno.ENOSPC, "full"))
    lines.put(b"one\n")
    assert lines.flush(WITHIN_S)
    lines.put(b"two\n")
    assert lines.flush(WITHIN_S)
    assert (lost, target.lines) == ([1], [b"two\n", b"1 lines lost\n"])


def test_a_descriptor_that_another_program_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    lines, lost = outlet(LineFile(None, descriptor=pipe.writer)), []
    lines.count_losses(lost.append)
    for _ in range(2000):
        lines.put(LINE)
    lines.put(b"end\n")
    assert pipe.read(b"end\n") == LINE * 2000 + b"end\n"
    assert lost == []


def test_a_forked_process_has_a_queue_and_a_thread_of_its_own(pipe: Pipe) -> None:
    """The parent's thread waits for a reader, maybe with a lock: the child neither waits nor writes its lines again."""
    filled = pipe.fill()
    lines = outlet(LineFile(None, descriptor=pipe.writer))
    lines.put(b"parent\n")
    pid = os.fork()
    if pid == 0:
        lines.put(b"child\n")
        os._exit(0 if lines.flush(WITHIN_S) else 1)
    read = pipe.read(b"parent\n")
    while len(read) < filled + len(b"parent\nchild\n"):
        read += os.read(pipe.reader, 1 << 16)
    assert sorted(read[filled:].splitlines()) == [b"child", b"parent"]
    assert os.waitpid(pid, 0)[1] == 0


def test_lines_that_are_lost_while_no_thread_can_be_started_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    target, lost = Target(), []
    lines = outlet(target)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", cannot)
        lines.put(b"one\n")
    lines.count_losses(lost.append)
    assert lost == [1]
    lines.put(b"two\n")
    assert lines.flush(WITHIN_S)
    assert target.lines == [b"two\n", b"1 lines lost\n"]


@pytest.mark.parametrize("opened", [os.O_WRONLY, os.O_RDWR])
def test_a_file_that_a_shell_opened_is_written_on(tmp_path: Path, opened: int) -> None:
    descriptor = os.open(tmp_path / "log", opened | os.O_CREAT)
    lines = outlet(LineFile(None, descriptor=descriptor))
    for line in (b"one\n", b"two\n"):
        lines.put(line)
        assert lines.flush(WITHIN_S)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    os.close(descriptor)


def _with_stderr(descriptor: int, then: Callable[[], None]) -> None:
    kept = os.dup(STDERR)
    os.dup2(descriptor, STDERR)
    try:
        then()
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


def test_what_is_written_in_a_crash_blocks_nobody_and_changes_the_shared_descriptor_for_nobody(
    pipe: Pipe,
) -> None:
    def crash() -> None:
        descriptor = unblocked_stderr()
        assert descriptor != STDERR
        with pytest.raises(BlockingIOError):
            os.write(descriptor, b"traceback")
        os.close(descriptor)

    pipe.fill()
    _with_stderr(pipe.writer, crash)
    assert os.get_blocking(pipe.writer)


def test_where_standard_error_cannot_be_opened_anew_it_is_the_shared_one() -> None:
    """A socket, as journald's."""
    found: list[int] = []
    one, other = socket.socketpair()
    with one, other:
        _with_stderr(one.fileno(), lambda: found.append(unblocked_stderr()))
    assert found == [STDERR]
