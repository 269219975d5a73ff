"""How many processors this process may use: what `auto` workers are made from.

Two things bound it: the affinity mask (which a cpuset is part of), and the CPU quota of its control group and of every
one above it, of which the smallest counts. cgroup v2 has both numbers in `cpu.max`, v1 has `cpu.cfs_quota_us` and
`cpu.cfs_period_us`; a machine may mount either or both. A quota of 1.5 processors is 2: a worker fewer would leave half
of one unused. What cannot be read bounds nothing. `root` is where /proc and the mounts are looked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_ROOT: Final = Path("/")
_NO_QUOTA: Final = ("max", "-1")


class _Mount(NamedTuple):
    """A mounted hierarchy: which of its groups is at the mount point (`root`), and where that is."""

    root: PurePosixPath
    point: PurePosixPath
    version: int


def usable_processors(root: Path = _ROOT) -> int:
    """Return how many processors this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = min(_quotas(root), default=None)
    return allowed if quota is None else max(1, min(allowed, -(-quota.numerator // quota.denominator)))


def _quotas(root: Path) -> Iterator[Fraction]:
    """Give the quota of each control group that this process is in, in processors."""
    with suppress(OSError):
        mounts = list(_mounts(_text(root / "proc/self/mountinfo")))
        groups = _text(root / "proc/self/cgroup").split("\n")
        for version, group in _own(groups):
            for mount in mounts:
                if mount.version == version:
                    yield from _upwards(root, mount, group)


def _text(file: Path) -> str:
    """Return the text of a file with names in it, which may be any bytes."""
    return file.read_text("utf-8", "surrogateescape")


def _own(lines: list[str]) -> Iterator[tuple[int, PurePosixPath]]:
    """Give the groups that bound the processor, from /proc/self/cgroup: `id:controllers:path` (cgroups(7))."""
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield 2, PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            yield 1, PurePosixPath(path)


def _mounts(table: str) -> Iterator[_Mount]:
    """Give the hierarchies in which quotas are, from /proc/self/mountinfo (proc(5)): the fields before ` - ` have the
    root and the mount point, those after it the type and the options."""
    for line in table.split("\n"):
        place, _, kind = line.partition(" - ")
        before, after = place.split(" "), kind.split(" ")
        if len(before) < 5 or len(after) < 3:
            continue
        point = PurePosixPath(before[4].replace("\\040", " "))
        if after[0] == "cgroup2":
            yield _Mount(PurePosixPath(before[3]), point, 2)
        elif after[0] == "cgroup" and "cpu" in after[2].split(","):
            yield _Mount(PurePosixPath(before[3]), point, 1)


def _upwards(root: Path, mount: _Mount, group: PurePosixPath) -> Iterator[Fraction]:
    """Give the quotas from a group up to the highest one that is mounted. In a container the mount often begins at the
    container's own group, or the path leads out of what is mounted: then that is the only one there is."""
    inside = ".." not in group.parts and group.is_relative_to(mount.root)
    below = group.relative_to(mount.root) if inside else PurePosixPath()
    for each in (below, *below.parents):
        quota = _quota(root / mount.point.relative_to("/") / each, mount.version)
        if quota is not None:
            yield quota


def _quota(directory: Path, version: int) -> Fraction | None:
    try:
        if version == 2:
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota, period = (
                (directory / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        return None if quota in _NO_QUOTA else Fraction(int(quota), int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None  # the root group has none
