"""The numbers of the segment as Prometheus text, whichever worker is asked.

prometheus-client writes the text; this module is the collector that reads cells, the table and the active bundle. It
works in slices of some hundred microseconds: ten thousand policies have tens of thousands of series, and requests are
answered in between. The transport decides when the next slice runs. It knows nothing of HTTP.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Any, Final, NamedTuple, cast

from prometheus_client import Metric, generate_latest
from prometheus_client.samples import Sample

import fairvisor
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.engine import Bundle
from fairvisor.metrics import families as family
from fairvisor.metrics.counting import LEAST_BITS, MOST_BITS, read_lowest, read_open
from fairvisor.metrics.families import FAMILIES, Family

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # the Prometheus text format

# How much one slice does; each takes 100 to 300 microseconds.
_SAMPLES: Final = 16
_ENTRIES: Final = 64
_SLOTS: Final = 1 << 14
_POLICIES: Final = 500

_PYTHON: Final = platform.python_version()

Values = tuple[str, ...]  # of a family's labels, in the order of its declaration
Points = Iterable[tuple[Values, float]]


class Active(NamedTuple):
    """The active bundle and what is known of it beside its policies. Times are wall-clock nanoseconds."""

    bundle: Bundle
    policies: int
    loaded_ns: int
    expires_at_ns: int | None


class Crowd(NamedTuple):
    """The workers of the instance, and what they hold together."""

    workers: int
    connections: int
    waiting: int


class Sources(NamedTuple):
    """Where the numbers come from that are not in cells; asked once for each exposition."""

    active: Callable[[], Active | None]
    faults: Callable[[], Collection[str]]
    crowd: Callable[[], Crowd]


class Catalogue:
    """Which cells belong to which series, as far as this process has read; both are only ever added to."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._next = 1
        self._gaps: set[int] = set()  # cells that are taken and not named yet, or never will be
        self._known: dict[tuple[str, Values], list[int]] = {}
        # Lists, since one exposition may still read while the next one adds.
        self._families: dict[str, list[tuple[Values, list[int]]]] = {each.name: [] for each in FAMILIES}

    def read_new(self) -> Iterator[None]:
        """Learn what was added, a slice at a time."""
        for cell in tuple(self._gaps):
            self._learn(cell, cell + 1)
        while self._next <= self._segment.series_used:
            first, self._next = self._next, min(self._next + _ENTRIES, self._segment.series_used + 1)
            self._learn(first, self._next)
            yield

    def _learn(self, first: int, end: int) -> None:
        self._gaps.update(range(first, end))
        for cell, name, labels in self._segment.series_entries(first, end):
            values = tuple(value for _, value in labels)
            cells = self._known.setdefault((name, values), [])
            if not cells and name in self._families:  # a segment may hold families of another version
                self._families[name].append((values, cells))
            cells.append(cell)
            self._gaps.discard(cell)

    def sums(self, each: Family) -> Iterator[tuple[Values, int]]:
        """The values of each series of a family, added up over its cells."""
        get = self._segment.table.cell_get
        for values, cells in self._families[each.name]:
            yield values, sum(map(get, cells)) & (2**64 - 1)

    def cells(self, each: Family) -> Iterator[tuple[Values, list[int]]]:
        """The bare cells of each series of a family, for those whose cells are no sums."""
        get = self._segment.table.cell_get
        for values, cells in self._families[each.name]:
            yield values, [get(cell) for cell in cells]

    def sum(self, each: Family, values: Values) -> int:
        """The value of one series; 0 when it never counted."""
        return sum(map(self._segment.table.cell_get, self._known.get((each.name, values), ())))


