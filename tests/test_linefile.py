"""Whole lines in one file from several processes, whatever happens to the file."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fairvisor.linefile import LineFile, PartlyWritten


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """A disk that is full once a file has this size (a write that reaches it stops there, as on a full disk)."""
    old, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (old, hard))


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    LineFile(path).append([b"one\n", b"two\n"])
    assert path.read_bytes() == b"old\none\ntwo\n"


def test_the_log_is_for_its_owner_and_group(tmp_path: Path) -> None:
    LineFile(tmp_path / "log").append([b"one\n"])
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


def test_a_renamed_file_is_left_and_a_new_one_begun(tmp_path: Path) -> None:
    path, log = tmp_path / "log", LineFile(tmp_path / "log")
    log.append([b"one\n"])
    path.rename(tmp_path / "log.1")
    log.append([b"two\n"])
    assert (tmp_path / "log.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


def test_a_file_that_was_replaced_or_emptied_is_written_on(tmp_path: Path) -> None:
    path, log = tmp_path / "log", LineFile(tmp_path / "log")
    log.append([b"one\n"])
    (tmp_path / "new").write_bytes(b"")
    (tmp_path / "new").rename(path)
    log.append([b"two\n"])
    os.truncate(path, 0)
    log.append([b"three\n"])
    assert path.read_bytes() == b"three\n"


def test_a_directory_that_vanished_is_an_error_until_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = LineFile(folder / "log")
    log.append([b"one\n"])
    (folder / "log").unlink()
    folder.rmdir()
    with pytest.raises(PartlyWritten) as caught:
        log.append([b"two\n"])
    assert caught.value.lines == 0
    folder.mkdir()
    log.append([b"two\n"])
    assert (folder / "log").read_bytes() == b"two\n"


def test_a_full_disk_tells_how_many_lines_are_there_and_no_line_is_mixed_with_the_next(
    tmp_path: Path,
) -> None:
    path, log = tmp_path / "log", LineFile(tmp_path / "log")
    with largest_file(10), pytest.raises(PartlyWritten) as caught:
        log.append([b"one\n", b"two\n", b"three\n"])
    assert caught.value.lines == 2
    assert path.read_bytes() == b"one\ntwo\nth"
    log.append([b"three\n"])
    assert path.read_bytes() == b"one\ntwo\nth\nthree\n"


def test_another_process_does_not_continue_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with largest_file(6), pytest.raises(PartlyWritten):
        LineFile(path).append([b"one\n", b"two\n"])
    LineFile(path).append([b"from another\n"])
    assert path.read_bytes() == b"one\ntw\nfrom another\n"


def test_a_device_without_room_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PartlyWritten, match="No space left") as caught:
        LineFile(Path("/dev/full")).append([b"one\n"])
    assert caught.value.lines == 0


def test_a_pipe_gets_whole_lines_it_takes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sizes = []
    write = os.write

    def noted(fd: int, data: bytes) -> int:
        sizes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", noted)
    lines = [b"%04d" % number + b"x" * 995 + b"\n" for number in range(10)]
    LineFile(path).append(lines)
    assert os.read(reader, 1 << 16) == b"".join(lines)
    assert max(sizes) <= 4096
    os.close(reader)


@contextmanager
def ends_here() -> Iterator[None]:
    """A forked child ends behind this, and never goes on with the tests of its parent."""
    code = 1
    try:
        yield
        code = 0
    finally:
        os._exit(code)


def append_all(log: LineFile, lines: list[bytes]) -> None:
    """As its users do: what found the log taken for too long is written later."""
    while lines:
        try:
            log.append(lines)
        except PartlyWritten as problem:
            lines = lines[problem.lines :]
        else:
            return


def test_several_processes_never_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            with ends_here():
                log = LineFile(path)
                line = (str(child) * 200 + "\n").encode()
                for _ in range(50):
                    append_all(log, [line] * 400)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    lines = path.read_bytes().split(b"\n")[:-1]
    assert len(lines) == 4 * 50 * 400
    assert set(lines) == {(str(child) * 200).encode() for child in range(4)}


def test_a_writer_that_was_stopped_holds_others_up_for_a_moment_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("ab") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(PartlyWritten, match="locked") as caught:
            LineFile(path).append([b"one\n"])
    assert caught.value.lines == 0
    LineFile(path).append([b"one\n"])
    assert path.read_bytes() == b"one\n"


class TestWhereOthersCanPutNames:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        place = tmp_path / "open"
        place.mkdir()
        place.chmod(0o777)
        return place

    def test_a_file_of_ours_is_written(self, place: Path) -> None:
        log = LineFile(place / "log")
        log.append([b"one\n"])
        log.append([b"two\n"])
        assert (place / "log").read_bytes() == b"one\ntwo\n"

    def test_a_link_is_not_followed(self, place: Path, tmp_path: Path) -> None:
        (tmp_path / "ours").write_bytes(b"ours\n")
        (place / "log").symlink_to(tmp_path / "ours")
        with pytest.raises(PartlyWritten, match="symbolic links"):
            LineFile(place / "log").append([b"one\n"])
        assert (tmp_path / "ours").read_bytes() == b"ours\n"

    def test_a_fifo_is_not_waited_for(self, place: Path) -> None:
        os.mkfifo(place / "log", 0o666)
        with pytest.raises(PartlyWritten, match="it is no regular file"):
            LineFile(place / "log").append([b"one\n"])

    @pytest.mark.needs("root")
    def test_a_file_of_another_user_is_not_written(self, place: Path) -> None:
        (place / "log").touch()
        os.chown(place / "log", 60_002, 60_002)
        with pytest.raises(PartlyWritten, match="it belongs to user 60002"):
            LineFile(place / "log").append([b"one\n"])
        assert (place / "log").read_bytes() == b""


def test_a_link_that_only_we_can_have_made_is_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("elsewhere")
    LineFile(tmp_path / "log").append([b"one\n"])
    assert (tmp_path / "elsewhere").read_bytes() == b"one\n"


def test_a_file_that_was_opened_for_writing_only_is_written_on(tmp_path: Path) -> None:
    """As a shell opens standard output: it cannot be looked whether it ends in a whole line."""
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log = LineFile(None, descriptor=descriptor)
    log.append([b"one\n"])
    log.append([b"two\n"])
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    os.close(descriptor)
