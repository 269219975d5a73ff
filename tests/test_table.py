"""What every operation of the table means; each claim holds for the C table and for its model."""

from __future__ import annotations

import gc
import mmap
import random
import sys
from fractions import Fraction

import pytest
from tables import (
    CELLS,
    NOW,
    SECOND,
    SLOTS_AT,
    TOKEN,
    WORDS,
    MakeTable,
    c_table,
    colliding_keys,
    keys_in_one_window,
    model_table,
    per_of,
    put_slot,
    slot_of,
    table_memory,
    table_over,
    unmixed,
)

from fairvisor.counters import ALLOWED, FULL, REFUSED
from fairvisor.counters._table import (
    GROUP,
    OWN_WORDS,
    SLOT_BYTES,
    WORD_CLAIM_EVICTIONS,
    WORD_CLAIM_STAMP,
    WORD_EVICTIONS,
    WORD_FULL,
    WORD_NONCE,
    Table,
)
from fairvisor.counters.model import ModelTable
from fairvisor.counters.records import UNIT_NS, fingerprint, mixed, window

AnyTable = Table | ModelTable

DAY = 86_400 * SECOND
BURST = 5 * TOKEN
PER = per_of(1)  # one token a second
KEY = 0x1234_5678_9ABC_DEF0


@pytest.fixture(params=[c_table, model_table], ids=["c", "model"])
def make(request: pytest.FixtureRequest) -> MakeTable:
    return request.param


@pytest.fixture
def table(make: MakeTable) -> AnyTable:
    return make(1024)


