"""The LLM request in an HTTP body: model, completion tokens asked for, number of choices, streaming or not.

Reads the JSON bodies of OpenAI (chat/completions, completions, responses, embeddings) and of what speaks the same
(Azure, Mistral, vLLM...), of Anthropic messages, Gemini generateContent and Bedrock, and the forms that audio and
pictures are sent in. Where the provider takes the model from the path (`paths.py`), the path wins over the body, as it
does there; the body's name is a name all the same.

The body is the client's. One that cannot be read, or that parsers read differently (what follows the value, repeated
names, names in another case, encodings, too deep, too many parts), is `unread`: it may ask any model for anything, so
its bytes count as its prompt. Of a body that was cut, what its beginning says counts (`cut.py`); what it would have
said further on must not let it escape: `cut_bytes` lets estimates and descriptors know. A number that is no positive
whole one counts as not sent. This module must not know limits, estimates or aliases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_plus

import orjson

from fairvisor.llm._shape import count_members
from fairvisor.llm.cut import mend
from fairvisor.llm.facts import MAX_NAMES, MAX_NUMBER, Facts, gather, gather_all, whole_number
from fairvisor.llm.fields import FOLDED, KINDS
from fairvisor.llm.forms import is_form, read_form
from fairvisor.llm.paths import told_by_path

__all__ = ["MAX_MEMBERS", "MAX_NAMES", "MAX_NUMBER", "LlmRequest", "read_request", "whole_number"]

MAX_MEMBERS: Final = 1000
"""A body whose object has more names at its top is not read: real ones have some dozens."""

_MAX_LAX_BYTES: Final = 262_144  # what only the slower parser reads: 20 ms at most
_MAX_FORM_PAIRS: Final = 1000
_PLAIN_TYPES: Final = frozenset((b"", b"application/json", b"application/json; charset=utf-8"))
# Character sets in which every byte of ASCII is what it is in ASCII.
_PLAIN_CHARSET: Final = re.compile(
    rb"\"?(?:utf-?8|us-ascii|iso-8859-\d+|windows-125\d|latin-?1)\"?\s*(?:;|$)", re.IGNORECASE
)
_CHARSET: Final = re.compile(rb"charset\s*=\s*", re.IGNORECASE)
_PAIR: Final = re.compile(r"[&;]")


class LlmRequest:
    """What one request asks of a model.

    `document` is the whole JSON object, or the text fields of a form, `model` the name that answers, as sent ("" if
    none), `names` every model that is named, `completion_cap` the completion tokens per choice the client allows (None:
    not said; 0: embeddings and the like have none), `choices` how many completions it wants, `stream` whether it asked
    for a stream, `media` how many files it sends as a form. `cut_bytes` is how much of the body nobody has read,
    `unread` says that it may name any model. `is_json` says that the body is a JSON object, whatever else is wrong,
    `is_cut` that its end is missing.
    """

    __slots__ = ("choices", "completion_cap", "cut_bytes", "document", "is_cut", "is_json", "media", "model",
                 "names", "stream", "unread")  # fmt: skip

    def __init__(
        self,
        document: dict[str, object],
        model: str,
        completion_cap: int | None,
        choices: int,
        stream: bool,
        cut_bytes: int = 0,
    ) -> None:
        self.document = document
        self.model = model
        self.completion_cap = completion_cap
        self.choices = choices
        self.stream = stream
        self.cut_bytes = cut_bytes
        self.names: tuple[str, ...] = (model,) if model else ()
        self.media = 0
        self.unread = False
        self.is_json = True
        self.is_cut = cut_bytes > 0

    def give_up(self, size_bytes: int) -> None:
        """Take what was read of the body for one of several readings; `size_bytes` is all of the body."""
        self.unread, self.document, self.cut_bytes = True, {}, size_bytes


class Parsed:
    """A JSON object as far as it could be read: `fields` are its fields where some may be repeated, None elsewhere."""

    __slots__ = ("clear", "document", "fields", "unread_bytes")

    def __init__(
        self,
        document: dict[str, object],
        fields: list[tuple[str, object]] | None = None,
        clear: bool = True,
        unread_bytes: int = 0,
    ) -> None:
        self.document = document
        self.fields = fields
        self.clear = clear
        self.unread_bytes = unread_bytes


def read_request(
    path: str, body: bytes | None, cut_bytes: int = 0, content_type: bytes = b""
) -> LlmRequest | None:
    """Return the LLM request in `body`, sent to `path` (normalised, without query); None: there is no body.

    `cut_bytes` is how much is missing at the end of `body`.
    """
    if not body:
        return _unread(path, cut_bytes) if cut_bytes else None
    size_bytes = len(body) + cut_bytes
    if content_type not in _PLAIN_TYPES:
        if is_form(content_type):
            return _read_form(path, body, cut_bytes, content_type)
        charset = _CHARSET.search(content_type)
        if charset is not None and _PLAIN_CHARSET.match(content_type, charset.end()) is None:
            return _unread(path, size_bytes)
    parsed = _parse_cut(body) if cut_bytes else _parse(body)
    if parsed is None:
        return _unread(path, size_bytes)
    if cut_bytes:
        cut_bytes += parsed.unread_bytes
    facts = gather(parsed.document) if parsed.fields is None else gather_all(parsed.fields)
    request = _request(path, parsed.document, facts, cut_bytes)
    if facts.unclear or not parsed.clear:
        request.give_up(size_bytes)
    return request


def _unread(path: str, size_bytes: int) -> LlmRequest:
    """A request of whose body nothing is known but its size."""
    request = _request(path, {}, Facts(), size_bytes)
    request.unread, request.is_json = True, False
    return request


def _parse(body: bytes) -> Parsed | None:
    """Parse a JSON object; None when there is none.

    What orjson rejects and providers written in Python accept (NaN, lone surrogates, UTF-16, a byte order mark) gets a
    second, slower reading.
    """
    members = count_members(body)
    if not 0 <= members <= MAX_MEMBERS:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _parse_lax(body)
    if type(document) is not dict:
        return None
    if members == len(document):
        return Parsed(document)
    if len(body) > _MAX_LAX_BYTES:
        return Parsed(document, clear=False)
    return _parse_repeated(body)


def _parse_lax(body: bytes) -> Parsed | None:
    """Parse what only Python's own parser reads."""
    encoding = json.detect_encoding(body)
    if encoding != "utf-8":
        try:
            body = body.decode(encoding).encode()
        except UnicodeError:
            return None
        return _parse(body) if json.detect_encoding(body) == "utf-8" else None
    return _parse_repeated(body) if len(body) <= _MAX_LAX_BYTES else None


