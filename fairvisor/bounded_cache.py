"""A cache of what was derived from texts that clients choose: bounded by number and by bytes.

Header names, hosts and paths repeat from request to request, so what they mean is worked out once. A client can make
up any number of new ones, each as long as a request head: a full cache is emptied and starts again, and the result for
a long text is returned without being kept. So a cache holds at most `entries` times `LONGEST` bytes of texts, whatever
is sent. It knows nothing of what it holds. Caches that must survive a flood are `identity/recent.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

TextT = TypeVar("TextT", bound="str | bytes")
ValueT = TypeVar("ValueT")

LONGEST: Final = 512  # bytes or characters of a text that is kept; real names, hosts and paths are shorter


class BoundedCache(dict[TextT, ValueT]):
    """`cache[text]` is `make(text)`, kept if the text is short. What `make` raises is raised, and nothing is kept."""

    __slots__ = ("_entries", "_make")

    def __init__(self, make: Callable[[TextT], ValueT], entries: int) -> None:
        super().__init__()
        self._make = make
        self._entries = entries

    def __missing__(self, text: TextT) -> ValueT:
        value = self._make(text)
        if len(text) <= LONGEST:
            if len(self) >= self._entries:
                self.clear()
            self[text] = value
        return value
