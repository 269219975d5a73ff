"""For whom a rule counts: its `match`, its limit keys, and what happens when one is missing.

The identity of a counter is text. The parts that depend only on the bundle (kind, period, policy, rule, names of the
keys, mode) are joined at load, every part prefixed with its length, so that ("a|b", "c") and ("a", "b|c") differ; the
values are appended per request (`spelled`). The counter's key is the seeded xxh3 hash of the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

from fairvisor.context import Context
from fairvisor.decision import NEVER_NS, Reason, Refusal, Unmet
from fairvisor.descriptors import Descriptor, Matcher
from fairvisor.errors import AmbiguousValue
from fairvisor.identity.tokens import TokenState
from fairvisor.metrics import DESCRIPTOR_MISSING
from fairvisor.rules.limit import Described, Limit

MISSING_WAIT_NS: Final = 60_000_000_000  # Retry-After of a request that lacks what identifies it
KEYS_WAIT_NS: Final = 1_000_000_000  # of a request whose token could not be verified for want of keys
REMEMBERED_KEYS: Final = 4096
MAX_REMEMBERED: Final = 512  # characters
_SHARED: Final = "-:"
_NOBODY: Final = "*"  # the values of a rule without limit keys: one counter for all

__all__ = ["Keyring", "Keys", "Scope", "Values", "hash64", "joined", "spelled"]

Values = str | tuple["str | None", ...]  # of the limit keys; one alone, or a mark, stands for itself


def hash64(identity: str, seed: int) -> int:
    """The key of a counter: 64 bits of xxh3 seeded (claims may hold lone surrogates, RFC 8259 8.2)."""
    return xxh3_64_intdigest(identity.encode("utf-8", "surrogatepass"), seed)


class Keyring:
    """Makes the keys of one bundle's counters, and bounds how many of them are remembered (`Keys`).

    A key that a client made long is not. When there are too many, all are forgotten and it starts again.
    """

    __slots__ = ("_memories", "_room", "_seed")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._memories: dict[int, dict[Values, int]] = {}  # those that may hold something, by their id
        self._room = REMEMBERED_KEYS

    def key(self, identity: str, values: Values) -> int:
        """The key of the counter of these values under an identity."""
        return hash64(_text(identity, values), self._seed)

    def learn(self, identity: str, values: Values, known: dict[Values, int]) -> int:
        """The same; from now on `known` has it, until all are forgotten."""
        text = _text(identity, values)
        key = hash64(text, self._seed)
        if len(text) <= MAX_REMEMBERED:
            if self._room <= 0:
                self._forget()
            self._room -= 1
            known[values] = key
            self._memories[id(known)] = known  # after it has the key: another thread may just forget them all
        return key

    def _forget(self) -> None:
        memories, self._memories = self._memories, {}
        self._room = REMEMBERED_KEYS
        for known in memories.values():
            known.clear()


class Keys:
    """The keys of the counters under one identity. Making one takes as long as counting with it, and clients come
    again: the latest are remembered by the values, which need not be made into a text for that."""

    __slots__ = ("_identity", "_keyring", "_known")

    def __init__(self, keyring: Keyring, identity: str) -> None:
        self._keyring = keyring
        self._identity = identity
        self._known: dict[Values, int] = {}

    def key(self, values: Values) -> int:
        """The key of the counter of these values."""
        key = self._known.get(values)
        return self._keyring.learn(self._identity, values, self._known) if key is None else key


def _text(identity: str, values: Values) -> str:
    return identity + (values if isinstance(values, str) else spelled(values))


def joined(parts: Iterable[str]) -> str:
    """Parts as one text that cannot be read in two ways, whatever follows it (netstrings)."""
    return "".join([f"{len(part)}:{part}" for part in parts])


def spelled(values: Sequence[str | None]) -> str:
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

    __slots__ = ("_matchers", "_missing_status", "_on_invalid", "_on_missing", "_readers", "_single", "identity",
                 "names")  # fmt: skip

    def __init__(
        self,
        identity: str,
        keys: tuple[tuple[str, Descriptor], ...],
        matchers: tuple[Matcher, ...],
        on_missing: str,
        missing_status: int = 429,
        on_invalid_token: str = "",
    ) -> None:
        """`on_invalid_token` is "" for a rule that reads no claim."""
        self.identity = identity
        self.names = tuple(name for name, _ in keys)
        self._readers = tuple(reader for _, reader in keys)
        self._matchers = matchers
        self._on_missing = on_missing
        self._missing_status = missing_status
        self._on_invalid = on_invalid_token
        # nothing follows a single value, so it stands for itself
        self._single = self._readers[0] if len(self._readers) == 1 and on_missing != "shared" else None

    def values(self, context: Context) -> Values | None:
        """A request's values; nothing: the rule does not run, and `absent` says why."""
        if self._on_invalid and not context.has_claims and self._token_fault(context) is not None:
            return None
        if self._matchers and not self.applies(context):
            return None
        if self._single is not None:
            return self._single.read(context)
        return self.chosen([reader.read(context) for reader in self._readers])

    def chosen(self, values: list[str | None]) -> Values | None:
        """What `values` gives for a request with these values of `names`; nothing: the rule does not run."""
        if self._single is not None:
            return values[0]
        if not values:
            return _NOBODY
        if self._on_missing != "shared":
            for value in values:
                if not value:
                    return None
        return tuple(values)

    def absent(self, limit: Limit, context: Context) -> Refusal | None:
        """What `values` giving nothing means: nothing when `match` differs, else what `on_missing` says; counted."""
        if self._on_invalid:
            fault = self._token_fault(context)
            if fault is not None:
                return Unmet(
                    limit, fault, "jwt:", KEYS_WAIT_NS if fault is Reason.KEYS_UNAVAILABLE else NEVER_NS
                )
        if not self.applies(context):
            return None
        missing = [name for name, value in self.describe(context) if not value]
        for name in missing:
            limit.tally.add(DESCRIPTOR_MISSING, name)
        if self._on_missing == "reject":
            return Unmet(limit, Reason.DESCRIPTOR_MISSING, missing[0], MISSING_WAIT_NS, self._missing_status)
        return None

    def _token_fault(self, context: Context) -> Reason | None:
        """Return why the claims of this request cannot be read by a rule that reads some; None when they can."""
        try:
            state = context.token_state
        except AmbiguousValue:  # whoever counts by one of them says so
            return None
        if state is TokenState.KEYS_UNAVAILABLE:
            return Reason.KEYS_UNAVAILABLE
        return Reason.INVALID_TOKEN if state is TokenState.INVALID and self._on_invalid == "reject" else None

    def describe(self, context: Context) -> Described:
        """The limit keys with the values this request has, for people."""
        return tuple(
            (name, reader.shown(context)) for name, reader in zip(self.names, self._readers, strict=True)
        )

    def applies(self, context: Context) -> bool:
        """Whether `match` is satisfied."""
        return all(matches(context) for matches in self._matchers)
