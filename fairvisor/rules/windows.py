"""Calendar windows: which minute, hour, day, week or month a moment belongs to.

Fixed periods are aligned to the Unix epoch in UTC. A day, a week (from Monday) and a month may follow a time zone; a
local day is then 23 to 25 hours long. A window starts at the first moment of its first local day and ends where the
next one starts, so windows tile time without gaps whatever daylight saving does.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400

# 30d is thirty times a day from the epoch; 1d, 7d and 1mo are found on the calendar.
FIXED_SECONDS: Final = {
    "1m": _MINUTE,
    "5m": 5 * _MINUTE,
    "15m": 15 * _MINUTE,
    "1h": _HOUR,
    "6h": 6 * _HOUR,
    "12h": 12 * _HOUR,
    "30d": 30 * _DAY,
}


class Window(NamedTuple):
    """[start_s, end_s) in seconds since the Unix epoch."""

    start_s: int
    end_s: int


class Windows:
    """The windows of one period in one time zone."""

    __slots__ = ("_period", "_seconds", "_zone")

    def __init__(self, period: str, zone_name: str | None = None) -> None:
        self._period = period
        self._seconds = FIXED_SECONDS.get(period)
        self._zone: tzinfo = ZoneInfo(zone_name) if zone_name else timezone.utc

    def at(self, wall_s: int) -> Window:
        """The window that holds the moment `wall_s` (seconds since the epoch)."""
        if self._seconds is not None:
            start = wall_s - wall_s % self._seconds
            return Window(start, start + self._seconds)
        first = self._local(wall_s).replace(hour=0, minute=0, second=0)
        if self._period == "7d":
            first -= timedelta(days=first.weekday())
        elif self._period == "1mo":
            first = first.replace(day=1)
        after = self._next(first)
        if self._first_moment(after) <= wall_s:  # set back over midnight: the next day has begun already
            first, after = after, self._next(after)
        return Window(self._first_moment(first), self._first_moment(after))

    def _next(self, first: datetime) -> datetime:
        if self._period == "1mo":
            return (first + timedelta(days=32)).replace(day=1)
        return first + timedelta(days=7 if self._period == "7d" else 1)

    def _first_moment(self, local_midnight: datetime) -> int:
        """The first moment of a local day; where the clock skips midnight, the moment of the jump."""
        latest = int(local_midnight.replace(tzinfo=self._zone).timestamp())
        if self._local(latest) == local_midnight:
            return latest
        earliest = int(local_midnight.replace(tzinfo=self._zone, fold=1).timestamp()) - 1
        while latest - earliest > 1:  # the jump is after `earliest`, and no later than `latest`
            middle = (earliest + latest) // 2
            if self._local(middle) < local_midnight:
                earliest = middle
            else:
                latest = middle
        return latest

    def _local(self, wall_s: int) -> datetime:
        return datetime.fromtimestamp(wall_s, self._zone).replace(tzinfo=None, fold=0)
