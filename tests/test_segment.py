"""The segment: made in full or not at all, found again, refused when it is not ours, resized without losing a count."""

from __future__ import annotations

import errno
import mmap
import multiprocessing
import os
import secrets
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from processes.edge_server import memory_of, remove_shared_memory
from tables import NOW, SECOND, TOKEN, per_of

from fairvisor.counters import ALLOWED, layout, objects, segment
from fairvisor.counters.layout import MAGIC, PAGE_BYTES, SERIES_ENTRY_BYTES, Word, WorkerWord, worker_word
from fairvisor.counters.segment import Origin, Segment
from fairvisor.counters.series import OVERFLOW_CELL
from fairvisor.decision import UNIT_U
from fairvisor.errors import SegmentError
from fairvisor.memory import SHM_DIR, InstanceMemory
from fairvisor.metrics import REMAINING, Tally
from fairvisor.settings import Settings

SIZE = 1 << 20
DAY = 86_400 * SECOND
PER = per_of(1)
BURST = 5 * TOKEN
LABELS = (("policy", "p1"), ("rule", "r1"))


@pytest.fixture
def name() -> Iterator[str]:
    name = f"test-{os.getpid()}-{secrets.token_hex(4)}"
    yield name
    assert len(objects_of(name)) <= 1, "nothing is left over"
    remove_shared_memory(name)


def open_segment(name: str, size_bytes: int, *, now_ns: int | None = None) -> Segment:
    return Segment.open(InstanceMemory.make(name), size_bytes, now_ns=now_ns)


def attach(name: str) -> Segment:
    return Segment.attach(memory_of(name))


def path_of(name: str) -> Path:
    return SHM_DIR / objects.find(memory_of(name))


def objects_of(name: str) -> list[Path]:
    """Everything that may be a segment of the instance."""
    return [path for path in SHM_DIR.glob(f"fairvisor-*{name}*") if path.is_file()]


