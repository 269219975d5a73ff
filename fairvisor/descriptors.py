"""Descriptors: what identifies a request to a policy. `"jwt:sub"` becomes the reader of that claim at load.

A value is text, or None when the request does not carry it; an empty value counts as missing. One that came more than
once, with different contents, is none that may be counted by (`AmbiguousValue`), but `match` and kill switches see
every one of its values. Claims, addresses and look-ups are asked of the context. This module knows the names of
descriptors; it knows neither rules nor counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fairvisor.context import Context
from fairvisor.errors import AmbiguousValue
from fairvisor.identity.networks import NetworkIndex, parse_network
from fairvisor.identity.tokens import claim_values
from fairvisor.llm.models import canonical_model
from fairvisor.llm.paths import told_by_path
from fairvisor.reading import Pairs, Repeated, header_text
from fairvisor.route import normal_route, read_path

Matcher = Callable[[Context], bool]
LookUp = Callable[[dict[str, bytes], Context], "str | None"]  # of these headers, in this request

UNREAD_MODEL: Final = "unread"
"""`llm:model` of a body that cannot be read, or was cut before it named its model: it counts, and is every model."""


FIRST: Final = "first"
LAST: Final = "last"
MAX_LINES: Final = 8  # different ones of a header that are looked up
SEVERAL_VALUES: Final = "(several values)"  # shown to people where a request has no single value


class Descriptor:
    """Reads one value of a request. One class for each kind: where they are compiled, `read` is called directly."""

    __slots__ = ()

    def read(self, context: Context) -> str | None:
        """Return the value; None when the request does not carry it. Raises AmbiguousValue."""
        raise NotImplementedError

    def every(self, context: Context) -> list[str]:
        """Return every value that the request carries, whichever of them its application uses."""
        value = self.read(context)
        return [value] if value else []

    def shown(self, context: Context) -> str | None:
        """Return the value for people."""
        try:
            return self.read(context)
        except AmbiguousValue:
            return SEVERAL_VALUES


class Header(Descriptor):
    """A header by its lower-case name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, context: Context) -> str | None:
        """Return its value as text."""
        return context.header(self._name)

    def every(self, context: Context) -> list[str]:
        """Return the values of all its lines."""
        return context.header_values(self._name)


class Pair(Descriptor):
    """A cookie or a query parameter by its name.

    `choice` says which value counts where there are different ones: `first`, `last`, or none (`reject`).
    """

    __slots__ = ("_choice", "_name")

    def __init__(self, name: str, choice: str) -> None:
        self._name = name
        self._choice = choice

    def pairs(self, context: Context) -> Pairs:
        """Return all pairs of this kind."""
        raise NotImplementedError

    def read(self, context: Context) -> str | None:
        """Return its value."""
        pairs = self.pairs(context)
        if self._choice == LAST:
            return pairs.last.get(self._name)
        if self._choice != FIRST and self._name in pairs.several:
            raise AmbiguousValue(self.label())
        return pairs.first.get(self._name)

    def every(self, context: Context) -> list[str]:
        """Return all its values."""
        return self.pairs(context).every(self._name)

    def label(self) -> str:
        """Return the descriptor's name."""
        raise NotImplementedError


class Query(Pair):
    """A query parameter."""

    __slots__ = ()

    def pairs(self, context: Context) -> Pairs:
        """Return the query."""
        return context.query

    def label(self) -> str:
        """Return the descriptor's name."""
        return f"query:{self._name}"


class Cookie(Pair):
    """A cookie."""

    __slots__ = ()

    def pairs(self, context: Context) -> Pairs:
        """Return the cookies."""
        return context.cookies

    def label(self) -> str:
        """Return the descriptor's name."""
        return f"cookie:{self._name}"


