"""Snapshots: what a segment counted is found again in a new one, at its own time, or not at all."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters import ALLOWED, REFUSED, snapshot
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.errors import SegmentError

SIZE = 1 << 18
TAKEN = Now(50_000 * NS_PER_S, 1_800_000_000 * NS_PER_S)
PER = 2**28 * 1000  # one a second
UNIT = 1_000_000
DAY_NS = 86_400 * NS_PER_S
GAUGES = frozenset({"open"})


def taken(segment: Segment, now: Now = TAKEN) -> bytes:
    return b"".join(snapshot.take(segment, now, GAUGES))


def another_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "boot_id", lambda: b"another boot id.")


def restored(data: bytes, now: Now) -> Segment:
    found = snapshot.read(data, "")
    fresh = Segment.private(SIZE, seed=found.seed)
    found.restore(fresh, now)
    return fresh


class Bucket(NamedTuple):
    key: int
    burst: int
    taken: int


buckets = st.builds(Bucket, st.integers(1, 2**64 - 1), st.integers(1, 10_000), st.integers(0, 10_000))


class TestRoundTrip:
    @given(
        st.lists(buckets, max_size=30, unique_by=lambda bucket: bucket.key),
        st.integers(0, 50_000),
        st.integers(0, 3_000),
    )
    @settings(deadline=None)
    def test_a_bucket_refills_by_what_passed_on_the_wall_clock(
        self, found: list[Bucket], booted_s: int, passed_s: int
    ) -> None:
        """Whatever the new machine's clock says, a bucket holds what it held, and what came in since."""
        old = Segment.private(SIZE)
        for bucket in found:
            old.table.take(
                bucket.key, TAKEN.mono_ns, min(bucket.taken, bucket.burst) * UNIT, bucket.burst * UNIT, PER
            )
        data = taken(old)
        later = Now(booted_s * NS_PER_S, TAKEN.wall_ns + passed_s * NS_PER_S)
        with pytest.MonkeyPatch.context() as monkeypatch:
            another_boot(monkeypatch)
            new = restored(data, later)
        for bucket in found:
            remaining_u, _ = new.table.peek_bucket(bucket.key, later.mono_ns, bucket.burst * UNIT, PER)
            wanted = min(bucket.burst, bucket.burst - min(bucket.taken, bucket.burst) + passed_s)
            assert remaining_u == wanted * UNIT

    @given(
        st.dictionaries(st.integers(1, 2**64 - 1), st.integers(1, 2**63 - 1), max_size=30),
        st.integers(0, 10**9),
        st.integers(0, 80_000),
    )
    @settings(deadline=None)
    def test_a_total_is_kept_to_the_end_of_its_window(
        self, totals: dict[int, int], booted_s: int, passed_s: int
    ) -> None:
        old = Segment.private(SIZE)
        for key, amount_u in totals.items():
            old.table.add(key, TAKEN.mono_ns, amount_u, 2**63 - 1, DAY_NS)
        later = Now(booted_s * NS_PER_S, TAKEN.wall_ns + passed_s * NS_PER_S)
        data = taken(old)
        with pytest.MonkeyPatch.context() as monkeypatch:
            another_boot(monkeypatch)
            new = restored(data, later)
        assert {key: new.table.peek_total(key, later.mono_ns) for key in totals} == totals
        over_ns = later.mono_ns + DAY_NS + 300 * NS_PER_S - passed_s * NS_PER_S
        assert [new.table.peek_total(key, over_ns) for key in totals] == [0] * len(totals)

    def test_counts_and_nonces_are_kept(self) -> None:
        old = Segment.private(SIZE)
        for _ in range(3):
            old.table.count(1, TAKEN.mono_ns, 60 * NS_PER_S)
        assert old.table.once(2, TAKEN.mono_ns, 3600 * NS_PER_S, 7) == (ALLOWED, 0)
        old.table.word_set(Word.CLAIM_STAMP, 5)
        new = restored(taken(old), TAKEN)
        assert new.table.count(1, TAKEN.mono_ns, 60 * NS_PER_S) == 4
        assert new.table.once(2, TAKEN.mono_ns, 3600 * NS_PER_S, 7) == (REFUSED, 5)

    def test_within_one_boot_the_wall_clock_does_not_matter(self) -> None:
        """Somebody removed the shared memory and set the clock: the monotonic one went on."""
        old = Segment.private(SIZE)
        old.table.take(1, TAKEN.mono_ns, 10 * UNIT, 10 * UNIT, PER)
        later = Now(TAKEN.mono_ns + 4 * NS_PER_S, TAKEN.wall_ns - 1000 * NS_PER_S)
        new = restored(taken(old), later)
        assert new.table.peek_bucket(1, later.mono_ns, 10 * UNIT, PER)[0] == 4 * UNIT

    def test_a_wall_clock_that_was_set_back_counts_as_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        old = Segment.private(SIZE)
        old.table.take(1, TAKEN.mono_ns, 10 * UNIT, 10 * UNIT, PER)
        data = taken(old)
        another_boot(monkeypatch)
        later = Now(7 * NS_PER_S, TAKEN.wall_ns - 1000 * NS_PER_S)
        new = restored(data, later)
        assert new.table.peek_bucket(1, later.mono_ns, 10 * UNIT, PER)[0] == 0

    def test_of_a_snapshot_that_is_older_than_any_record_the_gauges_remain(self) -> None:
        old = Segment.private(SIZE)
        old.table.take(1, TAKEN.mono_ns, 10 * UNIT, 10 * UNIT, PER)
        old.table.cell_add(old.series("open", (("policy", "a"),)), 7)
        later = Now(TAKEN.mono_ns, TAKEN.wall_ns + 101 * DAY_NS)
        new = restored(taken(old), later)
        assert new.table.peek_bucket(1, later.mono_ns, 10 * UNIT, PER)[0] == 10 * UNIT
        assert list(new.series_values()) == [("open", (("policy", "a"),), 7)]

    def test_gauges_seed_key_and_shared_words_come_back_and_those_of_processes_do_not(self) -> None:
        old = Segment.private(SIZE)
        labels = [(("policy", f"p{index}"), ("what", "é ü")) for index in range(200)]
        for index, each in enumerate(labels):
            old.table.cell_add(old.series("open", each), 2**64 - 1 - index)
        old.table.word_set(Word.SPARE + 3, 2**64 - 1)
        for word in (Word.BUNDLE_GENERATION, Word.MASTER_PID, Word.LEADER_LEASE_NS):
            old.table.word_set(word, 99)
        found = snapshot.read(taken(old), "")
        assert (found.seed, found.reservation_key) == (old.table.seed, old.reservation_key)
        new = restored(taken(old), TAKEN)
        assert sorted(new.series_values()) == sorted(old.series_values())
        assert new.table.word_get(Word.SPARE + 3) == 2**64 - 1
        for word in (Word.BUNDLE_GENERATION, Word.MASTER_PID, Word.LEADER_LEASE_NS):
            assert new.table.word_get(word) == 0

    def test_what_only_ever_rises_begins_at_nothing(self) -> None:
        """The snapshot may be older than the last scrape: a lower number would look as if everything came anew."""
        old = Segment.private(SIZE)
        old.table.cell_add(old.series("hits_total", ()), 405)
        for word in (Word.EVICTIONS, Word.CLAIM_EVICTIONS, Word.FULL, Word.SERIES_OVERFLOWS):
            old.table.word_set(word, 5)
        new = restored(taken(old), TAKEN)
        assert list(new.series_values()) == []
        for word in (Word.EVICTIONS, Word.CLAIM_EVICTIONS, Word.FULL, Word.SERIES_OVERFLOWS):
            assert new.table.word_get(word) == 0


