"""What the path of a request says of the LLM request in it, before any body is read.

Holds the catalogue of the paths that providers take LLM requests at: OpenAI's and what is compatible with it, Azure's,
Anthropic's, Gemini's and Vertex's, Bedrock's, Ollama's, Cohere's; a prefix before the provider's own path is fine. This
module must not know bodies, limits or how a path was sent: it is given normalised paths, without query.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

from fairvisor.bounded_cache import BoundedCache

# /openai/deployments/<name>/... (Azure), /models/<name>:<method> (Gemini, Vertex), /model/<name>/invoke (Bedrock, where
# the name may be an ARN with a slash in it).
_MODEL: Final = re.compile(
    r"/openai/deployments/+([^/]+)/"
    r"|/models/+([^/]+):[a-z]+$"
    r"|/model/+(arn:[^/]+/[^/]+|[^/]+)/(?:invoke|converse)",
    re.IGNORECASE,
)
_CATALOGUE: Final = re.compile(
    r"/(?:chat/completions|completions|responses|embeddings|moderations|rerank|videos|realtime(?:/[a-z_/]+)?"
    r"|images/(?:generations|edits|variations)|audio/(?:speech|transcriptions|translations)"
    r"|v1/messages(?:/[a-z_/]+)?|v1/complete|api/(?:chat|generate|embed)|v[12]/(?:chat|generate|embed))/?$",
    re.IGNORECASE,
)
_STREAM: Final = re.compile(
    r":stream(?:GenerateContent|RawPredict)$|/(?:invoke-with-response|converse)-stream$", re.IGNORECASE
)
# Requests that generate nothing.
_NO_COMPLETION: Final = re.compile(
    r"/(?:embeddings|moderations|rerank|count_tokens)$|:(?:embedContent|batchEmbedContents|countTokens)$",
    re.IGNORECASE,
)
_REMEMBERED_PATHS: Final = 1024


class Told(NamedTuple):
    """What a path says.

    `models` are the names that its readings hold; `settles` says that each of them holds the same one, so that the
    provider takes it from there and from nowhere else; `listed` that an LLM request can be sent to it; `completes`
    whether anything is generated, `streams` whether as a stream.
    """

    models: tuple[str, ...]
    settles: bool
    listed: bool
    completes: bool
    streams: bool


def told_by_path(path: str) -> Told:
    """Return what the normalised `path` says."""
    return _KNOWN[path]


def _tell(path: str) -> Told:
    """Read a path.

    Servers differ on whether an escaped slash divides and whether `;` ends a segment, so a model is looked for in every
    reading: one that only some of them hold does not stand in for the body's.
    """
    readings = {path}
    if "%" in path:
        readings.add(unquote(path))
    if ";" in path or "%3B" in path:
        readings |= {_without_parameters(reading) for reading in tuple(readings)}
    found = [_model_in(reading) for reading in sorted(readings)]
    models = tuple(dict.fromkeys(model for model in found if model))
    return Told(
        models,
        settles=len(models) == 1 and all(found),
        listed=bool(models) or any(map(_CATALOGUE.search, readings)),
        completes=_NO_COMPLETION.search(path) is None,
        streams=any(map(_STREAM.search, readings)),
    )


_KNOWN: Final = BoundedCache[str, Told](_tell, _REMEMBERED_PATHS)


def _without_parameters(path: str) -> str:
    return "/".join([segment.partition(";")[0] for segment in path.split("/")])


def _model_in(path: str) -> str:
    match = _MODEL.search(path)
    return "" if match is None else unquote(match[1] or match[2] or match[3])