class Claim(Descriptor):
    """A claim of the bearer token by its name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, context: Context) -> str | None:
        """Return its value as text; None also for a request without claims."""
        return context.claim_text(self._name)

    def every(self, context: Context) -> list[str]:
        """Return its values in all tokens that count."""
        texts = [claims.texts[self._name] for claims in context.all_claims()]
        return [text for text in texts if text]


class IssuedClaim(Claim):
    """A claim with the issuer in front, `https://a.example ann`: where there are several issuers, each has its ann."""

    __slots__ = ()

    def read(self, context: Context) -> str | None:
        """The issuer and the value, which no other issuer and value give; None where there is no value."""
        value = context.claim_text(self._name)
        if not value:
            return None
        issuer = context.claim_text("iss") or ""
        return f"{issuer.replace('%', '%25').replace(' ', '%20')} {value}"


class Address(Descriptor):
    """The client's address as it is counted."""

    __slots__ = ()

    def read(self, context: Context) -> str | None:
        """The address, or the network of an IPv6 client."""
        return context.client.key


class LookedUp(Descriptor):
    """What is looked up for a request, part of which some headers may say."""

    __slots__ = ("_headers", "_look_up", "_name")

    def __init__(self, name: str, headers: tuple[str, ...], look_up: LookUp) -> None:
        self._name = name
        self._headers = headers
        self._look_up = look_up

    def read(self, context: Context) -> str | None:
        """Return what is found, if it is the same for every line of the headers."""
        if context.repeated is None:
            return self._look_up(context.headers, context)
        value, *others = self._found(context, context.repeated)
        if others:
            raise AmbiguousValue(self._name)
        return value

    def every(self, context: Context) -> list[str]:
        """Return what is found for each line of the headers."""
        if context.repeated is None:
            return super().every(context)
        return [value for value in self._found(context, context.repeated) if value]

    def _found(self, context: Context, repeated: Repeated) -> list[str | None]:
        """Return what is found with each combination of the headers' lines, without what was found before."""
        readings = [context.headers]
        for name in self._headers:
            if name in context.headers:
                lines = repeated.values(name, context.headers[name])
                if len(lines) > MAX_LINES:
                    raise AmbiguousValue(self._name)
                readings = [headers | {name: line} for headers in readings for line in lines]
        return list(dict.fromkeys(self._look_up(headers, context) for headers in readings))


class Model(Descriptor):
    """The model of an LLM request, in one spelling."""

    __slots__ = ("_aliases",)

    def __init__(self, aliases: Mapping[str, str]) -> None:
        self._aliases = aliases

    def read(self, context: Context) -> str | None:
        """Return the model that answers, as limits count it: of the body, else of the path or query.

        Raises AmbiguousValue when the query names several, and nothing before it one.
        """
        llm = context.llm
        if llm is not None:
            if llm.unread:
                return UNREAD_MODEL
            if llm.model:
                return canonical_model(llm.model, self._aliases)
        names = [canonical_model(name, self._aliases) for name in self._outside(context)]
        if len(set(names)) > 1 and not told_by_path(context.path).models:
            raise AmbiguousValue("llm:model")
        return names[0] if names else None

    def every(self, context: Context) -> list[str]:
        """Return every model that the request names anywhere; `unread` among them when it may name any."""
        llm = context.llm
        names = self._outside(context) if llm is None else (*llm.names, *self._outside(context))
        spelled = [canonical_model(name, self._aliases) for name in names if name]
        if llm is not None and llm.unread:
            spelled.append(UNREAD_MODEL)
        return spelled

    def in_json(self, context: Context) -> frozenset[str]:
        """Return the models that a JSON object names, or may name behind a cut: elsewhere no other body names one."""
        llm = context.llm
        if llm is None or not llm.is_json:
            return frozenset()
        spelled = [canonical_model(name, self._aliases) for name in llm.names]
        if llm.unread and llm.is_cut:
            spelled.append(UNREAD_MODEL)
        return frozenset(spelled)

    def _outside(self, context: Context) -> tuple[str, ...]:
        """The names in path and query."""
        named = told_by_path(context.path).models
        return named + tuple(context.query.every("model")) if "?" in context.target else named


