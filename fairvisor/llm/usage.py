"""What a provider says a response cost, as five kinds of tokens that do not overlap.

Providers disagree on what their numbers include: OpenAI counts cached tokens in the prompt and reasoning in the
completion, Anthropic's `input_tokens` leaves cached ones out, Gemini adds thoughts and tool prompts to the total only.
Here each token is of one kind, so each kind has one price and the sum is what the provider counted.

Numbers come from outside: bool, string, negative, NaN, fractional or beyond 1e12 is never believed. A hostile detail
is left out; a hostile main number voids the usage, for half of one would give back tokens that may have been used.
This module must not know how a response arrived (stream.py) nor what its usage settles (reservation.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Final, NamedTuple

from fairvisor.llm.request import whole_number

MAX_AMOUNT_U: Final = 9 * 10**18
"""Millionths of tokens: the largest amount a counter takes (9e12 tokens)."""


class Usage(NamedTuple):
    """Tokens by kind: `input` without the cached ones, `output` without reasoning. The sum is the provider's total."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """All tokens."""
        return sum(self)


class Weights(NamedTuple):
    """The price of one token of each kind, in millionths of a token, the fields in the order of `Usage`."""

    input: int = 1_000_000
    cached_input: int = 1_000_000
    cache_write: int = 1_000_000
    output: int = 1_000_000
    reasoning: int = 1_000_000


PLAIN: Final = Weights()
"""Every token counts as one."""


def compile_weights(weights: Mapping[str, Decimal]) -> Weights:
    """The `weights` of a rule (kind -> tokens, those left out 1), rounded up to millionths."""
    return Weights(**{kind: _millionths(weight) for kind, weight in weights.items()})


def weigh(usage: Usage, weights: Weights) -> int:
    """What `usage` takes from a limit, in millionths of tokens; at most 9e18."""
    tokens, prices = usage, weights
    amount_u = (
        tokens[0] * prices[0]
        + tokens[1] * prices[1]
        + tokens[2] * prices[2]
        + tokens[3] * prices[3]
        + tokens[4] * prices[4]
    )
    return amount_u if amount_u < MAX_AMOUNT_U else MAX_AMOUNT_U


def weigh_request(prompt: int, completion: int, weights: Weights) -> int:
    """What a request of so many tokens takes before anything is known of kinds, in millionths; at most 9e18."""
    amount_u = prompt * weights.input + completion * weights.output
    return amount_u if amount_u < MAX_AMOUNT_U else MAX_AMOUNT_U


def read_usage(document: object) -> Usage | None:
    """The usage in a provider's JSON; None when there is none that can be believed.

    `document` is a response, one chunk or event of a stream, the usage object itself, or a list of chunks (the last
    usage counts). A usage of no tokens at all is a placeholder, not a usage: no answer is free.
    """
    if isinstance(document, list):
        for chunk in reversed(document):
            usage = read_usage(chunk) if isinstance(chunk, dict) else None
            if usage is not None:
                return usage
        return None
    fields = find_usage(document)
    return None if fields is None else usage_of(fields)


def find_usage(document: object) -> dict[str, object] | None:
    """The usage object inside a response, chunk or event; the object itself when it is one; None when there is none.

    Responses' events wrap the response (`response.usage`), Anthropic's first event the message (`message.usage`).
    """
    if not isinstance(document, dict):
        return None
    for holder in (document, document.get("response"), document.get("message"), document.get("x_groq")):
        if isinstance(holder, dict):
            for name in ("usage", "usageMetadata", "usage_metadata"):
                usage = holder.get(name)
                if isinstance(usage, dict):
                    return usage
    return document if not _MAIN_FIELDS.isdisjoint(document) else None


def usage_of(fields: Mapping[str, object]) -> Usage | None:
    """The usage object `fields` of any provider as disjoint kinds; None when it cannot be believed or is empty."""
    for names, read in _SHAPES:
        if not names.isdisjoint(fields):
            if any(_hostile(fields.get(name)) for name in names):
                return None
            usage = read(fields)
            return usage if usage.total else None
    return None


def _chat(fields: Mapping[str, object]) -> Usage:
    """OpenAI chat, completions, embeddings; Mistral, DeepSeek, Azure and other compatible servers."""
    prompt, completion = (
        _details(fields, "prompt_tokens_details"),
        _details(fields, "completion_tokens_details"),
    )
    return _inclusive(
        prompt=_count(fields, "prompt_tokens"),
        cached=_count(prompt, "cached_tokens") or _count(fields, "prompt_cache_hit_tokens"),
        written=_count(prompt, "cache_write_tokens") or _count(fields, "cache_creation_input_tokens"),
        completion=_count(fields, "completion_tokens"),
        reasoning=_count(completion, "reasoning_tokens"),
        total=_count(fields, "total_tokens"),
    )


