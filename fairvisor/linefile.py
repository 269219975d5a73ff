"""A log that several processes append whole lines to, and that outlives rotation, full disks and lost directories.

Lines are written many at once, with O_APPEND and under a lock (flock), so writers never mix. Before each write the path
is looked at: a file that was renamed, removed or replaced is opened anew, so rotation needs no signal. A line that was
cut short (full disk) is ended before anything else is written. Errors are the caller's: it keeps its lines and tries
again. This module knows nothing of what the lines say.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fairvisor.state import check_regular, check_trusted

STDOUT: Final = 1
_MODE: Final = 0o640
_PIPE_BYTES: Final = 4096  # what a pipe takes without mixing writers (PIPE_BUF of Linux, pipe(7))
_NEWLINE: Final = b"\n"
_LOCK_TRIES: Final = 100
_LOCK_PAUSE_S: Final = 0.005


class LineFile:
    """Appends to the file at `path`, or to standard output when there is none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1 if path is not None else STDOUT
        self._identity = (0, 0)
        self._pause = threading.Event()  # never set

    def append(self, lines: Sequence[bytes]) -> None:
        """Write these lines, each ending in a newline. Raises PartlyWritten when that did not succeed for all."""
        done = 0
        try:
            fd = self._open()
            if stat.S_ISREG(os.fstat(fd).st_mode):
                with self._locked(fd):
                    while done < len(lines):
                        done += _write(fd, lines[done:], torn=not _ends_in_newline(fd))
            else:
                while done < len(lines):
                    done += _write(fd, _fitting(lines[done:]))
        except OSError as error:
            raise PartlyWritten(done, error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def _locked(self, fd: int) -> Iterator[None]:
        """While nobody else writes. Does not wait long: the other one may be stopped. Raises BlockingIOError."""
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._pause.wait(_LOCK_PAUSE_S)
        else:
            raise BlockingIOError(errno.EAGAIN, "another process keeps it locked", str(self._path))
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def _open(self) -> int:
        """The descriptor of what is at the path now."""
        if self._path is None:
            return self._fd
        try:
            there = os.stat(self._path)
            current = (there.st_dev, there.st_ino) == self._identity
        except FileNotFoundError:
            current = False
        if self._fd < 0 or not current:
            self.close()
            self._fd = _open_to_append(self._path)
            opened = os.fstat(self._fd)
            self._identity = (opened.st_dev, opened.st_ino)
        return self._fd


class PartlyWritten(OSError):
    """`lines` were written in whole, the rest was not."""

    def __init__(self, lines: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror, cause.filename)
        self.lines = lines


def _open_to_append(path: Path) -> int:
    """Open or make the file. Where other users can put names, a link is not followed and no file of theirs is taken."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        check_trusted(os.stat(path.parent), path.parent)
    except PermissionError:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, _MODE)
        try:
            check_regular(fd, path)
        except OSError:
            os.close(fd)
            raise
        return fd
    return os.open(path, flags, _MODE)


def _write(fd: int, lines: Sequence[bytes], *, torn: bool = False) -> int:
    """One write; how many lines are there in whole. `torn`: end somebody's line first."""
    left = os.write(fd, b"".join([_NEWLINE, *lines] if torn else lines)) - torn
    for number, line in enumerate(lines):
        left -= len(line)
        if left < 0:
            return number
    return len(lines)


def _ends_in_newline(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size == 0 or os.pread(fd, 1, size - 1) in (_NEWLINE, b"")


def _fitting(lines: Sequence[bytes]) -> Sequence[bytes]:
    """As many of the first lines as a pipe takes at once; at least one."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line)
        if size > _PIPE_BYTES:
            return lines[: max(1, number)]
    return lines
