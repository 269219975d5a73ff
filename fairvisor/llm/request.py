"""The LLM request in an HTTP body: model, completion tokens asked for, number of choices, streaming or not.

Reads the JSON bodies of OpenAI (chat/completions, completions, responses, embeddings) and of what speaks the same
(Azure, Mistral, vLLM...), of Anthropic messages, Gemini generateContent and Bedrock. Where the provider takes the
model from the path (Azure deployments, Gemini, Vertex, Bedrock), the path wins over the body, as it does there.

Of a body that was cut, what its beginning says counts (`cut.py`); what it would have said further on is not known, and
must not let it escape: `cut_bytes` lets estimates and descriptors know.

The body is the client's: a value that is no positive whole number (bool, string, NaN, negative, beyond 1e12) counts as
not sent, and a body that is no JSON object is no LLM request. This module must not know limits, estimates or aliases.
"""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple
from urllib.parse import unquote

import orjson

from fairvisor.bounded_cache import BoundedCache
from fairvisor.llm.cut import mend

MAX_NUMBER: Final = 10**12
"""Token counts above this are nonsense and ignored (the largest context windows have some 1e7)."""

# /openai/deployments/<name>/... (Azure), /models/<name>:<method> (Gemini, Vertex), /model/<name>/invoke (Bedrock).
_MODEL_IN_PATH: Final = re.compile(
    r"/openai/deployments/+([^/]+)/"
    r"|/models/+([^/]+):[a-z]+$"
    r"|/model/+([^/]+)/(?:invoke|converse)",
    re.IGNORECASE,
)
_STREAM_IN_PATH: Final = re.compile(
    r":stream(?:GenerateContent|RawPredict)$|/(?:invoke-with-response|converse)-stream$", re.I
)

# Requests that generate nothing.
_NO_COMPLETION: Final = re.compile(
    r"/(?:embeddings|moderations|rerank|count_tokens)$|:(?:embedContent|batchEmbedContents|countTokens)$",
    re.IGNORECASE,
)

_CAP_FIELDS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample")
_CHOICE_FIELDS: Final = ("n", "best_of")
# Protobuf JSON accepts both spellings of a field; Bedrock's Converse calls its own inferenceConfig.
_CONFIG_FIELDS: Final = ("generationConfig", "generation_config", "inferenceConfig")
_CONFIG_CAPS: Final = ("maxOutputTokens", "max_output_tokens", "maxTokens")
_CONFIG_CHOICES: Final = ("candidateCount", "candidate_count")

_REMEMBERED_PATHS: Final = 1024


class _Told(NamedTuple):
    """What the path of a request says: the `model` ("" if none), whether anything is generated, whether as a stream."""

    model: str
    completes: bool
    streams: bool


class LlmRequest:
    """What one request asks of a model.

    `document` is the whole JSON object, `model` the name as sent ("" if none), `completion_cap` the completion tokens
    per choice the client allows (None: not said; 0: embeddings and the like have none), `choices` how many completions
    it wants, `stream` whether it asked for a stream. `cut_bytes` is how much of the body nobody has read.
    """

    __slots__ = ("choices", "completion_cap", "cut_bytes", "document", "model", "stream")

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


def read_request(path: str, body: bytes | None, cut_bytes: int = 0) -> LlmRequest | None:
    """The LLM request in `body`, sent to `path` (normalised, without query); None: no body, or no JSON object.

    `cut_bytes` is how much is missing at the end of `body`.
    """
    if not body:
        return None
    if cut_bytes:
        document, unread = _parse_cut(body)
        cut_bytes += unread
    else:
        document = _parse(body)
    if not isinstance(document, dict):
        return None
    told = _TOLD_BY_PATH[path]
    config = _config(document)
    cap = _largest(document, _CAP_FIELDS)
    choices = _largest(document, _CHOICE_FIELDS) or 1
    if config is not None:
        cap = max(cap, _largest(config, _CONFIG_CAPS))
        choices = max(choices, _largest(config, _CONFIG_CHOICES))
    return LlmRequest(
        document,
        told.model or _model(document),
        cap or None if told.completes else 0,
        choices * _prompts(document),
        told.streams or ("stream" in document and document["stream"] is True),
        cut_bytes,
    )


def whole_number(value: object) -> int | None:
    """`value` as a count of tokens: a whole JSON number from 0 to 1e12 (`5`, `5.0`); None for anything else."""
    if type(value) is int:
        return value if 0 <= value <= MAX_NUMBER else None
    if type(value) is float and 0 <= value <= MAX_NUMBER and value.is_integer():  # False for NaN
        return int(value)
    return None


def _parse(body: bytes) -> object:
    """The JSON value in `body`, None when there is none.

    What orjson refuses and providers written in Python accept (NaN, lone surrogates, UTF-16, a byte order mark) gets a
    second, slower reading: a body that we cannot read would otherwise be a way around the limits on its model.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _parse_cut(body: bytes) -> tuple[object, int]:
    """What the beginning of a JSON object says, and how many of its bytes were not read; None: it begins none.

    One that says nothing that can be read is an empty object: it may be an LLM request all the same.
    """
    mended = mend(body)
    if mended is None:
        return None, 0
    document = _parse(mended.text)
    return (document, mended.unread_bytes) if isinstance(document, dict) else ({}, len(body))


def _config(document: dict[str, object]) -> dict[str, object] | None:
    for name in _CONFIG_FIELDS:
        if name in document:
            config = document[name]
            if isinstance(config, dict):
                return config
    return None


def _largest(document: dict[str, object], names: tuple[str, ...]) -> int:
    """The largest usable value among the fields `names`, 0 when there is none.

    The largest, because a provider ignores the fields it does not know: a small decoy beside the real one must not
    shrink the reservation.
    """
    largest = 0
    for name in names:
        if name in document:
            value = whole_number(document[name])
            if value is not None and value > largest:
                largest = value
    return largest


def _read_told(path: str) -> _Told:
    model = _MODEL_IN_PATH.search(unquote(path) if "%" in path else path)
    return _Told(
        (model[1] or model[2] or model[3]) if model is not None else "",
        _NO_COMPLETION.search(path) is None,
        _STREAM_IN_PATH.search(path) is not None,
    )


_TOLD_BY_PATH: Final = BoundedCache[str, _Told](_read_told, _REMEMBERED_PATHS)


def _model(document: dict[str, object]) -> str:
    model = document.get("model")
    if not isinstance(model, str):
        return ""
    return model if model.isascii() else model.encode(errors="replace").decode()  # no lone surrogates


def _prompts(document: dict[str, object]) -> int:
    """How many prompts a /v1/completions request holds: each gets its own `n` completions; 1 for anything else."""
    prompt = document.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        return len(prompt)
    return 1
