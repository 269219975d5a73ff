"""Reading LLM requests: each provider's body, the model in the path, and bodies made to mislead."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.llm._shape import count_members
from fairvisor.llm.estimate import MEDIA_TOKENS, simple_word
from fairvisor.llm.request import (
    MAX_MEMBERS,
    MAX_NAMES,
    MAX_NUMBER,
    LlmRequest,
    read_request,
    whole_number,
)

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


@pytest.mark.parametrize("value", [True, False, -1, 0, 1.5, "a", None, [5], {"a": 1}, MAX_NUMBER + 1, 1e300])
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


@pytest.mark.parametrize("body", [None, b""])
def test_without_a_body_there_is_no_llm_request(body: bytes | None) -> None:
    assert read_request(CHAT, body) is None


@pytest.mark.parametrize(
    "body",
    [b"[]", b"5", b"null", b'"text"', b"{", b"\xff\xfe", b"9" * 5000, b"--boundary", b"model=gpt-4o",
     b"{'model': 'gpt-4o'}", b'{"model": "gpt-4o",}', b'{"model": "gpt-4o"} // comment',
     b'{"a": %s}' % (b"[" * 50_000 + b"]" * 50_000),
     b'{"a": %s}' % (b"[" * 1_100 + b"]" * 1_100),
     b'{"model": "gpt-4o", "a": %s}' % (b"9" * 5000),
     b'{"model": "gpt-4o"}x', b'{"model": "gpt-4o"}{}', b'{"model": "gpt-4o", "a": "\xff"}',
     b'{"model": "gpt-4o", "a": [%s1]}' % (b"[]," * 60_000),
     b'{%s"model": "gpt-4o"}' % b"".join(b'"%d": 1,' % n for n in range(MAX_MEMBERS))],
)  # fmt: skip
def test_what_cannot_be_read_may_ask_any_model_and_its_bytes_are_its_prompt(body: bytes) -> None:
    request = read_request(CHAT, body)
    assert request is not None
    assert (request.unread, request.is_json, request.document) == (True, False, {})
    assert simple_word(request) == -(-len(body) // 4)


@pytest.mark.parametrize(
    "body",
    [b'{"model": "o1", "model": "gpt-4o"}', b'{"model": "gpt-4o", "mod\\u0065l": "o1"}', b'{"MODEL": "gpt-4o"}',
     b'{"model": "o1", "Model": "gpt-4o"}', b'{"model": "gpt-4o", "a": NaN}', b'{"model": "gpt-4o", "a": Infinity}',
     b'{"model": "gpt-4o", "max_tokens": 1, "max_tokens": 2}', b'{"model": "gpt-4o", "Messages": []}',
     b'{"model": "gpt-4o", "\xc5\xbftream": true}', b'{"model": "gpt-4o", "messages": [], "messages": []}'],
)  # fmt: skip
def test_what_parsers_read_differently_is_unread_and_names_what_it_names(body: bytes) -> None:
    request = read_request(CHAT, body)
    assert request is not None
    assert request.unread
    assert "gpt-4o" in request.names
    assert simple_word(request) == -(-len(body) // 4)


@pytest.mark.parametrize(
    "body",
    [b'{"model": "gpt-4o", "user": "a", "user": "b"}', b'{"model": "gpt-4o", "a": {"model": 1, "model": 2}}',
     b'{"model": "gpt-4o", "temperature": 1, "Temperature": 1}', b' {"model": "gpt-4o"}\r\n\t '],
)  # fmt: skip
def test_what_is_not_read_may_be_repeated(body: bytes) -> None:
    request = read_request(CHAT, body)
    assert request is not None
    assert (request.model, request.unread) == ("gpt-4o", False)


def test_of_repeated_numbers_the_largest_is_reserved() -> None:
    request = read_request(CHAT, b'{"max_tokens": 9000, "max_tokens": 1, "n": 3, "N": 1}')
    assert request is not None
    assert (request.completion_cap, request.choices, request.unread) == (9000, 3, True)


@pytest.mark.parametrize(
    ("value", "cap"),
    [("10000", 10_000), (" 7 ", 7), ("1e3", 1000), ("5.0", 5), ("1_000", 1000), ("5.5", None), ("", None),
     ("many", None), ("nan", None), ("inf", None), ("-3", None), ("9" * 41, None)],
)  # fmt: skip
def test_a_number_in_text_is_one(value: str, cap: int | None) -> None:
    assert read({"max_tokens": value}).completion_cap == cap
    assert read({"generationConfig": {"maxOutputTokens": value}}).completion_cap == cap


@pytest.mark.parametrize(
    ("value", "stream"),
    [(True, True), (1, True), (1.0, True), ("true", True), ("TRUE", True), (" yes ", True), ("on", True), ("1", True),
     (False, False), (0, False), (2, False), ("false", False), ("0", False), ("", False), (None, False), ([1], False)],
)  # fmt: skip
def test_a_stream_is_asked_for_in_every_spelling_of_true(value: object, stream: bool) -> None:
    assert read({"stream": value}).stream is stream


@pytest.mark.parametrize(
    ("document", "path", "model", "names"),
    [
        ({"model": "a", "models": ["b", "c"]}, CHAT, "a", {"a", "b", "c"}),
        ({"model": "a", "fallbacks": [{"b": ["c"]}, "d"]}, CHAT, "a", {"a", "b", "c", "d"}),
        ({"model": "a,b"}, CHAT, "a,b", {"a,b", "a", "b"}),
        ({"models": ["b"]}, CHAT, "", {"b"}),
        ({"model": "a"}, "/model/x/invoke", "x", {"a", "x"}),
        ({"model": "a"}, "/v1/chat/completions;%2Fmodel%2Fx%2Finvoke", "a", {"a", "x"}),
        ({}, "/model/x;y/invoke", "x", {"x", "x;y"}),
        ({}, "/model/arn%3Aaws%3Abedrock%3Aeu%3A1%3Ainference-profile%2Feu.x/converse",
         "arn:aws:bedrock:eu:1:inference-profile/eu.x", {"arn:aws:bedrock:eu:1:inference-profile/eu.x"}),
    ],
)  # fmt: skip
def test_every_model_that_is_named_counts(
    document: dict[str, object], path: str, model: str, names: set[str]
) -> None:
    request = read(document, path)
    assert (request.model, set(request.names), request.unread) == (model, names, False)


def test_a_body_that_names_more_models_than_are_looked_up_is_unread() -> None:
    assert read({"model": "a", "models": [f"m{n}" for n in range(MAX_NAMES + 1)]}).unread
    assert not read({"model": "a", "models": [f"m{n}" for n in range(MAX_NAMES - 1)]}).unread


def test_a_model_that_only_one_reading_of_the_path_holds_settles_nothing() -> None:
    """What a cut body would have said further on may be for another model."""
    cut = b'{"messages": [{"role": "user", "content": "a'
    for path, unread in (("/model/x/invoke", False), (f"{CHAT};%2Fmodel%2Fx%2Finvoke", True), (CHAT, True)):
        request = read_request(path, cut, 100)
        assert request is not None
        assert request.unread is unread


BOUNDARY = b"multipart/form-data; boundary=b"


def form(*parts: tuple[str, str], end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(f"--b\r\n{head}\r\n\r\n{content}\r\n".encode() for head, content in parts) + end


def field(name: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"'


FILE = 'Content-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg'


def read_form(body: bytes, content_type: bytes = BOUNDARY, cut_bytes: int = 0) -> LlmRequest:
    request = read_request("/v1/audio/transcriptions", body, cut_bytes, content_type)
    assert request is not None
    return request


def test_a_form_gives_its_model_and_a_file_has_a_fixed_price() -> None:
    body = form(
        (field("model"), "whisper-1"), (FILE, "x" * 9000), (field("stream"), "true"), (field("n"), "2")
    )
    request = read_form(body)
    assert (request.model, request.stream, request.choices, request.unread) == ("whisper-1", True, 2, False)
    assert simple_word(request) == MEDIA_TOKENS


def test_of_a_form_that_was_cut_the_fields_before_the_cut_count() -> None:
    body = form((field("model"), "whisper-1"), (FILE, "x" * 900), end=b"")
    request = read_form(body[:-100], cut_bytes=5_000_000)
    assert (request.model, request.unread, simple_word(request)) == ("whisper-1", False, MEDIA_TOKENS + 1)
    request = read_form(form((FILE, "x" * 900), end=b"")[:-100], cut_bytes=5_000_000)
    assert request.unread


@pytest.mark.parametrize(
    "body",
    [
        form((field("model"), "a"), (field("model"), "b")),
        form((field("Model"), "a")),
        form((field("model "), "a")),
        form((field("model"), "a"), end=b""),
        form((field("model"), "a"), end=b"--b--x"),
        form((field("model"), "a")).replace(b"\r\n", b"\n"),
        b"preamble\r\n" + form((field("model"), "a")),
        form((f"{field('model')}\r\nContent-Transfer-Encoding: base64", "YQ==")),
        form(("Content-Disposition: form-data; name*=utf-8''model", "a")),
        form((f"{field('x')}\r\nContent-Type: multipart/mixed; boundary=c", "a")),
        form((field("x"), 'y\n--b\nContent-Disposition: form-data; name="model"\n\na')),
        form((field("mod%65l"), "a")),
        form((field("model"), "ÿ")).replace("ÿ".encode(), b"\xff"),
        b"--b\r\n" * 2000,
        b"",
    ],
)  # fmt: skip
def test_a_form_that_parsers_read_differently_is_unread(body: bytes) -> None:
    assert read_form(body or b"--").unread


@pytest.mark.parametrize(
    ("body", "model", "unread"),
    [(b"model=whisper-1&prompt=a+b", "whisper-1", False), (b"m%6fdel=x", "x", False), (b"model=a&model=b", "b", True),
     (b"MODEL=a", "a", True), (b"model=a;model=b", "", True), (b"prompt=a", "", False), (b"\xff", "", True),
     (b'{"model": "gpt-4o", "messages": "a;b"}', "gpt-4o", False), (b'{"a": "&model=gpt-4o&"}', "", True)],
)  # fmt: skip
def test_an_urlencoded_form_or_json_sent_as_one_gives_its_model(
    body: bytes, model: str, unread: bool
) -> None:
    request = read_form(body, b"application/x-www-form-urlencoded")
    assert (request.model, request.unread) == (model, unread)


@pytest.mark.parametrize(
    ("content_type", "unread"),
    [(b"application/json; charset=utf-7", True), (b"application/json; Charset=UTF-16LE", True),
     (b'application/json; charset="UTF-8"', False), (b"application/json;charset=iso-8859-1", False),
     (b"text/plain", False), (b"multipart/mixed; boundary=b", False)],
)  # fmt: skip
def test_a_character_set_that_is_not_like_ascii_is_not_read(content_type: bytes, unread: bool) -> None:
    assert read_form(b'{"model": "gpt-4o"}', content_type).unread is unread


SIGN = re.compile(r'"(?:\\.|[^"\\])*"|[\[{}\]:,]', re.DOTALL)


def members_of(text: str) -> int:
    """What `_shape.c` counts, by searching instead of going through the text."""
    depth = members = arrays = signs = 0
    for sign in SIGN.findall(text):
        arrays += sign in ("[", "{")
        signs += sign in (":", ",")
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(sign, 0)
        members += sign == ":" and depth == 1
    return -1 if arrays > 50_000 or signs > 250_000 else members


@settings(max_examples=50)
@given(st.dictionaries(FIELDS | st.text(), JSON))
def test_the_shape_of_a_text_is_that_of_its_object(document: dict[str, object]) -> None:
    text = json.dumps(document)
    assert count_members(text.encode()) == members_of(text) == len(document)


@pytest.mark.parametrize(
    "text",
    ["[" * 50_000, "[" * 50_001, "," * 250_000, "," * 250_001, '{"a": 1, "a": 2}', '{"\\\\": 1, "\\"": 2}',
     '{"a": "' + "\\\\" * 1000 + '"}', "}" * 100 + ":" * 9],
)  # fmt: skip
def test_the_shape_of_hostile_texts(text: str) -> None:
    assert count_members(text.encode()) == members_of(text)


@given(st.binary())
def test_any_bytes_have_a_shape(text: bytes) -> None:
    assert count_members(text) >= 0


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
