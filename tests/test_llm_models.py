"""Canonical model names: no spelling of a model escapes the limit on it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairvisor.llm.models import CACHED_NAMES, _plain, canonical_model, compile_aliases


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("gpt-4o", "gpt-4o"),
        (" GPT-4o ", "gpt-4o"),
        ("openai/gpt-4o", "gpt-4o"),
        ("azure/GPT-4o-2024-08-06", "gpt-4o"),
        ("openrouter/openai/gpt-4o:latest", "gpt-4o"),
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-3.5-turbo-16k-0613", "gpt-3.5-turbo-16k"),
        ("claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("claude-3-5-sonnet@20241022", "claude-3-5-sonnet"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet"),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3-5-sonnet"),
        ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3-5-sonnet"),
        ("models/gemini-1.5-pro", "gemini-1.5-pro"),
        ("gemini-2.5-flash-preview-05-20", "gemini-2.5-flash-preview"),
        ("mistral-large-2407", "mistral-large"),
        ("command-r-08-2024", "command-r"),
        ("llama3:latest", "llama3"),
    ],
)
def test_spellings_of_one_model_are_one_name(name: str, canonical: str) -> None:
    assert canonical_model(name, {}) == canonical


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4",
        "gpt-4-32k",
        "gpt-4.1-mini",
        "o1",
        "llama3:70b",
        "phi-4",
        "text-embedding-3-large",
        "gpt-4-1106-preview",
        "gemini-1.5-pro-002",
        "claude-v2",
        "",
        "-2024-08-06",
        "@x",
    ],
)
def test_what_tells_models_apart_stays(name: str) -> None:
    assert canonical_model(name, {}) == name


def test_aliases_apply_to_every_spelling_and_their_targets_are_canonical() -> None:
    aliases = compile_aliases({"Prod": "openai/GPT-4o-2024-08-06", "my-gpt": "prod"})
    for name in ("prod", "PROD", "azure/prod", "prod:latest", "my-gpt", "openai/My-GPT"):
        assert canonical_model(name, aliases) == "gpt-4o"


def test_an_alias_of_a_dated_name_leaves_other_dates_alone() -> None:
    aliases = compile_aliases({"gpt-4o-2024-05-13": "old"})
    assert canonical_model("GPT-4o-2024-05-13", aliases) == "old"
    assert canonical_model("gpt-4o-2024-08-06", aliases) == "gpt-4o"


def test_a_circle_of_aliases_ends() -> None:
    aliases = compile_aliases({"a": "b", "b": "a", "c": "a"})
    assert all(canonical_model(name, aliases) in {"a", "b"} for name in "abc")


def test_the_cache_of_client_chosen_names_is_bounded() -> None:
    for number in range(CACHED_NAMES + 100):
        canonical_model(f"made-up-{number}x", {})
    assert _plain.cache_info().currsize <= CACHED_NAMES


PIECES = st.sampled_from(
    [
        "gpt",
        "-4o",
        "openai",
        "/",
        ".",
        "anthropic.",
        "us.",
        "-2024-08-06",
        "-20241022",
        ":latest",
        "@",
        ":0",
        "-v2:0",
        " ",
    ]
)


@example("ANTHROPIC. 0")
@given(st.text(max_size=50) | st.lists(PIECES, max_size=8).map("".join))
def test_a_canonical_name_is_canonical_already(name: str) -> None:
    canonical = canonical_model(name, {})
    assert canonical_model(canonical, {}) == canonical
    assert bool(canonical) == bool(name.strip())
