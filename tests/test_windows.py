"""Calendar windows: aligned as written, and without gaps or overlaps in every time zone."""

from __future__ import annotations

from datetime import datetime, timezone
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairvisor.rules.windows import FIXED_SECONDS, Windows

HOUR = 3600
DAY = 24 * HOUR
ZONES = sorted(available_timezones() - {"localtime"})
PERIODS = [*FIXED_SECONDS, "1d", "7d", "1mo"]


def seconds(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


def in_utc(moment_s: int) -> str:
    return datetime.fromtimestamp(moment_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("1m", "2026-03-04T13:47:00", "2026-03-04T13:48:00"),
        ("5m", "2026-03-04T13:45:00", "2026-03-04T13:50:00"),
        ("15m", "2026-03-04T13:45:00", "2026-03-04T14:00:00"),
        ("1h", "2026-03-04T13:00:00", "2026-03-04T14:00:00"),
        ("6h", "2026-03-04T12:00:00", "2026-03-04T18:00:00"),
        ("12h", "2026-03-04T12:00:00", "2026-03-05T00:00:00"),
        ("1d", "2026-03-04T00:00:00", "2026-03-05T00:00:00"),
        ("7d", "2026-03-02T00:00:00", "2026-03-09T00:00:00"),
        ("30d", "2026-02-06T00:00:00", "2026-03-08T00:00:00"),
        ("1mo", "2026-03-01T00:00:00", "2026-04-01T00:00:00"),
    ],
)
def test_windows_in_utc(period: str, start: str, end: str) -> None:
    """At 13:47:31 on a Wednesday."""
    window = Windows(period).at(seconds("2026-03-04T13:47:31"))
    assert (in_utc(window.start_s), in_utc(window.end_s)) == (start, end)


def test_thirty_days_are_counted_from_the_epoch() -> None:
    assert Windows("30d").at(0) == (0, 30 * DAY)
    assert Windows("30d").at(30 * DAY - 1).start_s == 0


@pytest.mark.parametrize(
    ("moment", "start", "end"),
    [
        ("2026-01-31T23:59:59", "2026-01-01", "2026-02-01"),
        ("2026-02-28T12:00:00", "2026-02-01", "2026-03-01"),
        ("2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        ("2026-12-31T23:00:00", "2026-12-01", "2027-01-01"),
    ],
)
def test_months_have_their_own_length(moment: str, start: str, end: str) -> None:
    assert Windows("1mo").at(seconds(moment)) == (seconds(start), seconds(end))


@pytest.mark.parametrize(
    ("zone", "moment", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00:00", 25),
        ("Europe/Berlin", "2026-10-26T12:00:00", 24),
        ("Australia/Lord_Howe", "2026-10-04T12:00:00", 23.5),
        ("Africa/Cairo", "2026-04-24T12:00:00", 23),  # the clock skips midnight
        ("America/Havana", "2026-11-01T12:00:00", 25),  # midnight comes twice
        ("Asia/Kolkata", "2026-06-01T12:00:00", 24),
    ],
)
def test_a_local_day_lasts_23_to_25_hours(zone: str, moment: str, hours: float) -> None:
    window = Windows("1d", zone).at(seconds(moment, zone))
    assert window.end_s - window.start_s == hours * HOUR


def test_a_day_that_starts_with_a_jump_starts_at_the_jump() -> None:
    window = Windows("1d", "Africa/Cairo").at(seconds("2026-04-24T12:00:00", "Africa/Cairo"))
    assert in_utc(window.start_s) == "2026-04-23T22:00:00"


def test_a_midnight_within_a_jump_that_starts_before_it_is_the_jump() -> None:
    """Toronto, 1919: at 23:30 the clock was put to 00:30 of the next day."""
    jump = seconds("1919-03-31T04:30:00")
    before, after = Windows("1d", "America/Toronto").at(jump - 1), Windows("1d", "America/Toronto").at(jump)
    assert before.end_s == after.start_s == jump


def test_a_day_that_is_left_and_entered_again_is_one_window() -> None:
    """St. John's, 2010: a minute into 7 November the clock was put back to 23:01 of the 6th."""
    windows = Windows("1d", "America/St_Johns")
    start = seconds("2010-11-07T02:30:00")
    assert (
        windows.at(start)
        == windows.at(start + 30 * 60)
        == windows.at(start + 2 * HOUR)
        == (start, start + 25 * HOUR)
    )


def test_weeks_start_on_monday_and_months_on_the_first_of_the_zone() -> None:
    tokyo = "Asia/Tokyo"
    assert Windows("7d", tokyo).at(seconds("2026-03-08T23:59:59", tokyo)).start_s == seconds(
        "2026-03-02", tokyo
    )
    assert Windows("1mo", tokyo).at(seconds("2026-03-31T20:00:00")).start_s == seconds("2026-04-01", tokyo)


@pytest.mark.parametrize("period", [period for period in PERIODS if period not in ("1d", "7d", "1mo")])
def test_a_time_zone_moves_days_weeks_and_months_only(period: str) -> None:
    moment = seconds("2026-03-04T13:47:31")
    assert Windows(period, "Asia/Kolkata").at(moment) == Windows(period).at(moment)


@given(st.sampled_from(PERIODS), st.sampled_from(ZONES), st.integers(0, seconds("2038-01-01")))
@example("1d", "Pacific/Apia", seconds("2011-12-30T10:00:00"))
@example("1d", "America/Scoresbysund", seconds("2024-03-31T00:30:00"))
@example("7d", "America/St_Johns", seconds("2010-11-07T02:40:00"))
@example("1mo", "America/Asuncion", seconds("2024-10-06T04:00:00"))
@settings(max_examples=300)
def test_windows_tile_time(period: str, zone: str, moment: int) -> None:
    windows = Windows(period, zone)
    window = windows.at(moment)
    assert window.start_s <= moment < window.end_s
    assert windows.at(window.start_s) == windows.at(window.end_s - 1) == window
    assert windows.at(window.end_s).start_s == window.end_s
    assert windows.at(window.start_s - 1).end_s == window.start_s


@given(st.sampled_from(ZONES), st.integers(seconds("2012-01-01"), seconds("2038-01-01")))
def test_windows_begin_with_the_first_moment_of_a_local_day(zone: str, moment: int) -> None:
    for period in ("1d", "7d", "1mo"):
        start_s = Windows(period, zone).at(moment).start_s
        first, before = (datetime.fromtimestamp(second, ZoneInfo(zone)) for second in (start_s, start_s - 1))
        assert before.date() < first.date()
        assert period != "7d" or first.weekday() == 0
        assert period != "1mo" or first.day == 1
