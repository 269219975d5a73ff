"""From what pydantic found to problems that a person can act on: a JSON path and a sentence.

One call reads one part of a bundle (its head, or a policy) against its class. Unknown fields are set apart, because
they are errors in some places and warnings in others, and what remains is read again without them, so that all
errors of the part come out at once: MAX_PROBLEMS and one more at most, so that there is an end to what a bundle can
make us say. This module knows how errors look; what is right is said in the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fairvisor.bundle.fields import did_you_mean, show
from fairvisor.bundle.model import (
    CircuitBreaker,
    CostBased,
    CostBasedRule,
    Defaults,
    JwtIssuer,
    JwtKey,
    KillSwitch,
    LlmTokens,
    LlmTokensRule,
    LoopDetection,
    Override,
    Policy,
    Rule,
    Selector,
    Spec,
    StagedAction,
    TokenBucket,
    TokenBucketRule,
)
from fairvisor.bundle.model_limits import Algorithm, Streaming, Strictly, TokenSource, Weights
from fairvisor.bundle.syntax import FREE_FIELDS, member
from fairvisor.errors import MAX_PROBLEMS, Problem

PartT = TypeVar("PartT", bound=Strictly)
Location = tuple[int | str, ...]

ALGORITHMS: Final = get_args(Algorithm)

# A typo in one of these lets requests pass, so an unknown field there is an error.
EXACT_PARTS: Final = frozenset({"selector", "kill_switches", "global_shadow", "kill_switch_override"})

_PARTS: Final[Mapping[str, type[Strictly]]] = {
    "policies": Policy,
    "spec": Spec,
    "selector": Selector,
    "loop_detection": LoopDetection,
    "circuit_breaker": CircuitBreaker,
    "staged_actions": StagedAction,
    "weights": Weights,
    "token_source": TokenSource,
    "streaming": Streaming,
    "kill_switches": KillSwitch,
    "global_shadow": Override,
    "kill_switch_override": Override,
    "defaults": Defaults,
    "jwt_keys": JwtKey,
    "jwt_issuers": JwtIssuer,
}
_RULES: Final[Mapping[str, tuple[type[Strictly], type[Strictly]]]] = {
    "token_bucket": (TokenBucketRule, TokenBucket),
    "cost_based": (CostBasedRule, CostBased),
    "token_bucket_llm": (LlmTokensRule, LlmTokens),
}

_SENTENCES: Final[Mapping[str, str]] = {
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "tuple_type": "must be an array",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}


class Reading(NamedTuple):
    """What came of a part: the object (None when there were errors), the errors, and the unknown fields."""

    part: Any
    errors: list[Problem]
    unknown: list[Problem]


def read_part(
    model: type[Strictly], raw: object, path: str, context: Mapping[str, object], strict: bool
) -> Reading:
    """Read `raw`, which stands at `path`. Unknown fields are errors in exact parts, and everywhere when `strict`."""
    try:
        return Reading(model.model_validate(raw, context=dict(context)), [], [])
    except ValidationError as invalid:
        found = invalid.errors(include_url=False)
    extra = [error["loc"] for error in found if error["type"] == "extra_forbidden"]
    if not extra:
        return Reading(None, [*islice(_problems(found, raw, path), MAX_PROBLEMS + 1)], [])
    errors: list[Problem] = []
    unknown: list[Problem] = []
    for location in extra:
        if location[-1] not in FREE_FIELDS:
            part = _part(model, location[:-1])
            kind = errors if strict or _is_exact(part, location) else unknown
            if len(kind) <= MAX_PROBLEMS:
                kind.append(_unknown_field(part, location, raw, path))
    if len(errors) > MAX_PROBLEMS:
        return Reading(None, errors, unknown)
    rest = read_part(model, _without(raw, extra), path, context, strict)
    errors += (_with_typo(problem, errors + unknown) for problem in rest.errors)
    return Reading(None if errors else rest.part, errors, unknown)


def _problems(found: Iterable[ErrorDetails], raw: object, path: str) -> Iterable[Problem]:
    for error in found:
        where = _path(error["loc"], raw, path)
        if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
            yield from _unknown_algorithm(error, where)
        else:
            yield Problem(where, _sentence(error))


def _sentence(error: ErrorDetails) -> str:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "is required"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'|(\d+)", error["ctx"]["expected"])  # texts, or numbers
        return _one_of([text or int(number) for text, number in allowed], value)
    if kind in _SENTENCES:
        return f"{_SENTENCES[kind]}, not {show(value)}"
    return error["msg"]


def _one_of(allowed: Sequence[str | int], value: object) -> str:
    names = [show(each) for each in allowed]
    choice = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    hint = did_you_mean(value, [each for each in allowed if isinstance(each, str)])
    return f"must be {choice}, not {show(value)}{hint}"


def _unknown_algorithm(error: ErrorDetails, where: str) -> Iterable[Problem]:
    """Without its algorithm a rule has no class, so the fields that all rules have are read on their own."""
    raw = error["input"]
    if not isinstance(raw, dict):
        yield Problem(where, f"must be an object, not {show(raw)}")
        return
    if "algorithm" in raw:
        yield Problem(f"{where}.algorithm", _one_of(ALGORITHMS, raw["algorithm"]))
    else:
        yield Problem(f"{where}.algorithm", "is required")
    common = {name: value for name, value in raw.items() if name in Rule.model_fields}
    yield from read_part(Rule, common, where, {}, False).errors


# Paths. Pydantic's location holds the JSON's keys and indices, and between them the algorithm that chose a class.


def _keys(location: Location, raw: object) -> list[int | str]:
    """The location without the algorithms that are no keys of the document."""
    keys: list[int | str] = []
    for step in location:
        inside = isinstance(raw, dict) and step in raw
        if not inside and (step in ALGORITHMS or step == "[key]"):
            continue
        keys.append(step)
        raw = raw[step] if inside or isinstance(raw, list) else None  # type: ignore[index]
    return keys


def _path(location: Location, raw: object, path: str) -> str:
    for key in _keys(location, raw):
        if isinstance(key, int):
            path = f"{path}[{key}]"
        else:
            path = member(path, _json_name(key))
    return path


def _json_name(field: str) -> str:
    """Errors about an absent field carry the attribute's name."""
    return {"expires_at_ns": "expires_at", "issued_at_ns": "issued_at", "path_prefix": "pathPrefix"}.get(
        field, field
    )


