"""Prompt estimates: near what tokenizers count, on real request shapes, and never broken by a hostile document."""

from __future__ import annotations

import json
import math
import string
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.errors import EstimatorUnavailable
from fairvisor.llm import estimate
from fairvisor.llm._simple_word import count_tokens
from fairvisor.llm.estimate import (
    MEDIA_TOKENS,
    MESSAGE_TOKENS,
    TiktokenEstimator,
    load_estimator,
    simple_word,
)
from fairvisor.llm.request import read_request

PROSE = (
    "Rate limits are restrictions that our API imposes on the number of times a user or client can access our "
    "services within a specified period of time."
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(
    ["messages", "system", "input", "prompt", "contents", "tools", "response_format", "text"]
)


def estimated(document: object) -> int:
    request = read_request("/v1/x", json.dumps(document).encode())
    assert request is not None
    return simple_word(request)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (PROSE, 26, 33),  # 27 in OpenAI's vocabularies
        ("antidisestablishmentarianism", 4, 8),  # 6
        ("1234567890", 4, 5),  # 4
        ("def f(x):\n    return x + 1\n", 10, 16),  # 12
        ("今天天气很好我们去公园散步吧", 10, 20),  # 14 characters, 12 to 17 tokens
        ("Сегодня хорошая погода", 6, 12),  # 6 to 11
        ("😀🎉", 2, 6),
        ("", 0, 0),
        ("    " * 3, 1, 3),
    ],
)
def test_text_is_counted_near_real_tokenizers(text: str, low: int, high: int) -> None:
    assert low <= count_tokens(text.encode()) <= high


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a", 1),
        ("aaaaaaa", 1),
        ("a" * 8, 2),
        ("a" * 16, 5),
        ("one two", 2),
        ("one, two.", 4),
        ("7", 1),
        ("77", 1),
        ("777", 2),
        ("a1", 2),
        ("!", 1),
        ("!!", 1),
        ("!!!", 2),
        ("!!!!", 1),
        ("a\nb", 3),
        ("é", 2),
        ("字", 1),
        ("😀", 2),
    ],
)
def test_the_rules_of_simple_word(text: str, tokens: int) -> None:
    assert count_tokens(text.encode()) == in_python(text.encode()) == tokens


def _table(classes: dict[bytes, str]) -> bytes:
    """A table for bytes.translate: for each class of bytes its letter, for everything else a space."""
    table = bytearray(b" " * 256)
    for members, letter in classes.items():
        for byte in members:
            table[byte] = ord(letter)
    return bytes(table)


TWO_BYTES = bytes(range(0xC2, 0xE0))
LENGTHS = _table({TWO_BYTES: "2", bytes(range(0xE0, 0xF0)): "3", bytes(range(0xF0, 0xF8)): "4"})
WORDS = _table({string.ascii_letters.encode() + TWO_BYTES: "x"})
SIGNS = _table({string.digits.encode(): "d", string.punctuation.encode() + b"\n": "p"})


def in_python(text: bytes) -> int:
    """The rules of simple_word once more, by searching instead of going through the text."""
    lengths = text.translate(LENGTHS)
    letters = text.translate(None, bytes(range(0x80, 0xC0)))
    words, signs = b" " + letters.translate(WORDS), letters.translate(SIGNS)
    tokens = text.count(b"    ") + math.ceil(lengths.count(b"2") / 3)
    tokens += lengths.count(b"3") + 2 * lengths.count(b"4")
    tokens += words.count(b" x") + words.count(b"x" * 8) + 2 * words.count(b"x" * 16)
    tokens += signs.count(b"d") - signs.count(b"dd")
    return tokens + signs.count(b"p") - signs.count(b"pp") - signs.count(b"pppp")


RUNS = st.tuples(st.sampled_from(["a", "é", "7", "!", "\n", " ", "\t", "字", "😀"]), st.integers(1, 40))


@given(st.text() | st.lists(RUNS).map(lambda runs: "".join(sign * times for sign, times in runs)))
def test_c_and_python_count_a_text_the_same(text: str) -> None:
    data = text.encode(errors="surrogatepass")
    assert count_tokens(text) == count_tokens(data) == in_python(data)


SHORT_RUNS = st.tuples(st.sampled_from("aZz@[`{059/:!~\x7f\n \t\0"), st.integers(1, 20))


@given(st.lists(SHORT_RUNS, min_size=20), st.sampled_from(["", "é", "字"]), st.integers(0, 200))
def test_c_and_python_count_what_is_read_in_blocks_the_same(
    runs: list[tuple[str, int]], foreign: str, at: int
) -> None:
    text = "".join(sign * times for sign, times in runs)
    text = text[:at] + foreign + text[at:]
    assert count_tokens(text) == in_python(text.encode())


@given(st.binary() | st.lists(st.sampled_from([b"a", b"\xc3", b"\xa9", b" ", b"\xe5", b"7"])).map(b"".join))
def test_c_and_python_count_bytes_that_are_no_text_the_same(data: bytes) -> None:
    assert count_tokens(data) == in_python(data)


