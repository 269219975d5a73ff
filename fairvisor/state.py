"""The state directory: files that outlive the machine's memory.

Each file is written whole beside its place, brought to the disk and renamed, so that a crash at any moment leaves the
old one or the new one. A directory that is missing is made; one that cannot be written is a fault that callers report
and try again: no decision depends on it. Files carry the name of the instance, so that several can share a directory.
What another user can write is neither read nor written: a bundle or counters could come from anybody. This module does
not know what is in the files.
"""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_BUNDLE: Final = "bundle"
_SNAPSHOT: Final = "snapshot"
_FILE: Final = "file"
_NEW: Final = ".new"
_UNFINISHED_S: Final = 600  # no write takes that long


class StateDirectory:
    """The files of one instance. Methods raise OSError."""

    def __init__(self, directory: Path, instance: str) -> None:
        self.directory = directory
        self._instance = instance
        self.bundle = self.of(_BUNDLE)
        self.snapshot = self.of(_SNAPSHOT)
        self.file = self.of(_FILE)  # which bundle file was last in force

    def of(self, name: str) -> Path:
        """The path of a file of this instance by its name."""
        return self.directory / f"{self._instance}.{name}"

    def read(self, place: Path) -> bytes:
        """Return the contents of a file. PermissionError: another user could have written it."""
        with self._opened() as directory:
            fd = os.open(
                place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
            )
        with os.fdopen(fd, "rb") as file:
            check_regular(fd, place)
            return file.read()

    def write(self, place: Path, pieces: Iterable[bytes]) -> None:
        """Replace the file at `place`, durably. Nothing of it is left when `pieces` raises."""
        _make_directory(self.directory)
        new = f"{place.name}.{secrets.token_hex(4)}{_NEW}"
        with self._opened() as directory:
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                with os.fdopen(os.open(new, flags, 0o600, dir_fd=directory), "wb", buffering=0) as file:
                    for piece in pieces:
                        _write_all(file.fileno(), piece)
                    os.fsync(file.fileno())
                    _remove_unfinished(place, os.fstat(file.fileno()).st_mtime)
                os.rename(new, place.name, src_dir_fd=directory, dst_dir_fd=directory)
            finally:
                with suppress(OSError):
                    os.unlink(new, dir_fd=directory)
            os.fsync(directory)  # without this a power cut may bring the old file back

    def remove(self, *places: Path) -> list[Path]:
        """Remove files; which there were."""
        removed = []
        for path in places:
            with suppress(FileNotFoundError):
                path.unlink()
                removed.append(path)
        return removed

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Give the directory, open and checked."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_trusted(os.fstat(fd), self.directory)
            yield fd
        finally:
            os.close(fd)


def check_trusted(status: os.stat_result, path: Path) -> None:
    """Raise PermissionError unless only this user, root and this process's group can write what has this status."""
    own = os.geteuid()
    if status.st_uid not in (own, 0):
        raise PermissionError(
            errno.EPERM, f"it belongs to user {status.st_uid}, allowed are {own} and root", str(path)
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and status.st_gid != os.getegid()):
        raise PermissionError(
            errno.EPERM, f"other users can write it (mode {mode:04o}, chmod go-w)", str(path)
        )


def check_regular(fd: int, path: Path) -> None:
    """Raise PermissionError unless the open file is a regular one that `check_trusted` accepts."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(errno.EPERM, "it is no regular file", str(path))
    check_trusted(status, path)


def _remove_unfinished(place: Path, now_s: float) -> None:
    """What writers left that were killed; `now_s` is the time of the file system."""
    for path in place.parent.glob(f"{glob.escape(place.name)}.*{_NEW}"):
        with suppress(OSError):
            if now_s - path.stat().st_mtime > _UNFINISHED_S:
                path.unlink()


def _make_directory(directory: Path) -> None:
    """Make it and what is missing above it, for the owner only, whatever the umask is."""
    if not directory.is_dir():
        _make_directory(directory.parent)
        with suppress(FileExistsError):
            directory.mkdir(0o700)
            directory.chmod(0o700)


def _write_all(fd: int, data: bytes) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])
