"""Usage out of responses that arrive in pieces: recorded streams, every split, broken and endless ones."""

from __future__ import annotations

import itertools
import json
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairvisor.llm.scan import MAX_OBJECT_BYTES, UsageScanner
from fairvisor.llm.stream import MAX_DOCUMENT_BYTES, UsageReader
from fairvisor.llm.usage import Usage

SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"


def sse(*events: object, end: str = "\n") -> bytes:
    lines = []
    for event in events:
        if isinstance(event, dict) and "type" in event:
            lines.append(f"event: {event['type']}{end}")
        data = event if isinstance(event, str) else json.dumps(event, separators=(",", ":"))
        lines.append(f"data: {data}{end}{end}")
    return "".join(lines).encode()


def chunk(**more: object) -> dict[str, object]:
    delta = {"index": 0, "delta": {"content": 'a "usage": {"prompt_tokens": 9} b'}, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [delta], **more}


OPENAI = sse(
    chunk(usage=None),
    chunk(usage=None),
    chunk(choices=[], usage={"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}),
    "[DONE]",
)
RESPONSES = sse(
    {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress", "usage": None}},
    {"type": "response.output_text.delta", "delta": "Hi"},
    {"type": "response.completed", "response": {"id": "resp_1", "usage": {
        "input_tokens": 37, "input_tokens_details": {"cached_tokens": 30}, "output_tokens": 11,
        "output_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 48}}},
)  # fmt: skip
ANTHROPIC = sse(
    {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": {
        "input_tokens": 25, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 100, "output_tokens": 1}}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 7}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
    {"type": "message_stop"},
)  # fmt: skip
GEMINI_CHUNKS = [
    {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}],
     "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 1, "totalTokenCount": 9}},
    {"candidates": [{"content": {"parts": [{"text": "!"}]}, "finishReason": "STOP"}],
     "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 6, "thoughtsTokenCount": 20,
                       "totalTokenCount": 34}},
]  # fmt: skip
GEMINI = Usage(input=8, output=6, reasoning=20)
BODIES = [
    (SSE, OPENAI, Usage(input=12, output=30)),
    (SSE, sse(chunk(), end="\r\n"), None),
    (SSE, OPENAI.replace(b"\n", b"\r\n"), Usage(input=12, output=30)),
    (SSE, OPENAI.replace(b"\n", b"\r"), Usage(input=12, output=30)),
    (SSE, b"\xef\xbb\xbf: welcome\n\n" + OPENAI, Usage(input=12, output=30)),
    (SSE, b'data: {"usage":\r\ndata: {"total_tokens":\r\ndata:5}}\r\n\r\n', Usage(input=5)),
    (SSE, RESPONSES, Usage(input=7, cached_input=30, output=7, reasoning=4)),
    (SSE, ANTHROPIC, Usage(input=25, cached_input=100, output=15)),
    (SSE, sse(*GEMINI_CHUNKS, end="\r\n"), GEMINI),
    (JSON, json.dumps(GEMINI_CHUNKS, indent=2).encode(), GEMINI),
    (JSON, json.dumps(GEMINI_CHUNKS[1]).encode(), GEMINI),
    (JSON, b'{"object":"list","data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}', Usage(input=8)),
    (JSON, b"", None),
]


def read(content_type: str, *pieces: bytes) -> Usage | None:
    reader = UsageReader(content_type)
    for piece in pieces:
        reader.feed(piece)
    return reader.finish()


@pytest.mark.parametrize(("content_type", "body", "usage"), BODIES)
def test_the_usage_of_every_provider_is_found_however_the_body_is_split(
    content_type: str, body: bytes, usage: Usage | None
) -> None:
    assert read(content_type, body) == usage
    assert read(content_type, *(body[at : at + 1] for at in range(len(body)))) == usage
    for at in range(len(body)):
        assert read(content_type, body[:at], b"", body[at:]) == usage


@given(st.sampled_from(BODIES), st.lists(st.integers(0, 2000), max_size=8))
def test_no_split_changes_the_usage(body: tuple[str, bytes, Usage | None], cuts: list[int]) -> None:
    content_type, text, usage = body
    edges = [0, *sorted(cuts), len(text)]
    assert read(content_type, *(text[a:b] for a, b in itertools.pairwise(edges))) == usage


def test_a_stream_tells_what_is_counted_so_far() -> None:
    reader = UsageReader(SSE)
    told = []
    for event in ANTHROPIC.split(b"\n\n"):
        reader.feed(event + b"\n\n")
        told.append(reader.usage)
    assert told[0] == told[2] == Usage(input=25, cached_input=100, output=1)
    assert told[3] == Usage(input=25, cached_input=100, output=7)
    assert told[-1] == Usage(input=25, cached_input=100, output=15)


def test_an_event_that_the_end_of_the_stream_cuts_off_from_its_blank_line_counts() -> None:
    assert read(SSE, OPENAI[: OPENAI.index(b"\n\ndata: [DONE]")]) == Usage(input=12, output=30)


def test_data_over_several_lines_is_one_document() -> None:
    assert read(SSE, b'data: {"usage":\ndata: {"total_tokens":\ndata:5}}\n\n') == Usage(input=5)


def test_a_usage_in_a_chunk_with_choices_counts() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert read(SSE, sse(chunk(usage=usage), chunk(usage=None))) == Usage(input=3, output=4)


def test_the_last_usage_counts_and_a_placeholder_of_zeros_is_none() -> None:
    first, last = {"prompt_tokens": 3, "completion_tokens": 1}, {"prompt_tokens": 3, "completion_tokens": 9}
    zeros = {"prompt_tokens": 0, "completion_tokens": 0}
    assert read(SSE, sse(*(chunk(usage=usage) for usage in (zeros, first, last, zeros)))) == Usage(
        input=3, output=9
    )


def test_input_that_only_message_delta_tells_is_set_not_added() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}}
    delta = {"type": "message_delta", "usage": {"input_tokens": 25, "output_tokens": 15}}
    assert read(SSE, sse(start, delta, delta)) == Usage(input=25, output=15)


