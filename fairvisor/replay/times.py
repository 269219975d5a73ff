"""A moment as logs write it, in nanoseconds since the Unix epoch.

The forms of nginx, Apache and HAProxy (`02/Nov/2026:12:00:00 +0000`), ISO 8601 and RFC 3339 with any of its habits
(`2026/11/02 12:00:00.000`), HTTP's (RFC 9110 5.6.7), and numbers of seconds, milli-, micro- or nanoseconds. A moment
without a zone is of the zone that is given, else UTC. Lines of the same second follow each other, so
the last reading is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final

from fairvisor.clock import NS_PER_S

LATEST_NS: Final = 9_000_000_000 * NS_PER_S  # in the year 2255; the counters reckon with less than 2^63

_EPOCH: Final = date(1970, 1, 1)
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}
_CLOCK: Final = r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)"
_ZONE: Final = r"([Zz]|UTC|GMT|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?"
_REST: Final = rf"{_CLOCK}(?:[.,](\d+))? ?{_ZONE}"
_LOCAL: Final = re.compile(
    rf"(?:[A-Z][a-z]{{2}}, )?(\d\d[/ -][A-Z][a-z]{{2}}[/ -]\d{{4}})[: T]{_REST}", re.ASCII
)
_ISO: Final = re.compile(rf"(\d{{4}}[-/]\d\d[-/]\d\d)[Tt ]{_REST}", re.ASCII)
_NUMBER: Final = re.compile(r"(\d{1,19})(?:\.(\d+))?", re.ASCII)

# From how many digits on a number of whole units is no longer one of seconds: 12 digits of seconds is the year 5138.
_UNITS_NS: Final = ((11, NS_PER_S), (14, 1_000_000), (17, 1000), (99, 1))


# An hour is written twice when clocks are put back. Lines are out of order by less than this, so what looks as much
# earlier than the latest line is of the second of these hours.
_BACK_NS: Final = 1800 * NS_PER_S


class Times:
    """Reads the moments of one log. `zone` is that of moments without one; None is UTC."""

    __slots__ = ("_latest_ns", "_ns", "_text", "_zone")

    def __init__(self, zone: tzinfo | None = None) -> None:
        self._zone = zone
        self._text = b""
        self._ns = 0
        self._latest_ns = 0

    def read(self, text: bytes) -> int:
        """Return nanoseconds since the epoch. Raises ValueError for what is not a moment."""
        if text != self._text:
            self._ns = read_time(text.decode("latin-1"), self._zone, self._latest_ns)
            self._text = text
            self._latest_ns = max(self._latest_ns, self._ns)
        return self._ns


def read_time(text: str, zone: tzinfo | None = None, latest_ns: int = 0) -> int:
    """Return nanoseconds since the epoch; `latest_ns` is the latest that was read before.

    Raises ValueError for what is not a moment from 1970 to 2255.
    """
    for form, day in ((_ISO, _iso_day), (_LOCAL, _local_day)):
        match = form.fullmatch(text)
        if match:
            return _bounded(_calendar(match, day, zone, latest_ns), text)
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:60]!r} is not a time")
    return _bounded(_number(match[1], match[2] or ""), text)


def _calendar(match: re.Match[str], day: Callable[[str], int], zone: tzinfo | None, latest_ns: int) -> int:
    written, hours, minutes, seconds, fraction, offset = match.groups()
    at_s = day(written) + int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    if offset is not None:
        at_s -= _offset_s(offset)
    elif zone is not None:
        first_s, second_s = (at_s - _local_offset_s(at_s, zone, fold) for fold in (0, 1))
        at_s = second_s if first_s < second_s and first_s * NS_PER_S < latest_ns - _BACK_NS else first_s
    return at_s * NS_PER_S + _fraction(fraction or "")


@lru_cache(maxsize=64)
def _offset_s(written: str) -> int:
    """Return how far `+0530`, `-05:00` or `Z` is ahead of UTC."""
    if written[0] not in "+-":
        return 0
    digits = written[1:].replace(":", "")
    ahead_s = int(digits[:2]) * 3600 + int(digits[2:] or 0) * 60
    return ahead_s if written[0] == "+" else -ahead_s


def _local_offset_s(local_s: int, zone: tzinfo, fold: int) -> int:
    """Return how far a zone is ahead of UTC when its clocks show this."""
    # Of what is too late to be a moment any offset will do; a calendar ends with the year 9999.
    local = datetime(1970, 1, 1, tzinfo=zone) + timedelta(seconds=min(local_s, LATEST_NS // NS_PER_S))
    offset = local.replace(fold=fold).utcoffset()
    assert offset is not None, "zones of the database have one"
    return int(offset.total_seconds())


def _number(whole: str, fraction: str) -> int:
    unit_ns = next(unit for digits, unit in _UNITS_NS if len(whole) <= digits)
    return int(whole) * unit_ns + _fraction(fraction) * unit_ns // NS_PER_S


def _fraction(digits: str) -> int:
    """Digits after a decimal point in billionths."""
    return int(digits[:9].ljust(9, "0")) if digits else 0


def _bounded(ns: int, text: str) -> int:
    if not 0 <= ns < LATEST_NS:
        raise ValueError(f"{text[:60]!r} is not a time from 1970 to 2255")
    return ns


@lru_cache(maxsize=64)
def _iso_day(text: str) -> int:
    """Return the day's first second since the epoch."""
    return _day(int(text[:4]), int(text[5:7]), int(text[8:]))


@lru_cache(maxsize=64)
def _local_day(text: str) -> int:
    return _day(int(text[7:]), _MONTHS.get(text[3:6], 0), int(text[:2]))


def _day(year: int, month: int, day: int) -> int:
    try:
        return (date(year, month, day) - _EPOCH).days * 86_400
    except ValueError:
        raise ValueError(f"{year:04}-{month:02}-{day:02} is not a date") from None
