"""Reading LLM requests: each provider's body, the model in the path, and bodies made to mislead."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.llm.request import MAX_NUMBER, LlmRequest, read_request, whole_number

CHAT = "/v1/chat/completions"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(
    [
        *(
            "model",
            "max_tokens",
            "max_completion_tokens",
            "max_output_tokens",
            "n",
            "best_of",
            "stream",
            "prompt",
        ),
        *("generationConfig", "inferenceConfig", "maxOutputTokens", "candidateCount", "messages", "tools"),
    ]
)


def read(document: object, path: str = CHAT) -> LlmRequest:
    request = read_request(path, json.dumps(document).encode())
    assert request is not None
    return request


@pytest.mark.parametrize(
    ("path", "document", "model", "cap", "choices", "stream"),
    [
        (CHAT, {"model": "gpt-4o", "max_tokens": 7, "n": 3, "stream": True}, "gpt-4o", 7, 3, True),
        (CHAT, {"model": "o1", "max_completion_tokens": 9}, "o1", 9, 1, False),
        ("/v1/responses", {"model": "gpt-4o", "max_output_tokens": 8, "input": "hi"}, "gpt-4o", 8, 1, False),
        ("/v1/completions", {"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 5}, "m", None, 10, False),
        ("/v1/completions", {"model": "m", "prompt": [[1, 2], [3]]}, "m", None, 2, False),
        ("/v1/completions", {"model": "m", "prompt": [1, 2, 3]}, "m", None, 1, False),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x"}, "text-embedding-3-small", 0, 1, False),
        ("/v1/messages", {"model": "claude-3", "max_tokens": 64, "messages": []}, "claude-3", 64, 1, False),
        ("/v1/messages/count_tokens", {"model": "claude-3", "messages": []}, "claude-3", 0, 1, False),
        ("/v1beta/models/gemini-2.0-flash:generateContent",
         {"contents": [], "generationConfig": {"maxOutputTokens": 5, "candidateCount": 2}},
         "gemini-2.0-flash", 5, 2, False),
        ("/v1beta/models/gemini-2.0-flash:streamGenerateContent", {"contents": []}, "gemini-2.0-flash", None, 1, True),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/claude-3@20240307:streamRawPredict",
         {"max_tokens": 3}, "claude-3@20240307", 3, 1, True),
        ("/openai/deployments/my-gpt/chat/completions", {"model": "gpt-4o-mini"}, "my-gpt", None, 1, False),
        ("/OpenAI/Deployments/my-gpt/chat/completions", {}, "my-gpt", None, 1, False),
        ("/openai/deployments/my%2Dgpt/chat/completions", {}, "my-gpt", None, 1, False),
        ("/model/anthropic.claude-3%3A0/converse", {"inferenceConfig": {"maxTokens": 11}},
         "anthropic.claude-3:0", 11, 1, False),
        ("/v1/chat/completions", {"model": "mistral-large-2407", "max_tokens": 4}, "mistral-large-2407", 4, 1, False),
    ],
)  # fmt: skip
def test_each_provider_is_read(
    path: str, document: dict[str, object], model: str, cap: int | None, choices: int, stream: bool
) -> None:
    request = read(document, path)
    assert (request.model, request.completion_cap, request.choices, request.stream) == (
        model,
        cap,
        choices,
        stream,
    )


@pytest.mark.parametrize(
    "value", [True, False, -1, 0, 1.5, "100", None, [5], {"a": 1}, MAX_NUMBER + 1, 1e300]
)
def test_a_cap_that_is_no_positive_whole_number_counts_as_not_sent(value: object) -> None:
    assert read({"max_tokens": value}).completion_cap is None
    assert read({"n": value}).choices == 1


def test_nan_and_infinity_are_no_numbers_but_do_not_hide_the_model() -> None:
    request = read_request(CHAT, b'{"model": "gpt-4o", "max_tokens": NaN, "n": Infinity}')
    assert request is not None
    assert (request.model, request.completion_cap, request.choices) == ("gpt-4o", None, 1)


def test_a_small_decoy_beside_the_real_cap_does_not_shrink_it() -> None:
    assert read({"max_output_tokens": 1, "max_tokens": 4000}).completion_cap == 4000
    assert read({"max_tokens": 10, "max_completion_tokens": -1}).completion_cap == 10


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "gpt-4o"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"model": "gpt-4o"}',
        b'{"model": "gpt-4o", "x": "\\ud800"}',
        b'{"model": "gpt-4o", "x": NaN}',
    ],
    ids=["utf-16", "byte order mark", "lone surrogate", "NaN"],
)
def test_json_that_only_lax_parsers_accept_still_shows_its_model(body: bytes) -> None:
    request = read_request(CHAT, body)
    assert request is not None
    assert request.model == "gpt-4o"


def test_a_model_name_is_always_encodable_text() -> None:
    request = read_request(CHAT, b'{"model": "gpt-\\ud800"}')
    assert request is not None
    assert request.model.encode() == b"gpt-?"


@pytest.mark.parametrize("model", [None, 5, ["gpt-4o"], True])
def test_a_model_that_is_no_string_is_none_at_all(model: object) -> None:
    assert read({"model": model}).model == ""


@pytest.mark.parametrize(
    "body",
    [None, b"", b"[]", b"5", b"null", b'"text"', b"{", b"\xff\xfe", b"9" * 5000,
     b'{"a": %s}' % (b"[" * 50_000 + b"]" * 50_000)],
)  # fmt: skip
def test_what_is_no_json_object_is_no_llm_request(body: bytes | None) -> None:
    assert read_request(CHAT, body) is None


@given(st.dictionaries(FIELDS, JSON))
def test_no_document_breaks_the_reader_or_yields_a_hostile_number(document: dict[str, object]) -> None:
    request = read(document)
    assert request.completion_cap is None or 0 < request.completion_cap <= MAX_NUMBER
    assert request.choices >= 1
    assert type(request.stream) is bool


@given(st.binary(max_size=200))
def test_no_body_breaks_the_reader(body: bytes) -> None:
    read_request(CHAT, body)


@given(JSON)
def test_a_whole_number_is_an_int_in_range_or_nothing(value: object) -> None:
    number = whole_number(value)
    assert number is None or (type(number) is int and 0 <= number <= MAX_NUMBER and number == value)
