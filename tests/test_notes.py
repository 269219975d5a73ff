"""Notes: faults that every process can read, as long as they last; and the snapshot's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes.edge_server import remove_shared_memory

from fairvisor import notes
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.memory import InstanceMemory
from fairvisor.notes import Notes
from fairvisor.snapshots import Snapshots
from fairvisor.state import StateDirectory


def at(second: int) -> Now:
    return Now(second * NS_PER_S, (1_800_000_000 + second) * NS_PER_S)


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    remove_shared_memory(name)


def notes_of(name: str) -> Notes:
    return Notes(InstanceMemory.make(name))


class TestNotes:
    def test_every_process_reads_what_one_wrote(self, name: str) -> None:
        assert notes_of(name).put(notes.STATE_DIR, "the disk is full", at(1))
        assert notes_of(name).get(notes.STATE_DIR) == ("the disk is full", at(1).wall_ns, "")

    def test_what_is_said_already_is_not_said_again(self, name: str) -> None:
        assert notes_of(name).put(notes.STATE_DIR, "full", at(1))
        assert not notes_of(name).put(notes.STATE_DIR, "full", at(2))

    def test_a_fault_that_changes_its_words_keeps_the_time_it_began(self, name: str) -> None:
        found = notes_of(name)
        found.put(notes.STATE_DIR, "full", at(1))
        assert found.put(notes.STATE_DIR, "read-only", at(2))
        assert found.get(notes.STATE_DIR) == ("read-only", at(1).wall_ns, "")

    def test_another_failed_reload_has_a_time_of_its_own(self, name: str) -> None:
        found = notes_of(name)
        found.put(notes.RELOAD, "wrong", at(1))
        found.put(notes.RELOAD, "wrong as well", at(2))
        note = found.get(notes.RELOAD)
        assert note is not None
        assert note.since_ns == at(2).wall_ns

    def test_a_fault_that_is_gone_is_dropped_once(self, name: str) -> None:
        found = notes_of(name)
        found.put(notes.SNAPSHOT, "full", at(1))
        assert found.drop(notes.SNAPSHOT)
        assert not found.drop(notes.SNAPSHOT)
        assert found.all() == {}

    def test_a_failed_reload_is_no_fault_of_the_moment(self, name: str) -> None:
        found = notes_of(name)
        found.put(notes.RELOAD, "wrong", at(1))
        found.put(notes.SNAPSHOT, "full", at(1))
        assert set(found.all()) == {notes.RELOAD, notes.SNAPSHOT}
        assert set(found.faults()) == {notes.SNAPSHOT}

    def test_another_instance_has_notes_of_its_own(self, name: str) -> None:
        notes_of(name).put(notes.SNAPSHOT, "full", at(1))
        other = notes_of(name + "-note-snapshot")
        assert other.all() == {}
        other.drop_all()
        remove_shared_memory(name + "-note-snapshot")
        assert set(notes_of(name).all()) == {notes.SNAPSHOT}

    def test_without_room_a_fault_is_said_once_all_the_same(
        self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        found = notes_of(name)
        found._directory.path = tmp_path / "no" / "where"
        assert found.put(notes.SNAPSHOT, "full", at(1))
        assert not found.put(notes.SNAPSHOT, "full", at(2))
        assert found.put(notes.SNAPSHOT, "fuller", at(3))

    def test_a_note_that_cannot_be_read_is_none(self, name: str) -> None:
        InstanceMemory.make(name).write("note-snapshot", b"{")
        assert notes_of(name).get(notes.SNAPSHOT) is None


class TestSnapshotFile:
    @pytest.fixture
    def segment(self, name: str) -> Segment:
        return Segment.open(InstanceMemory.make(name), 1 << 17)

    def snapshots(self, segment: Segment, state: Path) -> Snapshots:
        return Snapshots(segment.directory, StateDirectory(state, "one"), lambda: at(5))

    def test_what_was_saved_is_found_again(self, segment: Segment, tmp_path: Path) -> None:
        segment.table.add(7, at(5).mono_ns, 100, 1000, 3600 * NS_PER_S)
        seed, key = segment.table.seed, segment.reservation_key
        found = self.snapshots(segment, tmp_path / "state")
        assert found.save(segment)
        assert segment.table.word_get(Word.SNAPSHOT_WALL_NS) == at(5).wall_ns
        Segment.unlink(segment.directory)
        again = Segment.open(segment.directory, 1 << 17, find_saved=found.find)
        assert (again.table.seed, again.reservation_key) == (seed, key)
        assert again.table.peek_total(7, at(5).mono_ns) == 100

    def test_where_a_segment_is_the_snapshot_is_not_asked_for(self, segment: Segment, tmp_path: Path) -> None:
        found = self.snapshots(segment, tmp_path)
        found.save(segment)
        segment.table.add(7, at(5).mono_ns, 100, 1000, 3600 * NS_PER_S)
        again = Segment.open(segment.directory, 1 << 17, find_saved=found.find)
        assert again.table.peek_total(7, at(5).mono_ns) == 100

    def test_a_directory_that_cannot_be_written_is_a_fault_until_it_can(
        self, segment: Segment, tmp_path: Path
    ) -> None:
        (tmp_path / "state").write_text("in the way")
        found = self.snapshots(segment, tmp_path / "state")
        assert not found.save(segment)
        assert "cannot be written" in Notes(segment.directory).faults()[notes.SNAPSHOT].text
        assert segment.table.word_get(Word.SNAPSHOT_WALL_NS) == 0
        (tmp_path / "state").unlink()
        assert found.save(segment)
        assert Notes(segment.directory).faults() == {}

    def test_a_full_disk_leaves_the_old_snapshot(
        self, segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = self.snapshots(segment, tmp_path)
        found.save(segment)
        before = (tmp_path / "one.snapshot").read_bytes()

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fairvisor.state.os.write", full)
        assert not found.save(segment)
        assert (tmp_path / "one.snapshot").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["one.snapshot"]

    def test_a_snapshot_that_cannot_be_believed_is_left_where_it_is(
        self, segment: Segment, tmp_path: Path
    ) -> None:
        (tmp_path / "one.snapshot").write_bytes(b"something else")
        assert self.snapshots(segment, tmp_path).find() is None
        assert (tmp_path / "one.snapshot").exists()

    def test_where_there_is_none_nothing_is_found(self, segment: Segment, tmp_path: Path) -> None:
        assert self.snapshots(segment, tmp_path / "nowhere").find() is None
