"""How many tokens a prompt will be counted as, before the provider has counted it.

`simple_word`, the default, needs no model: it counts what tokenizers cut text into. The estimate is settled against
the provider's number afterwards, so it must be near, cheap (it runs on every LLM request) and never zero; where it
errs it should rather be high. `tiktoken` counts with OpenAI's own vocabulary, where that package is installed.

What counts as prompt: the text under messages, system, input, prompt, contents and their kin, wherever it is nested,
and tools and schemas as JSON text. This module must not know limits, rules or what became of earlier estimates.

simple_word, on UTF-8 (`_simple_word.c` counts the text):
  - a run of letters is 1, and 1 more for every 8 letters, and 2 more for every 16 (long words, names, base64);
  - two digits in a row are 1, one alone is 1;
  - punctuation and line ends: one, two or four in a row are 1, three 2, and so on;
  - white space belongs to what follows; every 4 spaces in a row (indentation) are 1;
  - a letter beyond ASCII in two bytes (accents, Cyrillic, Greek, Arabic...) is a letter and 1/3 more;
  - a character in three bytes (CJK, Hangul, Thai, Devanagari...) is 1, in four (emoji) 2;
  - of a body that was cut or cannot be read, 4 bytes that were not read are 1;
  - a message is 4, a token id in an array 1, and an image, file or sound 765 (1024 x 1024 pixels at OpenAI's prices),
    in JSON or as a file of a form.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import orjson

from fairvisor.errors import EstimatorUnavailable
from fairvisor.llm._simple_word import count_tokens
from fairvisor.llm.fields import PROMPT_FIELDS, SCHEMA_FIELDS
from fairvisor.llm.request import LlmRequest

MESSAGE_TOKENS: Final = 4
CUT_BYTES_PER_TOKEN: Final = 4
MEDIA_TOKENS: Final = 765
TIKTOKEN_ENCODING: Final = "o200k_base"
"""OpenAI's vocabulary since GPT-4o; older and other models' counts differ by some per cent."""

# tiktoken takes some 0.2 us a character and more for long unbroken runs of letters, and both are the client's choice:
# so it gets pieces, and what is beyond the first 32,768 characters is counted by simple_word.
_EXACT_CHARS: Final = 32_768
_PIECE_CHARS: Final = 4_096

_PROMPTS: Final = frozenset(PROMPT_FIELDS)
_SCHEMAS: Final = frozenset(SCHEMA_FIELDS)
# A document of more parts than this is hostile or enormous: the rest is counted as JSON text, in C.
_MAX_NODES: Final = 20_000
# Where a picture, sound or file stands instead of text: its bytes or its address are not read as text.
_MEDIA_FIELDS: Final = frozenset(
    ("image_url", "input_audio", "file_data", "file_id", "file_url", "inlineData", "inline_data", "fileData")
)
_MEDIA_SOURCES: Final = frozenset(("base64", "url", "file"))  # Anthropic: {"source": {"type": "base64", ...}}
# Markers and opaque values that no model reads as text.
_SILENT_FIELDS: Final = frozenset(
    (
        "type",
        "role",
        "id",
        "status",
        "call_id",
        "tool_call_id",
        "tool_use_id",
        "cache_control",
        "signature",
        "thoughtSignature",
        "encrypted_content",
    )
)


class Encoding(Protocol):
    """What is used of a tiktoken encoding."""

    def encode_ordinary(self, text: str, /) -> list[int]:
        """The tokens of `text`, special tokens read as text."""


def simple_word(request: LlmRequest) -> int:
    """Prompt tokens of `request` by the rules above; at least 1."""
    prompts, schemas = _counted(request.document)
    texts, tokens = _gather(prompts)
    tokens += count_tokens(" ".join(texts))
    if schemas:
        tokens += count_tokens(_json_text(schemas))
    return tokens + _unread_tokens(request) or 1


def load_estimator(name: str) -> Callable[[LlmRequest], int]:
    """The estimator `name`, ready to run: what it needs is loaded now, not on a request.

    Raises EstimatorUnavailable when it is not known, not installed, or its vocabulary cannot be loaded.
    """
    if name == "tiktoken":
        return TiktokenEstimator(_load_encoding())
    if name not in ESTIMATORS:
        raise EstimatorUnavailable(f"the estimator {name!r} is not known; there are: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


class TiktokenEstimator:
    """Prompt tokens counted with a tiktoken encoding; messages and media as in simple_word."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def __call__(self, request: LlmRequest) -> int:
        """Prompt tokens of `request`; at least 1."""
        prompts, schemas = _counted(request.document)
        texts, tokens = _gather(prompts)
        texts.append(_json_text(schemas).decode() if schemas else "")
        text = " ".join(texts)
        for start in range(0, min(len(text), _EXACT_CHARS), _PIECE_CHARS):
            tokens += len(
                self._encoding.encode_ordinary(text[start : min(start + _PIECE_CHARS, _EXACT_CHARS)])
            )
        tokens += count_tokens(text[_EXACT_CHARS:])
        return tokens + _unread_tokens(request) or 1


