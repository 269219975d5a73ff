"""The state directory: files that outlive the machine's memory.

Each file is written whole beside its place, brought to the disk and renamed, so that a crash at any moment leaves the
old one or the new one. A directory that is missing is made; one that cannot be written is a fault that callers report
and try again: no decision depends on it. Files carry the name of the instance, so that several can share a directory.
This module does not know what is in them.
"""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_BUNDLE: Final = "bundle"
_SNAPSHOT: Final = "snapshot"
_NEW: Final = ".new"
_UNFINISHED_S: Final = 600  # no write takes that long


class StateDirectory:
    """The files of one instance. Methods raise OSError."""

    def __init__(self, directory: Path, instance: str) -> None:
        self.directory = directory
        self.bundle = directory / f"{instance}.{_BUNDLE}"
        self.snapshot = directory / f"{instance}.{_SNAPSHOT}"

    def write(self, place: Path, pieces: Iterable[bytes]) -> None:
        """Replace the file at `place`, durably. Nothing of it is left when `pieces` raises."""
        _make_directory(self.directory)
        new = place.with_name(f"{place.name}.{secrets.token_hex(4)}{_NEW}")
        try:
            fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as file:
                for piece in pieces:
                    _write_all(file.fileno(), piece)
                os.fsync(file.fileno())
                _remove_unfinished(place, os.fstat(file.fileno()).st_mtime)
            new.rename(place)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)
        _sync_directory(self.directory)

    def remove(self, *places: Path) -> list[Path]:
        """Remove files; which there were."""
        removed = []
        for path in places:
            with suppress(FileNotFoundError):
                path.unlink()
                removed.append(path)
        return removed


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
        directory.mkdir(exist_ok=True)
        directory.chmod(0o700)


def _write_all(fd: int, data: bytes) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


def _sync_directory(directory: Path) -> None:
    """Bring the rename to the disk: without this a power cut may bring the old file back."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