def test_zeros_and_nulls_in_message_delta_take_nothing_back() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    delta = {
        "type": "message_delta",
        "usage": {"input_tokens": 0, "cache_read_input_tokens": None, "output_tokens": 15},
    }
    assert read(SSE, sse(start, delta)) == Usage(input=25, output=15)


@pytest.mark.parametrize("number", ["-5", "1e300", "true", '"7"', "0.5", "9999999999999"])
def test_a_hostile_number_later_in_the_stream_changes_nothing(number: str) -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}}
    delta = '{"type":"message_delta","usage":{"output_tokens":%s}}'
    assert read(SSE, sse(start, delta % "15", delta % number)) == Usage(input=25, output=15)
    good = {"prompt_tokens": 3, "completion_tokens": 4}
    bad = f'{{"usage":{{"prompt_tokens":3,"completion_tokens":{number}}}}}'
    assert read(SSE, sse(chunk(usage=good), bad)) == Usage(input=3, output=4)


def test_a_hostile_input_is_not_read_as_no_input() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": -25, "output_tokens": 1}}}
    delta = {"type": "message_delta", "usage": {"output_tokens": 15}}
    assert read(SSE, sse(start, delta)) is None


LARGE = "x" * (MAX_DOCUMENT_BYTES + 1)
USAGE = {"input_tokens": 5, "output_tokens": 6}


@pytest.mark.parametrize(
    ("content_type", "body", "usage"),
    [
        (JSON, json.dumps({"data": LARGE, "usage": {"prompt_tokens": 5, "total_tokens": 5}}), Usage(input=5)),
        (JSON, json.dumps({"data": [0.123] * 60_000, "usage": {"prompt_tokens": 5}}, indent=1), Usage(input=5)),
        (JSON, json.dumps([{"text": LARGE}, *GEMINI_CHUNKS]), GEMINI),
        (SSE, sse({"type": "response.completed", "response": {"output": LARGE, "usage": USAGE}}).decode(),
         Usage(input=5, output=6)),
        (SSE, sse({"pad": LARGE, "message": {"usage": USAGE}}, {"type": "message_delta", "usage": {"output_tokens": 9}})
         .decode(), Usage(input=5, output=9)),
        (JSON, json.dumps({"pad": LARGE, "tool": {"usage": USAGE}, "list": ["usage", {"usage": USAGE}], "usage": 5}),
         None),
        (JSON, json.dumps({"pad": LARGE, "text": '"usage": {"input_tokens": 5}', "usa\"ge": USAGE, "x": "usage"}),
         None),
    ],
    ids=["embeddings in base64", "embeddings", "array of chunks", "responses", "anthropic", "deeper", "inside strings"],
)  # fmt: skip
def test_a_document_too_large_to_hold_is_scanned(content_type: str, body: str, usage: Usage | None) -> None:
    text = body.encode()
    assert read(content_type, text) == usage
    for size in (1013, 65_536):
        assert read(content_type, *(text[at : at + size] for at in range(0, len(text), size))) == usage