ESTIMATORS: Final[Mapping[str, Callable[[LlmRequest], int]]] = {"simple_word": simple_word}
"""The estimators that need nothing loaded, by their name in `token_source.estimator`."""


def _load_encoding() -> Encoding:
    try:
        tiktoken = importlib.import_module("tiktoken")
    except ImportError as error:
        raise EstimatorUnavailable(
            "the estimator 'tiktoken' needs the package of that name: pip install 'fairvisor[tiktoken]'"
        ) from error
    try:
        encoding: Encoding = tiktoken.get_encoding(TIKTOKEN_ENCODING)
    except Exception as error:  # tiktoken passes on whatever its download raises
        raise EstimatorUnavailable(
            f"tiktoken could not load {TIKTOKEN_ENCODING} ({type(error).__name__}: {error}). It is downloaded once; "
            "without network access, put the file into the directory that TIKTOKEN_CACHE_DIR names"
        ) from error
    return encoding


def _unread_tokens(request: LlmRequest) -> int:
    """What is reserved for what is no text: the part of the body that was not read, and the files of a form."""
    return -(-request.cut_bytes // CUT_BYTES_PER_TOKEN) + request.media * MEDIA_TOKENS


def _counted(document: dict[str, object]) -> tuple[list[object], list[object]]:
    """What of a document is prompt, and its tools and schemas, each in the order of their fields above.

    A document has few fields, and mostly one of these: its own are gone through, and all that there may be seldom.
    """
    prompts, schemas = [], []
    for name, value in document.items():
        if name in _PROMPTS:
            prompts.append(value)
        elif name in _SCHEMAS:
            schemas.append(value)
    if len(prompts) > 1:
        prompts = [document[name] for name in PROMPT_FIELDS if name in document]
    if len(schemas) > 1:
        schemas = [document[name] for name in SCHEMA_FIELDS if name in document]
    return prompts, schemas


def _gather(stack: list[object]) -> tuple[list[str], int]:
    """The texts of what `stack` holds, and the tokens of what is no text: messages, media, token ids.

    A stack instead of recursion: how deep a document is nested is the client's choice.
    """
    texts: list[str] = []
    tokens = 0
    nodes = 0
    while stack:
        nodes += 1
        if nodes > _MAX_NODES:
            texts.append(_json_text(stack).decode())
            break
        value = stack.pop()
        if type(value) is str:
            texts.append(value)
        elif type(value) is dict:
            tokens += _gather_object(value, texts, stack)
        elif type(value) is list:
            if value and type(value[0]) is int and set(map(type, value)) == {int}:
                tokens += len(value)
            else:
                stack += value
    return texts, tokens


def _gather_object(value: dict[str, object], texts: list[str], stack: list[object]) -> int:
    """Put the texts of one object into `texts`, what is nested in it onto `stack`; its own tokens."""
    tokens = MESSAGE_TOKENS if "role" in value else 0
    for name, item in value.items():
        if name in _SILENT_FIELDS:
            continue
        if name in _MEDIA_FIELDS or (
            name == "source" and isinstance(item, dict) and item.get("type") in _MEDIA_SOURCES
        ):
            tokens += MEDIA_TOKENS
        elif type(item) is str:
            texts.append(item)
        else:
            stack.append(item)
    return tokens


def _json_text(value: object) -> bytes:
    """`value` as JSON text; empty when it is nested deeper than any provider reads."""
    try:
        return orjson.dumps(value)
    except TypeError:  # deeper than 254, lone surrogates, integers beyond 64 bits
        pass
    try:
        return json.dumps(value).encode("ascii")
    except RecursionError:
        return b""
