"""What the fields of an LLM request say, taken one by one: models, numbers, a stream.

A value is the client's: a number is read in JSON and in text, `true` in every spelling that servers take for it, and
what is none of that counts as not sent. This module knows fields and values; it must not know bodies or paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fairvisor.llm.fields import (
    CAP,
    CHOICES,
    CONFIG,
    CONFIG_CAPS,
    CONFIG_CHOICES,
    FOLDED,
    KINDS,
    MERGED,
    MODEL,
    MORE_MODELS,
    ORDINARY,
    STREAM,
    TEXT,
)

MAX_NUMBER: Final = 10**12
"""Token counts above this are nonsense and ignored (the largest context windows have some 1e7)."""

MAX_NAMES: Final = 64
"""A request that names more models than this is not read: each is looked up in every limit on models."""

_MAX_DIGITS: Final = 40  # of a number in text
_TRUE: Final = frozenset(("true", "t", "yes", "y", "on", "1"))  # as pydantic and most form readers take them


class Facts:
    """What the fields of one body say: the numbers are the largest of all that are sent."""

    __slots__ = ("cap", "choices", "model", "more", "stream", "unclear")

    def __init__(self) -> None:
        self.model = ""
        self.more: list[str] = []  # other names
        self.cap = 0
        self.choices = 0
        self.stream = False
        self.unclear = False  # parsers read it differently


def whole_number(value: object) -> int | None:
    """Return `value` as a count of tokens: a whole JSON number from 0 to 1e12 (`5`, `5.0`); None for anything else."""
    if type(value) is int:
        return value if 0 <= value <= MAX_NUMBER else None
    if type(value) is float and 0 <= value <= MAX_NUMBER and value.is_integer():  # False for NaN
        return int(value)
    return None


def gather(document: dict[str, object]) -> Facts:
    """Return what the fields of an object say.

    The largest number of several counts, because a provider ignores the fields it does not know: a small decoy beside
    the real one must not shrink the reservation.
    """
    facts = Facts()
    for name, value in document.items():
        _note(facts, name, value)
    return facts


def gather_all(fields: Iterable[tuple[str, object]]) -> Facts:
    """Return what fields say of which some may be repeated."""
    facts = Facts()
    for name, value in fields:
        _note(facts, name, value)
    return facts


def _note(facts: Facts, name: str, value: object) -> None:
    kind = KINDS.get(name, 0)
    if kind == TEXT:
        return
    if kind == 0:
        if name in ORDINARY:
            return
        kind = FOLDED.get(name.strip().casefold(), 0)
        if kind == 0:
            return
        facts.unclear = True
    if kind == MODEL:
        _note_model(facts, value)
    elif kind == CAP:
        facts.cap = max(facts.cap, _asked(value))
    elif kind == CHOICES:
        facts.choices = max(facts.choices, _asked(value))
    elif kind == STREAM:
        facts.stream = facts.stream or _is_true(value)
    elif kind == CONFIG:
        _note_config(facts, value)
    elif kind == MORE_MODELS:
        _note_more(facts, value)
    elif kind == MERGED and isinstance(value, dict):
        _note_more(
            facts, [each for inner, each in value.items() if KINDS.get(inner, 0) in (MODEL, MORE_MODELS)]
        )


def _note_model(facts: Facts, value: object) -> None:
    if not isinstance(value, str):
        return
    model = value if value.isascii() else value.encode(errors="replace").decode()  # no lone surrogates
    if facts.model:
        facts.more.append(facts.model)
    facts.model = model
    if "," in model:  # LiteLLM asks each of them
        _note_more(facts, model.split(",", MAX_NAMES))


def _note_more(facts: Facts, value: object) -> None:
    """Note every text in `value`, keys included: fallbacks are lists of names, or of objects from name to names."""
    stack = [value]
    while stack and len(facts.more) + len(stack) <= 4 * MAX_NAMES:
        each = stack.pop()
        if isinstance(each, str):
            facts.more.append(each.encode(errors="replace").decode())
        elif isinstance(each, list):
            stack += each
        elif isinstance(each, dict):
            stack += each.keys()
            stack += each.values()
    facts.unclear = facts.unclear or bool(stack)


def _note_config(facts: Facts, value: object) -> None:
    if isinstance(value, dict):
        for name in CONFIG_CAPS:
            facts.cap = max(facts.cap, _asked(value.get(name)))
        for name in CONFIG_CHOICES:
            facts.choices = max(facts.choices, _asked(value.get(name)))


def _asked(value: object) -> int:
    """`value` as a number that is asked for, also in text, which many servers accept; 0 for what is none."""
    number = whole_number(value)
    if number is None and isinstance(value, str) and len(value) <= _MAX_DIGITS:
        try:
            number = whole_number(float(value))
        except ValueError:
            return 0
    return number or 0


def _is_true(value: object) -> bool:
    return value is True or value == 1 or (isinstance(value, str) and value.strip().lower() in _TRUE)
