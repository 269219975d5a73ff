"""The machine that is measured on: its two cores, what else happened on it meanwhile, what a process uses of it.

Everything is read from the kernel; nothing here knows servers or load.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from fairvisor import engine

SERVER_CORE = "0"
LOAD_CORE = "1"
BOTH_CORES = "0,1"
TOOLS = Path(__file__).parent / ".venv" / "bin"  # what `install.py` puts there
PATH = os.pathsep.join([os.environ.get("PATH", ""), str(TOOLS), "/usr/sbin"])


class Disturbed(NamedTuple):
    """Shares of the machine, 0 to 1: what other processes had, and what its host did not give."""

    elsewhere: float
    stolen: float


class Machine:
    """What the processors have done since it was made: for all, and for this process with its children (proc(5))."""

    def __init__(self) -> None:
        self._before = _processors()
        self._ours = _family_ticks(os.getpid())

    def disturbed(self) -> Disturbed:
        """Since it was made."""
        used, stolen, total = (now - before for now, before in zip(_processors(), self._before, strict=True))
        ours = _family_ticks(os.getpid()) - self._ours
        return Disturbed(max(0.0, round((used - ours) / total, 2)), round(stolen / total, 3))


def _processors() -> tuple[int, int, int]:
    """Clock ticks: used by processes (without interrupts, which belong to nobody), stolen, and all there are."""
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, *_, stolen = ticks
    return user + nice + system, stolen, max(1, sum(ticks))


def _family_ticks(pid: int) -> int:
    """Clock ticks of a process, of those that it has waited for, and of those that it has started."""
    try:
        own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        return sum(map(int, own)) + sum(map(_family_ticks, children(pid)))
    except OSError:
        return 0


def children(pid: int) -> list[int]:
    """The processes that this one has started and that still run."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processor_ns(pids: list[int]) -> int:
    """The processor time that these processes have used (clock_getcpuclockid(3))."""
    return sum(time.clock_gettime_ns(~pid << 3 | 2) for pid in pids)


def unique_bytes(pid: int) -> int:
    """Memory that only this process maps (USS), without the segment of counters, which belongs to all workers."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-", line):
            counts = "/dev/shm/" not in line
        elif counts and line.startswith("Private_"):
            total += int(line.split()[1]) * 1024
    return total


def program(name: str) -> str | None:
    """The path of a program: from PATH, or as `install.py` put it beside this folder."""
    return shutil.which(name, path=PATH)


def described() -> dict[str, str]:
    """What was measured, where and when."""
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": " ".join(processor[1].split()) if processor else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiled": "no" if engine.__file__.endswith(".py") else "yes",
    } | _versions()


def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("fairvisor", "uvloop", "gunicorn")}
    for name, argument in (("nginx", "-v"), ("envoy", "--version"), ("wrk", "-v")):
        path = program(name)
        if path is not None:
            run = subprocess.run([path, argument], capture_output=True, text=True, check=False)
            version = re.search(r"\d+\.\d+\.\d+", run.stdout + run.stderr)
            found[name] = version[0] if version else "unknown"
    return found
