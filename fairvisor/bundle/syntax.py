"""Bytes to a JSON document: what can be wrong before a bundle is looked at as a bundle.

A document that is not JSON is one problem, with its line and column. An object that holds a name twice is a problem
too: a JSON reader keeps the last one, and the rule that was dropped would let everything pass. `null` is refused as
well, since a template that failed to fill in a limit writes it; not inside a key, which is pasted as it was published.
This module knows JSON and no field of a bundle but these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import orjson

from fairvisor.errors import MAX_PROBLEMS, BundleInvalid, Problem

MAX_BUNDLE_BYTES: Final = 64 * 1024 * 1024
FREE_FIELDS: Final = ("$comment", "$schema")  # allowed in every object, with any value
PASTED_FIELDS: Final = ("jwk",)  # objects that stand as their makers publish them

Pairs = list[tuple[str, Any]]


def read_document(data: bytes) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """The JSON object in `data`, and what is wrong with it although it is JSON (names given twice, nulls).

    Raises BundleInvalid with a single problem when there is no object to look at.
    """
    text = _text(data)
    try:
        document = orjson.loads(data)
        twice = _some_name_is_given_twice(text)
    except json.JSONDecodeError as error:
        raise _invalid(_syntax_message(error)) from None
    except RecursionError:
        raise _invalid("is nested too deeply") from None
    if not isinstance(document, dict):
        raise _invalid("must be a JSON object")
    problems = [*islice(_names_given_twice(text), MAX_PROBLEMS + 1)] if twice else []
    if b"null" in data:
        problems += islice(_nulls(document), MAX_PROBLEMS + 1)
    return document, tuple(problems)


def member(path: str, name: str) -> str:
    """The JSON path of a member of the object at `path`."""
    if not name.replace("$", "_").isidentifier():
        return f"{path}[{json.dumps(name, ensure_ascii=False)}]"
    return f"{path}.{name}" if path else name


def _invalid(message: str) -> BundleInvalid:
    return BundleInvalid((Problem("", f"the bundle {message}"),))


def _text(data: bytes) -> str:
    if len(data) > MAX_BUNDLE_BYTES:
        raise _invalid(f"has {len(data):,} bytes; at most 64 MiB ({MAX_BUNDLE_BYTES:,}) are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = f"line {before.count(10) + 1}, byte {error.start - before.rfind(10)}"
        raise _invalid(f"is not UTF-8 ({place})") from None
    if text.startswith("\ufeff"):
        raise _invalid("starts with a byte order mark: save it as UTF-8 without one")
    if not text.strip():
        raise _invalid("is empty")
    return text


def _syntax_message(error: json.JSONDecodeError) -> str:
    if (
        "depth" in error.msg or "ecursion" in error.msg
    ):  # orjson reads 1,024 levels; its wording differs by version
        return "is nested too deeply"
    return f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"


# A name given twice: looked for in one fast pass, located only when there is one


class _Twice(Exception):
    """Some object holds a name twice."""


def _no_name_twice(pairs: Pairs) -> None:
    if len(dict(pairs)) != len(pairs):
        raise _Twice


_QUICK = json.JSONDecoder(object_pairs_hook=_no_name_twice, parse_int=len, parse_float=len)


def _some_name_is_given_twice(text: str) -> bool:
    try:
        _QUICK.decode(text)
    except _Twice:
        return True
    return False


class _Object:
    """The members of an object as they are written, in their order."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs


_LOCATING = json.JSONDecoder(object_pairs_hook=_Object, parse_int=len, parse_float=len)


def _names_given_twice(text: str) -> Iterator[Problem]:
    todo: list[tuple[str, Any]] = [("", _LOCATING.decode(text))]
    while todo:
        path, value = todo.pop()
        if isinstance(value, _Object):
            names: set[str] = set()
            for name, _ in value.pairs:
                if name in names:
                    yield Problem(member(path, name), "is given twice in the same object")
                names.add(name)
            todo += [(member(path, name), part) for name, part in reversed(value.pairs)]
        elif isinstance(value, list):
            todo += [(f"{path}[{index}]", part) for index, part in reversed([*enumerate(value)])]


def _nulls(document: dict[str, Any]) -> Iterator[Problem]:
    todo: list[tuple[str, Any]] = [("", document)]
    while todo:
        path, value = todo.pop()
        if value is None:
            yield Problem(path, "must not be null: leave the field out instead")
        elif isinstance(value, dict):
            free = FREE_FIELDS + tuple(name for name in PASTED_FIELDS if value.get(name) is not None)
            todo += [(member(path, name), value[name]) for name in reversed(value) if name not in free]
        elif isinstance(value, list):
            todo += [(f"{path}[{index}]", part) for index, part in reversed([*enumerate(value)])]