def test_only_text_is_counted() -> None:
    with pytest.raises(TypeError, match="takes text or bytes"):
        count_tokens(["one"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("document", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "one two"}]}, 2 + MESSAGE_TOKENS),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]}, 2 + MESSAGE_TOKENS),
        ({"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}, 2 + 2 * MESSAGE_TOKENS),
        ({"system": "one", "messages": [{"role": "user", "content": "two"}]}, 2 + MESSAGE_TOKENS),
        ({"system": [{"type": "text", "text": "one"}]}, 1),
        ({"input": "one two three"}, 3),
        ({"input": ["one", "two"]}, 2),
        ({"instructions": "be kind", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
         3 + MESSAGE_TOKENS),
        ({"prompt": ["one", "two three"], "suffix": "end"}, 4),
        ({"prompt": [1, 2, 3]}, 3),
        ({"input": [[1, 2], [3]]}, 3),
        ({"prompt": [1, "two", 3]}, 1),
        ({"contents": [{"role": "user", "parts": [{"text": "one two"}]}],
          "systemInstruction": {"parts": [{"text": "x"}]}}, 3 + MESSAGE_TOKENS),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 500}},
            {"type": "text", "text": "what"}]}]}, 1 + MEDIA_TOKENS + MESSAGE_TOKENS),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x.example/y.png"}]}]},
         MEDIA_TOKENS + MESSAGE_TOKENS),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": "QUJD" * 500}}]}]}, MEDIA_TOKENS + MESSAGE_TOKENS),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {
            "type": "text", "data": "one two"}}]}]}, 2 + MESSAGE_TOKENS),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "QUJD"}}]}]}, MEDIA_TOKENS),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": {
            "name": "f", "arguments": "{\"a\":1}"}}]}]}, 7 + MESSAGE_TOKENS - 1),
        ({"tools": [{"name": "f"}]}, 6),
        ({"model": "gpt-4o", "user": "somebody"}, 1),
        ({}, 1),
    ],
)  # fmt: skip
def test_every_part_of_a_prompt_is_found(document: dict[str, object], tokens: int) -> None:
    assert estimated(document) == tokens


def test_tools_count_as_much_as_their_json_text() -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    text = json.dumps([tools], separators=(",", ":")).encode()
    assert estimated({"tools": tools}) == count_tokens(text)


def test_text_split_over_many_small_parts_is_not_cheaper() -> None:
    words = ["word"] * 50_000
    assert estimated({"input": words}) >= len(words)
    assert estimated({"messages": [{"role": "user", "content": [{"text": word} for word in words]}]}) >= len(
        words
    )


def test_of_too_many_parts_the_rest_is_counted_as_json_text() -> None:
    assert estimated({"input": [{}] * 15_000}) == 1
    assert estimated({"input": [{}] * 60_000}) > 10_000


@pytest.mark.parametrize("field", ["messages", "tools"])
def test_nesting_beyond_any_stack_is_no_error(field: str) -> None:
    body = b'{"%s": %s}' % (field.encode(), b"[" * 1000 + b'"one"' + b"]" * 1000)
    request = read_request("/v1/x", body)
    assert request is not None
    assert simple_word(request) >= 1


@pytest.mark.parametrize("value", [b'"\\ud800"', b"1" + b"0" * 400, b"NaN"])
def test_values_that_json_writers_refuse_are_counted_all_the_same(value: bytes) -> None:
    request = read_request("/v1/x", b'{"tools": [%s, "one two"], "input": %s}' % (value, value))
    assert request is not None
    assert simple_word(request) >= 2


@given(st.dictionaries(FIELDS, JSON))
def test_no_document_breaks_the_estimate_or_is_free(document: dict[str, object]) -> None:
    assert estimated(document) >= 1


@given(st.text(), st.text())
def test_more_text_is_never_fewer_tokens(text: str, more: str) -> None:
    whole = count_tokens(f"{text} {more}".encode(errors="replace"))
    # Signs that meet a space stay as they are; only spaces at the seam can join to four.
    assert whole >= max(
        count_tokens(text.encode(errors="replace")), count_tokens(more.encode(errors="replace"))
    )


@given(st.text())
def test_a_text_has_at_most_two_tokens_for_each_character(text: str) -> None:
    assert count_tokens(text.encode(errors="replace")) <= 2 * len(text)


class Letters:
    """An encoding in which every character is a token."""

    def encode_ordinary(self, text: str, /) -> list[int]:
        assert len(text) <= 4_096, "long runs are quadratic"
        return [ord(char) for char in text]


def test_tiktoken_counts_text_with_its_vocabulary() -> None:
    request = read_request("/v1/x", b'{"messages": [{"role": "user", "content": "one two"}]}')
    assert request is not None
    assert TiktokenEstimator(Letters())(request) == len("one two ") + MESSAGE_TOKENS


def test_tiktoken_counts_at_least_one() -> None:
    request = read_request("/v1/x", b"{}")
    assert request is not None
    assert TiktokenEstimator(Letters())(request) == 1


def test_tiktoken_hands_what_is_too_long_to_simple_word() -> None:
    request = read_request("/v1/x", json.dumps({"input": "a " * 50_000}).encode())
    assert request is not None
    assert TiktokenEstimator(Letters())(request) == 32_768 + math.ceil((100_001 - 32_768) / 2) - 1


def test_estimators_are_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_estimator("simple_word") is simple_word
    fake = SimpleNamespace(get_encoding=lambda name: {"o200k_base": Letters()}[name])
    monkeypatch.setattr(estimate.importlib, "import_module", lambda name: {"tiktoken": fake}[name])
    assert isinstance(load_estimator("tiktoken"), TiktokenEstimator)


def test_an_unknown_estimator_is_named_with_those_there_are() -> None:
    with pytest.raises(EstimatorUnavailable, match=r"'magic' is not known.*simple_word"):
        load_estimator("magic")


def test_tiktoken_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(estimate.importlib, "import_module", missing)
    with pytest.raises(EstimatorUnavailable, match=r"pip install 'fairvisor\[tiktoken\]'"):
        load_estimator("tiktoken")


def test_tiktoken_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> object:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(estimate.importlib, "import_module", lambda _: SimpleNamespace(get_encoding=offline))
    with pytest.raises(EstimatorUnavailable, match=r"no route to host.*TIKTOKEN_CACHE_DIR"):
        load_estimator("tiktoken")
