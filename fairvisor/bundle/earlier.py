"""What version 0.1 kept in /dev/shm under names of its own: the active bundle is taken over, the rest is removed.

That version had no directory for an instance: its files were `fairvisor-<instance>+bundle-<generation>`, `+note-...`,
`+offer-...` and `+lock`. Files of other users are left alone. The segment is taken over by `counters/objects.py`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fairvisor.bundle.shared import object_name
from fairvisor.counters.objects import segment_name
from fairvisor.memory import SHM_DIR, InstanceMemory, is_own_file


def take_over(directory: InstanceMemory, generation: int) -> None:
    """Move the bundle of the active generation into the directory, unless there is one, and remove the rest."""
    name = object_name(generation)
    bundle = SHM_DIR / f"{_prefix(directory)}{name}"
    if bundle in _left(directory) and not directory.exists(name):
        with suppress(FileNotFoundError):  # another process of ours was faster
            os.rename(bundle, directory.path / name)
    remove(directory)


def remove(directory: InstanceMemory) -> list[Path]:
    """Remove everything: the paths."""
    left = _left(directory)
    for path in left:
        path.unlink(missing_ok=True)
    return left


def _left(directory: InstanceMemory) -> list[Path]:
    return [
        path for path in sorted(SHM_DIR.glob(f"{_prefix(directory)}*")) if is_own_file(path, directory.uid)
    ]


def _prefix(directory: InstanceMemory) -> str:
    return f"{segment_name(directory.instance)}+"  # no instance has a plus sign in its name
