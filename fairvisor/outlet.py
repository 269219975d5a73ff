"""Lines on their way to standard error, which may not be read: a bounded queue, and the thread that writes it.

A pipe whose reader stopped, a terminal at Ctrl-S, a disk in the network that hangs: a write to them waits for as long
as that lasts. The descriptor is shared with other programs, so it is not made non-blocking; only the thread of an
outlet writes, and nothing else in the process waits for it. What finds no room is counted, and a line says so when
lines are written again. A process that was forked begins with an empty queue and a thread of its own. This module knows
nothing of what the lines say.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from fairvisor.linefile import STDERR, Lines, PartlyWritten

MAX_BYTES: Final = 256 * 1024  # that wait to be written, in each process
_AGAIN_S: Final = 0.1  # after a descriptor that another program made non-blocking was full


class Outlet:
    """Writes lines to `target` in a thread of its own. `put` may be called from any thread and never waits for it.

    `lost_line` gives the line that says how many were lost.
    """

    def __init__(self, target: Lines, lost_line: Callable[[int], bytes]) -> None:
        self._target = target
        self._lost_line = lost_line
        self._on_lost: Callable[[int], object] | None = None
        self._pause = threading.Event()  # never set
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Begin with nothing to write; in a forked child the lock may be held by a thread that is not there."""
        self._changed = threading.Condition()  # guards what follows; reentrant, for signal handlers that log
        self._lines: deque[bytes] = deque()
        self._size_bytes = 0  # of the lines, and of those that are being written
        self._uncounted = 0  # lines that were lost before anything counted them
        self._unsaid = 0  # lines that were lost since a line said so
        self._thread: threading.Thread | None = None

    def count_losses(self, add: Callable[[int], object]) -> None:
        """Call `add` with the number of lines that are lost, from now on and so far."""
        with self._changed:
            self._on_lost = add
            uncounted, self._uncounted = self._uncounted, 0
        if uncounted:
            add(uncounted)

    def put(self, line: bytes) -> None:
        """Have a line written, which ends in a newline; it is lost when there is no room."""
        with self._changed:
            if self._size_bytes + len(line) > MAX_BYTES or not self._is_served():
                self._lose(1)
                return
            self._lines.append(line)
            self._size_bytes += len(line)
            self._changed.notify_all()

    def flush(self, within_s: float) -> bool:
        """Wait until everything is written, at most so long; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._size_bytes, within_s)

    def _is_served(self) -> bool:
        """Return whether a thread writes; it begins with the first line. A process that ends can start none."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="outlet", daemon=True)
            with suppress(RuntimeError):
                thread.start()
                self._thread = thread
        return self._thread is not None

    def _lose(self, lines: int) -> None:
        self._unsaid += lines
        if self._on_lost is None:
            self._uncounted += lines
        else:
            self._on_lost(lines)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                lines = [*self._lines]
                self._lines.clear()
            if self._write(lines):
                self._say_lost()
            with self._changed:
                self._size_bytes -= sum(map(len, lines))
                self._changed.notify_all()

    def _write(self, lines: list[bytes]) -> bool:
        """Write lines, however long that takes; what cannot be written is lost. Gives whether all were written."""
        done = 0
        while done < len(lines):
            try:
                self._target.append(lines[done:])
                return True
            except PartlyWritten as problem:
                done += problem.lines
                if problem.errno == errno.EAGAIN:
                    self._pause.wait(_AGAIN_S)
                    continue
                with self._changed:
                    self._lose(len(lines) - done)
                return False
        return True

    def _say_lost(self) -> None:
        """Write how many lines were lost, after those that were not."""
        with self._changed:
            if self._lines:
                return
            unsaid, self._unsaid = self._unsaid, 0
        if unsaid and not self._write([self._lost_line(unsaid)]):
            with self._changed:
                self._unsaid += unsaid


def unblocked_stderr() -> int:
    """Return a descriptor of standard error for what is written by a signal handler in C, which no thread can do.

    Opened anew, it can be non-blocking for this process alone. A socket, or what belongs to another user, cannot be
    opened: then it is the descriptor that all share.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{STDERR}", flags)
    except OSError:
        return STDERR
