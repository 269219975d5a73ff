"""Kill switches: reject at once whoever carries a value, optionally on one route only.

They come before everything else and no shadow mode softens them. Switches are indexed at load by descriptor and value,
addresses also by prefix length, so ten thousand of them cost a request no more than one: a dictionary probe for each
descriptor that any switch names.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Final

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.decision import Reason, Refusal, Verdict
from fairvisor.descriptors import UNREAD_MODEL, Descriptor, Model
from fairvisor.identity.networks import NetworkIndex, parse_network
from fairvisor.llm.paths import told_by_path
from fairvisor.metrics import Counter, Tally
from fairvisor.rules.limit import Described, Limit

ANY: Final = "*"
MODEL: Final = "llm:model"
PATH: Final = "request:path"  # the one descriptor that may be read in several ways
MAX_WAIT_NS: Final = 3600 * NS_PER_S


class KillSwitch(Limit):
    """One compiled switch: `reader` reads its descriptor; without expiry and route it has 0 and ""."""

    __slots__ = ("_hits", "_reader", "expires_wall_ns", "route", "scope_key", "scope_value", "why")

    def __init__(
        self,
        tally: Tally,
        hits: Counter,
        reader: Descriptor,
        scope_key: str,
        scope_value: str,
        route: str,
        why: str,
        expires_wall_ns: int,
    ) -> None:
        super().__init__(tally)
        self._hits = hits
        self._reader = reader
        self.scope_key = scope_key
        self.scope_value = scope_value
        self.route = route
        self.why = why
        self.expires_wall_ns = expires_wall_ns

    def hits(self, readings: tuple[str, ...], wall_ns: int) -> bool:
        """Whether it is in force now for a path with these readings."""
        if self.expires_wall_ns and wall_ns >= self.expires_wall_ns:
            return False
        if not self.route:
            return True
        if self.route.endswith("*"):
            return any(path.startswith(self.route[:-1]) for path in readings)
        return self.route in readings

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict:
        """Refuse; until it expires, or for an hour."""
        self._hits.hit()
        wait_ns = MAX_WAIT_NS
        if self.expires_wall_ns:
            wait_ns = min(wait_ns, self.expires_wall_ns - now.wall_ns)
        return Refusal(self, Reason.KILL_SWITCH_ACTIVE, wait_ns=wait_ns)

    def describe(self, context: Context) -> Described:
        """What it looks at, with the value that this request has."""
        return ((self.scope_key, self._reader.shown(context)),)

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Nothing is ever taken."""


class KillSwitches:
    """All switches of a bundle, found by what a request carries."""

    def __init__(self, switches: Iterable[tuple[KillSwitch, Descriptor]]) -> None:
        self._readers: dict[str, Descriptor] = {}
        self._values: dict[str, dict[str, list[KillSwitch]]] = {}
        self._networks: NetworkIndex[KillSwitch] = NetworkIndex()
        self._any = False
        self._lasting = 0
        self._expiries_ns: list[int] = []  # sorted
        for switch, reader in switches:
            self.add(switch, reader)

    def add(self, switch: KillSwitch, reader: Descriptor) -> None:
        """One more switch and the reader of its descriptor; only while no request uses the index yet."""
        self._any = True
        if switch.expires_wall_ns:
            insort(self._expiries_ns, switch.expires_wall_ns)
        else:
            self._lasting += 1
        if switch.scope_key in ("ip:address", "ip:addr") and switch.scope_value != ANY:
            self._networks.add(parse_network(switch.scope_value), switch)
        else:
            self._readers.setdefault(switch.scope_key, reader)
            by_value = self._values.setdefault(switch.scope_key, {})
            by_value.setdefault(switch.scope_value, []).append(switch)

    def in_force(self, wall_ns: int) -> int:
        """How many have not expired."""
        return self._lasting + len(self._expiries_ns) - bisect_right(self._expiries_ns, wall_ns)

    def take_apart(self) -> Iterator[None]:
        """Free the index piece by piece, one at each step; only when nobody uses it any more."""
        parts: list[dict[Any, Any]] = [*self._values.values(), *self._networks.parts()]
        for part in parts:
            while part:
                part.popitem()
                yield

    def __bool__(self) -> bool:
        return self._any

    def first(self) -> KillSwitch:
        """Return one of the switches that look at a value, as the limit that rejects what cannot be looked at."""
        by_value = next(iter(self._values.values()))
        return next(iter(by_value.values()))[0]

    @property
    def headers(self) -> frozenset[str]:
        """The headers that switches look at, in lower case."""
        return frozenset(
            name.removeprefix("header:").lower() for name in self._readers if name.startswith("header:")
        )

    @property
    def reads_body(self) -> bool:
        """Whether a switch looks into the body."""
        return MODEL in self._readers

    def find(
        self, context: Context, readings: tuple[str, ...], wall_ns: int, *, asks_model: bool = False
    ) -> KillSwitch | None:
        """A switch in force for this request, or None. `asks_model`: a policy of it takes it for an LLM request."""
        for switch in self._candidates(context, readings, asks_model):
            if switch.hits(readings, wall_ns):
                return switch
        return None

    def _candidates(
        self, context: Context, readings: tuple[str, ...], asks_model: bool
    ) -> Iterator[KillSwitch]:
        for scope_key, reader in self._readers.items():
            if isinstance(reader, Model):
                yield from self._by_model(reader, context, readings, asks_model)
                continue
            values = reader.every(context)
            if values:
                by_value = self._values[scope_key]
                for value in readings if scope_key == PATH else values:
                    yield from by_value.get(value, ())
                yield from by_value.get(ANY, ())
        if self._networks:
            address = context.client.ip
            if address is not None:  # None: a unix socket that names no client
                yield from self._networks.find(address)

    def _by_model(
        self, reader: Model, context: Context, readings: tuple[str, ...], asks_model: bool
    ) -> Iterator[KillSwitch]:
        """The switches on the models that the request names; on every model when it cannot be read.

        Where no LLM request is expected, by path, policy or the switch's own route, only a JSON object names one.
        """
        named = frozenset(reader.every(context))
        if not named:
            return
        by_value = self._values[MODEL]
        expected = asks_model or any(told_by_path(path).listed for path in readings)
        in_json = named if expected else reader.in_json(context)
        for name in named:
            if name == UNREAD_MODEL:
                found = chain.from_iterable(by_value.values())
            else:
                found = chain(by_value.get(name, ()), by_value.get(ANY, ()))
            for switch in found:
                if name in in_json or switch.route:
                    yield switch
