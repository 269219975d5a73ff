"""The directory of an instance in shared memory: one for all its processes, closed to other users."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes.users import STRANGER, as_user, errno_of

from fairvisor.memory import SHM_DIR, InstanceMemory, plain_path
from fairvisor.processes import identity

UID = os.geteuid()


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    for path in SHM_DIR.glob(f"fairvisor-*-{name}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class TestMake:
    def test_is_a_directory_that_others_cannot_enter(self, name: str) -> None:
        made = InstanceMemory.make(name)
        assert made.path == SHM_DIR / f"fairvisor-{UID}-{name}"
        assert made.path.lstat().st_mode == stat.S_IFDIR | 0o700

    @pytest.mark.parametrize("umask", [0o000, 0o117, 0o777])
    def test_whatever_the_umask_is(self, name: str, umask: int) -> None:
        before = os.umask(umask)
        try:
            made = InstanceMemory.make(name)
            made.write("note", b"text")
        finally:
            os.umask(before)
        assert made.path.lstat().st_mode == stat.S_IFDIR | 0o700
        assert (made.path / "note").lstat().st_mode == stat.S_IFREG | 0o600

    def test_is_found_again(self, name: str) -> None:
        before = InstanceMemory.find(name, UID)
        assert not before.path.exists()
        made = InstanceMemory.make(name)
        again, found = InstanceMemory.make(name), InstanceMemory.find(name, UID)
        assert before.path == made.path == again.path == found.path

    def test_one_that_was_made_and_not_used_yet_is_taken(self, name: str) -> None:
        plain_path(name, UID).mkdir(0o700)
        assert InstanceMemory.make(name).path == plain_path(name, UID)

    @pytest.mark.parametrize("mode", [0o750, 0o707, 0o777])
    def test_one_that_was_opened_to_others_is_rejected(self, name: str, mode: int) -> None:
        InstanceMemory.make(name).path.chmod(mode)
        with pytest.raises(PermissionError, match=f"has mode {mode:04o}, allowed is 0700 only"):
            InstanceMemory.make(name)

    def test_another_instance_has_another_one(self, name: str) -> None:
        assert InstanceMemory.make(name).path != InstanceMemory.make(name + "+1").path

    def test_is_made_again_when_it_was_removed_by_force(self, name: str) -> None:
        made = InstanceMemory.make(name)
        shutil.rmtree(made.path)
        assert made.names() == []
        assert not made.remove("note")
        made.write("note", b"text")
        assert made.read("note") == b"text"
        assert InstanceMemory.make(name).path == made.path

    @pytest.mark.parametrize("squatted", [False, True])
    def test_processes_that_start_at_once_agree_on_one(self, name: str, squatted: bool) -> None:
        if squatted:
            plain_path(name, UID).write_text("in the way")
        forks = multiprocessing.get_context("fork")
        paths = forks.SimpleQueue()
        workers = [forks.Process(target=lambda: paths.put(InstanceMemory.make(name).path)) for _ in range(12)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
            assert worker.exitcode == 0
        [chosen] = {paths.get() for _ in workers}
        assert [path for path in SHM_DIR.glob(f"fairvisor-*-{name}*") if path.is_dir()] == [chosen]

    def test_a_process_that_comes_while_another_one_chooses_takes_the_same(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second one has made a directory of its own by then."""
        plain_path(name, UID).write_text("in the way")
        real = InstanceMemory._make_directory

        def late(second: InstanceMemory) -> None:
            monkeypatch.undo()
            first.append(InstanceMemory.make(name))
            real(second)

        first: list[InstanceMemory] = []
        monkeypatch.setattr(InstanceMemory, "_make_directory", late)
        second = InstanceMemory.make(name)
        assert second.path == first[0].path
        assert [path for path in SHM_DIR.glob(f"fairvisor-*-{name}*") if path.is_dir()] == [second.path]


def directory(path: Path) -> None:
    path.mkdir(0o777)


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o666)


def link(path: Path) -> None:
    path.symlink_to("/")


def dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at-all")


