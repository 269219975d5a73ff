"""What an edge does when its disk is full, read-only or gone: with a real file system of 2 MiB.

    python perf/full_disk.py [--format table|json]

The state directory and the audit log stand on a tmpfs that is mounted for this run (as root, or in a user namespace of
its own through unshare). For each fault: decisions go on, `/metrics` and `fairvisor status` name it, and it heals by
itself when the disk does. Anything else ends the run with an error. Not part of the tests, because few places where
they run may mount; those replace the system calls instead.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from decisions import show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "processes"))

from edge_server import Edge, ask, bundle_of, wait_until

from fairvisor.cli.edge import Edge as Admin

SIZE = "2m"


class Fault(NamedTuple):
    """Something done to the disk, how it is undone, and which parts are then told to be faulty."""

    name: str
    break_it: Callable[[], None]
    heal_it: Callable[[], None]
    parts: frozenset[str]


class Disk:
    """A small file system and what can go wrong with it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self) -> None:
        """Until not one byte more is taken."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        self._ballast.unlink()

    def write_protect(self) -> None:
        """From now on nothing can be opened for writing; what is open, as the log, may be written on."""
        subprocess.run(["mount", "--bind", self.place, self.place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", self.place], check=True)

    def write_enable(self) -> None:
        subprocess.run(["umount", self.place], check=True)


@contextmanager
def small_disk() -> Iterator[Disk]:
    """A tmpfs of 2 MiB, gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="fairvisor-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", place], check=True)
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()


def faults(disk: Disk, edge: Edge, log: Path) -> list[Fault]:
    """In the order in which they are tried."""
    state, audit, file = frozenset({"state_dir", "snapshot"}), frozenset({"audit_log"}), edge.policy
    away = file.with_suffix(".away")
    return [
        Fault("a full disk", disk.fill, disk.empty, state | audit),
        Fault("a read-only disk", disk.write_protect, disk.write_enable, state),
        Fault("no directory for the log", lambda: shutil.rmtree(log.parent), log.parent.mkdir, audit),
        Fault("no bundle file", lambda: os.rename(file, away), lambda: os.rename(away, file),
              frozenset({"bundle_file"})),
    ]  # fmt: skip


def told(edge: Edge) -> frozenset[str]:
    """The parts that /metrics and `fairvisor status` call faulty; they must agree."""
    client = edge.connect()
    client.send(b"GET /metrics HTTP/1.1\r\nHost: edge\r\n\r\n")
    text = client.answer()[2].decode()
    client.close()
    in_metrics = {line.split('"')[1] for line in text.splitlines()
                  if line.startswith("fairvisor_fault{") and float(line.rpartition(" ")[2])}  # fmt: skip
    admin = Admin(edge.environ["FAIRVISOR_ADMIN_BIND"], None)
    in_status = set(admin.ask("GET", "status")["faults"])
    return frozenset(in_metrics) if in_metrics == in_status else frozenset({"?"})


def push(edge: Edge, version: int) -> bool:
    """A new version of the bundle, acknowledged by every worker; is it durable?"""
    admin = Admin(edge.environ["FAIRVISOR_ADMIN_BIND"], None)
    document = json.dumps(limited(version)).encode()
    published = admin.ask("PUT", "bundle", body=document)
    assert published["lagging"] == [], published
    return bool(published["durable"])


def limited(version: int) -> dict[str, Any]:
    """A bundle that admits one request for each key: every second one is an audit event."""
    rule = {
        "name": "once",
        "limit_keys": ["header:x-key"],
        "algorithm": "token_bucket",
        "algorithm_config": {"tokens_per_second": 0.001, "burst": 1},
    }
    return bundle_of(
        {"id": "all", "spec": {"selector": {"pathPrefix": "/"}, "rules": [rule]}}, version=version
    )


def decide(edge: Edge, number: int) -> None:
    """A key that was never seen passes once, whatever the disk does."""
    client = edge.connect()
    statuses = [client.status(ask("/", "GET", f"X-Key: {number}")) for _ in range(2)]
    client.close()
    assert statuses == [204, 429], statuses


def suffer(edge: Edge, fault: Fault, version: int) -> dict[str, Any]:
    """One fault, from its beginning until nothing is told any more."""
    on_disk = "state_dir" in fault.parts
    fault.break_it()
    durable = push(edge, version)
    assert durable is not on_disk, "what cannot be kept is not durable"
    numbers = iter(range(version * 1_000_000, (version + 1) * 1_000_000))

    def all_told() -> bool:
        decide(edge, next(numbers))
        return told(edge) == fault.parts

    began = time.monotonic()
    wait_until(all_told)
    seen = time.monotonic()
    for _ in range(200):
        decide(edge, next(numbers))
    fault.heal_it()
    healing = time.monotonic()
    wait_until(lambda: not told(edge))
    healed = time.monotonic()
    assert push(edge, version + 1), "healed, and not durable"
    return {
        "fault": fault.name,
        "told": ", ".join(sorted(fault.parts)),
        "told_after_s": round(seen - began, 1),
        "decisions_meanwhile": 2 * (next(numbers) - version * 1_000_000),
        "healed_after_s": round(healed - healing, 1),
    }


def run() -> list[dict[str, Any]]:
    with small_disk() as disk, tempfile.TemporaryDirectory(prefix="fairvisor-full-") as name:
        log = disk.place / "logs" / "audit.log"
        log.parent.mkdir()
        edge = Edge(Path(name), limited(1), {
            "FAIRVISOR_WORKER_PROCESSES": "2",
            "FAIRVISOR_STATE_DIR": str(disk.place / "state"),
            "FAIRVISOR_AUDIT_LOG": str(log),
            "FAIRVISOR_ADMIN_BIND": f"unix:{name}/admin",
            "FAIRVISOR_SHARED_DICT_SIZE": "1m",
        })  # fmt: skip
        try:
            edge.wait_ready()
            return [suffer(edge, fault, 10 * place) for place, fault in enumerate(faults(disk, edge, log), 1)]
        finally:
            edge.clean_up()


def main() -> None:
    """Get the right to mount, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    if os.geteuid():
        os.execvp("unshare", ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv])
    rows = run()
    show(rows, options.format)


if __name__ == "__main__":
    main()
