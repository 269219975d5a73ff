"""LiteLLM's own functions, called one after the other, in the Python that has LiteLLM.

Started with the URLs of two proxies, one of them before Mistral. Each line on stdin is the name of a call; the answer
is one line of JSON on stdout. It knows nothing of this repository, and imports nothing of it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

litellm.telemetry = False
litellm.num_retries = 0
MESSAGES = [{"role": "user", "content": "hello"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
URL, MISTRAL_URL = sys.argv[1:]
PROVIDERS: dict[str, dict[str, Any]] = {
    "openai": {"model": "openai/gpt-4o", "api_base": f"{URL}/v1"},
    "anthropic": {"model": "anthropic/claude-sonnet-4-5", "api_base": URL, "max_tokens": 50},
    "gemini": {"model": "gemini/gemini-2.5-flash", "api_base": f"{URL}/v1beta/models/gemini-2.5-flash"},
    "mistral": {"model": "mistral/mistral-large-latest", "api_base": f"{MISTRAL_URL}/v1"},
}


def text_of(chunks: list[Any]) -> str:
    """What a stream said."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def asynchronously(ask: dict[str, Any], streamed: bool) -> str:
    if not streamed:
        return str((await litellm.acompletion(**ask)).choices[0].message.content)
    stream = await litellm.acompletion(**ask, stream=True)
    return text_of([chunk async for chunk in stream])


def answer(name: str) -> Any:
    """`provider-how[-streamed]`: what the call gives."""
    provider, how, *rest = name.split("-")
    streamed = bool(rest)
    if how == "embedding":
        made = litellm.embedding(model="openai/e", input=["hello"], api_base=f"{URL}/v1", api_key="k")
        return made.data[0]["embedding"]
    ask = {**PROVIDERS[provider], "messages": MESSAGES, "api_key": "k"}
    if how == "async":
        return asyncio.run(asynchronously(ask, streamed))
    if how == "tool":
        return litellm.completion(**ask, tools=TOOLS).choices[0].message.tool_calls[0].function.arguments
    if streamed:
        return text_of(list(litellm.completion(**ask, stream=True)))
    return litellm.completion(**ask).choices[0].message.content


answers, sys.stdout = sys.stdout, sys.stderr  # LiteLLM prints, too
for line in sys.stdin:
    print(json.dumps(answer(line.strip())), file=answers, flush=True)
