"""What one bundle changes about another: each limit whose numbers differ, came or went, and each switch.

Both bundles are models with their defaults resolved, so that two spellings of the same thing are no change, and a
changed default is one in every policy that takes it. Policies are compared by id, rules by name, kill switches by what
they stop. Values are plain data, cut to a length that fits a log line. This module compares; it knows nothing of where
the bundles come from and who reads the result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any, Final, NamedTuple

import orjson

from fairvisor.bundle.model import Bundle, JwtIssuer, JwtKey, KillSwitch, Policy
from fairvisor.bundle.model_limits import Strictly
from fairvisor.clock import NS_PER_S

MAX_SHOWN: Final = 200  # characters of a value, as JSON
_NS_SUFFIX: Final = "_ns"  # of the fields that hold instants
_LISTED: Final = frozenset({"policies", "kill_switches", "jwt_keys", "jwt_issuers"})  # compared one by one
_NO_EFFECT: Final = frozenset({"bundle_version", "issued_at"})
_SWITCH_FIELDS: Final = frozenset({"route", "reason", "expires_at"})
_RULES: Final = frozenset({"rules", "fallback_limit"})

Fields = Mapping[str, object]


class Change(NamedTuple):
    """One difference. `old` is None for what came, `new` for what went.

    `policy` and `rule` are "" where none is meant. `field` is the dotted name in the bundle, "" where a whole policy or
    rule came or went. `key` is the descriptor and the value that a kill switch stops.
    """

    policy: str
    rule: str
    field: str
    old: object
    new: object
    key: tuple[str, str] | None = None


def change_of(values: Sequence[Any]) -> Change:
    """Return the change from its values, as JSON has them."""
    policy, rule, field, old, new, key = values
    return Change(policy, rule, field, old, new, (key[0], key[1]) if key else None)


def changes(old: Bundle, new: Bundle) -> Iterator[Change]:
    """Yield every difference: first those of the bundle as a whole, then those of its policies by id."""
    yield from _differences("", "", _own_fields(old), _own_fields(new))
    yield from _switches(old.kill_switches, new.kill_switches)
    before = {policy.id: policy for policy in old.policies}
    after = {policy.id: policy for policy in new.policies}
    for policy_id in sorted(before.keys() | after.keys()):
        yield from _policy(policy_id, before.get(policy_id), after.get(policy_id))


def _own_fields(bundle: Bundle) -> Fields:
    """Return the fields of a bundle outside its policies and kill switches."""
    fields = {name: value for name, value in _fields(bundle, _LISTED) if name not in _NO_EFFECT}
    return {**fields, "jwt_keys": _names(bundle.jwt_keys), "jwt_issuers": _names(bundle.jwt_issuers)}


def _names(keys: Sequence[JwtKey | JwtIssuer]) -> list[str]:
    """Return the name of each key or issuer, with a short hash of its content."""
    names = []
    for each in keys:
        name = each.issuer if isinstance(each, JwtIssuer) else each.kid or (each.jwk or {}).get("kid")
        text = orjson.dumps(dict(_fields(each)), default=str, option=orjson.OPT_SORT_KEYS)
        names.append(f"{name or 'a key'} ({hashlib.sha256(text).hexdigest()[:8]})")
    return names


def _switches(old: Sequence[KillSwitch], new: Sequence[KillSwitch]) -> Iterator[Change]:
    before = {(each.scope_key, each.scope_value, each.route): each for each in old}
    after = {(each.scope_key, each.scope_value, each.route): each for each in new}
    for key in dict.fromkeys([*before, *after]):
        was, becomes = _shown_switch(before.get(key)), _shown_switch(after.get(key))
        if was != becomes:
            yield Change("", "", "kill_switches", was, becomes, key[:2])


def _shown_switch(switch: KillSwitch | None) -> object:
    if switch is None:
        return None
    given = {name: value for name, value in _fields(switch) if name in _SWITCH_FIELDS and value is not None}
    return _cut(given or "on")


def _policy(policy_id: str, old: Policy | None, new: Policy | None) -> Iterator[Change]:
    if old is None or new is None:
        yield Change(policy_id, "", "", _shown_policy(old), _shown_policy(new))
    else:
        yield from _differences(
            policy_id, "", dict(_fields(old.spec, _RULES)), dict(_fields(new.spec, _RULES))
        )
    before, after = _rules(old), _rules(new)
    for name in dict.fromkeys([*before, *after]):
        was, becomes = before.get(name), after.get(name)
        if was is None or becomes is None:
            yield Change(policy_id, name, "", _shown_rule(was), _shown_rule(becomes))
        else:
            yield from _differences(policy_id, name, was, becomes)


def _rules(policy: Policy | None) -> dict[str, Fields]:
    """Return the fields of each rule by its name."""
    if policy is None:
        return {}
    return {
        rule.name: {**dict(_fields(rule)), "is_fallback": place == "fallback_limit"}
        for place, rule in policy.spec.placed_rules()
    }


def _shown_policy(policy: Policy | None) -> object:
    return None if policy is None else _cut({"mode": policy.spec.mode, **_given(policy.spec.selector)})


def _shown_rule(fields: Fields | None) -> object:
    """Return the algorithm of a rule and its numbers."""
    if fields is None:
        return None
    numbers = {
        name.rpartition(".")[2]: value
        for name, value in fields.items()
        if name.startswith("algorithm_config.") and type(value) in (int, float)
    }
    return _cut({"algorithm": fields["algorithm"], **numbers})


def _given(part: Strictly) -> dict[str, object]:
    return {name: value for name, value in _fields(part) if value}


def _differences(policy: str, rule: str, old: Fields, new: Fields) -> Iterator[Change]:
    for field in dict.fromkeys([*old, *new]):
        was, becomes = old.get(field), new.get(field)
        if was != becomes:
            yield Change(policy, rule, field, _cut(was), _cut(becomes))


def _fields(
    part: Strictly, without: frozenset[str] = frozenset(), prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield the fields of a part and of its parts, by dotted names."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        shown = field.alias or name
        if shown in without:
            continue
        if isinstance(value, Strictly):
            yield from _fields(value, prefix=f"{prefix}{shown}.")
        elif name.endswith(_NS_SUFFIX) and isinstance(value, int):
            yield (
                prefix + shown,
                f"{datetime.fromtimestamp(value // NS_PER_S, timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
            )
        else:
            yield prefix + shown, _plain(value)


def _plain(value: Any) -> object:
    """Return a value as plain data."""
    if isinstance(value, Strictly):
        return {name: each for name, each in _fields(value) if each is not None}
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value


def _cut(value: object) -> object:
    """Return a value, or the beginning of its JSON text if that is longer than MAX_SHOWN."""
    text = orjson.dumps(value, default=str).decode()
    return value if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
