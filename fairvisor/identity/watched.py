"""A file whose parsed content follows the file: reloaded when it changed, kept when the new one is broken.

`check` is called off the request path; readers take `content`, which changes by one assignment. Only `stat` is needed
to see that nothing changed. This module knows nothing of what the files mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

# device, inode, size in bytes, modification time in nanoseconds
_Stamp = tuple[int, int, int, int]


class Watched(Generic[T]):
    """A file and what `load` made of it. `load` raises OSError or ValueError for a file it cannot use.

    `content` is None until a usable file was found. `problem` says what is wrong with the file as it is now, None when
    nothing is; with a problem and a content, the content is that of the last usable file.
    """

    def __init__(self, path: Path, load: Callable[[Path], T]) -> None:
        self.path = path
        self.content: T | None = None
        self.problem: str | None = f"{path} was not read yet"
        self._load = load
        self._stamp: _Stamp | None = None

    def check(self) -> bool:
        """Read the file if it is not the one that was read last. True when `content` was replaced."""
        stamp: _Stamp | None = None
        try:
            stamp = _stamp(self.path)
            if stamp == self._stamp:
                return False
            content = self._load(self.path)
            if _stamp(self.path) != stamp:  # it is being written: what was read may be half of it
                return False
        except OSError as error:
            self._stamp = None  # permissions, say: may be put right without a change of the file
            self.problem = f"{self.path}: {error.strerror or error}"
            return False
        except ValueError as error:
            self._stamp = stamp
            self.problem = f"{self.path}: {error}"
            return False
        self.content, self._stamp, self.problem = content, stamp, None
        return True


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The bytes of a file that may have at most `most_bytes`; ValueError when it has more."""
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes} bytes")
    return data


def _stamp(path: Path) -> _Stamp:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
