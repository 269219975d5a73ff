"""One made-up request for every policy: what a bundle does, where there is no log to try it on.

A request carries what its policy selects by and what its rules ask for: a method, a host and a path that are selected,
a value for every descriptor, the first accepted one where a rule has a `match`. Places (`ip:country` and its like) are
told as a gateway would tell them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import orjson

from fairvisor.bundle.model import Bundle, Policy
from fairvisor.replay.fields import (
    ADDRESS,
    BODY,
    HINTS,
    HOST,
    MAPPABLE_SOURCES,
    METHOD,
    TARGET,
    TIME,
    Logged,
    Maker,
    Plan,
)

CLIENT: Final = "192.0.2.1"  # RFC 5737: for documentation
_SAMPLES: Final = {"ip:country": "NL", "ip:asn": "64496", "ip:type": "isp", "ip:tor": "false"}
_BOT: Final = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
_BROWSER: Final = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
_DEFAULT_HOST: Final = "example.com"


def synthetic_requests(bundle: Bundle, maker: Maker, wall_ns: int) -> Iterator[tuple[str, Logged]]:
    """(policy id, request) for every policy, all at the same moment."""
    for policy in bundle.policies:
        values = _values(policy) | {TIME: str(wall_ns)}
        plan = Plan(list(values), maker)
        yield policy.id, plan.logged([value.encode() for value in values.values()])


def told_meanings(bundle: Bundle) -> set[str]:
    """What the requests tell as a gateway would: to be believed."""
    return {name for policy in bundle.policies for name in _values(policy)}


def _values(policy: Policy) -> dict[str, str]:
    """What the request says, by meaning."""
    selector = policy.spec.selector
    values = {
        METHOD: selector.methods[0] if selector.methods else "GET",
        HOST: _host(selector.hosts[0]) if selector.hosts else _DEFAULT_HOST,
        TARGET: (selector.path_exact or selector.path_prefix or "/").replace(" ", "%20"),
        ADDRESS: CLIENT,
    }
    for _, rule in policy.spec.placed_rules():
        for name, accepted in rule.match.items():
            if _tellable(name):
                values.setdefault(name, accepted[0])
            elif name == "ua:bot":
                values.setdefault("header:user-agent", _BOT if accepted[0] == "true" else _BROWSER)
        for name in rule.limit_keys:
            if _tellable(name):
                values.setdefault(name, _SAMPLES.get(name, "sample"))
    values[BODY] = _body(policy)
    return values


def _body(policy: Policy) -> str:
    """A chat request: what rules of LLM tokens read, and a body like any other to the rest."""
    rules = [rule for _, rule in policy.spec.placed_rules()]
    models = [accepted[0] for rule in rules for name, accepted in rule.match.items() if name == "llm:model"]
    document = {
        "model": models[0] if models else "sample",
        "messages": [{"role": "user", "content": "a sample"}],
    }
    return orjson.dumps(document).decode()


def _tellable(name: str) -> bool:
    """Whether a request can be given this descriptor (what is selected by is told already)."""
    return name in HINTS or name.partition(":")[0] in MAPPABLE_SOURCES


def _host(pattern: str) -> str:
    return pattern.replace("*.", "any.", 1)
