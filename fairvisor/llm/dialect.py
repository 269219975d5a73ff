"""A refusal in the shape of the provider whose SDK sent the request.

An SDK raises its own rate-limit error, with our message, only when the body looks like its provider's. Three shapes:
OpenAI's (also the default for every other API), Anthropic's and Gemini's. Each body is one line of printable ASCII, so
that a gateway can carry it in a header, and says what to do, never an amount. This module must not know decisions or
headers: `response.py` asks it for a body.

`error.type` in OpenAI's shape is what clients switch on: `insufficient_quota` (OpenAI's word for "out of money, do not
retry") for an exhausted budget, `tokens` for LLM token limits, `server_error` when the edge itself cannot decide, and
`requests` for everything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Final

from fairvisor.bounded_cache import BoundedCache
from fairvisor.decision import STATUSES, Reason

_REMEMBERED_PATHS: Final = 1024


class Dialect(str, Enum):
    """Whose error shape a client expects."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"


MESSAGES: Final[Mapping[Reason, str]] = {
    Reason.RATE_LIMIT_EXCEEDED: "Too many requests. Wait for the time in Retry-After and send the request again.",
    Reason.BUDGET_EXHAUSTED: "Not enough is left of this period's budget. It is renewed with the next period.",
    Reason.TPM_EXCEEDED: "Too many tokens per minute. Wait for the time in Retry-After and send the request again.",
    Reason.TPD_EXCEEDED: "Not enough is left of this day's tokens. They are renewed at midnight UTC.",
    Reason.PROMPT_TOKENS_EXCEEDED: "The prompt is longer than is allowed for one request. Shorten it.",
    Reason.MAX_TOKENS_PER_REQUEST_EXCEEDED: (
        "Prompt and completion together are larger than is allowed for one request. "
        "Shorten the prompt or ask for fewer completion tokens."
    ),
    Reason.LOOP_DETECTED: "The same request was sent again and again. It looks like a loop and was stopped.",
    Reason.CIRCUIT_BREAKER_OPEN: "Spending rose too fast and was stopped. Ask the operator of this API.",
    Reason.KILL_SWITCH_ACTIVE: "Access was suspended by the operator of this API.",
    Reason.DESCRIPTOR_MISSING: "The request lacks {}, which its limits are counted by. Send it with the request.",
    Reason.AMBIGUOUS_REQUEST: (
        "The request has several different values of {}, which its limits are counted by. Send one."
    ),
    Reason.INVALID_TOKEN: "The bearer token does not verify or has expired. Send a valid one.",
    Reason.KEYS_UNAVAILABLE: "The keys that verify bearer tokens are not there yet. Send the request again.",
    Reason.UNREADABLE_BODY: (
        "The body cannot be read, or not in one way only. Send one JSON object, each name once, nothing behind it."
    ),
    Reason.NO_BUNDLE_LOADED: "No policies are loaded yet, so no request can be accepted.",
    Reason.ENGINE_ERROR: "The policies could not be evaluated.",
}
"""What a client reads for each reason; `{}` is the name of a descriptor."""

_ANTHROPIC_PATH: Final = re.compile(r"/v1/messages(?:/|$)|/anthropic/models/[^/]+:[a-z]+$", re.IGNORECASE)
_GEMINI_PATH: Final = re.compile(
    r"/models/[^/]+:(?:stream)?(?:generateContent|countTokens|embedContent|batchEmbedContents)$",
    re.IGNORECASE,
)

_OPENAI_TYPES: Final[Mapping[Reason, str]] = {
    Reason.BUDGET_EXHAUSTED: "insufficient_quota",
    Reason.TPM_EXCEEDED: "tokens",
    Reason.TPD_EXCEEDED: "tokens",
    Reason.PROMPT_TOKENS_EXCEEDED: "tokens",
    Reason.MAX_TOKENS_PER_REQUEST_EXCEEDED: "tokens",
}
# What the providers write for statuses other than 429.
_OPENAI_STATUS_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    503: "server_error",
}
_ANTHROPIC_TYPES: Final = {400: "invalid_request_error", 401: "authentication_error", 503: "api_error"}
_GEMINI_STATUSES: Final = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 503: "UNAVAILABLE"}

# Stands for the seconds in a rendered body; larger than any Retry-After, so it cannot be part of one.
_SECONDS: Final = 987_654_321_987_654_321


def dialect_of(path: str) -> Dialect:
    """The dialect spoken at `path` (normalised, without query). A prefix before the provider's own path is fine."""
    return _DIALECTS[path]


def _dialect(path: str) -> Dialect:
    if _ANTHROPIC_PATH.search(path):
        return Dialect.ANTHROPIC
    return Dialect.GEMINI if _GEMINI_PATH.search(path) else Dialect.OPENAI


_DIALECTS: Final = BoundedCache[str, Dialect](_dialect, _REMEMBERED_PATHS)


@lru_cache(maxsize=1024)
def error_body(
    dialect: Dialect, reason: Reason, retry_after_s: int, message: str | None = None, status: int = 0
) -> bytes:
    """The body of a reject: one line of JSON, printable ASCII only; message and status default to the reason's."""
    frame = _frame(dialect, reason, message or MESSAGES[reason], status or STATUSES.get(reason, 429))
    return str(retry_after_s).encode("ascii").join(frame)


@lru_cache(maxsize=1024)
def _frame(dialect: Dialect, reason: Reason, message: str, status: int) -> tuple[bytes, ...]:
    """The body around the places where the seconds go."""
    document = _SHAPES[dialect](reason, message, status)
    # json, unlike orjson, can escape all that is not ASCII.
    text = json.dumps(document, ensure_ascii=True, separators=(",", ":"))
    return tuple(part.encode("ascii") for part in text.split(str(_SECONDS)))


def _openai(reason: Reason, message: str, status: int) -> dict[str, object]:
    error = {
        "message": message,
        "type": _OPENAI_TYPES.get(reason) or _OPENAI_STATUS_TYPES.get(status, "requests"),
        "param": None,
        "code": reason.value,
        "reason": reason.value,
        "retry_after": _SECONDS,
    }
    return {"error": error}


def _anthropic(reason: Reason, message: str, status: int) -> dict[str, object]:
    error = {
        "type": _ANTHROPIC_TYPES.get(status, "rate_limit_error"),
        "message": message,
        "reason": reason.value,
        "retry_after": _SECONDS,
    }
    return {"type": "error", "error": error}


def _gemini(reason: Reason, message: str, status: int) -> dict[str, object]:
    """The error model of Google's APIs (google.rpc.Status), with its standard details."""
    error = {
        "code": status,
        "message": message,
        "status": _GEMINI_STATUSES.get(status, "RESOURCE_EXHAUSTED"),
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason.value.upper(),
                "domain": "fairvisor",
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{_SECONDS}s"},
        ],
        "reason": reason.value,
        "retry_after": _SECONDS,
    }
    return {"error": error}


_SHAPES: Final = {Dialect.OPENAI: _openai, Dialect.ANTHROPIC: _anthropic, Dialect.GEMINI: _gemini}
