"""For whom a rule counts: its `match`, its limit keys, and what happens when one is missing.

The identity of a counter is text: every part prefixed with its length, so that ("a|b", "c") and ("a", "b|c") differ.
The parts that depend only on the bundle (kind, period, policy, rule, names of the keys, mode) are joined at load; the
values are appended per request. A missing value that is shared becomes "-:", which no length-prefixed value can equal.
The counter's key is the seeded xxh3 hash of the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from fairvisor.context import Context
from fairvisor.decision import Reason, Refusal
from fairvisor.descriptors import Descriptor, Matcher
from fairvisor.metrics import DESCRIPTOR_MISSING

if TYPE_CHECKING:
    from fairvisor.rules import Limit

Described = tuple[tuple[str, "str | None"], ...]  # descriptors with the values that a request has
MISSING_WAIT_NS: Final = 60_000_000_000  # Retry-After of a request that lacks what identifies it
_SHARED: Final = "-:"
_NOBODY: Final = "*"  # the values of a rule without limit keys: one counter for all

__all__ = ["Described", "Scope", "hash64", "joined"]


def hash64(identity: str, seed: int) -> int:
    """The key of a counter: 64 bits of xxh3 seeded (claims may hold lone surrogates, RFC 8259 8.2)."""
    return xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"), seed)


def _nobody(context: Context) -> str:
    return _NOBODY


def joined(parts: Iterable[str]) -> str:
    """Parts as one text that cannot be read in two ways (netstrings)."""
    return "".join([f"{len(part)}:{part}" for part in parts])


class Scope:
    """Which requests a rule runs for, and under which values it counts them."""

    __slots__ = ("_matchers", "_on_missing", "_readers", "identity", "names", "values")

    def __init__(
        self,
        identity: str,
        keys: tuple[tuple[str, Descriptor], ...],
        matchers: tuple[Matcher, ...],
        on_missing: str,
    ) -> None:
        self.identity = identity
        self.names = tuple(name for name, _ in keys)
        self._readers = tuple(reader for _, reader in keys)
        self._matchers = matchers
        self._on_missing = on_missing
        self.values = self._reader()

    def _reader(self) -> Descriptor:
        """The function that gives a request's values as text; nothing: the rule does not run, `absent` says why."""
        read: Descriptor
        if len(self._readers) > 1 or self._on_missing == "shared":
            read = self._read_many
        else:  # nothing follows a single value, so it needs no length
            read = self._readers[0] if self._readers else _nobody
        if not self._matchers:
            return read
        return lambda context: read(context) if self.applies(context) else None

    def _read_many(self, context: Context) -> str | None:
        return self.spell([read(context) for read in self._readers])

    def spell(self, values: Sequence[str | None]) -> str | None:
        """The text that `values` gives for a request with these values of `names`; None: the rule does not run."""
        shared = self._on_missing == "shared"
        if not all(values) and not shared:
            return None
        if len(values) == 1 and not shared:
            return values[0]
        return "".join([f"{len(value)}:{value}" if value else _SHARED for value in values]) or _NOBODY

    def absent(self, limit: Limit, context: Context) -> Refusal | None:
        """What `values` giving nothing means: nothing when `match` differs, else what `on_missing` says; counted."""
        if not self.applies(context):
            return None
        for name, value in self.describe(context):
            if not value:
                limit.tally.add(DESCRIPTOR_MISSING, name)
        if self._on_missing == "reject":
            return Refusal(limit, Reason.DESCRIPTOR_MISSING, wait_ns=MISSING_WAIT_NS)
        return None

    def describe(self, context: Context) -> Described:
        """The limit keys with the values this request has, for people."""
        return tuple((name, read(context)) for name, read in zip(self.names, self._readers, strict=True))

    def applies(self, context: Context) -> bool:
        """Whether `match` is satisfied."""
        return all(matches(context) for matches in self._matchers)
