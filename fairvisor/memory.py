"""The memory of one instance: a directory in /dev/shm that only its user can enter, and the files in it.

Anybody may put names into /dev/shm, so nothing there is used for its name alone. The directory is
`fairvisor-<uid>-<instance>`, mode 0700, owned by the user of the instance; where that name is taken by another user,
`+` and random digits are added, and the directory is found again by its owner and by the file `instance` in it. Inside
it no other user can make, replace or lock anything.

Files are opened relative to the directory, never through a link and never waiting. They are replaced whole, by a
rename: a name with a dot is one that is being written. The directory is looked up again each time, and made again when
it was removed by force. This module knows neither what the files hold nor the counters.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from fairvisor.processes import identity, is_alive

SHM_DIR: Final = Path("/dev/shm")  # noqa: S108 - where the C libraries of Linux keep POSIX shared memory
_MARK: Final = "instance"  # the directory with this file is in use; it holds the name of the instance
_SAFELY: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o700
_PERMISSIONS: Final = 0o777  # a directory in one with the set-group-ID bit has that bit too (Kubernetes)
_KINDS: Final = {stat.S_IFDIR: "directory", stat.S_IFREG: "regular file"}
_WRITE_BYTES: Final = 1 << 18  # at a time: other threads run in between


class InstanceMemory:
    """The directory of one instance. Methods raise OSError; `name` has neither slash nor dot in any of them."""

    def __init__(self, path: Path, instance: str, uid: int) -> None:
        self.path = path
        self.instance = instance
        self.uid = uid  # of the user that the instance runs as

    @classmethod
    def make(cls, instance: str) -> InstanceMemory:
        """Return the directory of this user's instance, made if there is none. Every process gets the same one."""
        uid = os.geteuid()
        found: InstanceMemory | None = cls.find(instance, uid)
        while found is None or not found._is_marked():
            try:
                found = cls._agree(instance, uid)
            except FileNotFoundError:  # a directory that another process of ours removed meanwhile
                continue
        return found

    @classmethod
    def find(cls, instance: str, uid: int) -> InstanceMemory:
        """Return the directory that the instance of user `uid` uses, or would use if it had one."""
        plain = cls(plain_path(instance, uid), instance, uid)
        if plain._is_marked():
            return plain
        marked = next((each for each in cls._owned(instance, uid) if each._is_marked()), None)
        return marked or cls._vacant(instance, uid)

    @classmethod
    def _agree(cls, instance: str, uid: int) -> InstanceMemory | None:
        """Choose one of the directories that this user has, and mark it; without any, make one. None: look again.

        Several exist when processes start at once while another user has the plain name. Whoever has locked all of
        them, and finds no other afterwards, chooses: a process that comes later sees the chosen one and has to wait
        for its lock. The locks cannot be held by another user, who cannot open the directories.
        """
        candidates = cls._owned(instance, uid)
        if not candidates:
            cls._vacant(instance, uid)._make_directory()
            return None
        with ExitStack() as locks:
            for each in candidates:
                fcntl.flock(locks.enter_context(each._opened()), fcntl.LOCK_EX)
            if [each.path for each in candidates] != [each.path for each in cls._owned(instance, uid)]:
                return None
            chosen = next((each for each in candidates if each._is_marked()), candidates[0])
            chosen.write(_MARK, instance.encode())
            for each in candidates:
                if each is not chosen:
                    with suppress(OSError):  # not empty
                        each.path.rmdir()
        return chosen

    @classmethod
    def _owned(cls, instance: str, uid: int) -> list[InstanceMemory]:
        """Every directory that may be the instance's, in a fixed order, the plain name first."""
        plain = cls(plain_path(instance, uid), instance, uid)
        others = own_names(f"{plain.path.name}+", uid, stat.S_IFDIR)
        return [
            *([plain] if plain._is_own() else []),
            *(cls(SHM_DIR / name, instance, uid) for name in others),
        ]

    @classmethod
    def _vacant(cls, instance: str, uid: int) -> InstanceMemory:
        """Return where a directory can be: the plain name, or where that is taken one that no other user can know."""
        plain = plain_path(instance, uid)
        taken = os.path.lexists(plain) and not cls(plain, instance, uid)._is_own()
        return cls(plain.with_name(f"{plain.name}+{secrets.token_hex(8)}") if taken else plain, instance, uid)

    def read(self, name: str) -> bytes:
        """Return the contents of a file. FileNotFoundError: there is none."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read()

    def open(self, name: str) -> int:
        """Open a file to read; the caller closes the descriptor. FileNotFoundError: there is none."""
        with self._opened() as directory:
            return self._checked(os.open(name, os.O_RDONLY | _SAFELY, dir_fd=directory), name)

    def open_lock(self, name: str) -> int:
        """Open a file, made if there is none, to be locked with flock; closing the descriptor unlocks it."""
        with self._opened(make=True) as directory:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | _SAFELY, _FILE_MODE, dir_fd=directory)
            return self._checked(fd, name)

    def write(self, name: str, *pieces: bytes | memoryview) -> None:
        """Replace a file whole, or make it. Nothing is left of it when that fails."""
        with self._opened(make=True) as directory:
            new = f"{name}.{identity(os.getpid())}-{secrets.token_hex(4)}"
            try:
                fd = os.open(
                    new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY, _FILE_MODE, dir_fd=directory
                )
                try:
                    os.fchmod(fd, _FILE_MODE)  # whatever the umask is
                    _fill(fd, pieces)
                finally:
                    os.close(fd)
                os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                with suppress(FileNotFoundError):
                    os.unlink(new, dir_fd=directory)
                raise

    def rename(self, old: str, new: str) -> None:
        """Give a file another name; a file that has it is replaced."""
        with self._opened() as directory:
            os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)

    def remove(self, name: str) -> bool:
        """Remove a file; False when there is none."""
        try:
            with self._opened() as directory:
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Return the names of all finished files, sorted; none when there is no directory."""
        return [name for name in self._all_names() if "." not in name]

    def exists(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        try:
            with self._opened() as directory:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def remove_unfinished(self) -> None:
        """Remove what processes were writing that have died."""
        for name in self._all_names():
            process = name.partition(".")[2].partition("-")[0]
            if process.isdigit() and not is_alive(int(process)):
                self.remove(name)

    def remove_all(self) -> list[Path]:
        """Remove the directory with everything in it: its path, if it was there."""
        for name in self._all_names():
            self.remove(name)
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return []
        return [self.path]

    def _all_names(self) -> list[str]:
        try:
            with self._opened() as directory:
                return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    @contextmanager
    def _opened(self, *, make: bool = False) -> Iterator[int]:
        """Give the directory, open and checked. `make`: it is made again when it is not there."""
        if make:
            self._make_directory()
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | _SAFELY)
        try:
            check_own(os.fstat(fd), self.path, self.uid, stat.S_IFDIR | _DIRECTORY_MODE)
            yield fd
        finally:
            os.close(fd)

    def _make_directory(self) -> None:
        """Make the directory, unless the name is taken by whatever it is."""
        with suppress(FileExistsError):
            self.path.mkdir(_DIRECTORY_MODE)
            self.path.chmod(_DIRECTORY_MODE)  # whatever the umask is

    def _checked(self, fd: int, name: str) -> int:
        try:
            check_own(os.fstat(fd), self.path / name, self.uid, stat.S_IFREG | _FILE_MODE)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _is_own(self) -> bool:
        """Return whether the path is a directory of our user, whatever its mode is."""
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return stat.S_ISDIR(status.st_mode) and status.st_uid == self.uid

    def _is_marked(self) -> bool:
        return self._is_own() and self.exists(_MARK)


