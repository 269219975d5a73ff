"""What version 0.1 kept in /dev/shm under names of its own: the active bundle is taken over, the rest is removed.

That version had no directory for an instance: its files were `fairvisor-<instance>+bundle-<generation>`, `+note-...`,
`+offer-...` and `+lock`. Files of other users are left alone. The segment is taken over by `counters/objects.py`.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from fairvisor.bundle.shared import object_name
from fairvisor.counters.objects import segment_name
from fairvisor.memory import SHM_DIR, InstanceMemory, own_names


def take_over(directory: InstanceMemory, generation: int) -> None:
    """Move the bundle of the active generation into the directory, unless there is one, and remove the rest."""
    name = object_name(generation)
    for path in _left(directory):
        with suppress(FileNotFoundError):  # another process of ours was faster
            if path.name == _prefix(directory) + name and not directory.exists(name):
                os.rename(path, directory.path / name)
            else:
                path.unlink()


def remove(directory: InstanceMemory) -> list[Path]:
    """Remove everything: the paths."""
    left = _left(directory)
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _left(directory: InstanceMemory) -> list[Path]:
    return [SHM_DIR / name for name in own_names(_prefix(directory), directory.uid, stat.S_IFREG)]


def _prefix(directory: InstanceMemory) -> str:
    return f"{segment_name(directory.instance)}+"  # no instance has a plus sign in its name