def file(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.needs("root")
class TestAnotherUser:
    """What another user put there is left alone and stops nothing."""

    @pytest.mark.parametrize("put", [directory, fifo, link, dangling, file])
    def test_who_has_the_plain_name(self, name: str, put: Callable[[Path], None]) -> None:
        plain = plain_path(name, UID)
        put(plain)
        os.chown(plain, STRANGER, STRANGER, follow_symlinks=False)
        before = plain.lstat()
        assert not InstanceMemory.find(name, UID).exists("note")
        made = InstanceMemory.make(name)
        made.write("note", b"text")
        assert made.path != plain
        assert made.path.name.startswith(f"{plain.name}+")
        assert InstanceMemory.find(name, UID).path == InstanceMemory.make(name).path == made.path
        assert plain.lstat() == before

    def test_who_gives_the_name_free_afterwards_changes_nothing(self, name: str) -> None:
        plain = plain_path(name, UID)
        directory(plain)
        os.chown(plain, STRANGER, STRANGER)
        made = InstanceMemory.make(name)
        plain.rmdir()
        assert InstanceMemory.make(name).path == made.path

    def test_who_adds_directories_of_the_same_form(self, name: str) -> None:
        plain = plain_path(name, UID)
        for path in (plain, *(plain.with_name(f"{plain.name}+{number:016x}") for number in range(3))):
            directory(path)
            (path / "instance").write_text(name)
            os.chown(path, STRANGER, STRANGER)
        assert not InstanceMemory.find(name, UID).path.exists()
        made = InstanceMemory.make(name)
        assert made.path.lstat().st_uid == UID
        assert InstanceMemory.make(name).path == made.path

    def test_cannot_read_list_lock_or_write_anything(self, name: str) -> None:
        made = InstanceMemory.make(name)
        made.write("note", b"text")
        attempts: list[Callable[[], object]] = [
            lambda: os.open(made.path, os.O_RDONLY),
            (made.path / "note").read_bytes,
            lambda: (made.path / "other").write_text(""),
            lambda: os.rename(made.path, made.path.with_name(f"{made.path.name}-away")),
            made.path.rmdir,
            lambda: InstanceMemory(made.path, name, STRANGER).write("note", b"theirs"),
            lambda: InstanceMemory(made.path, name, UID).write("note", b"theirs"),
        ]
        assert as_user(STRANGER, lambda: [errno_of(attempt) for attempt in attempts]) == [
            errno.EACCES, errno.EACCES, errno.EACCES, errno.EPERM, errno.EPERM, errno.EACCES, errno.EACCES,
        ]  # fmt: skip
        assert made.read("note") == b"text"

    def test_is_found_by_root_as_its_owners(self, name: str) -> None:
        path = as_user(STRANGER, lambda: InstanceMemory.make(name).path)
        assert not InstanceMemory.find(name, UID).path.exists()
        found = InstanceMemory.find(name, STRANGER)
        assert found.path == path
        assert found.names() == ["instance"]


class TestFiles:
    @pytest.fixture
    def own(self, name: str) -> InstanceMemory:
        return InstanceMemory.make(name)

    def test_are_written_whole_and_read_back(self, own: InstanceMemory) -> None:
        own.write("one", b"a" * 1_000_000, memoryview(b"bc"))
        own.write("one", b"short")
        own.write("empty")
        assert own.read("one") == b"short"
        assert own.read("empty") == b""
        assert own.names() == ["empty", "instance", "one"]

    def test_are_named_counted_and_removed(self, own: InstanceMemory) -> None:
        own.write("one", b"1")
        assert own.exists("one")
        own.rename("one", "two")
        assert (own.exists("one"), own.exists("two")) == (False, True)
        assert own.remove("two")
        assert not own.remove("two")
        with pytest.raises(FileNotFoundError):
            own.read("two")

    def test_without_room_the_old_one_stays(
        self, own: InstanceMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_space(fd: int, offset: int, size: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        own.write("one", b"old")
        monkeypatch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(OSError, match="No space left"):
            own.write("one", b"new")
        assert own.read("one") == b"old"
        assert [path.name for path in own.path.iterdir() if "." in path.name] == []

    def test_of_writers_that_were_killed_are_removed(
        self, own: InstanceMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(os, "rename", lambda *_, **__: os._exit(0))
            own.write("one", b"half")
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        own.path.joinpath(f"two.{identity(os.getpid())}-00").touch(0o600)  # of a process that lives
        assert len(list(own.path.iterdir())) == 3
        assert own.names() == ["instance"]
        own.remove_unfinished()
        assert len(list(own.path.iterdir())) == 2

    @pytest.mark.parametrize("put", [link, dangling])
    def test_links_are_not_followed(self, own: InstanceMemory, put: Callable[[Path], None]) -> None:
        put(own.path / "one")
        for use in (own.read, own.open, own.open_lock):
            with pytest.raises(OSError, match="symbolic links"):
                use("one")
        own.write("one", b"text")
        assert own.read("one") == b"text"
        assert not Path("/nowhere").exists()

    def test_a_fifo_is_not_waited_for(self, own: InstanceMemory) -> None:
        fifo(own.path / "one")
        for use in (own.read, own.open, own.open_lock):
            with pytest.raises(PermissionError, match=r"is no regular file"):
                use("one")

    def test_with_another_mode_are_rejected(self, own: InstanceMemory) -> None:
        own.write("one", b"text")
        (own.path / "one").chmod(0o644)
        with pytest.raises(PermissionError, match="has mode 0644, allowed is 0600 only"):
            own.read("one")

    def test_no_descriptor_is_left_open(self, own: InstanceMemory) -> None:
        before = len(os.listdir("/proc/self/fd"))
        own.write("one", b"text")
        own.read("one")
        fifo(own.path / "two")
        assert errno_of(lambda: own.read("two")) == errno.EPERM
        assert errno_of(lambda: own.read("three")) == errno.ENOENT
        assert own.names() == ["instance", "one", "two"]
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_lock_is_held_until_it_is_closed(self, own: InstanceMemory) -> None:
        held, other = own.open_lock("lock"), own.open_lock("lock")
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(held)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)

    def test_are_all_removed_with_the_directory(self, own: InstanceMemory) -> None:
        own.write("one", b"text")
        assert own.remove_all() == [own.path]
        assert not own.path.exists()
        assert own.remove_all() == []
