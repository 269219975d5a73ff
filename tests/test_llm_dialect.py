"""Refusals in each provider's shape: one safe line, for every reason, without amounts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.decision import Reason
from fairvisor.llm.dialect import MESSAGES, Dialect, dialect_of, error_body


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", Dialect.OPENAI),
        ("/v1/responses", Dialect.OPENAI),
        ("/api/anything", Dialect.OPENAI),
        ("/", Dialect.OPENAI),
        ("/v1/threads/t/messages", Dialect.OPENAI),
        ("/v1/messagesx", Dialect.OPENAI),
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
        ("/anthropic/v1/messages", Dialect.ANTHROPIC),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/claude-3@2:rawPredict", Dialect.ANTHROPIC),
        ("/v1beta/models/gemini-2.0-flash:generateContent", Dialect.GEMINI),
        ("/v1beta/models/gemini-2.0-flash:streamGenerateContent", Dialect.GEMINI),
        ("/google/v1/models/text-embedding-004:embedContent", Dialect.GEMINI),
    ],
)
def test_the_path_tells_the_dialect(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


def test_openai_s_shape() -> None:
    assert json.loads(error_body(Dialect.OPENAI, Reason.TPM_EXCEEDED, 12, "slow down")) == {
        "error": {
            "message": "slow down",
            "type": "tokens",
            "param": None,
            "code": "tpm_exceeded",
            "reason": "tpm_exceeded",
            "retry_after": 12,
        }
    }


def test_anthropic_s_shape() -> None:
    assert json.loads(error_body(Dialect.ANTHROPIC, Reason.TPM_EXCEEDED, 12, "slow down")) == {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "slow down",
            "reason": "tpm_exceeded",
            "retry_after": 12,
        },
    }


def test_gemini_s_shape() -> None:
    assert json.loads(error_body(Dialect.GEMINI, Reason.TPM_EXCEEDED, 12, "slow down")) == {
        "error": {
            "code": 429,
            "message": "slow down",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "TPM_EXCEEDED",
                    "domain": "fairvisor",
                },
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12s"},
            ],
            "reason": "tpm_exceeded",
            "retry_after": 12,
        }
    }


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.BUDGET_EXHAUSTED, "insufficient_quota"),
        (Reason.TPD_EXCEEDED, "tokens"),
        (Reason.PROMPT_TOKENS_EXCEEDED, "tokens"),
        (Reason.MAX_TOKENS_PER_REQUEST_EXCEEDED, "tokens"),
        (Reason.RATE_LIMIT_EXCEEDED, "requests"),
        (Reason.KILL_SWITCH_ACTIVE, "requests"),
        (Reason.ENGINE_ERROR, "server_error"),
    ],
)
def test_openai_s_type_follows_the_reason(reason: Reason, kind: str) -> None:
    assert json.loads(error_body(Dialect.OPENAI, reason, 1))["error"]["type"] == kind


def test_an_edge_that_cannot_decide_is_unavailable_in_every_dialect() -> None:
    gemini = json.loads(error_body(Dialect.GEMINI, Reason.NO_BUNDLE_LOADED, 1))["error"]
    assert (gemini["code"], gemini["status"]) == (503, "UNAVAILABLE")
    assert (
        json.loads(error_body(Dialect.ANTHROPIC, Reason.NO_BUNDLE_LOADED, 1))["error"]["type"] == "api_error"
    )


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_message_without_amounts(reason: Reason) -> None:
    assert MESSAGES[reason].isascii()
    assert not any(char.isdigit() for char in MESSAGES[reason])


@given(st.sampled_from(Dialect), st.sampled_from(Reason), st.integers(1, 10**9), st.text(min_size=1))
def test_every_body_is_one_line_of_printable_ascii(
    dialect: Dialect, reason: Reason, seconds: int, message: str
) -> None:
    body = error_body(dialect, reason, seconds, message)
    assert all(0x20 <= byte <= 0x7E for byte in body)
    error = json.loads(body)["error"]
    assert (error["message"], error["retry_after"], error["reason"]) == (message, seconds, reason.value)