def test_a_json_body_cut_off_behind_its_usage_still_tells_it() -> None:
    body = json.dumps(GEMINI_CHUNKS).encode()
    assert read(JSON, body[:-1]) == GEMINI
    assert read(JSON, body[: body.index(b'"STOP"')]) == Usage(input=8, output=1)


def test_an_event_that_is_no_json_does_not_hide_the_next() -> None:
    assert read(SSE, b'data: {"usage": oops\n\n' + OPENAI) == Usage(input=12, output=30)


@pytest.mark.parametrize("content_type", [SSE, JSON])
@pytest.mark.parametrize(
    "piece", [b"x", b"data: x\n", b'{"usage":{"a":', b'"', b"[", b'\\"', b"\n", b'data: {"usage":{']
)
def test_an_endless_body_is_not_kept(content_type: str, piece: bytes) -> None:
    reader = UsageReader(content_type)
    for _ in range(12):
        reader.feed(piece * (65_536 // len(piece)))
    assert held_bytes(reader) < 2 * (MAX_DOCUMENT_BYTES + MAX_OBJECT_BYTES)
    assert reader.finish() is None


def held_bytes(value: object) -> int:
    """The size of everything the object holds."""
    held = sys.getsizeof(value)
    return (
        held + sum(held_bytes(inner) for inner in vars(value).values())
        if hasattr(value, "__dict__")
        else held
    )


@pytest.mark.parametrize("content_type", [SSE, JSON])
@pytest.mark.parametrize("start", [b'{"', b'{"usage":{"', b'{"a":'])
def test_an_endless_string_or_number_is_not_kept(content_type: str, start: bytes) -> None:
    reader = UsageReader(content_type)
    reader.feed(b"data: " + start if content_type == SSE else start)
    for _ in range(20):
        reader.feed(b"1" * 65_536)
    assert held_bytes(reader) < 2 * (MAX_DOCUMENT_BYTES + MAX_OBJECT_BYTES)


@pytest.mark.parametrize("kind", [[], {}, 5, None])
def test_a_type_that_is_no_text_is_no_event(kind: object) -> None:
    assert read(JSON, json.dumps({"type": kind, "usage": {"total_tokens": 5}}).encode()) == Usage(input=5)


@given(st.sampled_from([SSE, JSON, "", "TEXT/Event-Stream"]), st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_break_the_reader(content_type: str, pieces: list[bytes]) -> None:
    read(content_type, *pieces)


TOKENS = st.sampled_from(
    [
        *(
            b"data:",
            b"\n",
            b"\n\n",
            b"\r",
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b'"',
            b"\\",
            b" ",
            b"\xff",
            b"null",
            b"-1",
        ),
        *(b'"usage"', b'"response"', b'"message"', b'"type":"message_delta"', b'"input_tokens":5'),
        b'{"usage":{"input_tokens":5}}',
    ]
)


@given(st.sampled_from([SSE, JSON]), st.lists(TOKENS, max_size=30))
def test_no_broken_json_breaks_the_reader_or_the_scanner(content_type: str, tokens: list[bytes]) -> None:
    usage = read(content_type, b"".join(tokens))
    assert usage == read(content_type, *tokens)
    assert usage is None or usage.input % 5 == 0
    scanner = UsageScanner(lambda holder, fields: None)
    for token in tokens:
        scanner.feed(token)


DOCUMENTS = st.recursive(
    st.none() | st.integers(0, 99) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["usage", "response", "message", "a", 'u"\\', "input_tokens"]), inner, max_size=4
        )
    ),
    max_leaves=25,
)


@settings(max_examples=300)
@given(DOCUMENTS, st.integers(1, 7))
@example([[{"usage": None}, {}]], 1)
@example([["usage", {}]], 1)
@example({"a": ["usage", {}], "usage": {"input_tokens": 1}}, 3)
def test_the_scanner_finds_what_a_parser_finds(document: object, size: int) -> None:
    roots = document if isinstance(document, list) else [document]
    expected = []
    for root in roots:
        for name, value in root.items() if isinstance(root, dict) else ():
            if name == "usage" and isinstance(value, dict):
                expected.append(("", value))
            if (
                name in ("response", "message")
                and isinstance(value, dict)
                and isinstance(value.get("usage"), dict)
            ):
                expected.append((name, value["usage"]))
    found: list[tuple[str, object]] = []
    scanner = UsageScanner(lambda holder, fields: found.append((holder, fields)))
    text = json.dumps(document).encode()
    for at in range(0, len(text), size):
        scanner.feed(text[at : at + size])
    assert found == expected
