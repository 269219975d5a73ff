"""A log that several processes append whole lines to, and that outlives rotation, full disks and lost directories.

Lines are written many at once, with O_APPEND and under a lock (flock), so writers never mix. Before each write the path
is looked at: a file that was renamed, removed or replaced is opened anew, so rotation needs no signal. A line that was
cut short (full disk, killed writer) is ended before anything else is written. Errors are the caller's: it keeps its
lines and tries again.

Lines may be chained (`chain.py`). The chain of a file goes on in the next one after a rotation: where it has got to is
in a file of its own, `<log>.chain`, which is locked first. Lines on standard output, or in anything else
that cannot be read again, are a chain for each process. This module knows nothing of what the lines say.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from fairvisor import chain
from fairvisor.chain import Head
from fairvisor.state import check_regular, check_trusted

STDOUT: Final = 1
STDERR: Final = 2
CHAIN_SUFFIX: Final = ".chain"
_MODE: Final = 0o640
_PIPE_BYTES: Final = 4096  # what a pipe takes without mixing writers (PIPE_BUF of Linux, pipe(7))
_PIPE_LINES: Final = 32  # that are looked at for one write: a chained line has more than 128 bytes
_CHAINED_LINES: Final = (
    50  # that are hashed at once, for half a millisecond: other threads run during each write
)
_MOST_STRAY_BYTES: Final = (
    16 << 20
)  # between two lines of a chain; a batch has at most a thousand lines of 4 KiB
_NEWLINE: Final = b"\n"
_LOCK_TRIES: Final = 100
_LOCK_PAUSE_S: Final = 0.005


class Lines(Protocol):
    """Where lines go. `append` raises PartlyWritten when not all of them could be written."""

    def append(self, lines: Sequence[bytes], /) -> None: ...


class LineFile:
    """Appends to the file at `path`, or where there is none to an open descriptor: standard output."""

    def __init__(
        self, path: Path | None, key: bytes | None = None, *earlier: bytes, descriptor: int = STDOUT
    ) -> None:
        """With a `key` lines are chained (b"" is a chain without a secret), with None they are written unchanged.

        A chain that was made with an `earlier` key is continued with this one.
        """
        self._path = path
        self._key = key
        self._earlier = earlier
        self._descriptor = descriptor
        self._log = _Opened(path, os.O_APPEND) if path is not None else None
        self._heads = _Opened(_beside(path), 0) if path is not None and key is not None else None
        # what changes
        self._own = chain.begin(chain.OF_PROCESS)
        self._lost = 0

    def append(self, lines: Sequence[bytes]) -> None:
        """Write these lines, each ending in a newline. Raises PartlyWritten when that did not succeed for all."""
        done = 0
        try:
            with self._target() as write:
                while done < len(lines):
                    done += write(lines[done:])
        except OSError as error:
            raise PartlyWritten(done, error) from error

    def lose(self, events: int) -> None:
        """Count events that will never be written; the next line that is written has their number."""
        self._lost += events

    def close(self) -> None:
        """Close the file. Raises OSError when the number of lost events cannot be kept for the next writer."""
        try:
            if self._lost and self._heads is not None:
                with self._heads.locked() as fd:
                    head = self._read(fd)
                    self._write_head(fd, head._replace(lost=head.lost + self._lost))
                    self._lost = 0
        finally:
            for each in (self._log, self._heads):
                if each is not None:
                    each.close()

    @contextmanager
    def _target(self) -> Iterator[Callable[[Sequence[bytes]], int]]:
        """Yield a function that writes some of the first lines and returns how many it wrote whole."""
        if self._log is None or not stat.S_ISREG(os.fstat(fd := self._log.current()).st_mode):
            yield partial(self._write_unlocked, self._descriptor if self._log is None else fd)
        elif self._heads is None:
            with self._log.locked() as fd:
                yield lambda lines: _write(fd, lines, torn=not _ends_in_newline(fd))
        else:
            with self._heads.locked() as heads, self._log.locked() as fd:
                yield partial(self._write_chained, fd, heads)

    def _write_unlocked(self, fd: int, lines: Sequence[bytes]) -> int:
        """Write as many lines as a pipe takes at once."""
        if self._key is None:
            return _write(fd, _fitting(lines))
        linked, digests = chain.link(self._own, lines[:_PIPE_LINES], self._key, lost=self._lost)
        written = _write(fd, _fitting(linked))
        if written:
            self._own = self._own._replace(seq=self._own.seq + written, digest=digests[written - 1])
            self._lost = 0
        return written

    def _write_chained(self, fd: int, heads: int, lines: Sequence[bytes]) -> int:
        """Continue the chain of the file; both locks are held."""
        assert self._key is not None, "the file has a chain"
        head, stray = self._caught_up(fd, self._read(heads))
        torn = not _ends_in_newline(fd)
        size = os.fstat(fd).st_size + torn
        linked, digests = chain.link(head, lines[:_CHAINED_LINES], self._key, stray, head.lost + self._lost)
        written = _write(fd, linked, torn=torn)
        if written:
            status = os.fstat(fd)
            end = min(size + sum(map(len, linked[:written])), status.st_size)
            self._write_head(
                heads,
                Head(
                    head.chain, head.seq + written, digests[written - 1], 0, status.st_dev, status.st_ino, end
                ),
            )
            self._lost = 0
        return written

    def _caught_up(self, fd: int, head: Head) -> tuple[Head, bytes]:
        """Return the head of the chain as the file has it, and the bytes after its last line, without a line end."""
        status = os.fstat(fd)
        is_same = (head.device, head.inode) == (status.st_dev, status.st_ino)
        start = head.end if is_same and head.end <= status.st_size else 0
        if not head.seq:
            return head, b""  # the chain begins: what was there before is not of it
        if status.st_size - start > _MOST_STRAY_BYTES:
            return chain.begin(chain.OF_FILE), b""
        stray = os.pread(fd, status.st_size - start, start)
        assert self._key is not None, "the file has a chain"
        head, stray = chain.follow(head, stray, self._key, *self._earlier)
        return head, stray.removesuffix(_NEWLINE)

    def _read(self, heads: int) -> Head:
        """Return the head of the chain, or of a new one if there is none or its checksum is wrong."""
        assert self._key is not None, "the file has a chain"
        found = chain.unpack(os.pread(heads, chain.HEAD_BYTES, 0), self._key, *self._earlier)
        if found is None:
            found = chain.begin(chain.OF_FILE)
            self._write_head(heads, found)  # takes its room, so that it can be replaced on a full disk
        return found

    def _write_head(self, heads: int, head: Head) -> None:
        assert self._key is not None, "the file has a chain"
        if os.pwrite(heads, chain.pack(head, self._key, *self._earlier), 0) < chain.HEAD_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path) + CHAIN_SUFFIX)


def read_head(path: Path, *keys: bytes) -> Head | None:
    """Return the head of the chain of the log at `path`, or None if it is not known. Raises OSError."""
    try:
        return chain.unpack(_beside(path).read_bytes(), *keys)
    except FileNotFoundError:
        return None


def _beside(path: Path) -> Path:
    return path.with_name(path.name + CHAIN_SUFFIX)


class PartlyWritten(OSError):
    """`lines` were written in whole, the rest was not."""

    def __init__(self, lines: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror, cause.filename)
        self.lines = lines


class _Opened:
    """The descriptor of the file that is at a path now."""

    def __init__(self, path: Path, flags: int) -> None:
        self._path = path
        self._flags = flags | os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._pause = threading.Event()  # never set
        # what changes
        self._fd = -1
        self._identity = (0, 0)

    def current(self) -> int:
        """Return the descriptor, of another file if the old one was moved away."""
        try:
            there = os.stat(self._path)
            is_current = (there.st_dev, there.st_ino) == self._identity
        except FileNotFoundError:
            is_current = False
        if self._fd < 0 or not is_current:
            self.close()
            self._fd = _open(self._path, self._flags)
            opened = os.fstat(self._fd)
            self._identity = (opened.st_dev, opened.st_ino)
        return self._fd

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Yield the descriptor while this process has the lock. Waits half a second: the other one may be stopped.

        Raises BlockingIOError.
        """
        fd = self.current()
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._pause.wait(_LOCK_PAUSE_S)
        else:
            raise BlockingIOError(errno.EAGAIN, "another process keeps it locked", str(self._path))
        try:
            yield fd
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: Path, flags: int) -> int:
    """Open or make the file. Where other users can put names, a link is not followed and no file of theirs is taken."""
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
    """Write once; return how many lines are written whole, the last one maybe without its line end.

    `torn`: end a line that was cut short first.
    """
    left = os.write(fd, b"".join([_NEWLINE, *lines] if torn else lines)) - torn
    for number, line in enumerate(lines):
        left -= len(line)
        if left < -len(_NEWLINE):
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
