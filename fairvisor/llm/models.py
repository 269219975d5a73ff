"""One name for one model: `openai/GPT-4o-2024-08-06`, `gpt-4o:latest` and `gpt-4o` are the same `gpt-4o`.

A limit on a model must not be escaped by another spelling of its name, so the canonical name is lower case, without
the provider in front and without the date or version tag behind; then the operator's aliases apply. Different models
never become one, with one exception: models of different owners with the same name (`org-a/x`, `org-b/x`).
This module knows names only, no requests and no limits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

MAX_NAME: Final = 256
"""Characters of a model's name that count: names are the client's, and become part of counter identities."""

CACHED_NAMES: Final = 1024

# Bedrock puts the vendor, and for cross-region profiles the region, before a dot: `us.anthropic.claude-...`.
_VENDOR: Final = re.compile(
    r"(?:(?:us|us-gov|eu|apac|jp|au|ca|sa|me|af|global)\.)?"
    r"(?:ai21|amazon|anthropic|cohere|deepseek|google|meta|mistral|nvidia|openai|qwen|stability|writer)\."
)
_MONTH: Final = "(?:0[1-9]|1[0-2])"
_DAY: Final = "(?:0[1-9]|[12][0-9]|3[01])"
# The dates as providers write them: -2024-08-06 and -20241022, -05-20 (Gemini previews), -08-2024 (Cohere), -0613
# (OpenAI's early ones: month, day), -2407 (Mistral: year, month). Bedrock adds its own revision (-20241022-v2:0, or
# only :0), Vertex writes @20241022, Ollama :latest. OpenRouter's words behind a colon say how the same model is to be
# reached (https://openrouter.ai/docs, "Model variants").
_DATE: Final = rf"-20[0-9]{{2}}-?{_MONTH}-?{_DAY}"
_SUFFIX: Final = re.compile(
    rf"(?:@.*|{_DATE}(?:-v[0-9]+:[0-9]+)?|:[0-9]+|[:-]latest"
    r"|:(?:online|nitro|floor|exacto|free|beta|extended|thinking)"
    rf"|-{_MONTH}-{_DAY}|-{_MONTH}-20[0-9]{{2}}|-{_MONTH}{_DAY}|-2[2-9]{_MONTH})$",
    re.DOTALL,
)


def canonical_model(name: str, aliases: Mapping[str, str]) -> str:
    """The canonical name of the model `name`; "" stays "".

    `aliases` as `compile_aliases` made them: in a mapping that was not, upper case and chains are not seen.
    """
    lowered = name.strip().lower()
    if len(lowered) > MAX_NAME:
        lowered = lowered.rpartition("/")[2][:MAX_NAME].strip()
    plain = _plain(lowered)
    if not aliases:
        return plain
    target = aliases.get(lowered) or aliases.get(plain)
    return plain if target is None else _plain(target.strip().lower())


def compile_aliases(aliases: Mapping[str, str]) -> dict[str, str]:
    """`aliases` (name -> name, as an operator writes them) ready for `canonical_model`.

    An alias is found by its exact name (`gpt-4o-2024-08-06` may differ from `gpt-4o`) in any case, and when it has no
    date or prefix itself, by every spelling of it. Targets become canonical, and an alias of an alias leads to the
    end of the chain; a circle ends where it would repeat.
    """
    first = {name.strip().lower(): _plain(target.strip().lower()) for name, target in aliases.items()}
    return {name: _end_of_chain(name, first) for name in first}


def _end_of_chain(name: str, steps: Mapping[str, str]) -> str:
    seen = {name}
    target = steps[name]
    while target in steps and target not in seen:
        seen.add(target)
        target = steps[target]
    return target


@lru_cache(maxsize=CACHED_NAMES)
def _plain(name: str) -> str:
    """`name` (lower case) without provider and date; the name itself when nothing would be left of it."""
    plain = name.rstrip("/ ").rpartition("/")[2].strip()
    while (match := _VENDOR.match(plain)) and (model := plain[match.end() :].lstrip()):
        plain = model
    while (match := _SUFFIX.search(plain)) and match.start():
        plain = plain[: match.start()].rstrip()
    return plain or name
