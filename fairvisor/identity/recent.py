"""A bounded map that forgets what was not asked for lately.

Two generations of plain dictionaries: entries go into the young one; when it is full it becomes the old one and the
previous old one is dropped whole. An entry that is read while it is old moves back to the young one. So a flood of new
keys costs memory for at most two generations and never pushes out what is in use, and neither a hit nor an eviction
walks a list. A generation is bounded by its number of entries and, where clients choose how long an entry is, by bytes
as well. It knows nothing of what it holds. Hot paths may read `young` directly; `get` looks in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `2 * generation` entries. None is no value: `get` means by it that there is none.

    With `weigh`, which gives the bytes that an entry holds, the entries have at most `2 * generation_bytes` together.
    An entry that alone is larger than `generation_bytes` is not kept.
    """

    __slots__ = ("_bytes", "_generation", "_generation_bytes", "_old", "_weigh", "young")

    def __init__(
        self, generation: int, generation_bytes: int = 0, weigh: Callable[[K, V], int] | None = None
    ) -> None:
        self._generation = generation
        self._generation_bytes = generation_bytes
        self._weigh = weigh
        self._bytes = 0  # of the young entries
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The value kept for `key`, if it has not been forgotten."""
        value = self.young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep `value` for `key`, in place of any earlier one."""
        weight = 0 if self._weigh is None else self._weigh(key, value)
        if weight > self._generation_bytes:
            return
        crowded = len(self.young) >= self._generation and key not in self.young
        if crowded or self._bytes + weight > self._generation_bytes:
            self._old = self.young
            self.young = {}
            self._bytes = 0
        self._bytes += weight  # also of an entry that is replaced: counted twice, it leaves the earlier
        self.young[key] = value

    def __len__(self) -> int:
        return len(self.young.keys() | self._old.keys())
