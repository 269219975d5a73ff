"""Which format a log has: the one in which most of its first records are requests.

Every known format, and every wrapping around it, goes through the same trial. Of equals the first in the tables wins,
and a format without a wrapping wins over one inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import orjson

from fairvisor.errors import RequestError
from fairvisor.replay.columns import FIELDS, ColumnFormat
from fairvisor.replay.documents import DocumentFormat
from fairvisor.replay.fields import Logged, Maker
from fairvisor.replay.files import LogError
from fairvisor.replay.formats import FORMATS, LineFormat
from fairvisor.replay.wrappings import WRAPPINGS, Wrapping

_DEEPEST: Final = 2  # wrappings around each other: syslog lines of a container


class Format(Protocol):
    """What the reading needs of a format: the request of a record, None for one that holds none and need not."""

    def read(self, record: bytes, /) -> Logged | None: ...


Build = Callable[[Mapping[str, str], Maker], Format]

KNOWN: Final[Mapping[str, Build]] = {
    **{name: partial(LineFormat, text, open_end=True) for name, text in FORMATS.items()},
    "w3c": ColumnFormat,
    "json": DocumentFormat,
}


class Inside:
    """A format inside wrappings, the outermost first."""

    def __init__(self, wrappings: Sequence[Wrapping], inner: Format) -> None:
        self._wrappings = tuple(wrappings)
        self._inner = inner
        self.read = self._unwrap if wrappings else inner.read

    def _unwrap(self, record: bytes) -> Logged | None:
        for wrapping in self._wrappings:
            inside = wrapping.unwrapped(record)
            if inside is None:
                return None
            record = inside
        return self._inner.read(record) if record.strip() else None

    def unfinished(self) -> Iterator[bytes]:
        """Yield the lines whose end has not come."""
        for wrapping in self._wrappings:
            yield from wrapping.unfinished.values()


def find(
    records: Sequence[bytes], log_format: str, mapping: Mapping[str, str], maker: Maker
) -> tuple[str, Inside] | None:
    """Return the name of the format and a reader of it; `log_format` names it, or is "". None: it is not known.

    Raises ValueError for a format string that cannot be used, and for a mapped field that the format does not have.
    """
    builds = KNOWN
    if log_format:
        builds = {log_format: KNOWN.get(log_format) or partial(LineFormat, log_format, open_end=False)}
        builds[log_format](mapping, maker)
    best = _best(records, builds, mapping, maker.again()) or _likely(records, builds)
    if best is None:
        return None
    layers, name = best
    reader = Inside([Wrapping(layer) for layer in layers], builds[name](mapping, maker))
    return " in ".join((name, *reversed(layers))), reader


def _best(
    records: Sequence[bytes], builds: Mapping[str, Build], mapping: Mapping[str, str], maker: Maker
) -> tuple[tuple[str, ...], str] | None:
    """Return the wrappings and the format in which most records are read; None where none is."""
    most, best = 0, None
    lines = sum(1 for record in records if record.strip())
    for layers, inside in _layers(records, _DEEPEST):
        for name, build in builds.items():
            fitting = _fitting(inside, build, mapping, maker)
            if fitting > most:
                most, best = fitting, (layers, name)
            if most == lines:
                return best
    return best


def _likely(records: Sequence[bytes], builds: Mapping[str, Build]) -> tuple[tuple[str, ...], str] | None:
    """Return the format that a log seems to have of which nothing could be read, so that the error can say why."""
    if len(builds) == 1:
        return (), next(iter(builds))
    if any(record.startswith(FIELDS) for record in records):
        return (), "w3c"
    return ((), "json") if any(map(_is_document, records)) else None


def _layers(records: Sequence[bytes], deepest: int) -> Iterator[tuple[tuple[str, ...], Sequence[bytes]]]:
    """Yield every way to unwrap the records, with what is inside."""
    yield (), records
    for name in WRAPPINGS if deepest else ():
        wrapping = Wrapping(name)
        inside = [text for record in records if (text := _unwrapped(wrapping, record))]
        if inside:
            for names, texts in _layers(inside, deepest - 1):
                yield (name, *names), texts


def _unwrapped(wrapping: Wrapping, record: bytes) -> bytes | None:
    try:
        return wrapping.unwrapped(record)
    except ValueError:
        return None


def _fitting(records: Sequence[bytes], build: Build, mapping: Mapping[str, str], maker: Maker) -> int:
    """Count the records that are requests. A mapping to fields that the format lacks is an error once it is chosen."""
    try:
        return sum(map(partial(_fits, build(mapping, maker)), records))
    except (ValueError, LogError):
        return sum(map(partial(_fits, build({}, maker)), records))


def _fits(trial: Format, record: bytes) -> bool:
    try:
        return trial.read(record) is not None
    except (ValueError, RequestError):
        return False


def _is_document(record: bytes) -> bool:
    try:
        return isinstance(orjson.loads(record), dict)
    except orjson.JSONDecodeError:
        return False
