"""A cache of what was derived from texts that clients choose: bounded by number and by bytes.

Header names, hosts and paths repeat from request to request, so what they mean is worked out once. A client can make
up any number of new ones, each as long as a request head: a full cache is emptied and starts again, and the result for
a long text is returned without being kept. So a cache holds at most `entries` times `LONGEST` bytes of texts, whatever
is sent. It knows nothing of what it holds. Caches that must survive a flood are `identity/recent.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

TextT = TypeVar("TextT", bound="str | bytes")
ValueT = TypeVar("ValueT")

LONGEST: Final = 512  # bytes or characters of a text that is kept; real names, hosts and paths are shorter


class BoundedCache(Generic[TextT, ValueT]):
    """`cache[text]` is `make(text)`, which is never None, kept if the text is short. What `make` raises is raised, and
    nothing is kept then. `known` is what is kept: for readers in C, which look there first."""

    __slots__ = ("_entries", "_make", "known")

    def __init__(self, make: Callable[[TextT], ValueT], entries: int) -> None:
        self._make = make
        self._entries = entries
        self.known: dict[TextT, ValueT] = {}

    def __getitem__(self, text: TextT) -> ValueT:
        value = self.known.get(text)
        return self._learn(text) if value is None else value

    def _learn(self, text: TextT) -> ValueT:
        value = self._make(text)
        if len(text) <= LONGEST:
            if len(self.known) >= self._entries:
                self.known.clear()
            self.known[text] = value
        return value
