"""Descriptors: what identifies a request to a policy. `"jwt:sub"` becomes the reader of that claim at load.

A value is text, or None when the request does not carry it; an empty value counts as missing. Claims, addresses and
look-ups are asked of the context. This module knows the names of descriptors; it knows neither rules nor counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fairvisor.context import Context, header_text
from fairvisor.identity.tokens import claim_values
from fairvisor.llm.models import canonical_model
from fairvisor.route import normal_route, read_path

Matcher = Callable[[Context], bool]

UNREAD_MODEL: Final = "unread"
"""`llm:model` of a body that was cut before it named its model: it counts, and matches every model."""


class Descriptor:
    """Reads one value of a request. One class for each kind: where they are compiled, `read` is called directly."""

    __slots__ = ()

    def read(self, context: Context) -> str | None:
        """The value; None when the request does not carry it."""
        raise NotImplementedError


class Header(Descriptor):
    """A header by its lower-case name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, context: Context) -> str | None:
        """Its value as text."""
        value = context.headers.get(self._name)
        return None if value is None else header_text(value)


class Claim(Descriptor):
    """A claim of the bearer token by its name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, context: Context) -> str | None:
        """Its value as text; None also for a request without claims."""
        return context.claim_text(self._name)


class Address(Descriptor):
    """The client's address as it is counted."""

    __slots__ = ()

    def read(self, context: Context) -> str | None:
        """The address, or the network of an IPv6 client."""
        return context.client.key


class Told(Descriptor):
    """Whatever a function tells of the request."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[Context], str | None]) -> None:
        self._tell = tell

    def read(self, context: Context) -> str | None:
        """What the function tells."""
        return self._tell(context)


def compile_descriptor(name: str, model_aliases: Mapping[str, str]) -> Descriptor:
    """The reader of a descriptor whose name the bundle's validation has accepted."""
    source, _, rest = name.partition(":")
    if source == "header":
        return Header(rest.lower())
    if source == "query":
        return Told(lambda context: context.query.get(rest))
    if source == "cookie":
        return Told(lambda context: context.cookies.get(rest))
    if source == "jwt":
        return Claim(rest)
    if name == "llm:model":
        return Told(lambda context: _model(context, model_aliases))
    return Address() if name in ("ip:address", "ip:addr") else Told(_FIXED[name])


def compile_match(name: str, values: Iterable[str], model_aliases: Mapping[str, str]) -> Matcher:
    """Whether the descriptor has one of `values`; a claim that is an array has each of its elements.

    A path has every one of its readings, so that no spelling escapes a match on it; an IPv6 client has its address and
    its network.
    """
    accepted = accepted_values(name, values, model_aliases)
    if name.startswith("jwt:"):
        claim = name[4:]
        return lambda context: (
            context.claims is not None and not accepted.isdisjoint(claim_values(context.claims, claim))
        )
    if name == "request:path":
        return lambda context: context.path in accepted or not accepted.isdisjoint(read_path(context.target))
    if name in ("ip:address", "ip:addr"):
        return lambda context: context.client.key in accepted or context.client.text in accepted
    descriptor = compile_descriptor(name, model_aliases)
    if name == "llm:model":
        accepted |= {UNREAD_MODEL}
    return lambda context: descriptor.read(context) in accepted


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


def _model(context: Context, aliases: Mapping[str, str]) -> str | None:
    llm = context.llm
    if llm is None:
        return None
    if llm.model:
        return canonical_model(llm.model, aliases)
    return UNREAD_MODEL if llm.cut_bytes else None


def _user_agent(context: Context) -> str:
    return context.header("user-agent") or ""


_FIXED: Final[Mapping[str, Callable[[Context], str | None]]] = {
    "request:method": lambda context: context.method,
    "request:host": lambda context: context.host,
    "request:path": lambda context: context.path,
    "ip:country": lambda context: context.identity.country(context.client, context.headers),
    "ip:asn": lambda context: context.identity.asn(context.client, context.headers),
    "ip:type": lambda context: context.identity.asn_type(context.client, context.headers),
    "ip:tor": lambda context: context.identity.tor(context.client, context.headers),
    "ua:bot": lambda context: context.identity.bot(_user_agent(context))[0],
    "ua:bot_category": lambda context: context.identity.bot(_user_agent(context))[1],
}