def _parse_repeated(body: bytes) -> Parsed | None:
    """Parse with all names that are repeated; not clear: one of them is read, or what no JSON has stands in it."""
    pairs: list[tuple[str, object]] = []
    odd: list[str] = []

    def keep(fields: list[tuple[str, object]]) -> dict[str, object]:
        pairs[:] = fields  # of the object that ends last: the root
        return dict(fields)

    try:
        document = json.loads(body, object_pairs_hook=keep, parse_constant=odd.append)
    except (ValueError, RecursionError):
        return None
    if type(document) is not dict:
        return None
    return Parsed(document, pairs, clear=not odd and not _repeats(pairs))


def _parse_cut(body: bytes) -> Parsed | None:
    """Parse the beginning of a JSON object; None: it begins none.

    One that says nothing that can be read is an empty object: it may be an LLM request all the same.
    """
    mended = mend(body)
    if mended is None:
        return None
    parsed = _parse(mended.text)
    if parsed is None:
        return Parsed({}, unread_bytes=len(body))
    parsed.unread_bytes = mended.unread_bytes
    return parsed


def _read_form(path: str, body: bytes, cut_bytes: int, content_type: bytes) -> LlmRequest:
    """Read a form, or the JSON object that was sent under its type, which some servers read as JSON."""
    size_bytes = len(body) + cut_bytes
    if body.lstrip()[:1] == b"{":
        request = read_request(path, body, cut_bytes)
        assert request is not None, "there is a body"
        if not request.unread and _is_form_too(body):
            request.give_up(size_bytes)
        return request
    form = read_form(content_type, body, cut=cut_bytes > 0)
    if form is None:
        return _unread(path, size_bytes)
    facts = gather_all(form.fields)
    if form.ends_in_file:  # what is missing has a fixed price, but may not be all file
        cut_bytes = 1
    request = _request(path, dict(form.fields), facts, cut_bytes)
    request.media, request.is_json = form.files, False
    if facts.unclear or _repeats(form.fields):
        request.give_up(size_bytes)
    return request


def _is_form_too(body: bytes) -> bool:
    """Whether a JSON object read as an urlencoded form has a field that is read."""
    pairs = _PAIR.split(body.decode(errors="replace"), _MAX_FORM_PAIRS)
    return len(pairs) > _MAX_FORM_PAIRS or any(
        unquote_plus(pair.partition("=")[0]).strip().casefold() in FOLDED for pair in pairs
    )


def _repeats(fields: Iterable[tuple[str, object]]) -> bool:
    """Whether a name that is read comes twice."""
    seen: set[str] = set()
    for name, _ in fields:
        if name in seen and name in KINDS:
            return True
        seen.add(name)
    return False


def _request(path: str, document: dict[str, object], facts: Facts, cut_bytes: int) -> LlmRequest:
    told = told_by_path(path)
    model = told.models[0] if told.settles or (told.models and not facts.model) else facts.model
    request = LlmRequest(
        document,
        model,
        facts.cap or None if told.completes else 0,
        (facts.choices or 1) * _prompts(document),
        told.streams or facts.stream,
        cut_bytes,
    )
    if told.models or facts.more:
        names = dict.fromkeys((model, facts.model, *told.models, *facts.more))
        request.names = tuple(name for name in names if name)
        request.unread = len(request.names) > MAX_NAMES
    if cut_bytes and not facts.model and not told.settles:  # the model may stand behind the cut
        request.unread = True
    return request


def _prompts(document: dict[str, object]) -> int:
    """How many prompts a /v1/completions request holds: each gets its own `n` completions; 1 for anything else."""
    prompt = document.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        return len(prompt)
    return 1
