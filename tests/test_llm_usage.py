"""What providers count, as disjoint kinds: recorded shapes, hostile numbers, weights."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.llm.usage import MAX_AMOUNT_U, PLAIN, Usage, Weights, compile_weights, read_usage, weigh

OPENAI_CHAT = {
    "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
    "object": "chat.completion",
    "model": "gpt-4.1-2025-04-14",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 1117,
        "completion_tokens": 46,
        "total_tokens": 1163,
        "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 20,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    },
}
OPENAI_RESPONSES = {
    "id": "resp_67ccd2bed1ec8190b14f964abc054267",
    "object": "response",
    "status": "completed",
    "usage": {
        "input_tokens": 328,
        "input_tokens_details": {"cached_tokens": 300},
        "output_tokens": 52,
        "output_tokens_details": {"reasoning_tokens": 40},
        "total_tokens": 380,
    },
}
ANTHROPIC = {
    "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Hi!"}],
    "usage": {
        "input_tokens": 21,
        "cache_creation_input_tokens": 188086,
        "cache_read_input_tokens": 500,
        "output_tokens": 393,
        "service_tier": "standard",
    },
}
GEMINI = {
    "candidates": [{"content": {"parts": [{"text": "Hi"}], "role": "model"}, "finishReason": "STOP"}],
    "usageMetadata": {
        "promptTokenCount": 100,
        "cachedContentTokenCount": 60,
        "candidatesTokenCount": 12,
        "thoughtsTokenCount": 30,
        "toolUsePromptTokenCount": 8,
        "totalTokenCount": 150,
    },
    "modelVersion": "gemini-2.5-flash",
}
EMBEDDINGS = {"object": "list", "data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}


@pytest.mark.parametrize(
    ("document", "usage", "total"),
    [
        (OPENAI_CHAT, Usage(input=93, cached_input=1024, output=26, reasoning=20), 1163),
        (OPENAI_RESPONSES, Usage(input=28, cached_input=300, output=12, reasoning=40), 380),
        ({"type": "response.completed", "response": OPENAI_RESPONSES},
         Usage(input=28, cached_input=300, output=12, reasoning=40), 380),
        (EMBEDDINGS, Usage(input=8), 8),
        (ANTHROPIC, Usage(input=21, cached_input=500, cache_write=188086, output=393), 189000),
        ({"type": "message_start", "message": ANTHROPIC}, Usage(21, 500, 188086, 393, 0), 189000),
        ({"type": "message_delta", "usage": {"output_tokens": 15}}, Usage(output=15), 15),
        (GEMINI, Usage(input=48, cached_input=60, output=12, reasoning=30), 150),
        ([{"candidates": []}, GEMINI], Usage(input=48, cached_input=60, output=12, reasoning=30), 150),
        ({"response": GEMINI}, Usage(input=48, cached_input=60, output=12, reasoning=30), 150),
        ({"usage_metadata": {"prompt_token_count": 5, "candidates_token_count": 6, "total_token_count": 11}},
         Usage(input=5, output=6), 11),
        ({"usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}, Usage(input=9, output=3), 12),
        ({"usage": {"prompt_tokens": 9, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5,
                    "completion_tokens": 3, "total_tokens": 12}}, Usage(input=5, cached_input=4, output=3), 12),
        ({"usage": {"inputTokens": 5, "outputTokens": 2, "totalTokens": 17, "cacheReadInputTokens": 10}},
         Usage(input=5, cached_input=10, output=2), 17),
        ({"total_tokens": 41}, Usage(input=41), 41),
        ({"usage": {"prompt_tokens": None, "total_tokens": 41}}, Usage(input=41), 41),
        (OPENAI_CHAT["usage"], Usage(input=93, cached_input=1024, output=26, reasoning=20), 1163),
    ],
    ids=["chat", "responses", "responses event", "embeddings", "anthropic", "message_start", "message_delta", "gemini",
         "gemini chunks", "gemini wrapped", "gemini sdk", "mistral", "deepseek", "bedrock", "total only",
         "total and null", "the usage itself"],
)  # fmt: skip
def test_every_provider_is_read_into_disjoint_kinds(document: object, usage: Usage, total: int) -> None:
    assert read_usage(document) == usage
    assert usage.total == total


def test_reasoning_beside_the_completion_is_told_by_the_total() -> None:
    beside = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 22}
    details = {"completion_tokens_details": {"reasoning_tokens": 7}}
    assert read_usage({**beside, **details}) == Usage(input=10, output=5, reasoning=7)
    assert read_usage({**beside, **details, "total_tokens": 15}) == Usage(input=10, reasoning=5)


def test_tokens_that_only_the_total_shows_are_output() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}
    assert read_usage({"usage": usage}) == Usage(input=10, output=30)


def test_more_cached_tokens_than_prompt_are_only_the_prompt() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 99}}
    assert read_usage(usage) == Usage(cached_input=10, output=1)
    both = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 99}}
    assert read_usage(both) == Usage(cached_input=6, cache_write=4)


HOSTILE = [-1, True, "5", float("nan"), float("inf"), 1e300, 10**12 + 1, 0.5, [5], {"a": 5}]


@pytest.mark.parametrize("number", HOSTILE)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_a_hostile_main_number_voids_the_usage(name: str, number: object) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    assert read_usage({"usage": {**usage, name: number}}) is None


@pytest.mark.parametrize("number", HOSTILE)
def test_a_hostile_detail_or_total_is_left_out(number: object) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": number}
    details = {"prompt_tokens_details": {"cached_tokens": number}, "completion_tokens_details": number}
    assert read_usage({**usage, **details}) == Usage(input=10, output=5)


@pytest.mark.parametrize(
    "document",
    [
        None, 5, "usage", [], {}, {"usage": None}, {"usage": []}, {"usage": {}}, {"usage": {"prompt_tokens": 0}},
        {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}, {"usageMetadata": {}}, [5, None],
        {"total_tokens": 0}, {"total_tokens": -1}, {"response": None, "message": 5}, {"failed": True},
    ],
)  # fmt: skip
def test_no_usage_is_none_and_never_zero(document: object) -> None:
    assert read_usage(document) is None


NAMES = st.sampled_from(
    [
        *(
            "usage",
            "usageMetadata",
            "response",
            "message",
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
        ),
        *("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        *("prompt_tokens_details", "cached_tokens", "completion_tokens_details", "reasoning_tokens"),
        *("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "totalTokenCount", "inputTokens"),
    ]
)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(0, 10**12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=30,
)


@given(DOCUMENTS)
def test_no_document_yields_a_negative_or_free_usage(document: object) -> None:
    usage = read_usage(document)
    assert usage is None or (min(usage) >= 0 and 0 < usage.total <= 6 * 10**12)


COUNTS = st.integers(0, 10**9)


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_openai_kinds_add_up_to_the_provider_s_total(
    prompt: int, cached: int, completion: int, reasoning: int
) -> None:
    document = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    usage = read_usage(document)
    assert (0 if usage is None else usage.total) == prompt + completion


def test_weights_price_each_kind_once() -> None:
    weights = compile_weights(
        {"cached_input": Decimal("0.1"), "cache_write": Decimal("1.25"), "output": Decimal(5)}
    )
    assert weigh(Usage(100, 1000, 8, 10, 3), weights) == (100 + 100 + 10 + 50 + 3) * 1_000_000


def test_without_weights_every_token_is_one() -> None:
    assert compile_weights({}) == PLAIN
    assert weigh(Usage(1, 2, 3, 4, 5), PLAIN) == 15_000_000


def test_a_weight_of_nothing_makes_a_kind_free() -> None:
    assert weigh(Usage(cached_input=1000), compile_weights({"cached_input": Decimal(0)})) == 0


def test_weights_are_rounded_up_to_a_millionth() -> None:
    assert compile_weights({"input": Decimal("0.0000001")}).input == 1


def test_a_price_never_exceeds_what_a_counter_takes() -> None:
    most = Usage(*[10**12] * 5)
    assert weigh(most, Weights(*[10**12] * 5)) == MAX_AMOUNT_U
