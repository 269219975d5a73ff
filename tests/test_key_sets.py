"""The key sets of an instance: what other workers, the next start and the next boot find of what one worker fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.segment import Segment
from fairvisor.identity.fetch import Web
from fairvisor.identity.fetcher import KEEP_EVERY_NS, KeyFetcher
from fairvisor.identity.stored import StoredSet, set_name
from fairvisor.key_sets import UNUSED_NS, SharedKeySets
from fairvisor.state import StateDirectory

URL = "https://user:secret@idp.example/jwks.json?token=secret"
SET = StoredSet(b'{"keys": []}\nwith a line end', '"v1"', 1, 2, 3, 0, "")
LATE = Now(0, UNUSED_NS + 10 * NS_PER_S)


class Files:
    """The directory of an instance in shared memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.full = False

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def write(self, name: str, *pieces: bytes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.files[name] = b"".join(pieces)

    def remove(self, name: str) -> bool:
        return self.files.pop(name, None) is not None

    def names(self) -> list[str]:
        return sorted(self.files)


class Instance:
    """What the processes of an instance share. Each `worker` is one of them."""

    def __init__(self, folder: Path) -> None:
        self.segment = Segment.private(1 << 18)
        self.memory = Files()
        self.state = StateDirectory(folder, "i")

    def worker(self) -> SharedKeySets:
        return SharedKeySets(self.segment.table, self.memory, self.state)

    def reboot(self) -> None:
        """Shared memory is gone."""
        self.segment = Segment.private(1 << 18)
        self.memory = Files()


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path)


def test_what_one_worker_wrote_every_other_one_reads(instance: Instance) -> None:
    one, other = instance.worker(), instance.worker()
    assert other.read(URL) is None
    before = other.generation
    one.write(URL, SET)
    assert other.generation != before
    assert other.read(URL) == SET
    assert instance.worker().read(URL) == SET


def test_a_worker_that_met_an_unknown_key_tells_the_one_that_fetches(instance: Instance) -> None:
    one, other = instance.worker(), instance.worker()
    other.want(Now(0, 7))
    assert one.wanted_ns == 7


def test_a_set_is_there_again_after_a_reboot(instance: Instance) -> None:
    instance.worker().write(URL, SET)
    instance.reboot()
    assert instance.worker().read(URL) == SET


def test_files_are_private_and_their_names_tell_nothing_of_the_url(
    instance: Instance, tmp_path: Path
) -> None:
    instance.worker().write(URL, SET)
    (path,) = tmp_path.iterdir()
    assert path.name == f"i.keys-{set_name(URL)}"
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"secret" not in path.read_bytes()


def test_a_failure_is_shared_but_not_brought_to_the_disk(instance: Instance, tmp_path: Path) -> None:
    instance.worker().write(URL, SET)
    failed = SET._replace(failures=1, failure="answered 500, not 200")
    instance.worker().write(URL, failed)
    assert instance.worker().read(URL) == failed
    instance.reboot()
    assert instance.worker().read(URL) == SET


def _cut(data: bytes) -> bytes:
    return data[:-1]


def _flipped(data: bytes) -> bytes:
    return data.replace(b"keys", b"kexs")


def _of_another_version(data: bytes) -> bytes:
    import hashlib

    rest = data.partition(b"\n")[2].replace(b'"format":1', b'"format":9')
    return hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest


@pytest.mark.parametrize(
    "damage", [_cut, _flipped, _of_another_version, lambda data: b"", lambda data: b"\n\n"]
)
def test_a_damaged_record_is_not_used_and_the_other_copy_is(
    instance: Instance, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    instance.worker().write(URL, SET)
    name = f"keys-{set_name(URL)}"
    instance.memory.files[name] = damage(instance.memory.files[name])
    assert instance.worker().read(URL) == SET
    assert "cannot be read" in caplog.text
    path = instance.state.of(name)
    path.write_bytes(damage(path.read_bytes()))
    assert instance.worker().read(URL) is None


@pytest.mark.parametrize("kind", ["link", "fifo", "writable by others", "directory"])
def test_a_file_that_is_not_ours_alone_is_not_used(instance: Instance, tmp_path: Path, kind: str) -> None:
    instance.worker().write(URL, SET)
    instance.reboot()
    path = instance.state.of(f"keys-{set_name(URL)}")
    if kind == "writable by others":
        path.chmod(0o666)
    else:
        kept = path.rename(tmp_path / "elsewhere")
        {"link": lambda: path.symlink_to(kept), "fifo": lambda: os.mkfifo(path), "directory": path.mkdir}[
            kind
        ]()
    assert instance.worker().read(URL) is None


def test_a_set_that_cannot_be_kept_is_used_all_the_same_and_reported(
    instance: Instance, tmp_path: Path
) -> None:
    worker = instance.worker()
    instance.state = StateDirectory(tmp_path / "file" / "x", "i")
    (tmp_path / "file").write_bytes(b"")
    without_disk = instance.worker()
    without_disk.write(URL, SET)
    assert worker.read(URL) == SET, "other workers have it from shared memory"
    assert "are not safe from a reboot" in without_disk.warnings()[0]
    instance.memory.full = True
    newer = SET._replace(etag='"v2"')
    without_disk.write(URL, newer)
    assert without_disk.read(URL) == newer
    assert "cannot be shared with other workers" in without_disk.warnings()[0]


def test_records_that_nothing_names_any_more_are_removed_after_a_day(
    instance: Instance, tmp_path: Path
) -> None:
    worker = instance.worker()
    worker.write(URL, SET)
    worker.write("https://other.example/", SET._replace(tried_ns=LATE.wall_ns))
    worker.write("https://third.example/", SET)
    worker.remove_unused(frozenset({URL}), Now(0, 10))
    assert len(instance.memory.files) == 3
    worker.remove_unused(frozenset({URL}), LATE)
    assert len(instance.memory.files) == 2
    assert len(list(tmp_path.iterdir())) == 2
    assert instance.worker().read(URL) == SET


def test_a_set_that_could_not_be_kept_is_kept_as_soon_as_that_is_possible(
    instance: Instance, tmp_path: Path
) -> None:
    """Neither needs another fetch, and a set that can be kept takes no warning of another one away."""
    (tmp_path / "file").write_bytes(b"")
    instance.state = StateDirectory(tmp_path / "file" / "x", "i")
    worker = instance.worker()
    web = Web({})
    fetcher = KeyFetcher(worker, web)
    instance.memory.full = True
    worker.write(URL, SET)
    instance.memory.full = False
    worker.write("https://other.example/jwks", SET)
    assert any("cannot be shared" in warning for warning in worker.warnings())
    fetcher.step((), lambda: Now(KEEP_EVERY_NS, 1))
    assert not any("cannot be shared" in warning for warning in worker.warnings())
    assert instance.worker().read(URL) == SET
    (tmp_path / "file").unlink()
    fetcher.step((), lambda: Now(2 * KEEP_EVERY_NS, 1))
    assert worker.warnings() == ()
    instance.reboot()
    assert instance.worker().read(URL) == SET
