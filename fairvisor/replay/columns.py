"""W3C extended logs: CloudFront's, those of IIS, and any other whose `#Fields` names its columns.

    #Fields: date time c-ip cs-method cs-uri-stem cs-uri-query cs(Host) cs(User-Agent) sc-status

Columns are parted by tabs (CloudFront) or spaces (IIS, and the draft of the format, https://www.w3.org/TR/WD-logfile).
`#Fields` may come again with other columns, and where the columns have no date, `#Date` gives it. Times are UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from fairvisor.replay.fields import (
    DATE,
    MAPPABLE_SOURCES,
    QUERY,
    TARGET,
    TIME,
    Logged,
    Maker,
    Plan,
    Value,
    meaning_of,
    normal_name,
)
from fairvisor.replay.files import LogError

FIELDS: Final = b"#Fields:"
_DATE: Final = b"#Date:"
_WORD: Final = re.compile(rb'"((?:[^"]|"")*)"|([^ \t]+)')  # in quotes a quote is written twice
_ENCODED_TWICE: Final = re.compile(rb"%25([0-9A-Fa-f]{2})")


class ColumnFormat:
    """Read one log. `mapping` says by the name of a column what it means, before what its name says."""

    def __init__(self, mapping: Mapping[str, str], maker: Maker) -> None:
        self._mapping = {normal_name(field): meaning for field, meaning in mapping.items()}
        self._maker = Maker(maker.client_ip_header, maker.default_host)  # without a zone: its times are UTC
        self._day = b""
        self._width = 0
        self._columns: list[tuple[int, Callable[[bytes, bool], bytes]]] = []
        self._plan: Plan | None = None

    def read(self, line: bytes) -> Logged | None:
        """Return the request of a line, None for a directive. Raises ValueError, RequestError or LogError."""
        line = line.rstrip(b"\r\n")
        if line.startswith(b"#"):
            self._direct(line)
            return None
        if self._plan is None:
            raise ValueError("no #Fields line that can be used comes before it")
        tabs = b"\t" in line
        words = line.split(b"\t") if tabs else _words(line)
        if len(words) != self._width:
            raise ValueError(f"it has {len(words)} columns, #Fields names {self._width}")
        values: list[Value] = [decode(words[column], tabs) for column, decode in self._columns]
        return self._plan.logged([*values, self._day])

    def _direct(self, line: bytes) -> None:
        if line.startswith(_DATE):
            self._day = line.removeprefix(_DATE).split()[0] if line.removeprefix(_DATE).strip() else b""
        if not line.startswith(FIELDS):
            return
        names = line.removeprefix(FIELDS).decode("latin-1").split()
        unknown = self._mapping.keys() - set(map(normal_name, names))
        if unknown:
            raise LogError(f"the log has no column {sorted(unknown)[0]!r}; it has {', '.join(names)}")
        self._plan = None
        chosen = _chosen(names, self._mapping)
        self._width = len(names)
        self._columns = [(names.index(name), _decoding(meaning)) for meaning, name in chosen.items()]
        dated_above = TIME in chosen and DATE not in chosen
        self._plan = Plan([*chosen, DATE if dated_above else None], self._maker)


def _chosen(names: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Return the column for each meaning: one that was mapped, else the best one by its name."""
    ranked: dict[str, tuple[int, str]] = {}
    for name in names:
        mapped = mapping.get(normal_name(name))
        meaning, rank = (mapped, -1) if mapped else meaning_of(name) or ("", 0)
        if meaning and (meaning not in ranked or rank < ranked[meaning][0]):
            ranked[meaning] = rank, name
    return {meaning: name for meaning, (_, name) in ranked.items()}


def _words(line: bytes) -> list[bytes]:
    return [match[2] if match[1] is None else match[1].replace(b'""', b'"') for match in _WORD.finditer(line)]


# What servers do to the bytes of a value: CloudFront, which parts columns by tabs, escapes what is not plain, the sign
# of an escape too, in some fields twice. IIS, which parts them by spaces, writes a space as a plus sign.


def _decoding(meaning: str) -> Callable[[bytes, bool], bytes]:
    if meaning in (TARGET, QUERY):
        return _of_target
    return _of_text if meaning.partition(":")[0] in MAPPABLE_SOURCES else _as_it_is


def _of_target(value: bytes, tabs: bool) -> bytes:
    """Return a part of a target. The escapes that the client wrote are kept."""
    return _ENCODED_TWICE.sub(rb"%\1", value) if tabs else value


def _of_text(value: bytes, tabs: bool) -> bytes:
    """Return the value of a header as the client wrote it."""
    if not tabs:
        return value.replace(b"+", b" ")
    return unquote_to_bytes(_ENCODED_TWICE.sub(rb"%\1", value)) if b"%" in value else value


def _as_it_is(value: bytes, tabs: bool) -> bytes:
    return value
