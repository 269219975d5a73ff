"""Other users of the machine: what they do, and an edge that one of them runs. Only root can be them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import TypeVar

ResultT = TypeVar("ResultT")

OWNER = 60_001  # runs the edge
STRANGER = 60_002  # and has nothing to do with it

# The checkout may be below a directory that only root can enter: the modules are found through open descriptors.
_RUN_AS = """
import os, sys
uid, argv = int(sys.argv[1]), sys.argv[2:]
places = [os.open(path, os.O_PATH) for path in os.environ["PYTHONPATH"].split(os.pathsep)]
for place in places:
    os.set_inheritable(place, True)
os.environ["PYTHONPATH"] = os.pathsep.join(f"/proc/self/fd/{place}" for place in places)
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
os.execv(argv[0], argv)
"""
_MAIN = "from fairvisor.cli.main import main; main()"


def program_as(uid: int, *arguments: str) -> list[str]:
    """The `fairvisor` command as another user; its modules are those of PYTHONPATH."""
    return [
        sys.executable,
        "-c",
        _RUN_AS,
        str(uid),
        os.path.realpath(sys.executable),
        "-c",
        _MAIN,
        *arguments,
    ]


def as_user(uid: int, do: Callable[[], ResultT]) -> ResultT:
    """What `do` returns in a process of another user."""
    forks = multiprocessing.get_context("fork")
    results: multiprocessing.SimpleQueue[ResultT] = forks.SimpleQueue()

    def run() -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        os.umask(0)
        results.put(do())

    child = forks.Process(target=run)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    return results.get()


def errno_of(attempt: Callable[[], object]) -> int | None:
    """The number of the error that an attempt ends with."""
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None