class Told(Descriptor):
    """Whatever a function tells of the request."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[Context], str | None]) -> None:
        self._tell = tell

    def read(self, context: Context) -> str | None:
        """What the function tells."""
        return self._tell(context)


def compile_descriptor(
    name: str,
    model_aliases: Mapping[str, str],
    choice: str = "reject",
    *,
    several_issuers: bool = False,
) -> Descriptor:
    """Return the reader of a descriptor whose name the bundle's validation has accepted.

    `choice` is the `on_ambiguous` of cookies and query parameters. With `several_issuers` a claim is read together
    with the issuer that it is of: to be counted by, not compared.
    """
    source, _, rest = name.partition(":")
    if source == "header":
        return Header(rest.lower())
    if source == "query":
        return Query(rest, choice)
    if source == "cookie":
        return Cookie(rest, choice)
    if source == "jwt":
        return IssuedClaim(rest) if several_issuers else Claim(rest)
    if name == "llm:model":
        return Model(model_aliases)
    if name in _LOOKED_UP:
        return LookedUp(name, *_LOOKED_UP[name])
    return Address() if name in ("ip:address", "ip:addr") else Told(_FIXED[name])


def compile_match(name: str, values: Iterable[str], model_aliases: Mapping[str, str]) -> Matcher:
    """Whether the descriptor has one of `values`; a claim that is an array has each of its elements.

    A path has every one of its readings, so that no spelling escapes a match on it; what came more than once has every
    one of its values; the values of an address are addresses and networks; an LLM request has every model it names.
    """
    if name in ("ip:address", "ip:addr"):
        return _address_matcher(values)
    accepted = accepted_values(name, values, model_aliases)
    if name.startswith("jwt:"):
        claim = name[4:]
        return lambda context: any(
            not accepted.isdisjoint(claim_values(claims, claim)) for claims in context.all_claims()
        )
    if name == "request:path":
        return lambda context: context.path in accepted or not accepted.isdisjoint(read_path(context.target))
    if name == "llm:model":
        accepted |= {UNREAD_MODEL}
    descriptor = compile_descriptor(name, model_aliases)
    return lambda context: not accepted.isdisjoint(descriptor.every(context))


def _address_matcher(values: Iterable[str]) -> Matcher:
    networks: NetworkIndex[str] = NetworkIndex()
    for value in values:
        networks.add(parse_network(value), value)
    return lambda context: networks.covers(context.client.ip)


def accepted_values(name: str, values: Iterable[str], model_aliases: Mapping[str, str]) -> frozenset[str]:
    """Values as a bundle writes them, spelled as the descriptor spells them."""
    if name == "llm:model":
        return frozenset(canonical_model(value, model_aliases) for value in values)
    if name == "request:method":
        return frozenset(value.upper() for value in values)
    if name == "request:host":
        return frozenset(value.lower().removesuffix(".") for value in values)
    if name == "request:path":
        return frozenset(normal_route(value) for value in values)
    return frozenset(values)


def _bot(headers: Mapping[str, bytes], context: Context) -> tuple[str, str | None]:
    return context.identity.bot(header_text(headers.get("user-agent", b"")))


_FIXED: Final[Mapping[str, Callable[[Context], str | None]]] = {
    "request:method": lambda context: context.method,
    "request:host": lambda context: context.host,
    "request:path": lambda context: context.coarse_path,
}

# What is looked up for the client, with the headers that it is found by or that a trusted gateway may say it in.
_LOOKED_UP: Final[Mapping[str, tuple[tuple[str, ...], LookUp]]] = {
    "ip:country": (
        ("x-country-code",),
        lambda headers, context: context.identity.country(context.client, headers),
    ),
    "ip:asn": (("x-asn",), lambda headers, context: context.identity.asn(context.client, headers)),
    "ip:type": (
        ("x-asn", "x-asn-type"),
        lambda headers, context: context.identity.asn_type(context.client, headers),
    ),
    "ip:tor": (("x-tor-exit",), lambda headers, context: context.identity.tor(context.client, headers)),
    "ua:bot": (("user-agent",), lambda headers, context: _bot(headers, context)[0]),
    "ua:bot_category": (("user-agent",), lambda headers, context: _bot(headers, context)[1]),
}
