"""The POSIX shared-memory object that holds the segment of an instance: its name, whose it is, who may replace it.

The name ends in random digits, so that no other user can have it, and is written in the file `segment` of the
instance's directory: an object is finished before that file names it. Version 0.1 named the object as the segment is
called; such an object is found, and named anew. This module knows nothing of what an object holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import posix_ipc

from fairvisor.errors import SegmentError
from fairvisor.memory import SHM_DIR, InstanceMemory, check_own, is_own_file, own_names, plain_path

_NAMED_BY: Final = "segment"  # the file that holds the name of the object
_LOCK: Final = "segment-lock"
_RANDOM_BYTES: Final = 16
_MODE: Final = 0o600


class Foreign(SegmentError):
    """The instance's own object was removed, and another user took its name."""


def segment_name(instance: str) -> str:
    """Return what the segment of an instance is called: in its snapshot, and in what is said about it."""
    return f"fairvisor-{instance}"


@contextmanager
def lock(directory: InstanceMemory) -> Iterator[None]:
    """Hold the right to make, name or remove objects of the instance."""
    fd = directory.open_lock(_LOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def find(directory: InstanceMemory) -> str:
    """Return the name of the instance's object, which may be gone; "" when there is none."""
    try:
        name = directory.read(_NAMED_BY).decode("ascii", "replace")
    except FileNotFoundError:
        earlier = segment_name(directory.instance)
        return earlier if is_own_file(_path(earlier), directory.uid) else ""
    digits = name.removeprefix(_prefix(directory))
    return name if re.fullmatch(f"[0-9a-f]{{{2 * _RANDOM_BYTES}}}", digits) else ""


@contextmanager
def opened(directory: InstanceMemory, name: str) -> Iterator[int]:
    """Open an object: its descriptor. FileNotFoundError: there is none. SegmentError: not ours, or opened to others."""
    path = _path(name)
    if not name:
        raise FileNotFoundError(errno.ENOENT, "no such segment", segment_name(directory.instance))
    status = os.lstat(path)
    try:
        check_own(status, path, directory.uid, stat.S_IFREG | _MODE)
    except PermissionError as error:
        kind = SegmentError if is_own_file(path, directory.uid) else Foreign
        raise kind(f"{path} {error.strerror}") from error
    shared = posix_ipc.SharedMemory(f"/{name}")
    try:
        yield shared.fd
    finally:
        shared.close_fd()


@contextmanager
def made(directory: InstanceMemory) -> Iterator[tuple[str, int]]:
    """Make an empty object: its name and descriptor. It is removed when what is done with it fails."""
    name = _new_name(directory)
    shared = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=_MODE)
    try:
        os.fchmod(shared.fd, _MODE)  # whatever the umask is
        yield name, shared.fd
    except BaseException:
        posix_ipc.unlink_shared_memory(f"/{name}")
        raise
    finally:
        shared.close_fd()


def choose(directory: InstanceMemory, name: str) -> None:
    """Make this the object of the instance."""
    directory.write(_NAMED_BY, name.encode())


def name_anew(directory: InstanceMemory, name: str) -> None:
    """Give the instance's object, if version 0.1 named it, a name that no other user can have."""
    if name == segment_name(directory.instance):
        new = _new_name(directory)
        os.link(_path(name), _path(new))
        choose(directory, new)
        os.unlink(_path(name))


def forget(directory: InstanceMemory) -> None:
    """Leave the instance without an object; `remove_all_but` removes what it had."""
    directory.remove(_NAMED_BY)


def remove_all_but(directory: InstanceMemory, kept: str) -> list[Path]:
    """Remove what openers left that were killed, and what was replaced: the paths. Processes keep what they mapped."""
    names = own_names(_prefix(directory), directory.uid, stat.S_IFREG)
    earlier = segment_name(directory.instance)
    if is_own_file(_path(earlier), directory.uid):
        names.append(earlier)
    removed = [name for name in names if name != kept]
    for name in removed:
        posix_ipc.unlink_shared_memory(f"/{name}")
    return [_path(name) for name in removed]


def _prefix(directory: InstanceMemory) -> str:
    return f"{plain_path(directory.instance, directory.uid).name}+segment-"


def _new_name(directory: InstanceMemory) -> str:
    return _prefix(directory) + secrets.token_hex(_RANDOM_BYTES)


def _path(name: str) -> Path:
    return SHM_DIR / name