class Exposition:
    """What `/metrics` answers. One per process."""

    def __init__(self, segment: Segment, sources: Sources) -> None:
        self._segment = segment
        self._sources = sources
        self._catalogue = Catalogue(segment)
        self._counted_for = ""  # the SHA-256 of the bundle whose shadow policies were counted
        self._shadow_policies = 0

    def pieces(self, now: Now) -> Iterator[bytes]:
        """The text, in pieces that take some hundred microseconds each; many are empty."""
        self._segment.write_postponed(now.wall_ns // NS_PER_S)
        for _ in self._catalogue.read_new():
            yield b""
        census = [0] * len(family.SLOTS.known)
        for start in range(0, self._segment.table.slots, _SLOTS):
            found = self._segment.table.census(start, _SLOTS, now.mono_ns)
            census = [sum(pair) for pair in zip(census, found, strict=True)]
            yield b""
        active = self._sources.active()
        if active is not None and active.bundle.sha256 != self._counted_for:
            yield from self._count_shadow(active.bundle)
        told = self._told(census, active, now)
        for each in FAMILIES:
            if each is family.DURATION:
                yield self._histogram()
            else:
                yield from _rendered(each, self._points(each, told, now))

    def _count_shadow(self, bundle: Bundle) -> Iterator[bytes]:
        shadow: set[str] = set()
        policies = bundle.routes.policies()
        while some := tuple(islice(policies, _POLICIES)):
            shadow.update(policy.id for policy in some if policy.shadow)
            yield b""
        self._shadow_policies = len(shadow)
        self._counted_for = bundle.sha256

    def _points(self, each: Family, told: dict[str, Points], now: Now) -> Points:
        """The samples of a family, as (values of its labels, number)."""
        name = each.name
        if name in told:
            return told[name]
        wall_s = now.wall_ns // NS_PER_S
        if each in (family.REMAINING, family.TOKENS_REMAINING):
            return self._lowest(each, wall_s)
        if each is family.CIRCUIT_STATE:
            return (
                (values, int(any(read_open(cell, wall_s) for cell in cells)))
                for values, cells in self._catalogue.cells(each)
            )
        if each is family.TOKENS_ACCURACY:
            return self._accuracy()
        if each is family.UNDECIDED_LAST:
            return ((values, max(cells)) for values, cells in self._catalogue.cells(each))
        known: dict[Values, float] = dict.fromkeys(each.from_start(), 0)
        if not known:
            return self._catalogue.sums(each)
        known.update(self._catalogue.sums(each))
        return known.items()

    def _lowest(self, each: Family, wall_s: int) -> Points:
        for values, cells in self._catalogue.cells(each):
            seen = [amount for cell in cells if (amount := read_lowest(cell, wall_s)) is not None]
            if seen:
                yield values, min(seen)

    def _accuracy(self) -> Points:
        """Used / reserved, over what was settled: reserved = used + given back - charged afterwards."""
        value_of = self._catalogue.sum
        for values, used in self._catalogue.sums(family.TOKENS_CONSUMED):
            reserved = used + value_of(family.TOKENS_UNUSED, values) - value_of(family.TOKENS_EXCESS, values)
            if reserved > 0:
                yield values, used / reserved

    def _told(self, census: list[int], active: Active | None, now: Now) -> dict[str, Points]:
        """The families whose numbers are not in cells."""
        table, geometry = self._segment.table, self._segment.geometry
        faults = self._sources.faults()
        crowd = self._sources.crowd()
        single = {
            family.SLOTS_SIZE: table.slots,
            family.EVICTIONS: table.word_get(Word.EVICTIONS),
            family.NONCE_EVICTIONS: table.word_get(Word.CLAIM_EVICTIONS),
            family.WINDOW_FULL: table.word_get(Word.FULL),
            family.SERIES_USED: self._segment.series_used,
            family.SERIES_SIZE: geometry.series - 1,
            family.SERIES_LOST: table.word_get(Word.SERIES_OVERFLOWS),
            family.SEGMENT_BYTES: geometry.size_bytes,
            family.SNAPSHOT: table.word_get(Word.SNAPSHOT_WALL_NS) / NS_PER_S,
            family.WORKERS: crowd.workers,
            family.CONNECTIONS: crowd.connections,
            family.THROTTLES_WAITING: crowd.waiting,
            **self._told_of_bundle(active, now),
        }
        return {
            **{each.name: [((), value)] for each, value in single.items()},
            family.SLOTS.name: zip(((kind,) for kind in family.SLOTS.known), census, strict=True),
            family.FAULTS.name: [((part,), part in faults) for part in family.FAULTS.known],
            family.BUILD_INFO.name: [((fairvisor.__version__, _PYTHON), 1)],
            family.CONFIG_INFO.name: [((_number(active.bundle.version), active.bundle.sha256), 1)]
            if active is not None
            else (),
            family.BUNDLE_EXPIRES.name: [((), active.expires_at_ns / NS_PER_S)]
            if active is not None and active.expires_at_ns is not None
            else (),
        }

    def _told_of_bundle(self, active: Active | None, now: Now) -> dict[Family, float]:
        if active is None:
            return dict.fromkeys(
                (family.KILL_SWITCHES, family.SHADOW_POLICIES, family.GLOBAL_SHADOW, family.SWITCH_OVERRIDE,
                 family.BUNDLE_VERSION, family.BUNDLE_POLICIES, family.BUNDLE_LOADED), 0
            )  # fmt: skip
        bundle, wall_ns = active.bundle, now.wall_ns
        overridden = wall_ns < bundle.override_until_ns
        return {
            family.KILL_SWITCHES: 0 if overridden else bundle.kill_switches.in_force(wall_ns),
            family.SHADOW_POLICIES: self._shadow_policies,
            family.GLOBAL_SHADOW: wall_ns < bundle.shadow_until_ns,
            family.SWITCH_OVERRIDE: overridden,
            family.BUNDLE_VERSION: bundle.version,
            family.BUNDLE_POLICIES: active.policies,
            family.BUNDLE_LOADED: active.loaded_ns / NS_PER_S,
        }

    def _histogram(self) -> bytes:
        sums = {values[0]: value for values, value in self._catalogue.sums(family.DURATION)}
        name, total, samples = family.DURATION.name, 0, []
        for bits in range(LEAST_BITS, MOST_BITS + 2):
            total += sums.get(str(bits), 0)
            bound = "+Inf" if bits > MOST_BITS else repr(2**bits / NS_PER_S)
            samples.append(Sample(f"{name}_bucket", {"le": bound}, total))
        samples.append(Sample(f"{name}_sum", {}, sums.get("ns", 0) / NS_PER_S))
        samples.append(Sample(f"{name}_count", {}, total))
        return _text(family.DURATION, samples)


def _number(version: float) -> str:
    return str(int(version)) if version == int(version) else repr(version)


def _rendered(each: Family, points: Points) -> Iterator[bytes]:
    """A family in slices: the first one brings `# HELP` and `# TYPE`."""
    head, rest = True, iter(points)
    while (some := list(islice(rest, _SAMPLES))) or head:
        samples = [
            Sample(each.name, dict(zip(each.labels, values, strict=True)), value) for values, value in some
        ]
        text = _text(each, samples)
        yield text if head else text.split(b"\n", 2)[2]
        head = False


def _text(each: Family, samples: list[Sample]) -> bytes:
    metric = Metric(each.name.removesuffix("_total"), each.help, each.kind)
    metric.samples = samples
    return generate_latest(cast(Any, _Only(metric)))


class _Only:
    """A collector of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)
