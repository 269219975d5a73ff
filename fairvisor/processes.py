"""Which process is which, and whether it still lives.

A pid alone is not enough: it is used again after its process died. Together with the time at which the process started
it names one process of this boot, and both fit into one word of shared memory. A process that has died and was not
collected by its parent yet (a zombie) counts as dead: it runs no code any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PID_BITS: Final = 22  # PID_MAX_LIMIT of the kernel is 2^22
_DEAD: Final = ("Z", "X")


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); 0 when it does not live."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in _DEAD else int(fields[19])


def identity(pid: int) -> int:
    """One number for a living process, below 2^64 and never 0; 0 when there is none."""
    started = start_time(pid)
    return started << _PID_BITS | pid if started else 0


def pid_of(process: int) -> int:
    """The pid in an identity."""
    return process & (1 << _PID_BITS) - 1


def is_alive(process: int) -> bool:
    """Whether the process of this identity lives."""
    return process != 0 and identity(pid_of(process)) == process