class TestTake:
    def test_fresh_bucket_admits_exactly_its_burst(self, table: AnyTable) -> None:
        answers = [table.take(KEY, NOW, TOKEN, BURST, PER) for _ in range(6)]
        assert [outcome for outcome, _, _ in answers] == [ALLOWED] * 5 + [REFUSED]
        assert [remaining_u // TOKEN for _, remaining_u, _ in answers] == [4, 3, 2, 1, 0, 0]

    def test_wait_is_until_full_when_allowed_and_until_it_fits_when_refused(self, table: AnyTable) -> None:
        assert table.take(KEY, NOW, BURST, BURST, PER) == (ALLOWED, 0, 5 * SECOND)
        assert table.take(KEY, NOW, 2 * TOKEN, BURST, PER) == (REFUSED, 0, 2 * SECOND)
        assert table.take(KEY, NOW + 2 * SECOND - 1, 2 * TOKEN, BURST, PER)[0] == REFUSED
        assert table.take(KEY, NOW + 2 * SECOND, 2 * TOKEN, BURST, PER) == (ALLOWED, 0, 5 * SECOND)

    def test_cost_above_burst_never_fits_and_needs_no_record(self, table: AnyTable) -> None:
        assert table.take(KEY, NOW, BURST + 1, BURST, PER) == (REFUSED, BURST, -1)
        assert table.census(0, 1024, NOW)[0] == 1024

    def test_refusal_takes_nothing(self, table: AnyTable) -> None:
        table.take(KEY, NOW, 3 * TOKEN, BURST, PER)
        for _ in range(10):
            assert table.take(KEY, NOW, 3 * TOKEN, BURST, PER) == (REFUSED, 2 * TOKEN, SECOND)
        assert table.take(KEY, NOW, 2 * TOKEN, BURST, PER)[0] == ALLOWED

    def test_cost_of_nothing_is_allowed_and_makes_no_record(self, table: AnyTable) -> None:
        assert table.take(KEY, NOW, 0, BURST, PER) == (ALLOWED, BURST, 0)
        assert table.census(0, 1024, NOW)[0] == 1024

    def test_full_again_after_burst_over_rate_and_never_fuller(self, table: AnyTable) -> None:
        table.take(KEY, NOW, BURST, BURST, PER)
        later = NOW + 5 * SECOND
        assert table.peek_bucket(KEY, later - 1, BURST, PER)[0] < BURST
        assert table.peek_bucket(KEY, later, BURST, PER) == (BURST, 0)
        assert table.take(KEY, later + DAY, BURST, BURST, PER)[0] == ALLOWED
        assert table.take(KEY, later + DAY, 1, BURST, PER)[0] == REFUSED

    def test_lowered_burst_caps_the_debt(self, table: AnyTable) -> None:
        table.take(KEY, NOW, BURST, BURST, PER)
        assert table.take(KEY, NOW, TOKEN, 2 * TOKEN, PER) == (REFUSED, 0, SECOND)
        assert table.peek_bucket(KEY, NOW, BURST, PER) == (3 * TOKEN, 2 * SECOND)

    def test_clock_behind_the_last_use_wins_back_no_more_than_its_lag(self, table: AnyTable) -> None:
        table.take(KEY, NOW, BURST, BURST, PER)
        assert table.take(KEY, NOW - SECOND, TOKEN, BURST, PER) == (REFUSED, 0, SECOND)
        assert table.take(KEY, NOW, TOKEN, BURST, PER) == (ALLOWED, 0, 5 * SECOND)
        assert table.take(KEY, NOW, 1, BURST, PER)[0] == REFUSED

    def test_times_may_wrap(self, table: AnyTable) -> None:
        wrap = (1 << 55) * 3
        table.take(KEY, wrap - SECOND, BURST, BURST, PER)
        assert table.take(KEY, wrap, TOKEN, BURST, PER) == (ALLOWED, 0, 5 * SECOND)
        assert table.take(KEY, wrap + SECOND // 2, TOKEN, BURST, PER) == (REFUSED, TOKEN // 2, SECOND // 2)


class TestGiveAndOverdraw:
    def test_give_undoes_a_take_of_the_same_moment(self, table: AnyTable) -> None:
        table.take(KEY, NOW, 3 * TOKEN, BURST, PER)
        table.take(KEY, NOW, 2 * TOKEN, BURST, PER)
        table.give(KEY, NOW, 2 * TOKEN, PER)
        assert table.peek_bucket(KEY, NOW, BURST, PER) == (2 * TOKEN, 3 * SECOND)

    def test_give_never_fills_above_full(self, table: AnyTable) -> None:
        table.take(KEY, NOW, TOKEN, BURST, PER)
        table.give(KEY, NOW, 100 * TOKEN, PER)
        assert table.take(KEY, NOW, BURST, BURST, PER)[0] == ALLOWED
        assert table.take(KEY, NOW, 1, BURST, PER)[0] == REFUSED

    def test_refunds_never_make_a_record(self, table: AnyTable) -> None:
        table.give(KEY, NOW, TOKEN, PER)
        table.sub(KEY, NOW, TOKEN)
        table.charge(KEY, NOW, TOKEN)
        assert table.census(0, 1024, NOW)[0] == 1024

    def test_overdraw_takes_without_refusing_down_to_an_empty_bucket(self, table: AnyTable) -> None:
        table.overdraw(KEY, NOW, 2 * TOKEN, BURST, PER)
        assert table.peek_bucket(KEY, NOW, BURST, PER) == (3 * TOKEN, 2 * SECOND)
        table.overdraw(KEY, NOW, 2**63 - 1, BURST, PER)
        assert table.peek_bucket(KEY, NOW, BURST, PER) == (0, 5 * SECOND)
        assert table.take(KEY, NOW + SECOND, TOKEN, BURST, PER)[0] == ALLOWED

    def test_overdraw_of_nothing_makes_no_record(self, table: AnyTable) -> None:
        table.overdraw(KEY, NOW, 0, BURST, PER)
        assert table.census(0, 1024, NOW)[0] == 1024


RATES = [Fraction(3), Fraction(7), Fraction(1, 3), Fraction(10**6), Fraction(1, 10**6), Fraction(10**9)]


@pytest.mark.parametrize("rate", RATES, ids=str)
class TestExactArithmetic:
    """Against fractions, at rates whose period no clock tick divides."""

    @staticmethod
    def burst_u(rate: Fraction) -> int:
        return min(50 * TOKEN, int(rate * 8_000_000 * TOKEN)) or 1

    def test_any_mix_that_sums_to_the_burst_fits_and_no_millionth_more(
        self, make: MakeTable, rate: Fraction
    ) -> None:
        table, burst_u, per = make(64), self.burst_u(rate), per_of(rate)
        chance = random.Random(str(rate))
        for key in range(20):
            rest_u = burst_u
            while rest_u:
                cost_u = min(rest_u, chance.randint(1, max(1, burst_u // 5)))
                rest_u -= cost_u
                assert table.take(key, NOW, cost_u, burst_u, per)[:2] == (ALLOWED, rest_u)
            assert table.take(key, NOW, 1, burst_u, per)[:2] == (REFUSED, 0)

    def test_waiting_as_told_is_enough_and_a_nanosecond_less_is_not(
        self, make: MakeTable, rate: Fraction
    ) -> None:
        table, burst_u, per = make(64), self.burst_u(rate), per_of(rate)
        table.take(KEY, NOW, burst_u, burst_u, per)
        cost_u = max(1, burst_u // 3)
        outcome, _, wait_ns = table.take(KEY, NOW, cost_u, burst_u, per)
        assert outcome == REFUSED
        assert table.take(KEY, NOW + wait_ns - 1, cost_u, burst_u, per)[0] == REFUSED
        assert table.take(KEY, NOW + wait_ns, cost_u, burst_u, per)[0] == ALLOWED

    def test_never_more_than_burst_plus_rate_and_less_by_the_rounding_of_per_only(
        self, make: MakeTable, rate: Fraction
    ) -> None:
        table, burst_u, per = make(64), self.burst_u(rate), per_of(rate)
        regained_u = Fraction(2**28, per)  # in a nanosecond
        chance = random.Random(str(rate))
        taken_u, now_ns, level_u = 0, NOW, Fraction(burst_u)
        for _ in range(400):
            cost_u = chance.randint(1, burst_u)
            outcome, remaining_u, wait_ns = table.take(KEY, now_ns, cost_u, burst_u, per)
            assert outcome == (ALLOWED if cost_u <= level_u else REFUSED)
            if outcome == ALLOWED:
                taken_u += cost_u
                level_u -= cost_u
            assert remaining_u == level_u // 1
            assert taken_u <= burst_u + rate * Fraction(now_ns - NOW, SECOND) * TOKEN
            passed_ns = chance.choice([0, wait_ns, wait_ns // 2])
            now_ns += passed_ns
            level_u = min(Fraction(burst_u), level_u + passed_ns * regained_u)

    def test_rate_is_low_by_less_than_the_rounding_of_per(self, make: MakeTable, rate: Fraction) -> None:
        effective = Fraction(1000 * 2**28, per_of(rate))
        assert rate * (1 - rate * Fraction(38, 10**13)) <= effective <= rate


class TestTotals:
    LIFE = 10 * UNIT_NS

    def test_adds_up_to_the_limit_and_no_further(self, table: AnyTable) -> None:
        assert table.add(KEY, NOW, 6, 10, self.LIFE) == (ALLOWED, 6)
        assert table.add(KEY, NOW, 5, 10, self.LIFE) == (REFUSED, 6)
        assert table.add(KEY, NOW, 4, 10, self.LIFE) == (ALLOWED, 10)
        assert table.add(KEY, NOW, 1, 10, self.LIFE) == (REFUSED, 10)
        assert table.peek_total(KEY, NOW) == 10

    def test_amount_above_the_limit_needs_no_record(self, table: AnyTable) -> None:
        assert table.add(KEY, NOW, 11, 10, self.LIFE) == (REFUSED, 0)
        assert table.census(0, 1024, NOW)[0] == 1024

    def test_lowered_limit_refuses_without_losing_the_total(self, table: AnyTable) -> None:
        table.add(KEY, NOW, 6, 10, self.LIFE)
        assert table.add(KEY, NOW, 1, 5, self.LIFE) == (REFUSED, 6)
        assert table.add(KEY, NOW, 1, 7, self.LIFE) == (ALLOWED, 7)

    def test_largest_amounts_do_not_overflow(self, table: AnyTable) -> None:
        most = 2**63 - 1
        assert table.add(KEY, NOW, most, most, self.LIFE) == (ALLOWED, most)
        assert table.add(KEY, NOW, most, most, self.LIFE) == (REFUSED, most)
        table.charge(KEY, NOW, most)
        table.charge(KEY, NOW, most)
        assert table.peek_total(KEY, NOW) == most

    def test_sub_takes_back_and_stops_at_nothing(self, table: AnyTable) -> None:
        table.add(KEY, NOW, 6, 10, self.LIFE)
        table.sub(KEY, NOW, 2)
        assert table.peek_total(KEY, NOW) == 4
        table.sub(KEY, NOW, 5)
        assert table.peek_total(KEY, NOW) == 0

    def test_charge_exceeds_any_limit(self, table: AnyTable) -> None:
        table.add(KEY, NOW, 6, 10, self.LIFE)
        table.charge(KEY, NOW, 100)
        assert table.add(KEY, NOW, 1, 10, self.LIFE) == (REFUSED, 106)

    def test_kept_for_its_life_and_gone_137_seconds_later(self, table: AnyTable) -> None:
        table.add(KEY, NOW, 6, 10, self.LIFE)
        assert table.peek_total(KEY, NOW + self.LIFE) == 6
        assert table.peek_total(KEY, NOW + self.LIFE + 2 * UNIT_NS) == 0
        assert table.add(KEY, NOW + self.LIFE + 2 * UNIT_NS, 7, 10, self.LIFE) == (ALLOWED, 7)

    @pytest.mark.parametrize(("amount", "outcome"), [(1, ALLOWED), (11, REFUSED)])
    def test_an_addition_may_prolong_its_life_and_never_shortens_it(
        self, table: AnyTable, amount: int, outcome: int
    ) -> None:
        """A wall clock that ran ahead tells too short a life; set right, the window is as long as it is."""
        table.add(KEY, NOW, 6, 10, SECOND)
        assert table.add(KEY, NOW + SECOND, amount, 10, self.LIFE)[0] == outcome
        assert table.add(KEY, NOW + 2 * SECOND, amount, 10, SECOND)[0] == outcome
        assert table.peek_total(KEY, NOW + self.LIFE) == 6 + 2 * (outcome == ALLOWED)
        assert table.peek_total(KEY, NOW + self.LIFE + 3 * UNIT_NS) == 0

    def test_kept_for_100_days(self, table: AnyTable) -> None:
        table.add(KEY, NOW, 6, 10, 100 * DAY)
        assert table.peek_total(KEY, NOW + 100 * DAY) == 6
        assert table.peek_total(KEY, NOW + 100 * DAY + 2 * UNIT_NS) == 0

    def test_once_is_allowed_once(self, table: AnyTable) -> None:
        assert [table.once(KEY, NOW + i, SECOND, i)[0] for i in range(3)] == [ALLOWED, REFUSED, REFUSED]
        assert table.once(KEY + 1, NOW, SECOND, 0) == (ALLOWED, 0)
        assert table.once(KEY, NOW + SECOND + 2 * UNIT_NS, SECOND, 3) == (ALLOWED, 0)


class TestCounts:
    def test_counts_within_the_window_and_starts_again_after_it(self, table: AnyTable) -> None:
        assert [table.count(KEY, NOW + i, 10 * SECOND) for i in range(3)] == [1, 2, 3]
        assert table.peek_count(KEY, NOW + 10 * SECOND - 1) == 3
        assert table.count(KEY, NOW + 10 * SECOND - 1, 10 * SECOND) == 4
        assert table.peek_count(KEY, NOW + 10 * SECOND) == 0
        assert table.count(KEY, NOW + 10 * SECOND, 10 * SECOND) == 1

    def test_count_stops_at_its_28_bits(self) -> None:
        memory = table_memory(8)
        table = table_over(memory, 8)
        table.count(KEY, NOW, SECOND)
        [at] = [i for i in range(8) if slot_of(memory, i)[1]]
        b, a, used_ns, key = slot_of(memory, at)
        put_slot(memory, at, b + 2**28 - 3, a, used_ns, key)
        assert [table.count(KEY, NOW, SECOND) for _ in range(3)] == [2**28 - 1] * 3
        assert table.peek_count(KEY, NOW + SECOND - 1) == 2**28 - 1
        assert table.peek_count(KEY, NOW + SECOND) == 0


class TestOtherOperations:
    def test_what_is_not_there_reads_as_nothing(self, table: AnyTable) -> None:
        assert table.peek_bucket(KEY, NOW, BURST, PER) == (BURST, 0)
        assert table.peek_total(KEY, NOW) == 0
        assert table.peek_count(KEY, NOW) == 0
        assert table.delete(KEY, NOW) is False

    def test_delete_forgets_one_key_only(self, table: AnyTable) -> None:
        for key in range(50):
            table.take(key, NOW, TOKEN, BURST, PER)
        assert table.delete(7, NOW) is True
        left = [table.peek_bucket(key, NOW, BURST, PER)[0] // TOKEN for key in range(50)]
        assert left == [4] * 7 + [5] + [4] * 42

    def test_delete_of_what_has_run_out_says_there_was_none(self, table: AnyTable) -> None:
        table.take(KEY, NOW, TOKEN, BURST, PER)
        assert table.delete(KEY, NOW + SECOND) is False
        assert table.census(0, 1024, NOW)[0] == 1024

    def test_sweep_frees_what_has_run_out_and_nothing_else(self, table: AnyTable) -> None:
        for key in range(100):
            table.take(key, NOW, (key + 1) * TOKEN, 100 * TOKEN, PER)
        table.add(1000, NOW, 1, 10, DAY)
        assert table.sweep(0, 1024, NOW) == 0
        assert table.sweep(0, 1024, NOW + 30 * SECOND) == 30
        assert table.census(0, 1024, NOW + 30 * SECOND) == (1024 - 71, 0, 70, 1, 0)

    def test_ranges_are_clipped(self, table: AnyTable) -> None:
        table.add(KEY, NOW, 1, 10, SECOND)
        later = NOW + DAY
        assert table.census(0, 2**63 - 1, later) == (1023, 0, 0, 0, 1)
        assert table.census(2**63 - 1, 2**63 - 1, later) == (0, 0, 0, 0, 0)
        assert sum(table.sweep(start, 100, later) for start in range(0, 1100, 100)) == 1

    def test_other_family_under_the_same_key_is_never_touched(self, table: AnyTable) -> None:
        table.take(KEY, NOW, TOKEN, BURST, PER)
        assert table.add(KEY, NOW, 1, 10, DAY) == (FULL, 0)
        assert table.once(KEY, NOW, DAY, 1)[0] == FULL
        table.sub(KEY, NOW, 1)
        table.charge(KEY, NOW, 1)
        assert table.peek_bucket(KEY, NOW, BURST, PER)[0] == 4 * TOKEN
        table.add(KEY + 1, NOW, 5, 10, DAY)
        assert table.take(KEY + 1, NOW, TOKEN, BURST, PER) == (FULL, BURST, 0)
        assert table.count(KEY + 1, NOW, DAY) == 0
        table.give(KEY + 1, NOW, TOKEN, PER)
        table.overdraw(KEY + 1, NOW, TOKEN, BURST, PER)
        assert table.peek_total(KEY + 1, NOW) == 5

    def test_a_claim_is_no_total(self, table: AnyTable) -> None:
        table.once(KEY, NOW, DAY, 5)
        assert table.add(KEY, NOW, 1, 10, DAY) == (FULL, 0)
        table.sub(KEY, NOW, 1)
        table.charge(KEY, NOW, 1)
        assert table.peek_total(KEY, NOW) == 0
        assert table.take(KEY, NOW, TOKEN, BURST, PER)[0] == FULL
        assert table.once(KEY, NOW, DAY, 6)[0] == REFUSED

    def test_a_claim_of_an_earlier_version_is_one(self, table: AnyTable) -> None:
        """It was a total of one millionth."""
        table.add(KEY, NOW, 1, 1, DAY)
        assert table.once(KEY, NOW, DAY, 5)[0] == REFUSED

    def test_words_and_cells(self, table: AnyTable) -> None:
        table.word_set(20, 2**64 - 1)
        assert table.word_add(20, 3) == 2
        assert table.word_add(20, -3) == 2**64 - 1
        assert table.word_cas(20, 5, 6) is False
        assert table.word_cas(20, 2**64 - 1, 6) is True
        assert table.word_get(20) == 6
        table.cell_add(3, 2**64 - 1)
        table.cell_add(3, 5)
        assert table.cell_get(3) == 4
        table.cell_add(3, -5)
        assert table.cell_get(3) == 2**64 - 1
        table.cell_set(3, 9)
        assert [table.cell_get(i) for i in (2, 3, 4)] == [0, 9, 0]


class TestFullWindow:
    """16 slots make one window, so that 16 keys fill it."""

    def test_evicts_the_least_recently_used_bucket(self, make: MakeTable) -> None:
        table = make(16)
        for key in range(16):
            table.take(key, NOW + key, TOKEN, BURST, PER)
        table.take(0, NOW + 20, BURST, BURST, PER)  # a refusal too is a use
        assert table.take(100, NOW + 21, TOKEN, BURST, PER)[0] == ALLOWED
        assert table.word_get(WORD_EVICTIONS) == 1
        left = [key for key in range(16) if table.peek_bucket(key, NOW + 21, BURST, PER)[0] < BURST]
        assert left == [key for key in range(16) if key != 1]

    def test_never_evicts_a_total(self, make: MakeTable) -> None:
        table = make(16)
        for key in range(16):
            assert table.add(key, NOW, 1, 10, DAY) == (ALLOWED, 1)
        assert table.take(100, NOW, TOKEN, BURST, PER) == (FULL, BURST, 0)
        assert table.add(101, NOW, 1, 10, DAY) == (FULL, 0)
        assert table.count(102, NOW, DAY) == 0
        assert table.once(103, NOW, DAY, 1)[0] == FULL
        table.overdraw(104, NOW, TOKEN, BURST, PER)
        assert (table.word_get(WORD_EVICTIONS), table.word_get(WORD_FULL)) == (0, 5)
        assert [table.peek_total(key, NOW) for key in range(16)] == [1] * 16

    def test_evicts_a_claim_last_and_the_least_stamp_first(self, make: MakeTable) -> None:
        table = make(16)
        for key in range(14):
            assert table.once(key, NOW + key, DAY, 100 - key) == (ALLOWED, 0)
        table.add(14, NOW, 1, 10, DAY)
        table.take(15, NOW + 20, TOKEN, BURST, PER)
        assert table.count(50, NOW + 21, DAY) == 1, "in the place of the bucket, which was used last of all"
        assert (table.word_get(WORD_EVICTIONS), table.word_get(WORD_CLAIM_EVICTIONS)) == (1, 0)
        assert table.add(51, NOW + 21, 1, 10, DAY)[0] == ALLOWED
        assert table.add(52, NOW + 21, 1, 10, DAY)[0] == ALLOWED
        assert (table.word_get(WORD_EVICTIONS), table.word_get(WORD_CLAIM_EVICTIONS)) == (2, 1)
        assert table.word_get(WORD_CLAIM_STAMP) == 87
        assert [table.once(key, NOW + 21, DAY, 100 - key)[0] for key in range(13)] == [REFUSED] * 13
        assert table.once(13, NOW + 21, DAY, 87) == (ALLOWED, 88), "that of key 12 gave way to it"

    def test_a_claim_that_has_run_out_is_not_one_that_was_evicted(self, make: MakeTable) -> None:
        table = make(16)
        for key in range(16):
            table.once(key, NOW, SECOND, 5)
        assert table.once(20, NOW + 3 * UNIT_NS, SECOND, 6) == (ALLOWED, 0)
        assert table.word_get(WORD_CLAIM_EVICTIONS) == 0

    def test_prefers_what_has_run_out(self, make: MakeTable) -> None:
        table = make(16)
        for key in range(16):
            table.take(key, NOW, TOKEN if key == 5 else BURST, BURST, PER)
        assert table.take(100, NOW + SECOND, TOKEN, BURST, PER)[0] == ALLOWED
        assert table.word_get(WORD_EVICTIONS) == 0
        assert table.peek_bucket(5, NOW + SECOND, BURST, PER) == (BURST, 0)

    def test_decisions_that_need_no_record_need_no_room(self, make: MakeTable) -> None:
        table = make(16)
        for key in range(16):
            table.add(key, NOW, 1, 10, DAY)
        assert table.take(100, NOW, BURST + 1, BURST, PER) == (REFUSED, BURST, -1)
        assert table.add(100, NOW, 11, 10, DAY) == (REFUSED, 0)
        assert table.word_get(WORD_FULL) == 0

    def test_one_group_is_a_window_too(self, make: MakeTable) -> None:
        table = make(8)
        assert [table.add(key, NOW, 1, 10, DAY)[0] for key in range(9)] == [ALLOWED] * 8 + [FULL]

    def test_half_full_table_of_any_size_evicts_nobody(self, make: MakeTable) -> None:
        table = make(8 * 1003)
        for key in range(4 * 1003):
            assert table.take(key, NOW, TOKEN, BURST, PER)[0] == ALLOWED
        assert (table.word_get(WORD_EVICTIONS), table.word_get(WORD_FULL)) == (0, 0)
        assert all(table.peek_bucket(key, NOW, BURST, PER)[0] == 4 * TOKEN for key in range(4 * 1003))


class TestKeys:
    def test_mixing_can_be_undone(self) -> None:
        chance = random.Random(1)
        for key in [0, 1, 2**64 - 1, *(chance.getrandbits(64) for _ in range(1000))]:
            assert unmixed(mixed(key)) == key

    def test_extreme_keys_are_keys(self, table: AnyTable) -> None:
        no_fingerprint = unmixed(5)  # its upper 43 bits are zero
        keys = [0, 1, 2**63, 2**64 - 1, no_fingerprint]
        assert [table.take(key, NOW, TOKEN, BURST, PER)[1] for key in keys] == [4 * TOKEN] * 5

    def test_keys_with_one_fingerprint_and_window_are_one_counter(self, make: MakeTable) -> None:
        table = make(64)
        one, other = colliding_keys(8)
        table.take(one, NOW, TOKEN, BURST, PER)
        assert table.take(other, NOW, TOKEN, BURST, PER)[1] == 3 * TOKEN

    def test_same_slot_is_used_again_by_its_key(self, make: MakeTable) -> None:
        table = make(64)
        for i in range(1000):
            table.take(KEY, NOW + i * DAY, TOKEN, BURST, PER)
        assert table.word_get(WORD_NONCE) == 1


class TestMove:
    def filled(self, table: AnyTable) -> None:
        for key in range(30):
            table.take(key, NOW + key, (key % 4 + 1) * TOKEN, BURST, PER)
        for key in range(100, 130):
            table.add(key, NOW, key, 1000, DAY)
        for _ in range(3):
            table.count(200, NOW, DAY)

    def test_merge_into_another_size_keeps_every_counter(self, make: MakeTable) -> None:
        old, new = make(1024), make(520)
        self.filled(old)
        assert new.merge(old.dump(0, 1024, NOW), 0, NOW) == (61, 0)
        assert [new.take(key, NOW, TOKEN, BURST, PER) for key in range(30)] == [
            old.take(key, NOW, TOKEN, BURST, PER) for key in range(30)
        ]
        assert [new.peek_total(key, NOW) for key in range(100, 130)] == list(range(100, 130))
        assert new.count(200, NOW, DAY) == 4

    @pytest.mark.parametrize("shift_ns", [DAY, -DAY, 1, -1])
    def test_shift_moves_times_to_another_clock(self, make: MakeTable, shift_ns: int) -> None:
        old, new = make(1024), make(1024)
        self.filled(old)
        new.merge(old.dump(0, 1024, NOW), shift_ns, NOW + shift_ns)
        later = NOW + SECOND // 3
        for key in range(30):
            assert new.peek_bucket(key, later + shift_ns, BURST, PER) == old.peek_bucket(
                key, later, BURST, PER
            )
        assert new.peek_count(200, NOW + DAY - 1 + shift_ns) == 3
        assert new.peek_count(200, NOW + DAY + shift_ns) == 0
        assert new.peek_total(100, NOW + DAY + shift_ns) == 100

    def test_run_out_records_are_left_behind(self, make: MakeTable) -> None:
        old, new = make(1024), make(1024)
        self.filled(old)
        assert len(old.dump(0, 1024, NOW + 10 * SECOND)) == 31 * SLOT_BYTES
        assert new.merge(old.dump(0, 1024, NOW), 0, NOW + 10 * SECOND) == (61, 0)
        assert new.census(0, 1024, NOW)[2:4] == (1, 30)

    def test_greater_charge_wins(self, make: MakeTable) -> None:
        old, new = make(64), make(64)
        old.take(1, NOW, 2 * TOKEN, BURST, PER)
        new.take(1, NOW, 3 * TOKEN, BURST, PER)
        old.add(2, NOW, 9, 10, DAY)
        new.add(2, NOW, 4, 10, DAY)
        assert new.merge(old.dump(0, 64, NOW), 0, NOW) == (2, 0)
        assert new.peek_bucket(1, NOW, BURST, PER)[0] == 2 * TOKEN
        assert new.peek_total(2, NOW) == 9

    def test_too_small_a_table_drops_and_says_so(self, make: MakeTable) -> None:
        old, new = make(64), make(8)
        for key in range(20):
            old.add(key, NOW, 1, 10, DAY)
        for key in range(100, 105):
            old.take(key, NOW, TOKEN, BURST, PER)
        assert new.merge(old.dump(0, 64, NOW), 0, NOW) == (8, 17)

    def test_a_claim_that_is_dropped_counts_as_evicted(self, make: MakeTable) -> None:
        old, new = make(64), make(8)
        for key in range(8):
            new.add(key, NOW, 1, 10, DAY)
        old.once(20, NOW, DAY, 7)
        old.once(21, NOW, DAY, 5)
        assert new.merge(old.dump(0, 64, NOW), 0, NOW) == (0, 2)
        assert (new.word_get(WORD_CLAIM_EVICTIONS), new.word_get(WORD_CLAIM_STAMP)) == (2, 7)

    def test_claims_are_moved_with_their_stamps(self, make: MakeTable) -> None:
        old, new = make(64), make(8)
        for key in range(8):
            old.once(key, NOW, DAY, 10 + key)
        assert new.merge(old.dump(0, 64, NOW), SECOND, NOW + SECOND) == (8, 0)
        assert new.once(20, NOW + SECOND, DAY, 30) == (ALLOWED, 10)
        assert new.once(3, NOW + SECOND, DAY, 13)[0] == REFUSED

    def test_record_with_another_keys_name_is_not_moved(self, make: MakeTable) -> None:
        old, new = make(64), make(64)
        old.add(KEY, NOW, 1, 10, DAY)
        dump = bytearray(old.dump(0, 64, NOW))
        dump[24:32] = (KEY ^ 1).to_bytes(8, "little")
        assert new.merge(bytes(dump), 0, NOW) == (0, 1)

    def test_short_end_of_a_dump_is_ignored(self, make: MakeTable) -> None:
        assert make(64).merge(b"\xff" * 31, 0, NOW) == (0, 0)


class TestWhatAKillLeaves:
    """A reservation that nobody will convert, written into the memory of the C table."""

    def reserved(self, key: int, slots: int) -> tuple[mmap.mmap, Table, int]:
        memory = table_memory(slots)
        at = window(key, slots // GROUP)[0][0]
        put_slot(memory, at, 99, fingerprint(key) << 21 | 1 << 19 | NOW // UNIT_NS + 1)
        return memory, table_over(memory, slots), at

    def test_its_key_can_use_it_at_once(self) -> None:
        memory, table, at = self.reserved(KEY, 64)
        assert table.census(0, 64, NOW) == (63, 1, 0, 0, 0)
        assert table.peek_bucket(KEY, NOW, BURST, PER) == (BURST, 0)
        assert table.take(KEY, NOW, TOKEN, BURST, PER)[:2] == (ALLOWED, 4 * TOKEN)
        assert slot_of(memory, at)[3] == KEY
        assert table.census(0, 64, NOW) == (63, 0, 1, 0, 0)

    def test_two_of_them_become_one_record(self) -> None:
        memory, table, _ = self.reserved(KEY, 64)
        second = window(KEY, 8)[1][3]
        put_slot(memory, second, 100, fingerprint(KEY) << 21 | 1 << 19 | NOW // UNIT_NS + 1)
        assert table.take(KEY, NOW, TOKEN, BURST, PER)[:2] == (ALLOWED, 4 * TOKEN)
        assert table.census(0, 64, NOW) == (63, 0, 1, 0, 0)

    def test_others_can_use_it_after_137_seconds(self) -> None:
        _, table, _ = self.reserved(KEY, 8)
        for key in range(7):
            table.add(key, NOW, 1, 10, DAY)
        assert table.add(100, NOW, 1, 10, DAY)[0] == FULL
        assert table.add(100, NOW + 2 * UNIT_NS, 1, 10, DAY)[0] == ALLOWED

    def test_it_is_never_evicted(self) -> None:
        _, table, _ = self.reserved(KEY, 8)
        for key in range(8):
            table.take(key, NOW + key, TOKEN, BURST, PER)
        assert table.word_get(WORD_EVICTIONS) == 1
        assert table.census(0, 8, NOW)[1] == 1

    def test_sweep_frees_it_after_137_seconds(self) -> None:
        _, table, _ = self.reserved(KEY, 64)
        assert table.sweep(0, 64, NOW) == 0
        assert table.sweep(0, 64, NOW + 2 * UNIT_NS) == 1

    def test_it_holds_no_charge_to_give_back_or_move(self) -> None:
        _, table, _ = self.reserved(KEY, 64)
        table.give(KEY, NOW, TOKEN, PER)
        assert table.delete(KEY, NOW) is False
        assert table.dump(0, 64, NOW) == b""


OVER_63 = [-1, 2**63, 2**200]
AMOUNTS = [
    ("take", (KEY, NOW, TOKEN, BURST, PER), (1, 2, 3, 4)),
    ("give", (KEY, NOW, TOKEN, PER), (1, 2, 3)),
    ("overdraw", (KEY, NOW, TOKEN, BURST, PER), (1, 2, 3, 4)),
    ("peek_bucket", (KEY, NOW, BURST, PER), (1, 2, 3)),
    ("add", (KEY, NOW, 1, 10, DAY), (1, 2, 3, 4)),
    ("sub", (KEY, NOW, 1), (1, 2)),
    ("charge", (KEY, NOW, 1), (1, 2)),
    ("peek_total", (KEY, NOW), (1,)),
    ("count", (KEY, NOW, DAY), (1, 2)),
    ("peek_count", (KEY, NOW), (1,)),
    ("once", (KEY, NOW, DAY, 1), (1, 2, 3)),
    ("delete", (KEY, NOW), (1,)),
    ("sweep", (0, 8, NOW), (0, 1, 2)),
    ("census", (0, 8, NOW), (0, 1, 2)),
    ("dump", (0, 8, NOW), (0, 1, 2)),
]


class TestArguments:
    @pytest.mark.parametrize(("name", "arguments", "amounts"), AMOUNTS)
    def test_amounts_are_from_0_to_63_bits(
        self, table: AnyTable, name: str, arguments: tuple[int, ...], amounts: tuple[int, ...]
    ) -> None:
        for place in amounts:
            for value in OVER_63:
                wrong = [*arguments[:place], value, *arguments[place + 1 :]]
                with pytest.raises(ValueError, match="must be from"):
                    getattr(table, name)(*wrong)
        assert table.census(0, 1024, NOW)[0] == 1024

    @pytest.mark.parametrize("value", [-1, 2**64, -(2**200)])
    def test_keys_are_of_64_bits(self, table: AnyTable, value: int) -> None:
        for name, arguments, _ in AMOUNTS[:12]:
            with pytest.raises(ValueError, match="key must be from"):
                getattr(table, name)(value, *arguments[1:])

    @pytest.mark.parametrize("life_ns", [0, 100 * DAY + 1])
    def test_lives_are_from_1_ns_to_100_days(self, table: AnyTable, life_ns: int) -> None:
        with pytest.raises(ValueError, match="window_ns must be from"):
            table.count(KEY, NOW, life_ns)
        with pytest.raises(ValueError, match="ttl_ns must be from"):
            table.once(KEY, NOW, life_ns, 1)
        with pytest.raises(ValueError, match="ttl_ns must be from"):
            table.add(KEY, NOW, 1, 10, life_ns)

    def test_bucket_must_fill_within_208_days(self, table: AnyTable) -> None:
        assert table.take(KEY, NOW, 1, 2**41 - 1, 2**41)[0] == ALLOWED
        with pytest.raises(ValueError, match="208 days"):
            table.take(KEY, NOW, 1, 2**41, 2**41)
        with pytest.raises(ValueError, match="per must be"):
            table.take(KEY, NOW, 1, 1, 0)

    def test_words_and_cells_have_ends(self, table: AnyTable) -> None:
        for index in (-1, WORDS, 2**64):
            for name, arguments in [("get", ()), ("set", (1,)), ("add", (1,)), ("cas", (1, 2))]:
                with pytest.raises(IndexError, match="no word"):
                    getattr(table, f"word_{name}")(index, *arguments)
        for index in (-1, CELLS, 2**64):
            for name, arguments in [("get", ()), ("set", (1,)), ("add", (1,))]:
                with pytest.raises(IndexError, match="no cell"):
                    getattr(table, f"cell_{name}")(index, *arguments)
        with pytest.raises(ValueError, match="value must be from"):
            table.word_set(1, 2**64)

    @pytest.mark.parametrize("name", ["take", "give", "add", "count", "delete", "word_get", "cell_add"])
    def test_c_methods_take_integers_and_as_many_as_they_say(self, name: str) -> None:
        call = getattr(c_table(8), name)
        with pytest.raises(TypeError, match="arguments"):
            call()
        with pytest.raises(TypeError, match="arguments"):
            call(*range(1, 8))
        counts = {"take": 5, "give": 4, "add": 5, "count": 3, "delete": 2, "word_get": 1, "cell_add": 2}
        for place in range(counts[name]):
            arguments: list[object] = [1] * counts[name]
            arguments[place] = "1"
            with pytest.raises(TypeError):
                call(*arguments)
            arguments[place] = 1.0
            with pytest.raises(TypeError):
                call(*arguments)


GOOD = {
    "seed": 1,
    "words_at": 0,
    "words": WORDS,
    "slots_at": SLOTS_AT,
    "slots": 8,
    "cells_at": SLOTS_AT + 8 * SLOT_BYTES,
    "cells": 1,
}


class TestConstruction:
    def made(self, **changes: int) -> Table:
        return Table(table_memory(8), **{**GOOD, **changes})

    def test_says_what_it_was_made_of(self) -> None:
        table = self.made(seed=2**64 - 1)
        assert (table.seed, table.words, table.slots, table.cells) == (2**64 - 1, WORDS, 8, 1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"slots": 0}, "positive multiple of 8"),
            ({"slots": 12}, "positive multiple of 8"),
            ({"slots": -8}, "positive multiple of 8"),
            ({"slots": 16 * 1024}, "slots: 16384 at offset"),
            ({"slots": 2**36}, "slots"),
            ({"slots_at": -256}, "slots"),
            ({"slots_at": SLOTS_AT + 8}, "not aligned"),
            ({"words": OWN_WORDS - 1}, "too few"),
            ({"words": 2**60}, "words"),
            ({"words_at": 8}, "not aligned"),
            ({"cells": 2**60}, "cells"),
            ({"cells_at": 2**62}, "cells"),
            ({"seed": 2**64}, "seed must be from"),
            ({"seed": -1}, "seed must be from"),
        ],
    )
    def test_refuses_what_does_not_fit_its_memory(self, changes: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.made(**changes)

    def test_refuses_memory_it_cannot_write(self) -> None:
        with pytest.raises((BufferError, TypeError)):
            Table(bytes(4096), **GOOD)

    def test_keeps_its_memory_mapped(self) -> None:
        memory = table_memory(8)
        table = table_over(memory, 8)
        with pytest.raises(BufferError):
            memory.close()
        table.take(KEY, NOW, TOKEN, BURST, PER)
        del table
        gc.collect()
        memory.close()

    def test_new_memory_is_an_empty_table(self, table: AnyTable) -> None:
        assert table.census(0, 1024, NOW) == (1024, 0, 0, 0, 0)
        assert [table.word_get(word) for word in range(WORDS)] == [0] * WORDS

    def test_two_tables_over_one_memory_are_one(self) -> None:
        memory = table_memory(64)
        one, other = table_over(memory, 64), table_over(memory, 64)
        one.take(KEY, NOW, TOKEN, BURST, PER)
        assert other.take(KEY, NOW, TOKEN, BURST, PER)[1] == 3 * TOKEN

    def test_leaves_no_objects_behind(self) -> None:
        table = c_table(64)

        def work() -> None:
            for i in range(5000):
                table.take(2**60 + i, NOW, TOKEN, BURST, 2**40)
                table.add(i, NOW, 2**40, 2**50, SECOND)
                table.peek_bucket(i, NOW, TOKEN, 2**40)
                table.merge(table.dump(0, 64, NOW), 0, NOW)
                table.census(0, 64, NOW)
                with pytest.raises(ValueError, match="key"):
                    table.take(-1, 0, 0, 0, 0)

        work()
        gc.collect()
        before = sys.getallocatedblocks()
        work()
        gc.collect()
        assert sys.getallocatedblocks() - before < 1000


def test_window_is_two_groups_of_its_own() -> None:
    for key in range(2000):
        first, second = window(key, 37)
        assert sorted(first) == list(range(first[0] // 8 * 8, first[0] // 8 * 8 + 8))
        assert {slot // GROUP for slot in first} != {slot // GROUP for slot in second}


def test_keys_in_one_window_really_share_it() -> None:
    assert len(keys_in_one_window(20, 8)) == 20
