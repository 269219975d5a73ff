"""Leading, in simulated time: who holds the lease, and when the bundle file is offered."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.leader import LEASE_NS, READ_EVERY_NS, TICK_S, BundleFile, Leader, Lease
from fairvisor.snapshots import Pace

START_NS = 1_000 * NS_PER_S
LOOK_NS = NS_PER_S // 4


def leases(count: int) -> list[Lease]:
    table = Segment.private(1 << 16).table
    return [Lease(table) for _ in range(count)]


class TestLease:
    def test_the_first_to_ask_leads_and_nobody_else_while_it_renews(self) -> None:
        one, other = leases(2)
        for now_ns in range(START_NS, START_NS + 10 * LEASE_NS, LEASE_NS // 2):
            assert one.hold(now_ns)
            assert not other.hold(now_ns)

    def test_a_lease_that_is_not_renewed_runs_out_after_three_seconds(self) -> None:
        one, other = leases(2)
        assert one.hold(START_NS)
        assert not other.hold(START_NS + LEASE_NS - 1)
        assert other.hold(START_NS + LEASE_NS)

    def test_who_was_stuck_finds_that_another_leads(self) -> None:
        one, other = leases(2)
        one.hold(START_NS)
        other.hold(START_NS + LEASE_NS)
        assert not one.hold(START_NS + LEASE_NS + 1)
        assert not one.hold(START_NS + LEASE_NS + 2)

    def test_who_was_stuck_alone_goes_on(self) -> None:
        (one,) = leases(1)
        one.hold(START_NS)
        assert one.hold(START_NS + 100 * LEASE_NS)

    def test_a_lease_that_was_given_back_is_free_at_once(self) -> None:
        one, other = leases(2)
        one.hold(START_NS)
        one.release()
        assert other.hold(START_NS + 1)

    def test_giving_back_what_was_lost_takes_nothing_from_the_new_leader(self) -> None:
        one, other, third = leases(3)
        one.hold(START_NS)
        other.hold(START_NS + LEASE_NS)
        one.release()
        assert not third.hold(START_NS + LEASE_NS + 1)

    def test_the_leader_says_who_it_is(self) -> None:
        table = Segment.private(1 << 16).table
        Lease(table).hold(START_NS)
        assert table.word_get(Word.LEADER_PID) == os.getpid()

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2 * LEASE_NS), st.booleans()), max_size=60))
    def test_two_never_lead_at_one_moment(self, steps: list[tuple[int, int, bool]]) -> None:
        """Whoever was told that it leads does so until its lease runs out, or it gives it back."""
        asking = leases(4)
        until_ns = [0] * 4
        now_ns = START_NS
        for who, later_ns, gives_back in steps:
            now_ns += later_ns
            if asking[who].hold(now_ns):
                until_ns[who] = now_ns + LEASE_NS
            if gives_back:
                asking[who].release()
                until_ns[who] = 0
            assert sum(end_ns > now_ns for end_ns in until_ns) <= 1


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "policy.json"


def looks(file: BundleFile, start_ns: int = START_NS) -> Iterator[bytes | None]:
    """One look after the other."""
    now_ns = start_ns
    while True:
        yield file.changed(now_ns)
        now_ns += LOOK_NS


class TestBundleFile:
    def test_a_file_is_offered_once_it_is_seen_twice_the_same_and_not_again(self, place: Path) -> None:
        place.write_bytes(b"one")
        look = looks(BundleFile(place))
        assert [next(look) for _ in range(4)] == [None, b"one", None, None]

    def test_a_file_that_is_being_written_is_left_until_it_stands_still(self, place: Path) -> None:
        place.write_bytes(b"")
        look = looks(BundleFile(place))
        for size in range(1, 6):
            assert next(look) is None
            place.write_bytes(b"x" * size)
        assert [next(look), next(look)] == [None, b"x" * 5]

    def test_another_file_in_its_place_is_offered(self, place: Path) -> None:
        place.write_bytes(b"one")
        look = looks(BundleFile(place))
        next(look), next(look)
        new = place.with_suffix(".new")
        new.write_bytes(b"two")
        new.rename(place)
        assert [next(look), next(look), next(look)] == [None, b"two", None]

    def test_what_was_forgotten_is_offered_again_at_the_next_reading(self, place: Path) -> None:
        place.write_bytes(b"one")
        file = BundleFile(place)
        look = looks(file)
        assert [next(look), next(look)] == [None, b"one"]
        file.forget()
        readings = [next(look) for _ in range(READ_EVERY_NS // LOOK_NS + 1)]
        assert readings.count(b"one") == 1

    def test_a_link_that_is_swapped_is_followed(self, place: Path) -> None:
        for version in ("1", "2"):
            place.with_name(version).mkdir()
            (place.with_name(version) / "policy.json").write_bytes(version.encode())
        data = place.with_name("..data")
        data.symlink_to("1")
        place.symlink_to("..data/policy.json")
        look = looks(BundleFile(place))
        assert [next(look), next(look)] == [None, b"1"]
        place.with_name("..tmp").symlink_to("2")
        place.with_name("..tmp").rename(data)
        assert [next(look), next(look)] == [None, b"2"]

    def test_times_that_jump_are_no_change(self, place: Path) -> None:
        place.write_bytes(b"one")
        look = looks(BundleFile(place))
        next(look), next(look)
        for moment in (1, 4_000_000_000, 5):
            os.utime(place, (moment, moment))
            assert [next(look), next(look)] == [None, None]

    def test_a_change_that_stat_does_not_tell_is_found_within_ten_seconds(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.write_bytes(b"one")
        monkeypatch.setattr("fairvisor.leader._stamp", lambda path: (1, 2, 3, 4, 5))
        file = BundleFile(place)
        look = looks(file)
        assert [next(look), next(look)] == [None, b"one"]
        place.write_bytes(b"two")
        found = [next(look) for _ in range(2 + READ_EVERY_NS // LOOK_NS)]
        assert b"two" in found
        assert found.count(None) == len(found) - 1

    def test_a_file_that_is_missing_is_a_problem_until_it_is_there(self, place: Path) -> None:
        file = BundleFile(place)
        look = looks(file)
        assert next(look) is None
        assert "No such file" in file.problem
        place.write_bytes(json.dumps({}).encode())
        assert [next(look), next(look)] == [None, b"{}"]
        assert file.problem == ""

    def test_the_same_bytes_after_it_was_gone_are_not_offered_again(self, place: Path) -> None:
        place.write_bytes(b"one")
        look = looks(BundleFile(place))
        next(look), next(look)
        place.unlink()
        next(look)
        place.write_bytes(b"one")
        assert [next(look), next(look), next(look)] == [None, None, None]

    def test_where_no_file_is_configured_there_is_nothing_to_offer(self) -> None:
        file = BundleFile(None)
        assert file.changed(START_NS) is None
        assert file.problem == ""


class Noted:
    """What a leader asks of publisher and snapshots, noted with the second in which it asked."""

    def __init__(self) -> None:
        self.elapsed_ns = 0
        self.done: list[tuple[str, int]] = []
        self.file: Path | None = None
        self.generation = 1
        self.settled = True  # what was offered

    def now(self) -> Now:
        return Now(START_NS + self.elapsed_ns, START_NS + self.elapsed_ns)

    def _note(self, what: str) -> None:
        self.done.append((what, self.elapsed_ns // NS_PER_S))

    def restore(self) -> None:
        self._note("restore")
        self.generation = 1

    def make_durable(self) -> bool:
        self._note("make durable")
        return True

    def remove_unread(self) -> None:
        self._note("remove unread")

    def healed(self, fault: str) -> None:
        self._note(f"no longer {fault}")

    def offer_file(self, data: bytes) -> bool:
        self._note(f"offer {data!r}")
        return self.settled

    def file_is_missing(self, why: str) -> None:
        self._note("missing")

    def save(self, segment: Segment, pace: Pace) -> bool:
        assert list(pace([b"1", b"2"])) == [b"1", b"2"]
        self._note("save")
        return True

    def seconds(self, what: str) -> list[int]:
        return [second for done, second in self.done if done == what]


class TestLeader:
    @pytest.fixture
    def noted(self) -> Noted:
        return Noted()

    @pytest.fixture
    def segment(self) -> Segment:
        return Segment.private(1 << 20)

    def leader(self, segment: Segment, noted: Noted) -> Leader:
        return Leader(segment, noted, noted, lambda: None, noted.now)  # type: ignore[arg-type]

    def run(self, leader: Leader, noted: Noted, seconds: float) -> None:
        for _ in range(int(seconds / TICK_S)):
            leader.step()
            noted.elapsed_ns += int(TICK_S * NS_PER_S)

    def test_a_snapshot_is_written_every_ten_seconds(self, segment: Segment, noted: Noted) -> None:
        self.run(self.leader(segment, noted), noted, 35)
        assert noted.seconds("save") == [10, 20, 30]

    def test_only_the_leader_does_anything(self, segment: Segment, noted: Noted) -> None:
        first, second = self.leader(segment, noted), self.leader(segment, noted)
        first.step()
        noted.done.clear()
        self.run(second, noted, 2)
        assert noted.done == []
        self.run(second, noted, 12)
        assert noted.seconds("save") == [13], "3 s for the lease, then 10 s"

    def test_a_worker_that_is_stopping_leaves_leading_to_another_at_once(
        self, segment: Segment, noted: Noted
    ) -> None:
        first, second = self.leader(segment, noted), self.leader(segment, noted)
        first.step()
        first.resign()
        first._periodic.run()  # what its thread does: no step any more
        second.step()
        assert (first.leads, second.leads) == (False, True)

    def test_slots_that_have_run_out_are_free_within_a_minute(self, segment: Segment, noted: Noted) -> None:
        for key in range(1, 2000):
            segment.table.count(key, START_NS, NS_PER_S)
        self.run(self.leader(segment, noted), noted, 62)
        assert segment.statistics(noted.now().mono_ns).free == segment.table.slots

    def test_a_file_is_offered_when_it_changed(self, segment: Segment, noted: Noted, place: Path) -> None:
        noted.file = place
        leader = self.leader(segment, noted)
        self.run(leader, noted, 1)
        place.write_bytes(b"one")
        self.run(leader, noted, 2)
        assert max(noted.seconds("missing")) <= 1
        assert len(noted.seconds("offer b'one'")) == 1

    def test_a_file_that_is_back_as_it_was_is_no_fault_any_more(
        self, segment: Segment, noted: Noted, place: Path
    ) -> None:
        noted.file = place
        leader = self.leader(segment, noted)
        place.write_bytes(b"one")
        self.run(leader, noted, 2)
        place.unlink()
        self.run(leader, noted, 2)
        place.write_bytes(b"one")
        self.run(leader, noted, 2)
        assert noted.seconds("missing") != []
        assert max(noted.seconds("no longer bundle_file")) > max(noted.seconds("missing"))
        assert len(noted.seconds("offer b'one'")) == 1

    def test_a_file_that_may_be_accepted_later_is_offered_until_it_is(
        self, segment: Segment, noted: Noted, place: Path
    ) -> None:
        noted.file = place
        leader = self.leader(segment, noted)
        place.write_bytes(b"one")
        noted.settled = False
        self.run(leader, noted, 25)
        assert noted.seconds("offer b'one'") == [0, 10, 20]
        noted.settled = True
        self.run(leader, noted, 40)
        assert len(noted.seconds("offer b'one'")) == 4

    def test_without_a_bundle_the_last_good_one_is_looked_for(self, segment: Segment, noted: Noted) -> None:
        noted.generation = 0
        self.run(self.leader(segment, noted), noted, 3)
        assert noted.seconds("restore") == [0]