@pytest.fixture(scope="module")
def data() -> bytes:
    """A snapshot of some counters."""
    segment = Segment.private(SIZE)
    for key in range(1, 500):
        segment.table.take(key, TAKEN.mono_ns, UNIT, 10 * UNIT, PER)
    segment.table.cell_add(segment.series("hits", ()), 7)
    return taken(segment)


class TestRefusal:
    def test_every_bit_counts(self, data: bytes) -> None:
        for position in range(0, len(data), 97):
            damaged = bytearray(data)
            damaged[position] ^= 0x10
            with pytest.raises(SegmentError):
                snapshot.read(bytes(damaged), "")

    def test_a_snapshot_that_is_cut_short_is_refused(self, data: bytes) -> None:
        for length in range(0, len(data), 61):
            with pytest.raises(SegmentError):
                snapshot.read(data[:length], "")

    def test_a_snapshot_of_another_instance_is_refused(self, data: bytes) -> None:
        with pytest.raises(SegmentError, match="not of fairvisor-b"):
            snapshot.read(data, "fairvisor-b")

    def test_a_snapshot_of_another_layout_is_refused(
        self, data: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(snapshot, "LAYOUT_VERSION", 999)
        with pytest.raises(SegmentError, match="this version uses"):
            snapshot.read(data, "")

    @pytest.mark.parametrize("junk", [b"", b"{}", b"\0" * 4096, b"fvSnap\r\n" + b"\xff" * 4096])
    def test_what_is_no_snapshot_is_refused(self, junk: bytes) -> None:
        with pytest.raises(SegmentError):
            snapshot.read(junk, "")
