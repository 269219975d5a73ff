"""For whom a rule counts: its `match`, its limit keys, and what happens when one is missing.

The identity of a counter is text. The parts that depend only on the bundle (kind, period, policy, rule, names of the
keys, mode) are joined at load, every part prefixed with its length, so that ("a|b", "c") and ("a", "b|c") differ; the
values are appended per request (`spelled`). The counter's key is the seeded xxh3 hash of the identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from xxhash import xxh3_64_intdigest

from fairvisor.context import Context
from fairvisor.decision import Reason, Refusal
from fairvisor.descriptors import Descriptor, Matcher
from fairvisor.metrics import DESCRIPTOR_MISSING
from fairvisor.rules.limit import Described, Limit

MISSING_WAIT_NS: Final = 60_000_000_000  # Retry-After of a request that lacks what identifies it
REMEMBERED_KEYS: Final = 4096
MAX_REMEMBERED: Final = 512  # characters
_SHARED: Final = "-:"
_NOBODY: Final = "*"  # the values of a rule without limit keys: one counter for all

__all__ = ["Keyring", "Scope", "hash64", "joined", "spelled"]


def hash64(identity: str, seed: int) -> int:
    """The key of a counter: 64 bits of xxh3 seeded (claims may hold lone surrogates, RFC 8259 8.2)."""
    return xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"), seed)


class Keyring:
    """The keys of one bundle's counters. Hashing is a fifth of what a limit costs, and clients come again: the latest
    keys are remembered by their identity, unless a client made it long. A full memory is emptied and starts again."""

    __slots__ = ("_known", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[str, int] = {}

    def key(self, identity: str) -> int:
        """`hash64` of the identity."""
        key = self._known.get(identity)
        if key is None:
            key = hash64(identity, self._seed)
            if len(identity) <= MAX_REMEMBERED:
                if len(self._known) >= REMEMBERED_KEYS:
                    self._known.clear()
                self._known[identity] = key
        return key


def joined(parts: Iterable[str]) -> str:
    """Parts as one text that cannot be read in two ways, whatever follows it (netstrings)."""
    return "".join([f"{len(part)}:{part}" for part in parts])


def spelled(values: list[str | None]) -> str:
    """Values as one text that no other values of as many keys give; nothing may follow it.

    One value to a line, which is quicker to make than `joined`. Where a line end in a value or a missing value would
    make that ambiguous, more line ends than values stand in front, and netstrings follow.
    """
    present = [value for value in values if value]
    if len(present) == len(values):
        lines = "\n".join(present)
        if lines.count("\n") < len(values):
            return lines
    return "\n" * len(values) + "".join([f"{len(value)}:{value}" if value else _SHARED for value in values])


class Scope:
    """Which requests a rule runs for, and under which values it counts them."""

    __slots__ = ("_matchers", "_on_missing", "_readers", "_single", "identity", "names")

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
        # nothing follows a single value, so it stands for itself
        self._single = self._readers[0] if len(self._readers) == 1 and on_missing != "shared" else None

    def values(self, context: Context) -> str | None:
        """A request's values as text; nothing: the rule does not run, and `absent` says why."""
        if self._matchers and not self.applies(context):
            return None
        if self._single is not None:
            return self._single.read(context)
        return self.spell([reader.read(context) for reader in self._readers])

    def spell(self, values: list[str | None]) -> str | None:
        """The text that `values` gives for a request with these values of `names`; None: the rule does not run."""
        if self._single is not None:
            return values[0]
        if not values:
            return _NOBODY
        return spelled(values) if self._on_missing == "shared" or all(values) else None

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
        return tuple(
            (name, reader.read(context)) for name, reader in zip(self.names, self._readers, strict=True)
        )

    def applies(self, context: Context) -> bool:
        """Whether `match` is satisfied."""
        return all(matches(context) for matches in self._matchers)