def plain_path(instance: str, uid: int) -> Path:
    """Return where the directory of an instance is, unless another user has put something there."""
    return SHM_DIR / f"fairvisor-{uid}-{instance}"


def own_names(prefix: str, uid: int, kind: int) -> list[str]:
    """Return the names in /dev/shm that begin with `prefix` and are of this user and file type, sorted.

    Other users may have made very many: theirs cost a look at each and no more.
    """
    found = []
    with os.scandir(SHM_DIR) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed since the directory was read
                    continue
                if status.st_uid == uid and stat.S_IFMT(status.st_mode) == kind:
                    found.append(entry.name)
    return sorted(found)


def is_own_file(path: Path, uid: int) -> bool:
    """Return whether there is a regular file of user `uid`; a link is none."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == uid


def check_own(status: os.stat_result, path: Path, uid: int, mode: int) -> None:
    """Raise PermissionError unless the file is of user `uid` and has exactly the type and permissions of `mode`."""
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode):
        raise PermissionError(errno.EPERM, f"is no {_KINDS[stat.S_IFMT(mode)]}", str(path))
    if status.st_uid != uid:
        raise PermissionError(errno.EPERM, f"belongs to user {status.st_uid}, not to {uid}", str(path))
    found, allowed = status.st_mode & _PERMISSIONS, mode & _PERMISSIONS
    if found != allowed:
        raise PermissionError(errno.EPERM, f"has mode {found:04o}, allowed is {allowed:04o} only", str(path))


def _fill(fd: int, pieces: Sequence[bytes | memoryview]) -> None:
    """Write the pieces. Their room is taken first, so that too little of it is known before the work."""
    size_bytes = sum(map(len, pieces))
    if size_bytes:
        os.posix_fallocate(fd, 0, size_bytes)
    for piece in pieces:
        with memoryview(piece) as view:
            for start in range(0, len(view), _WRITE_BYTES):
                os.write(fd, view[start : start + _WRITE_BYTES])
