"""The top-level fields of an LLM request that are read, by what they mean.

Providers spell one thing in several ways, and some parsers take a name in any case: a name that is read here must be
read in every spelling that an upstream might take for it. This module holds names only.
"""

from __future__ import annotations

from typing import Final

MODEL: Final = 1
MORE_MODELS: Final = 2  # that answer when the first one does not
CAP: Final = 3  # completion tokens
CHOICES: Final = 4
CONFIG: Final = 5  # an object with caps and choices of its own
STREAM: Final = 6
TEXT: Final = 7  # counted by the estimate, or by `choices`
MERGED: Final = 8  # an object whose fields take the place of the body's, where LiteLLM asks a provider

PROMPT_FIELDS: Final = (
    "messages",
    "system",
    "input",
    "instructions",
    "prompt",
    "suffix",
    "contents",
    "content",
    "systemInstruction",
    "system_instruction",
    "requests",
    "instances",
    "query",
    "documents",
)
SCHEMA_FIELDS: Final = ("tools", "functions", "response_format", "text")

KINDS: Final[dict[str, int]] = {
    "model": MODEL,
    **dict.fromkeys(
        (
            "models",
            "fallbacks",
            "fallback_models",
            "context_window_fallbacks",
            "content_policy_fallbacks",
            "context_window_fallback_dict",
        ),
        MORE_MODELS,
    ),
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample"), CAP
    ),
    **dict.fromkeys(("n", "best_of"), CHOICES),
    # Protobuf JSON accepts both spellings of a field; Bedrock's Converse calls its own inferenceConfig.
    **dict.fromkeys(("generationConfig", "generation_config", "inferenceConfig"), CONFIG),
    "extra_body": MERGED,
    "stream": STREAM,
    "stream_options": TEXT,
    **dict.fromkeys((*PROMPT_FIELDS, *SCHEMA_FIELDS), TEXT),
}
"""What each name means."""

FOLDED: Final[dict[str, int]] = {name.casefold(): kind for name, kind in KINDS.items()}
"""The same for a name of which the case is not known, as Go's encoding/json reads names."""

ORDINARY: Final = frozenset(
    (
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "stop_sequences",
        "tool_choice",
        "parallel_tool_calls",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "user",
        "metadata",
        "store",
        "reasoning",
        "reasoning_effort",
        "thinking",
        "logprobs",
        "safetySettings",
        "encoding_format",
        "dimensions",
    )
)
"""Names that are met often and are none of these in any case."""

CONFIG_CAPS: Final = ("maxOutputTokens", "max_output_tokens", "maxTokens")
CONFIG_CHOICES: Final = ("candidateCount", "candidate_count")
