"""A machine whose clocks and disks a test controls, and the command on it: `python fake_machine.py CONTROL serve ...`.

Only `fairvisor/clock.py` reads a clock, so its two sources are all of time that the counters have: they are moved here,
before it is imported. gunicorn, the kernel's time-outs and the clients keep the time of the real machine, as they would
not notice the step either. Disks are slow where the edge makes them: each `write` to a file and each `fsync` takes so
much longer, and lets other threads run, as the system call does. CONTROL is a file that the processes and the test map;
the product has no setting for any of it.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SHIFT = struct.Struct("<q")
_WALL_AT, _MONO_AT, _DISK_AT = 0, 8, 16
NS_PER_S = 10**9


class Machine:
    """What is wrong with the machine now; everybody who maps the same file sees it at once."""

    def __init__(self, control: Path) -> None:
        with control.open("a+b") as file:
            file.truncate(mmap.PAGESIZE)
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def wall_ns(self) -> int:
        """The wall clock, as the edge reads it."""
        return _real_wall_ns() + self._get(_WALL_AT)

    def set_wall(self, wall_ns: int) -> None:
        """Somebody sets the wall clock."""
        self._put(_WALL_AT, wall_ns - _real_wall_ns())

    def sleep(self, duration_ns: int) -> None:
        """Both clocks go on without anybody having run, as after a suspended virtual machine."""
        self._put(_WALL_AT, self._get(_WALL_AT) + duration_ns)
        self._put(_MONO_AT, self._get(_MONO_AT) + duration_ns)

    def slow_disks(self, delay_ns: int) -> None:
        """Writing takes so much longer from now on."""
        self._put(_DISK_AT, delay_ns)

    def take_over(self) -> None:
        """Make this process and its children live on the machine."""
        pause = threading.Event()  # never set

        def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
            def slow(fd: int, *rest: Any) -> Any:
                delay_ns = self._get(_DISK_AT)
                if delay_ns and _is_on_disk(fd):
                    pause.wait(delay_ns / NS_PER_S)
                return call(fd, *rest)

            return slow

        os.write, os.fsync = slowly(os.write), slowly(os.fsync)
        time.time_ns = self.wall_ns
        time.monotonic_ns = lambda: _real_mono_ns() + self._get(_MONO_AT)

    def _get(self, at: int) -> int:
        (value,) = _SHIFT.unpack_from(self._memory, at)
        return int(value)

    def _put(self, at: int, value: int) -> None:
        _SHIFT.pack_into(self._memory, at, value)


_real_wall_ns, _real_mono_ns = time.time_ns, time.monotonic_ns
_SHARED_MEMORY = os.stat("/dev/shm").st_dev


def _is_on_disk(fd: int) -> bool:
    """A file or folder outside of memory."""
    status = os.fstat(fd)
    return (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)) and status.st_dev != _SHARED_MEMORY


if __name__ == "__main__":
    Machine(Path(sys.argv.pop(1))).take_over()

    from fairvisor.cli.main import main

    main()
