"""How a stream ends that has passed its limit: the last events, in the form of its provider.

A graceful end is what the provider itself sends when the length that was asked for is reached, so that clients take it
for a normal finish. An error is what makes their SDKs raise. The module knows forms only: not why a stream ends, nor
how it was counted.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

from fairvisor.llm.dialect import Dialect
from fairvisor.llm.usage import Usage

MESSAGE: Final = "The response reached the completion tokens that are allowed for one request."
CODE: Final = "max_completion_tokens_exceeded"

Document = dict[str, object]


class Ending(NamedTuple):
    """When and how a stream ends: after `tokens`, as the provider would or with an error, with the usage or not."""

    tokens: int
    graceful: bool
    tells_usage: bool


def closing_events(
    dialect: Dialect,
    ending: Ending,
    first: Document,
    last: Document,
    block: object,
    usage: Usage,
    *,
    asked: bool,
) -> bytes:
    """The events that end a stream. `first` and `last` are the events they are modelled on, `block` the index of
    Anthropic's open content block, `asked` whether the client wants OpenAI's chunk of usage."""
    kind = last.get("type")
    if dialect is Dialect.ANTHROPIC:
        return _anthropic(ending, block, usage)
    if isinstance(kind, str) and kind.startswith("response."):
        return _responses(ending, first, last, usage)
    if dialect is Dialect.GEMINI:
        return _gemini(ending, last, usage)
    return _openai(ending, last, usage, asked)


def _event(document: Document, name: str = "") -> bytes:
    start = f"event: {name}\n".encode("ascii") if name else b""
    return start + b"data: " + orjson.dumps(document) + b"\n\n"


def _openai(ending: Ending, last: Document, usage: Usage, asked: bool) -> bytes:
    if not ending.graceful:
        error: Document = {"message": MESSAGE, "type": "tokens", "param": None, "code": CODE}
        return _event({"error": error}) + b"data: [DONE]\n\n"
    frame = {name: value for name, value in last.items() if name not in ("choices", "usage")}
    is_text = last.get("object") == "text_completion"
    choices: list[Document] = []
    entries = last.get("choices")
    for entry in entries if isinstance(entries, list) and entries else [{}]:
        index = entry.get("index", 0) if isinstance(entry, dict) else 0
        end: Document = {"index": index, "finish_reason": "length", "logprobs": None}
        choices.append({**end, "text": ""} if is_text else {**end, "delta": {}})
    prompt = usage.input + usage.cached_input + usage.cache_write
    output = usage.output + usage.reasoning
    told: Document = {
        "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output
    }  # fmt: skip
    if not ending.tells_usage:
        return _event({**frame, "choices": choices}) + b"data: [DONE]\n\n"
    if asked:
        return (
            _event({**frame, "choices": choices, "usage": None})
            + _event({**frame, "choices": [], "usage": told})
            + b"data: [DONE]\n\n"
        )
    return _event({**frame, "choices": choices, "usage": told}) + b"data: [DONE]\n\n"


def _responses(ending: Ending, first: Document, last: Document, usage: Usage) -> bytes:
    number = last.get("sequence_number")
    number = number + 1 if isinstance(number, int) else 0
    if not ending.graceful:
        error: Document = {"message": MESSAGE, "type": "tokens", "param": None, "code": CODE}
        plain: Document = {"type": "error", "sequence_number": number, "code": CODE, "message": MESSAGE}
        return _event({**plain, "param": None, "error": error}, "error")
    response = first.get("response")
    ended: Document = {**response} if isinstance(response, dict) else {"object": "response", "output": []}
    ended["status"] = "incomplete"
    ended["incomplete_details"] = {"reason": "max_output_tokens"}
    if ending.tells_usage:
        prompt = usage.input + usage.cached_input + usage.cache_write
        output = usage.output + usage.reasoning
        ended["usage"] = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": usage.cached_input},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": prompt + output,
        }
    name = "response.incomplete"
    return _event({"type": name, "sequence_number": number, "response": ended}, name)


def _anthropic(ending: Ending, block: object, usage: Usage) -> bytes:
    if not ending.graceful:
        error: Document = {"type": "rate_limit_error", "message": MESSAGE}
        return _event({"type": "error", "error": error}, "error")
    events = b""
    if block is not None:
        events = _event({"type": "content_block_stop", "index": block}, "content_block_stop")
    delta: Document = {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
        "usage": {"output_tokens": usage.output + usage.reasoning if ending.tells_usage else 0},
    }
    return events + _event(delta, "message_delta") + _event({"type": "message_stop"}, "message_stop")


def _gemini(ending: Ending, last: Document, usage: Usage) -> bytes:
    if not ending.graceful:
        return _event({"error": {"code": 429, "message": MESSAGE, "status": "RESOURCE_EXHAUSTED"}})
    content: Document = {"role": "model", "parts": [{"text": ""}]}
    chunk: Document = {
        name: value for name, value in last.items() if name not in ("candidates", "usageMetadata")
    }
    chunk["candidates"] = [{"index": 0, "content": content, "finishReason": "MAX_TOKENS"}]
    if ending.tells_usage:
        prompt = usage.input + usage.cached_input + usage.cache_write
        chunk["usageMetadata"] = {
            "promptTokenCount": prompt,
            "candidatesTokenCount": usage.output,
            "thoughtsTokenCount": usage.reasoning,
            "totalTokenCount": usage.total,
        }
    return _event(chunk)