# Unknown fields


def _is_exact(part: type[Strictly], location: Location) -> bool:
    return not EXACT_PARTS.isdisjoint(location) or (part is TokenBucket and location[-1] == "rps")


def _unknown_field(part: type[Strictly], location: Location, raw: object, path: str) -> Problem:
    name = str(location[-1])
    where = _path(location, raw, path)
    if part is TokenBucket and name == "rps":
        return Problem(where, "is another name of tokens_per_second: give one of them")
    return Problem(where, f"unknown field{did_you_mean(name, _field_names(part))}")


def _with_typo(problem: Problem, unknown: list[Problem]) -> Problem:
    """A field that is missing although something like it is there: the two problems are one."""
    parent, _, name = problem.path.rpartition(".")
    for typo in unknown:
        there, _, written = typo.path.rpartition(".")
        if problem.message == "is required" and there == parent and typo.message.endswith(f'"{name}"?'):
            return Problem(problem.path, f'is required; "{written}" is not a field')
    return problem


def _part(model: type[Strictly], location: Location) -> type[Strictly]:
    """The class of the object at a location."""
    algorithm = ""
    for step in location:
        if step in _RULES:
            algorithm = str(step)
            model = _RULES[algorithm][0]
        elif step == "algorithm_config" and algorithm:
            model = _RULES[algorithm][1]
        elif step in _PARTS:
            model = _PARTS[str(step)]
    return model


def _field_names(model: type[Strictly]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _without(raw: object, locations: list[Location]) -> object:
    """A copy of `raw` without the fields at these locations; what is not on the way to one of them is shared."""
    copied: dict[int, Any] = {}
    root: Any = _copy(raw, copied)
    for location in locations:
        part = root
        *way, last = _keys(location, raw)
        for key in way:
            part[key] = _copy(part[key], copied)
            part = part[key]
        part.pop(last, None)
    return root


def _copy(part: Any, copied: dict[int, Any]) -> Any:
    """The copy of a list or object, made once; a copy is its own copy."""
    if id(part) not in copied:
        copy = part.copy()
        copied[id(part)] = copied[id(copy)] = copy
    return copied[id(part)]
