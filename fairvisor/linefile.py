"""A log that several processes append whole lines to, and that outlives rotation, full disks and lost directories.

Lines are written many at once, with O_APPEND: the kernel keeps concurrent writes to a file apart. Before each write the
path is looked at: a file that was renamed, removed or replaced is opened anew, so rotation needs no signal. A write
that ends in the middle of a line (full disk) is told from what follows by an empty line's worth of newline. Errors are
the caller's: it keeps its lines and tries again. This module knows nothing of what the lines say.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

STDOUT: Final = 1
_MODE: Final = 0o640
_PIPE_BYTES: Final = 4096  # what a pipe takes without mixing writers (PIPE_BUF of Linux, pipe(7))
_NEWLINE: Final = b"\n"


class LineFile:
    """Appends to the file at `path`, or to standard output when there is none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd = -1 if path is not None else STDOUT
        self._identity = (0, 0)

    def append(self, lines: Sequence[bytes]) -> None:
        """Write these lines, each ending in a newline. Raises PartlyWritten when that did not succeed for all."""
        done = 0
        try:
            fd = self._open()
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            while done < len(lines):
                chunk = lines[done:] if regular else _fitting(lines[done:])
                done += self._write(fd, chunk, regular)
        except OSError as error:
            raise PartlyWritten(done, error) from error

    def close(self) -> None:
        """Let go of the file."""
        if self._path is not None and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, fd: int, lines: Sequence[bytes], regular: bool) -> int:
        """One write; how many lines are there in whole."""
        torn = regular and not _ends_in_newline(fd)
        data = b"".join([_NEWLINE, *lines] if torn else lines)
        left = os.write(fd, data) - torn
        for number, line in enumerate(lines):
            left -= len(line)
            if left < 0:
                return number
        return len(lines)

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
            self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
            opened = os.fstat(self._fd)
            self._identity = (opened.st_dev, opened.st_ino)
        return self._fd


class PartlyWritten(OSError):
    """`lines` were written in whole, the rest was not."""

    def __init__(self, lines: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror, cause.filename)
        self.lines = lines


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
