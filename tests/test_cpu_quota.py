"""How many workers `auto` is, on trees of files as kernels and container runtimes make them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairvisor.cpu_quota import usable_processors

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 32 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "34 32 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
OTHERS = "22 1 0:20 / /proc rw - proc proc rw\nnonsense\n"


@pytest.fixture(autouse=True)
def sixty_four_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))


class Tree:
    """A /proc and a /sys of a test."""

    def __init__(self, root: Path, mounts: str, groups: str) -> None:
        self.root = root
        self.write("proc/self/mountinfo", OTHERS + mounts)
        self.write("proc/self/cgroup", groups)

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8", "surrogateescape")

    def v2(self, group: str, quota: str) -> None:
        self.write(f"sys/fs/cgroup{group}/cpu.max", f"{quota}\n")

    def v1(self, group: str, quota_us: int, period_us: int = 100_000) -> None:
        self.write(f"sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_quota_us", f"{quota_us}\n")
        self.write(f"sys/fs/cgroup/cpu,cpuacct{group}/cpu.cfs_period_us", f"{period_us}\n")

    @property
    def found(self) -> int:
        return usable_processors(self.root)


@pytest.mark.parametrize(
    ("quota", "processors"),
    [
        ("max 100000", 64),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("100001 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("25000 10000", 3),
        ("9900000 100000", 64),
        ("", 64),
        ("a b", 64),
        ("100000 0", 64),
        ("-5 100000", 1),
    ],
)
def test_a_quota_is_rounded_up(tmp_path: Path, quota: str, processors: int) -> None:
    tree = Tree(tmp_path, V2.format(root="/"), "0::/\n")
    tree.v2("", quota)
    assert tree.found == processors


def test_the_smallest_quota_of_the_group_and_those_above_it_counts(tmp_path: Path) -> None:
    tree = Tree(tmp_path, V2.format(root="/"), "0::/kubepods.slice/pod1.slice/edge\n")
    tree.v2("/kubepods.slice/pod1.slice/edge", "max 100000")
    assert tree.found == 64
    tree.v2("/kubepods.slice", "800000 100000")
    assert tree.found == 8
    tree.v2("/kubepods.slice/pod1.slice", "300000 100000")
    assert tree.found == 3
    tree.v2("/kubepods.slice/pod1.slice/edge", "400000 100000")
    assert tree.found == 3
    tree.v2("/kubepods.slice/other", "100000 100000")
    assert tree.found == 3


def test_a_container_sees_its_own_group_at_the_mount_point(tmp_path: Path) -> None:
    """Without a namespace of control groups the path is that of the host, and the mount begins below it."""
    tree = Tree(tmp_path, V2.format(root="/docker/abc"), "0::/docker/abc/inner\n")
    tree.v2("", "500000 100000")
    tree.v2("/inner", "200000 100000")
    assert tree.found == 2


@pytest.mark.parametrize("group", ["/../../other.slice/x", "/system.slice/docker-1.scope"])
def test_a_path_that_leads_out_of_the_mount_leaves_what_is_mounted(tmp_path: Path, group: str) -> None:
    tree = Tree(tmp_path, V2.format(root="/docker/abc"), f"0::{group}\n")
    tree.v2("", "200000 100000")
    assert tree.found == 2


def test_version_1_has_two_files(tmp_path: Path) -> None:
    groups = "5:cpuset:/\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n"
    tree = Tree(tmp_path, MEMORY + V1.format(root="/"), groups)
    tree.v1("", -1)
    assert tree.found == 64
    tree.v1("/docker", 550_000)
    assert tree.found == 6
    tree.v1("/docker/abc", 75_000, 50_000)
    assert tree.found == 2


def test_both_versions_count_where_both_are_mounted(tmp_path: Path) -> None:
    mounts = V1.format(root="/") + V2.format(root="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified", 1)
    tree = Tree(tmp_path, mounts, "3:cpu,cpuacct:/a\n0::/b\n")
    tree.v1("/a", 300_000)
    assert tree.found == 3
    tree.write("sys/fs/cgroup/unified/b/cpu.max", "200000 100000\n")
    assert tree.found == 2


def test_the_affinity_bounds_it_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(tmp_path, V2.format(root="/"), "0::/\n")
    tree.v2("", "400000 100000")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 3, 5})
    assert tree.found == 3


@pytest.mark.parametrize("name", ["\udce9t\udce9", "a\x0cb\u2028c"], ids=["no UTF-8", "odd line ends"])
def test_names_of_other_mounts_and_groups_may_be_any_bytes(tmp_path: Path, name: str) -> None:
    tree = Tree(
        tmp_path, f"31 23 8:1 / /mnt/{name} rw - ext4 /dev/sda rw\n" + V2.format(root="/"), f"0::/{name}\n"
    )
    tree.v2(f"/{name}", "200000 100000")
    assert tree.found == 2


def test_what_is_not_there_bounds_nothing(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == 64
    assert Tree(tmp_path / "a", "", "").found == 64
    assert Tree(tmp_path / "b", V2.format(root="/"), "0::/gone\n").found == 64


def test_this_machine_has_a_number() -> None:
    assert 1 <= usable_processors() <= len(os.sched_getaffinity(0))
