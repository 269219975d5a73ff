"""A body that was cut is read as far as it goes, and what is missing still counts."""

from __future__ import annotations

import json

import pytest
from edge import Edge, Json, policy, tokens
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.llm.cut import MAX_SIGNS, mend
from fairvisor.llm.estimate import simple_word
from fairvisor.llm.request import LlmRequest, read_request

CHAT = "/v1/chat/completions"
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=5)


def read(body: bytes, cut_bytes: int = 1) -> LlmRequest:
    request = read_request(CHAT, body, cut_bytes)
    assert request is not None
    return request


def is_beginning(part: object, whole: object) -> bool:
    """Whether `part` says nothing that `whole` does not say."""
    if isinstance(part, str) and isinstance(whole, str):
        in_halves = ("utf-16-le", "surrogatepass")  # an escaped pair may have been cut between its halves
        return whole.encode(*in_halves).startswith(part.encode(*in_halves))
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and is_beginning(value, whole[name]) for name, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(is_beginning, part, whole))
    return part == whole


@pytest.mark.parametrize("ascii_only", [True, False])
@given(document=OBJECTS, where=st.floats(0, 1))
def test_a_cut_object_is_a_beginning_of_the_whole(
    ascii_only: bool, document: dict[str, object], where: float
) -> None:
    body = json.dumps(document, ensure_ascii=ascii_only).encode(errors="replace")
    whole = json.loads(body)
    cut = body[: int(where * len(body))]
    mended = mend(cut)
    assert mended is not None
    assert is_beginning(json.loads(mended.text), whole)
    assert 0 <= mended.unread_bytes <= len(cut)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hel',
         {"model": "gpt-4o", "messages": [{"role": "user", "content": "hel"}]}),
        (b'{"a": 1, "b": [1, 2, {"c": "\\u00e9\\u00', {"a": 1, "b": [1, 2, {"c": "é"}]}),
        (b'{"a": "back\\\\', {"a": "back\\"}),
        (b'{"a": "back\\', {"a": "back"}),
        ('{"a": "é'.encode()[:-1], {"a": ""}),
        (b'{"a": 1, "b', {"a": 1}),
        (b'{"a": 1, "b": tr', {"a": 1}),
        (b'{"a": 12', {}),
        (b'{"a": "x" ', {}),
        (b'{"a": {"b": 1}}' + b" " * 9, {"a": {"b": 1}}),
        (b'{"a": [1, 2}, "b": 3', {"a": [1]}),
        (b'{"a": "\\uXYZW", "b": 3', {}),
        (b" \r\n\t", {}),
        (b"{", {}),
        ('{"a": 1, "b": "'.encode("utf-16"), {"a": 1, "b": ""}),
        (b"\xef\xbb\xbf" + b'{"a": 1, "b": "', {"a": 1, "b": ""}),
    ],
)  # fmt: skip
def test_what_stands_before_the_cut_is_kept(body: bytes, kept: dict[str, object]) -> None:
    assert read(body).document == kept


@pytest.mark.parametrize("body", [b"[1, 2", b"--boundary", b"\x00\x01", b'"text'])
def test_the_beginning_of_no_object_may_be_any_request(body: bytes) -> None:
    request = read(body, 1000)
    assert (request.unread, request.is_json, request.cut_bytes) == (True, False, 1000 + len(body))


def test_a_cut_body_that_is_no_text_in_the_middle_is_not_read() -> None:
    assert read(b'{"mod\xffel": "x", "messages": [').unread
    assert read('{"model": "é'.encode()[:-1]).model == ""


def test_what_the_beginning_says_counts() -> None:
    request = read(
        b'{"model": "gpt-4o", "max_tokens": 7, "n": 2, "stream": true, "messages": [{"content": "a'
    )
    assert (request.model, request.completion_cap, request.choices, request.stream) == ("gpt-4o", 7, 2, True)


def test_what_nobody_has_read_counts_one_token_for_four_bytes() -> None:
    body = b'{"messages": [{"role": "user", "content": "one two'
    assert simple_word(read(body, 4001)) == simple_word(read(body, 1)) - 1 + 1001


def test_reading_ends_after_so_many_parts_and_the_rest_counts() -> None:
    body = b'{"input": [' + b"1," * 4 * MAX_SIGNS
    request = read(body)
    kept = request.document["input"]
    assert isinstance(kept, list)
    assert len(kept) == MAX_SIGNS - 3  # the brackets and the key
    assert request.cut_bytes == 1 + len(body) - len(b'{"input": [') - (2 * len(kept) - 1)


# Limits

LATE: Json = {"messages": [{"role": "user", "content": "pad " * 20}], "model": "o1"}
BODY = json.dumps(LATE).encode()[:40]


def test_a_limit_by_model_is_not_skipped_when_the_model_was_cut_off() -> None:
    edge = Edge(policy("p", tokens("t", "llm:model", tpm=3000)))
    assert edge.ask("POST", body=BODY, cut_bytes=100).rule == "p/t"


def test_a_limit_for_one_model_counts_a_body_whose_model_was_cut_off() -> None:
    edge = Edge(policy("p", tokens("t", tpm=3000, match={"llm:model": "gpt-4o"})))
    assert edge.ask("POST", body=LATE).rule is None
    assert edge.ask("POST", body=BODY, cut_bytes=100).rule == "p/t"
    assert edge.ask("POST", body=b'{"model": "o1", "messages": [{"', cut_bytes=100).rule is None


def test_a_kill_switch_for_one_model_stops_a_body_whose_model_was_cut_off() -> None:
    edge = Edge(policy("p"), kill_switches=[{"scope_key": "llm:model", "scope_value": "gpt-4o"}])
    assert edge.ask("POST", body=LATE).status == 204
    assert edge.ask("POST", body=BODY, cut_bytes=100).reason == "kill_switch_active"
    assert edge.ask("POST", path="/models/o1:generateContent", body=BODY, cut_bytes=100).status == 204