class TestOpen:
    def test_makes_it_with_mode_0600_and_all_its_memory(self, name: str) -> None:
        made = open_segment(name, SIZE)
        status = path_of(name).stat()
        assert made.origin is Origin.CREATED
        assert status.st_mode & 0o777 == 0o600
        assert status.st_size == SIZE
        assert status.st_blocks * 512 >= SIZE

    def test_finds_counters_series_words_and_secrets_again(self, name: str) -> None:
        first = open_segment(name, SIZE)
        first.table.take(1, NOW, TOKEN, BURST, PER)
        first.table.cell_add(first.series("hits", LABELS), 3)
        first.table.word_set(Word.BUNDLE_GENERATION, 7)
        key, seed, cell = first.reservation_key, first.table.seed, first.series("hits", LABELS)
        first.close()
        again = open_segment(name, SIZE)
        assert again.origin is Origin.ATTACHED
        assert (again.reservation_key, again.table.seed) == (key, seed)
        assert again.table.take(1, NOW, TOKEN, BURST, PER)[1] == 3 * TOKEN
        assert again.series("hits", LABELS) == cell
        assert list(again.series_values()) == [("hits", LABELS, 3)]
        assert again.table.word_get(Word.BUNDLE_GENERATION) == 7

    def test_seed_and_key_are_secrets_of_each_segment(self, name: str) -> None:
        made, other = open_segment(name, SIZE), Segment.private(SIZE)
        assert made.table.seed != other.table.seed
        assert made.reservation_key != other.reservation_key
        assert len(made.reservation_key) == 32

    def test_size_is_rounded_down_to_pages(self, name: str) -> None:
        assert open_segment(name, SIZE + 4095).geometry.size_bytes == SIZE
        assert open_segment(name, SIZE + 1).origin is Origin.ATTACHED

    @pytest.mark.parametrize("size_bytes", [-1, 0, layout.MIN_BYTES - 1, layout.MAX_BYTES + PAGE_BYTES])
    def test_size_has_limits(self, name: str, size_bytes: int) -> None:
        with pytest.raises(SegmentError, match="FAIRVISOR_SHARED_DICT_SIZE"):
            open_segment(name, size_bytes)

    def test_too_small_a_dev_shm_says_so(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_space(fd: int, offset: int, size: int) -> NoReturn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        directory = InstanceMemory.make(name)
        monkeypatch.setattr(os, "posix_fallocate", no_space)
        expected = r"1\.0 MiB \(FAIRVISOR_SHARED_DICT_SIZE\) does not fit: /dev/shm has [0-9.]+ MiB free"
        with pytest.raises(SegmentError, match=expected):
            Segment.open(directory, SIZE)
        assert objects_of(name) == []

    def test_more_than_dev_shm_has_fails_for_real(self, name: str) -> None:
        space = os.statvfs(SHM_DIR)
        with pytest.raises(SegmentError, match="does not fit"):
            open_segment(name, space.f_blocks * space.f_frsize + (1 << 30))
        assert objects_of(name) == []

    def test_many_openers_make_one_segment(self, name: str) -> None:
        forks = multiprocessing.get_context("fork")
        results = forks.SimpleQueue()

        def work() -> None:
            opened = open_segment(name, SIZE)
            opened.table.word_add(Word.SPARE, 1)
            results.put((opened.origin, opened.table.seed))

        workers = [forks.Process(target=work) for _ in range(12)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
            assert worker.exitcode == 0
        origins, seeds = zip(*(results.get() for _ in workers), strict=True)
        assert origins.count(Origin.CREATED) == 1
        assert len(set(seeds)) == 1
        assert attach(name).table.word_get(Word.SPARE) == 12


class TestAttach:
    def test_needs_a_segment(self, name: str) -> None:
        with pytest.raises(FileNotFoundError):
            attach(name)
        assert objects_of(name) == []

    def test_shares_the_counters(self, name: str) -> None:
        made, attached = open_segment(name, SIZE), attach(name)
        made.table.take(1, NOW, TOKEN, BURST, PER)
        assert attached.table.take(1, NOW, TOKEN, BURST, PER)[1] == 3 * TOKEN

    def test_unlinked_one_stays_with_those_who_have_it(self, name: str) -> None:
        made = open_segment(name, SIZE)
        path = path_of(name)
        assert Segment.unlink(memory_of(name)) == [path]
        assert Segment.unlink(memory_of(name)) == []
        assert made.table.take(1, NOW, TOKEN, BURST, PER)[0] == ALLOWED
        with pytest.raises(FileNotFoundError):
            attach(name)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700])
    def test_refuses_what_others_may_reach(self, name: str, mode: int) -> None:
        open_segment(name, SIZE)
        path_of(name).chmod(mode)
        for opening in (lambda: attach(name), lambda: open_segment(name, SIZE)):
            with pytest.raises(SegmentError, match=f"mode {mode:04o}, allowed is 0600"):
                opening()

    @pytest.mark.needs("root")
    def test_the_object_of_another_user_under_a_name_that_became_free_is_not_used(self, name: str) -> None:
        """Ours was removed by force, and the name is known by then."""
        open_segment(name, SIZE).table.word_set(Word.SPARE, 7)
        taken = path_of(name)
        os.chown(taken, 60_002, 60_002)
        with pytest.raises(SegmentError, match="belongs to user 60002, not to"):
            attach(name)
        fresh = open_segment(name, SIZE)
        assert fresh.origin is Origin.REPLACED
        assert "belongs to user 60002" in fresh.replaces
        assert fresh.table.word_get(Word.SPARE) == 0
        assert taken.exists()
        taken.unlink()


def overwrite(name: str, offset: int, data: bytes) -> None:
    with path_of(name).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def rewrite_header(name: str, **changes: object) -> None:
    """The header with other fields and a checksum that fits them."""
    header = layout.unpack(path_of(name).read_bytes()[:PAGE_BYTES])
    overwrite(name, len(MAGIC), layout.pack(header._replace(**changes)))


