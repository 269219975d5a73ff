"""Which headers of a request a bundle reads: what a gateway that sends only named headers must send.

Not among them is what a gateway says itself: the description of the request, the client's address, hints. This module
knows the bundle's tree; it knows no gateway.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fairvisor.bundle.model import AnyRule, Bundle, CostBased, LlmTokens, Spec, TokenBucket

# By the kind of a descriptor. The name of a `header:` is its own.
_OF_KIND: Final = {"cookie": "cookie", "jwt": "authorization", "ua": "user-agent"}
# They say whether there is a body, and how it is read.
_OF_BODIES: Final = ("content-encoding", "content-type")


def headers_read(bundle: Bundle) -> list[str]:
    """Return the names in lower case, in their order, of a bundle whose defaults are resolved."""
    found = {name for switch in bundle.kill_switches for name in _headers_of(switch.scope_key)}
    for policy in bundle.policies:
        found.update(_of_spec(policy.spec))
    return sorted(found)


def _of_spec(spec: Spec) -> Iterator[str]:
    if spec.loop_detection is not None:
        yield from _OF_BODIES
    for _, rule in spec.placed_rules():
        yield from _of_rule(rule)


def _of_rule(rule: AnyRule) -> Iterator[str]:
    for descriptor in (*rule.limit_keys, *rule.match):
        yield from _headers_of(descriptor)
    config = rule.algorithm_config
    if isinstance(config, LlmTokens):
        yield from _OF_BODIES
    elif isinstance(config, TokenBucket):
        yield from _headers_of(config.cost_source)
    elif isinstance(config, CostBased):
        yield from _headers_of(config.cost_key)


def _headers_of(descriptor: str) -> tuple[str, ...]:
    kind, _, name = descriptor.partition(":")
    if kind == "header":
        return (name.lower(),)
    if kind == "llm":
        return _OF_BODIES
    return (_OF_KIND[kind],) if kind in _OF_KIND else ()
