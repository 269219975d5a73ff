"""Who is rejected most: each worker keeps a small sketch, in memory while requests are answered, on its slate for all.

A rejected request costs a probe in a Space-Saving sketch; an allowed one costs nothing. Two windows are kept, this
quarter of an hour and the one before, so that what is told is of now and not of last week. Once a second the sketch is
written on the worker's slate in the segment, where whoever is asked by an operator finds those of all workers. Keys
stand there as they are: the segment belongs to the same user as the log that may hide them.

It knows decisions. It knows nothing of HTTP, threads or clocks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import orjson

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.counters.sketch import Frequent, SpaceSaving, merged
from fairvisor.counters.slates import MAX_TEXT_BYTES, Slates
from fairvisor.decision import Decision, Reason, Verdict
from fairvisor.rules.limit import Described

WINDOW_NS: Final = 900 * NS_PER_S
CAPACITY: Final = 64
MAX_VALUE: Final = 256  # characters of a value: what is longer is cut


class Rejected(NamedTuple):
    """Who was rejected, by what."""

    policy: str
    rule: str
    reason: str
    keys: Described


Spot = tuple[Reason, int]  # one reject like the other: the reason, and the counter that refused


class TopKeys:
    """The sketch of one process. `note` may be called from any thread, `write` from one.

    `entry` is the worker's in the registry; None: it has none, and tells nobody.
    """

    def __init__(self, slates: Slates, entry: int | None) -> None:
        self._slates = slates
        self._entry = entry
        self._lock = threading.Lock()
        # what changes
        self._window = 0
        self._sketch: SpaceSaving[Spot] = SpaceSaving(CAPACITY)
        self._counts = self._sketch.counts
        self._named: dict[Spot, Rejected] = {}  # what the sketch holds, for people
        self._before: list[Frequent[Rejected]] = []
        self._changed = True  # so that what a dead worker left on the slate goes

    def note(self, decision: Decision, context: Context) -> None:
        """Count a decision, if it rejects."""
        verdict = decision.verdict
        if verdict is None or verdict.reason is None:
            return
        # A limit without a counter of its own is told apart by what it says of the request.
        spot = (verdict.reason, verdict.key or hash((verdict.limit.tally, verdict.limit.describe(context))))
        self._lock.acquire()  # no `with`: compiled, it takes as long as what it protects
        try:
            self._turn(context.now)
            self._changed = True
            count = self._counts.get(spot)
            if count is not None:
                self._counts[spot] = count + 1
                return
            self._named[spot] = _rejected(verdict, verdict.reason, context)
            gone = self._sketch.hit(spot)
            if gone is not None:
                del self._named[gone]
        finally:
            self._lock.release()

    def write(self, now: Now) -> None:
        """Tell everybody, when there is something new."""
        with self._lock:
            self._turn(now)
            if not self._changed or self._entry is None:
                return
            self._changed = False
            windows = [(self._window, self._top()), (self._window - 1, self._before)]
        self._slates.write(self._entry, _text(windows))

    def _top(self) -> list[Frequent[Rejected]]:
        return [Frequent(self._named[each.key], each.hits, each.error) for each in self._sketch.top(CAPACITY)]

    def _turn(self, now: Now) -> None:
        """Begin a new window when its time has come; the lock is held."""
        window = now.wall_ns // WINDOW_NS
        if window == self._window:
            return
        self._before = self._top() if window == self._window + 1 else []
        self._sketch = SpaceSaving(CAPACITY)
        self._counts = self._sketch.counts
        self._named = {}
        self._window = window
        self._changed = True


def _rejected(verdict: Verdict, reason: Reason, context: Context) -> Rejected:
    tally = verdict.limit.tally
    keys = tuple((name, _shown(value)) for name, value in verdict.limit.describe(context))
    return Rejected(tally.policy_id, tally.rule, reason.value, keys)


def read_top_keys(slates: Slates, now: Now) -> tuple[int, list[Frequent[Rejected]]]:
    """Since when (wall clock, ns), and who was rejected since then, most often first, over all workers."""
    first = now.wall_ns // WINDOW_NS - 1
    found = [each for text in slates.texts() for each in _read(text, first)]
    return first * WINDOW_NS, merged(found)


def _text(windows: list[tuple[int, list[Frequent[Rejected]]]]) -> bytes:
    """The windows as a slate holds them; of the lowest counts as many are left out as it takes to fit."""
    lines = [_line(window, frequent) for window, top in windows for frequent in top]
    lines.sort(key=lambda line: -line[0])
    kept, room = [], MAX_TEXT_BYTES
    for _, line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    return b"\n".join(kept)


def _line(window: int, frequent: Frequent[Rejected]) -> tuple[int, bytes]:
    rejected = frequent.key
    return frequent.hits, orjson.dumps([window, frequent.hits, frequent.error, *rejected])


def _shown(value: str | None) -> str | None:
    """A value that JSON can hold: claims may have lone surrogates in them."""
    return None if value is None else value[:MAX_VALUE].encode("utf-8", "replace").decode()


def _read(text: bytes, first: int) -> Iterator[Frequent[Rejected]]:
    for line in text.split(b"\n"):
        window, hits, error, policy, rule, reason, keys = _fields(line)
        if window >= first:
            described = tuple((name, value) for name, value in keys)
            yield Frequent(Rejected(policy, rule, reason, described), hits, error)


def _fields(line: bytes) -> tuple[int, int, int, str, str, str, list[Any]]:
    window, hits, error, policy, rule, reason, keys = orjson.loads(line)
    return window, hits, error, policy, rule, reason, keys