def _responses_or_messages(fields: Mapping[str, object]) -> Usage:
    """OpenAI responses and Anthropic messages use the same two names; only Anthropic's has the cache fields beside."""
    cached, written = _count(fields, "cache_read_input_tokens"), _count(fields, "cache_creation_input_tokens")
    prompt, completion = _details(fields, "input_tokens_details"), _details(fields, "output_tokens_details")
    return _inclusive(
        prompt=_count(fields, "input_tokens") + cached + written,
        cached=cached or _count(prompt, "cached_tokens"),
        written=written or _count(prompt, "cache_write_tokens"),
        completion=_count(fields, "output_tokens"),
        reasoning=_count(completion, "reasoning_tokens"),
        total=_count(fields, "total_tokens"),
    )


def _gemini(fields: Mapping[str, object]) -> Usage:
    """Gemini: the prompt includes the cached tokens; thoughts and tool prompts stand beside prompt and candidates."""
    return _separate(
        prompt=_count(fields, "promptTokenCount") + _count(fields, "toolUsePromptTokenCount"),
        cached=_count(fields, "cachedContentTokenCount"),
        written=0,
        output=_count(fields, "candidatesTokenCount"),
        reasoning=_count(fields, "thoughtsTokenCount"),
        total=_count(fields, "totalTokenCount"),
    )


def _gemini_snake(fields: Mapping[str, object]) -> Usage:
    """Gemini's usage as its Python SDK spells it."""
    return _separate(
        prompt=_count(fields, "prompt_token_count") + _count(fields, "tool_use_prompt_token_count"),
        cached=_count(fields, "cached_content_token_count"),
        written=0,
        output=_count(fields, "candidates_token_count"),
        reasoning=_count(fields, "thoughts_token_count"),
        total=_count(fields, "total_token_count"),
    )


def _bedrock(fields: Mapping[str, object]) -> Usage:
    """Bedrock Converse: like Anthropic's, cached input stands beside `inputTokens`."""
    cached, written = _count(fields, "cacheReadInputTokens"), _count(fields, "cacheWriteInputTokens")
    return _separate(
        prompt=_count(fields, "inputTokens") + cached + written,
        cached=cached,
        written=written,
        output=_count(fields, "outputTokens"),
        reasoning=0,
        total=_count(fields, "totalTokens"),
    )


def _total_only(fields: Mapping[str, object]) -> Usage:
    return Usage(input=_count(fields, "total_tokens"))


# The main numbers of each shape, and who reads it; the first that has one of them counts.
_SHAPES: Final = (
    (frozenset(("prompt_tokens", "completion_tokens")), _chat),
    (frozenset(("input_tokens", "output_tokens")), _responses_or_messages),
    (frozenset(("promptTokenCount", "candidatesTokenCount", "totalTokenCount")), _gemini),
    (frozenset(("prompt_token_count", "candidates_token_count", "total_token_count")), _gemini_snake),
    (frozenset(("inputTokens", "outputTokens")), _bedrock),
    (frozenset(("total_tokens",)), _total_only),
)
_MAIN_FIELDS: Final = frozenset[str]().union(*(names for names, _ in _SHAPES))


def _inclusive(
    *, prompt: int, cached: int, written: int, completion: int, reasoning: int, total: int
) -> Usage:
    """A usage whose completion includes its reasoning, as OpenAI's does.

    Some compatible servers report reasoning beside the completion (xAI); there the total gives it away.
    """
    if total == prompt + completion + reasoning:
        return _separate(prompt, cached, written, completion, reasoning, total)
    reasoning = min(reasoning, completion)
    return _separate(prompt, cached, written, completion - reasoning, reasoning, total)


def _separate(prompt: int, cached: int, written: int, output: int, reasoning: int, total: int) -> Usage:
    """A usage whose `output` and `reasoning` stand side by side, `prompt` including cached and written tokens.

    Tokens of the total that are in none of the parts were generated (Gemini behind OpenAI's interface leaves thoughts
    out of the completion); a total alone is input.
    """
    cached = min(cached, prompt)
    written = min(written, prompt - cached)
    rest = max(0, total - prompt - output - reasoning)
    if not prompt and not output and not reasoning:
        return Usage(input=rest)
    return Usage(prompt - cached - written, cached, written, output + rest, reasoning)


def _details(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    details = fields.get(name)
    return details if isinstance(details, dict) else {}


def _count(fields: Mapping[str, object], name: str) -> int:
    """The number `name`, 0 when it is absent or cannot be believed."""
    return whole_number(fields.get(name)) or 0


def _hostile(value: object) -> bool:
    return value is not None and whole_number(value) is None


def _millionths(weight: Decimal) -> int:
    return int((weight * 1_000_000).to_integral_value(ROUND_CEILING))
