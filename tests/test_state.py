"""The state directory: what another user of the machine can write is neither read nor written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fairvisor.state import StateDirectory

FOREIGN = 60_002


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    made = StateDirectory(tmp_path / "state", "one")
    made.write(made.bundle, [b"ours"])
    return made


def test_what_was_written_is_read(state: StateDirectory) -> None:
    assert state.read(state.bundle) == b"ours"
    with pytest.raises(FileNotFoundError):
        state.read(state.snapshot)


def test_the_directory_and_what_is_above_it_are_made_for_the_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = StateDirectory(tmp_path / "above" / "state", "one")
        made.write(made.bundle, [b"ours"])
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "above", made.directory, made.bundle)]
    assert modes == [0o700, 0o700, 0o600]


def test_a_directory_that_everybody_can_write_is_not_used(state: StateDirectory) -> None:
    state.directory.chmod(0o777)
    with pytest.raises(PermissionError, match=r"other users can write it \(mode 0777, chmod go-w\)"):
        state.read(state.bundle)
    with pytest.raises(PermissionError, match="other users can write it"):
        state.write(state.snapshot, [b"counters"])
    assert list(state.directory.iterdir()) == [state.bundle]
    state.directory.chmod(0o755)
    assert state.read(state.bundle) == b"ours"


def test_a_file_that_everybody_can_write_is_not_read(state: StateDirectory) -> None:
    state.bundle.chmod(0o606)
    with pytest.raises(PermissionError, match="other users can write it"):
        state.read(state.bundle)


def link(path: Path) -> None:
    path.with_name("target").write_bytes(b"theirs")
    path.symlink_to("target")


def fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(("put", "why"), [(link, "symbolic links"), (fifo, "it is no regular file")])
def test_a_link_is_not_followed_and_a_fifo_not_waited_for(
    state: StateDirectory, put: Callable[[Path], None], why: str
) -> None:
    put(state.snapshot)
    with pytest.raises(OSError, match=why):
        state.read(state.snapshot)
    state.write(state.snapshot, [b"counters"])
    assert state.read(state.snapshot) == b"counters"


@pytest.mark.needs("root")
class TestAnotherUser:
    def test_whose_directory_it_is_not_used(self, state: StateDirectory) -> None:
        os.chown(state.directory, FOREIGN, 0)
        with pytest.raises(PermissionError, match=f"it belongs to user {FOREIGN}, allowed are 0 and root"):
            state.read(state.bundle)
        with pytest.raises(PermissionError, match="it belongs to user"):
            state.write(state.snapshot, [b"counters"])

    def test_whose_file_it_is_not_read(self, state: StateDirectory) -> None:
        os.chown(state.bundle, FOREIGN, 0)
        with pytest.raises(PermissionError, match=f"it belongs to user {FOREIGN}, allowed are 0 and root"):
            state.read(state.bundle)

    @pytest.mark.parametrize("place", ["directory", "bundle"])
    def test_of_our_own_group_is_trusted_and_of_another_one_not(
        self, state: StateDirectory, place: str
    ) -> None:
        """The volumes of Kubernetes are writable for the group that the pod runs as."""
        path: Path = getattr(state, place)
        path.chmod(0o770)
        assert state.read(state.bundle) == b"ours"
        os.chown(path, 0, FOREIGN)
        with pytest.raises(PermissionError, match="other users can write it"):
            state.read(state.bundle)
