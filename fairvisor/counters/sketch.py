"""Space-Saving: the most frequent keys of a stream, in bounded memory.

Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams" (2005). A new key
that finds no room takes the place of one with the lowest count and inherits that count as its possible error: a count
is never too low, at most `error` too high, and a key that makes up more than 1/capacity of the stream is always there.
One process, no I/O; what a key is, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from heapq import nlargest
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class Frequent(Generic[KeyT]):
    """A key that was seen between `hits - error` and `hits` times."""

    key: KeyT
    hits: int
    error: int


class SpaceSaving(Generic[KeyT]):
    """At most `capacity` keys. A hit costs a dictionary probe; a new key in a full sketch, amortised, little more.

    Hot paths may count a key that is in `counts` there.
    """

    __slots__ = ("_capacity", "_errors", "_lowest", "_victims", "counts")

    def __init__(self, capacity: int) -> None:
        assert capacity > 0, "a sketch has room for a key"
        self._capacity = capacity
        self.counts: dict[KeyT, int] = {}
        self._errors: dict[KeyT, int] = {}
        self._lowest = 0
        self._victims: list[KeyT] = []  # had the count `_lowest` when they were looked up

    def hit(self, key: KeyT) -> KeyT | None:
        """Count one more; the key that had to go for it, if any."""
        count = self.counts.get(key)
        if count is not None:
            self.counts[key] = count + 1
            return None
        if len(self.counts) < self._capacity:
            self.counts[key] = 1
            return None
        victim = self._least()
        lowest = self.counts.pop(victim)
        self._errors.pop(victim, None)
        self.counts[key] = lowest + 1
        self._errors[key] = lowest
        return victim

    def _least(self) -> KeyT:
        """A key with the lowest count. Counts only grow, so keys found at the lowest are used up before a new look."""
        while True:
            while self._victims:
                victim = self._victims.pop()
                if self.counts.get(victim) == self._lowest:
                    return victim
            self._lowest = min(self.counts.values())
            self._victims = [key for key, count in self.counts.items() if count == self._lowest]

    def count(self, key: KeyT) -> Frequent[KeyT]:
        """What is known of a key that is kept."""
        return Frequent(key, self.counts[key], self._errors.get(key, 0))

    def top(self, most: int) -> list[Frequent[KeyT]]:
        """The keys with the highest counts, highest first."""
        keys = nlargest(most, self.counts, key=self.counts.__getitem__)
        return [self.count(key) for key in keys]


def merged(keys: Iterable[Frequent[KeyT]]) -> list[Frequent[KeyT]]:
    """The keys of several streams as one, highest count first; counts and errors of the same key are added up."""
    sums: dict[KeyT, Frequent[KeyT]] = {}
    for each in keys:
        other = sums.get(each.key, Frequent(each.key, 0, 0))
        sums[each.key] = Frequent(each.key, each.hits + other.hits, each.error + other.error)
    return sorted(sums.values(), key=lambda frequent: -frequent.hits)