class TestNeverMisread:
    @pytest.fixture
    def used(self, name: str) -> str:
        made = open_segment(name, SIZE)
        made.table.take(1, NOW, TOKEN, BURST, PER)
        made.close()
        return name

    def replaced(self, name: str) -> None:
        """`attach` refuses it, `open` makes a new one in its place."""
        with pytest.raises(SegmentError, match=f"segment fairvisor-{name}: "):
            attach(name)
        fresh = open_segment(name, SIZE)
        assert fresh.origin is Origin.REPLACED
        assert fresh.table.peek_bucket(1, NOW, BURST, PER) == (BURST, 0)
        assert attach(name).table.seed == fresh.table.seed

    def test_without_magic(self, used: str) -> None:
        overwrite(used, 0, bytes(8))
        self.replaced(used)

    def test_of_another_layout(self, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "LAYOUT_VERSION", 999)
        overwrite(used, len(MAGIC), struct.pack("<Q", 998))
        with pytest.raises(SegmentError, match="layout 998, this version uses 999"):
            attach(used)
        self.replaced(used)

    def test_of_another_boot(self, used: str) -> None:
        rewrite_header(used, boot_id=bytes(16))
        with pytest.raises(SegmentError, match="before the last boot"):
            attach(used)
        self.replaced(used)

    def test_with_a_damaged_header(self, used: str) -> None:
        overwrite(used, len(MAGIC) + 16, b"\xff")
        self.replaced(used)

    def test_and_says_why(self, used: str) -> None:
        overwrite(used, len(MAGIC) + 16, b"\xff")
        assert open_segment(used, SIZE).replaces == f"segment fairvisor-{used}: its header is damaged"
        assert open_segment(used, SIZE).replaces == ""

    def test_with_a_geometry_that_is_not_its_size(self, used: str) -> None:
        geometry = layout.plan(SIZE)
        rewrite_header(used, geometry=geometry._replace(slots=geometry.slots * 1000))
        self.replaced(used)

    def test_cut_short(self, used: str) -> None:
        os.truncate(path_of(used), SIZE - PAGE_BYTES)
        self.replaced(used)

    @pytest.mark.parametrize("size_bytes", [0, 100])
    def test_smaller_than_a_header(self, used: str, size_bytes: int) -> None:
        os.truncate(path_of(used), size_bytes)
        self.replaced(used)

    def test_of_a_crash_while_it_was_made(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Killed before it was chosen: the half-made one is nobody's, and goes with the next start."""
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(objects, "choose", lambda *_: os._exit(0))
            open_segment(name, SIZE)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert len(objects_of(name)) == 1
        with pytest.raises(FileNotFoundError):
            attach(name)
        assert open_segment(name, SIZE).origin is Origin.CREATED

    def test_of_a_crash_before_the_magic(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Even under its own name, one without magic is not believed."""
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(segment, "MAGIC", bytes(8))
            open_segment(name, SIZE)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(SegmentError, match="never finished"):
            attach(name)
        assert open_segment(name, SIZE).origin is Origin.REPLACED


class TestResize:
    KEYS = range(2000)

    def fill(self, made: Segment) -> None:
        for key in self.KEYS:
            made.table.take(key, NOW, (key % 5 + 1) * TOKEN, BURST, PER)
            made.table.add(10_000 + key, NOW, key, 10_000, DAY)
        made.table.cell_add(made.series("hits", LABELS), 3)
        made.table.word_set(Word.BUNDLE_GENERATION, 7)

    @pytest.mark.parametrize("size_bytes", [SIZE // 4, SIZE // 2 + PAGE_BYTES, SIZE * 3])
    def test_takes_everything_over(self, name: str, size_bytes: int) -> None:
        old = open_segment(name, SIZE)
        self.fill(old)
        kept = old.table.seed, old.reservation_key
        expected = [old.table.peek_bucket(key, NOW, BURST, PER) for key in self.KEYS]
        new = open_segment(name, size_bytes, now_ns=NOW)
        assert (new.origin, new.dropped) == (Origin.RESIZED, 0)
        assert (new.table.seed, new.reservation_key) == kept
        assert [new.table.peek_bucket(key, NOW, BURST, PER) for key in self.KEYS] == expected
        assert all(new.table.peek_total(10_000 + key, NOW) == key for key in self.KEYS)
        assert list(new.series_values()) == [("hits", LABELS, 3)]
        assert new.table.word_get(Word.BUNDLE_GENERATION) == 7
        assert new.table.word_get(Word.EVICTIONS) == 0
        assert path_of(name).stat().st_size == size_bytes

    def test_leaves_what_has_run_out(self, name: str) -> None:
        self.fill(open_segment(name, SIZE))
        new = open_segment(name, 2 * SIZE, now_ns=NOW + 2 * DAY)
        assert new.statistics(NOW).live == 0

    def test_of_too_little_room_keeps_totals_first_and_counts_what_it_dropped(self, name: str) -> None:
        self.fill(open_segment(name, SIZE))
        new = open_segment(name, layout.MIN_BYTES, now_ns=NOW)
        found = new.statistics(NOW)
        assert found.totals > 0.9 * found.slots
        assert (
            found.live + new.dropped + found.evictions == 2 * len(self.KEYS) - 1
        )  # the total of key 0 is nothing

    def test_failing_leaves_the_old_one(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fill(open_segment(name, SIZE))
        space = os.statvfs(SHM_DIR)
        with pytest.raises(SegmentError, match="does not fit"):
            open_segment(name, space.f_blocks * space.f_frsize + (1 << 30))
        assert attach(name).table.peek_total(10_001, NOW) == 1


class TestOfTheVersionBefore:
    """Version 0.1 had the segment under the name that it is called by, and no directory."""

    @pytest.fixture
    def old(self, name: str) -> Path:
        made = open_segment(name, SIZE)
        made.table.add(7, NOW, 100, 1000, DAY)
        path = SHM_DIR / f"fairvisor-{name}"
        path_of(name).rename(path)
        memory_of(name).remove_all()
        return path

    def test_is_found_where_it_is(self, name: str, old: Path) -> None:
        assert attach(name).table.peek_total(7, NOW) == 100
        assert old.exists()
        assert not memory_of(name).path.exists()

    def test_keeps_its_counters_under_a_name_that_no_other_user_can_have(self, name: str, old: Path) -> None:
        found = open_segment(name, SIZE)
        assert found.origin is Origin.ATTACHED
        assert found.table.peek_total(7, NOW) == 100
        assert not old.exists()
        assert path_of(name).exists()
        assert open_segment(name, SIZE).table.peek_total(7, NOW) == 100

    def test_of_another_size_is_taken_over(self, name: str, old: Path) -> None:
        found = open_segment(name, 2 * SIZE, now_ns=NOW)
        assert found.origin is Origin.RESIZED
        assert found.table.peek_total(7, NOW) == 100
        assert not old.exists()

    def test_survives_a_crash_while_it_is_named_anew(
        self, name: str, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(objects, "choose", lambda *_: os._exit(0))
            open_segment(name, SIZE)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert len(objects_of(name)) == 2
        assert open_segment(name, SIZE).table.peek_total(7, NOW) == 100

    def test_of_another_layout_is_replaced_and_removed(self, name: str, old: Path) -> None:
        with old.open("r+b") as file:
            file.write(bytes(8))
        assert open_segment(name, SIZE).origin is Origin.REPLACED
        assert not old.exists()


class TestPrivate:
    def test_has_no_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(objects, "posix_ipc")  # which names
        made = Segment.private(SIZE)
        assert made.table.take(1, NOW, TOKEN, BURST, PER)[0] == ALLOWED

    def test_seed_can_be_chosen(self) -> None:
        assert Segment.private(SIZE, seed=5).table.seed == 5

    def test_is_shared_with_children(self) -> None:
        made = Segment.private(SIZE)
        child = os.fork()
        if child == 0:
            made.table.take(1, NOW, TOKEN, BURST, PER)
            os._exit(0)
        os.waitpid(child, 0)
        assert made.table.peek_bucket(1, NOW, BURST, PER)[0] == 4 * TOKEN

    def test_table_outlives_close(self) -> None:
        made = Segment.private(SIZE)
        table = made.table
        made.close()
        assert table.take(1, NOW, TOKEN, BURST, PER)[0] == ALLOWED


class TestStatistics:
    def test_counts_slots_by_what_is_in_them(self) -> None:
        made = Segment.private(SIZE)
        for key in range(10):
            made.table.take(key, NOW, TOKEN, BURST, PER)
        for key in range(20, 25):
            made.table.add(key, NOW, 1, 10, DAY)
        made.table.count(30, NOW, DAY)
        found = made.statistics(NOW + 2 * SECOND)
        assert (found.times, found.totals, found.expired, found.held, found.live) == (1, 5, 10, 0, 6)
        assert found.free + found.held + found.times + found.totals + found.expired == found.slots
        assert (found.evictions, found.full, found.reservations) == (0, 0, 16)
        assert found.size_bytes == SIZE

    def test_a_million_keys_fit_80_bytes_each_with_room_to_spare(self) -> None:
        geometry = layout.plan(80_000_000)
        assert 1_000_000 / geometry.slots < 0.47  # insertions find a slot up to 0.5

    def test_the_metrics_of_ten_thousand_policies_in_use_fit_the_default_size(self) -> None:
        made = Segment.private(Settings.load({}, {}).shared_dict_size)
        for number in range(10_000):
            tally = Tally(made, f"policy-{number:05}", "per-customer", "enforce", REMAINING)
            tally.allowed.hit()
            tally.admitted.hit()
            tally.lower(UNIT_U)
        made.write_postponed(NOW // SECOND)
        found = made.statistics(NOW)
        assert (found.series_used, found.series_overflows) == (30_000, 0)

    def test_regions_do_not_overlap(self) -> None:
        for size_bytes in (layout.MIN_BYTES, SIZE, 48 << 20, 1 << 33):
            plan = layout.plan(size_bytes)
            ends = [
                PAGE_BYTES,
                plan.words_at + 8 * plan.words,
                plan.series_at + SERIES_ENTRY_BYTES * plan.series,
                plan.cells_at + 8 * plan.series,
                plan.text_at + plan.text_bytes,
                plan.slots_at + 32 * plan.slots,
            ]
            starts = [
                plan.words_at,
                plan.series_at,
                plan.cells_at,
                plan.text_at,
                plan.slots_at,
                plan.size_bytes,
            ]
            assert all(end <= start for end, start in zip(ends, starts, strict=True))
            assert plan.size_bytes - ends[-1] < 256


class TestWords:
    def test_names_have_words_of_their_own(self) -> None:
        workers = {worker_word(entry, word) for entry in range(layout.WORKERS) for word in WorkerWord}
        assert len(workers) == layout.WORKERS * len(WorkerWord)
        assert min(workers) == Word.WORKER > Word.SPARE
        assert max(workers) < layout.WORDS
        assert len(set(Word)) == len(Word.__members__)


class TestSeries:
    def test_one_cell_for_one_series(self) -> None:
        made = Segment.private(SIZE)
        one = made.series("hits", LABELS)
        assert made.series("hits", LABELS) == one
        others = [made.series("hits", ()), made.series("hits", LABELS[:1]), made.series("misses", LABELS)]
        assert len({one, OVERFLOW_CELL, *others}) == 5

    def test_another_process_finds_it(self, name: str) -> None:
        first, second = open_segment(name, SIZE), attach(name)
        assert [second.series("a", ()), first.series("b", ())] == [1, 2]
        assert [first.series("a", ()), second.series("b", ())] == [1, 2]

    def test_two_cells_of_one_text_are_added_up(self, name: str) -> None:
        """Both looked before either wrote: the one race that interning allows."""
        first, second = open_segment(name, SIZE), attach(name)
        first.table.cell_add(first._series._append("hits"), 3)
        second.table.cell_add(second._series._append("hits"), 4)
        assert list(first.series_values()) == [("hits", (), 7)]
        assert first.statistics(NOW).series_used == 2
        assert attach(name).series("hits", ()) == 1

    def test_text_may_be_any_but_nul(self) -> None:
        made = Segment.private(SIZE)
        labels = (("policy", 'a"b\\c\nü€|='), ("", ""))
        made.table.cell_add(made.series("hits", labels), 1)
        assert list(made.series_values()) == [("hits", labels, 1)]
        with pytest.raises(ValueError, match="NUL"):
            made.series("hits", (("policy", "a\0b"),))

    def test_entry_that_a_kill_left_unfinished_is_passed_over(self) -> None:
        made = Segment.private(SIZE)
        made.table.word_add(Word.SERIES_USED, 1)
        made.table.word_add(Word.SERIES_TEXT_BYTES, 100)
        cell = made.series("hits", LABELS)
        made.table.cell_add(cell, 3)
        assert cell == 2
        assert list(made.series_values()) == [("hits", LABELS, 3)]

    @pytest.mark.parametrize("text", ["s", "s" * 500])
    def test_without_room_one_cell_takes_the_rest_and_it_is_counted(self, text: str) -> None:
        made = Segment.private(layout.MIN_BYTES)
        cells = [made.series(f"{text}{i}", ()) for i in range(100)]
        fitting = [cell for cell in cells if cell != OVERFLOW_CELL]
        assert len(fitting) == len(set(fitting)) > 0
        assert cells[-1] == OVERFLOW_CELL
        found = made.statistics(NOW)
        assert (found.series_used, found.series_overflows) == (len(fitting), 100 - len(fitting))
        assert made.series(f"{text}99", ()) == OVERFLOW_CELL
        assert made.statistics(NOW).series_overflows == 100 - len(fitting)
        assert len(list(made.series_values())) == len(fitting)


def test_header_page_reads_back() -> None:
    header = layout.Header(layout.plan(SIZE), 5, b"b" * 16, b"k" * 32)
    page = mmap.mmap(-1, PAGE_BYTES)
    page[: len(MAGIC)] = MAGIC
    data = layout.pack(header)
    page[len(MAGIC) : len(MAGIC) + len(data)] = data
    assert layout.unpack(page[:]) == header
    with pytest.raises(SegmentError, match="cut short"):
        layout.unpack(page[:60])
