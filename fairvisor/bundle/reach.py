"""Rules of a valid bundle that can never run: where a selector and a `match` exclude each other, where no configured
source fills a descriptor, where the fallback has nothing to fall back from.

Warnings only, for `validate`, `explain` and the log. Whether a request exists that runs a rule is decided from the
bundle and the names of the sources alone; anything that some request might satisfy is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Final

from fairvisor.bundle.model import AnyRule, Bundle, Selector, Spec
from fairvisor.errors import Problem

# Descriptors that depend on what the edge is configured with; `identity.sources()` says which of them it can fill.
SOURCED: Final = frozenset({"ip:country", "ip:asn", "ip:type", "ip:tor", "ua:bot"})
# Descriptors that every request has.
ALWAYS_THERE: Final = frozenset({"request:method", "request:path", "ip:address", "ip:addr", "ua:bot"})


def unreachable(bundle: Bundle, sources: Set[str]) -> Iterator[Problem]:
    """A warning for each rule, fallback or kill switch that no request can reach; `sources` can be filled."""
    for index, switch in enumerate(bundle.kill_switches):
        if _unfilled(switch.scope_key, sources):
            yield _without_source(f"kill_switches[{index}].scope_key", switch.scope_key)
    for index, policy in enumerate(bundle.policies):
        path = f"policies[{index}].spec"
        for place, rule in policy.spec.placed_rules():
            yield from _on_sources(rule, f"{path}.{place}", sources)
            yield from _on_selector(rule, policy.spec.selector, f"{path}.{place}.match")
        yield from _on_fallback(policy.spec, f"{path}.fallback_limit")


def _unfilled(descriptor: str, sources: Set[str]) -> bool:
    name = "ua:bot" if descriptor == "ua:bot_category" else descriptor
    return name in SOURCED and name not in sources


def _without_source(path: str, descriptor: str) -> Problem:
    return Problem(path, f"{descriptor} is never there: no source is configured that fills it")


def _on_sources(rule: AnyRule, path: str, sources: Set[str]) -> Iterator[Problem]:
    for index, name in enumerate(rule.limit_keys):
        if _unfilled(name, sources):
            yield _without_source(f"{path}.limit_keys[{index}]", name)
    for name in rule.match:
        if _unfilled(name, sources):
            yield _without_source(f'{path}.match["{name}"]', name)


def _on_selector(rule: AnyRule, selector: Selector, path: str) -> Iterator[Problem]:
    for name, reaches, field in (
        ("request:method", _selects_method, "methods"),
        ("request:host", _selects_host, "hosts"),
        ("request:path", _selects_path, "paths"),
    ):
        values = rule.match.get(name)
        if values is not None and not any(reaches(selector, value) for value in values):
            yield Problem(f'{path}["{name}"]', f"never holds: the selector's {field} exclude it")


def _selects_method(selector: Selector, method: str) -> bool:
    return not selector.methods or method.upper() in {name.upper() for name in selector.methods}


def _selects_host(selector: Selector, host: str) -> bool:
    return not selector.hosts or any(host_fits(pattern.lower(), host.lower()) for pattern in selector.hosts)


def host_fits(pattern: str, host: str) -> bool:
    """Whether a host is the pattern, or below it where it starts with `*.`."""
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) >= len(pattern)
    return host == pattern


def _selects_path(selector: Selector, path: str) -> bool:
    prefix = selector.path_prefix
    below = prefix is not None and (path == prefix or path.startswith(prefix.rstrip("/") + "/"))
    return below or path == selector.path_exact


def _on_fallback(spec: Spec, path: str) -> Iterator[Problem]:
    if spec.fallback_limit is None:
        return
    for rule in spec.rules:
        if not rule.match and (rule.on_missing != "skip" or ALWAYS_THERE.issuperset(rule.limit_keys)):
            yield Problem(path, f'is never used: the rule "{rule.name}" runs for every request')
            return
