"""The real `openai` and `anthropic` SDKs through the proxy, unchanged, before a provider that speaks their formats.

The SDKs run in threads, the proxy and the provider in a loop of their own. After each call the tokens that count are
those the provider says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from edge import policy, tokens
from proxy_bench import PATIENCE_S, Bench, bench, read_request, run

pytestmark = [pytest.mark.needs("openai"), pytest.mark.needs("anthropic")]

CHAT: Any = [{"role": "user", "content": "hello"}]
WORDS = ["Hel", "lo", " there", ", how", " are", " you", " to", "day", "?", " Fine", " I", " hope", "."]


def events(documents: list[Any], *, named: bool = False) -> bytes:
    """Documents as a stream; `named`: with the event's name in a line of its own."""
    return b"".join(
        (f"event: {each['type']}\n".encode() if named else b"")
        + b"data: "
        + json.dumps(each).encode()
        + b"\n\n"
        for each in documents
    )


def chat(document: Any) -> tuple[str, bytes]:
    frame = {"id": "chatcmpl-1", "created": 1, "model": document["model"]}
    usage = {"prompt_tokens": 9, "completion_tokens": len(WORDS), "total_tokens": 9 + len(WORDS)}
    if not document.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return "application/json", json.dumps(
            {**frame, "object": "chat.completion", "choices": [choice], "usage": usage}
        ).encode()
    frame["object"] = "chat.completion.chunk"
    chunks = [
        {**frame, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
        for word in WORDS
    ]
    chunks.append({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if (document.get("stream_options") or {}).get("include_usage"):
        chunks.append({**frame, "choices": [], "usage": usage})
    return "text/event-stream", events(chunks) + b"data: [DONE]\n\n"


def responses(document: Any) -> tuple[str, bytes]:
    usage = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
             "output_tokens": len(WORDS), "output_tokens_details": {"reasoning_tokens": 0},
             "total_tokens": 9 + len(WORDS)}  # fmt: skip
    frame = {"id": "resp_1", "object": "response", "created_at": 1, "model": document["model"], "output": [],
             "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
    if not document.get("stream"):
        return "application/json", json.dumps({**frame, "status": "completed", "usage": usage}).encode()
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    stream: list[Any] = [
        {"type": "response.created", "sequence_number": 0, "response": {**frame, "status": "in_progress"}}
    ]
    stream += [
        {
            "type": "response.output_text.delta",
            "sequence_number": n + 1,
            "delta": word,
            "logprobs": [],
            **place,
        }
        for n, word in enumerate(WORDS)
    ]
    done = {**frame, "status": "completed", "usage": usage}
    stream.append({"type": "response.completed", "sequence_number": len(WORDS) + 1, "response": done})
    return "text/event-stream", events(stream, named=True)


def messages(document: Any) -> tuple[str, bytes]:
    frame = {"id": "msg_1", "type": "message", "role": "assistant", "model": document["model"]}
    if not document.get("stream"):
        content = [{"type": "text", "text": "".join(WORDS)}]
        usage = {"input_tokens": 9, "output_tokens": len(WORDS)}
        return "application/json", json.dumps(
            {**frame, "content": content, "stop_reason": "end_turn", "stop_sequence": None, "usage": usage}
        ).encode()
    started = {**frame, "content": [], "stop_reason": None, "stop_sequence": None}
    stream: list[Any] = [
        {"type": "message_start", "message": {**started, "usage": {"input_tokens": 9, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in WORDS
        ],
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
         "usage": {"output_tokens": len(WORDS)}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return "text/event-stream", events(stream, named=True)


def embeddings(document: Any) -> tuple[str, bytes]:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return "application/json", json.dumps(
        {"object": "list", "data": [vector], "model": document["model"], "usage": usage}
    ).encode()


PAGES = {
    b"/v1/chat/completions": chat,
    b"/v1/responses": responses,
    b"/v1/messages": messages,
    b"/v1/embeddings": embeddings,
}


async def provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head, body = await read_request(reader)
        kind, content = PAGES[head.split(b" ")[1].partition(b"?")[0]](json.loads(body))
        writer.write(
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for at in range(0, len(content), 100):
            piece = content[at : at + 100]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")


def through(call: Callable[[str], Any], *, used: int | None = None, settlements: int = 1, **more: Any) -> Any:
    """What `call` gives when it is told where the proxy is; afterwards `used` tokens count, `settlements` times."""
    found: list[Any] = []

    async def test() -> None:
        limited = policy("llm", tokens("tokens", tpm=100_000, **more))
        async with bench(limited, handler=provider) as proxy:
            url = f"http://127.0.0.1:{proxy.port}"
            found.append(await asyncio.wait_for(asyncio.to_thread(call, url), PATIENCE_S))
            await proxy.until(lambda: _settled(proxy) == settlements)
            if used is not None:
                assert proxy.metric("tokens_consumed_total") == used

    run(test())
    return found[0]


def _settled(proxy: Bench) -> int:
    return proxy.metric("settlements_total", result="settled")


def openai(url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)


def anthropic(url: str) -> Any:
    from anthropic import Anthropic

    return Anthropic(base_url=url, api_key="k", max_retries=0)


ALL = 9 + len(WORDS)
TEXT = "".join(WORDS)


def test_openai_chat() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return client.chat.completions.create(model="gpt-4o", messages=CHAT).choices[0].message.content

    assert through(call, used=ALL) == TEXT


def test_openai_chat_streamed_without_asking_for_usage() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return list(client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True))

    chunks = through(call, used=ALL)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert all(chunk.usage is None for chunk in chunks)


def test_openai_chat_streamed_with_usage() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return list(
                client.chat.completions.create(
                    model="gpt-4o", messages=CHAT, stream=True, stream_options={"include_usage": True}
                )
            )

    assert through(call, used=ALL)[-1].usage.total_tokens == ALL


def test_openai_asynchronously() -> None:
    from openai import AsyncOpenAI

    async def ask(url: str) -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            stream = await client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert through(lambda url: asyncio.run(ask(url)), used=ALL) == TEXT


def test_openai_responses() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return client.responses.create(model="gpt-4o", input="hello").usage.total_tokens

    assert through(call, used=ALL) == ALL


def test_openai_responses_streamed() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return list(client.responses.create(model="gpt-4o", input="hello", stream=True))

    seen = through(call, used=ALL)
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == TEXT


def test_openai_embeddings() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return (
                client.embeddings.create(model="e", input="hello", encoding_format="float").data[0].embedding
            )

    assert through(call, used=5) == [0.5, 0.25]


def test_anthropic_messages() -> None:
    def call(url: str) -> Any:
        with anthropic(url) as client:
            return client.messages.create(model="claude", max_tokens=50, messages=CHAT).content[0].text

    assert through(call, used=ALL) == TEXT


def test_anthropic_messages_streamed() -> None:
    def call(url: str) -> Any:
        with (
            anthropic(url) as client,
            client.messages.stream(model="claude", max_tokens=50, messages=CHAT) as stream,
        ):
            return stream.get_final_message()

    message = through(call, used=ALL)
    assert (message.content[0].text, message.stop_reason) == (TEXT, "end_turn")


LIMIT = {"max_completion_tokens": 5}
ERROR = {**LIMIT, "streaming": {"on_limit_exceeded": "error_chunk"}}


def test_openai_takes_a_graceful_end_for_a_normal_one() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return list(client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True))

    chunks = through(call, **LIMIT)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert TEXT.startswith("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


def test_openai_takes_a_graceful_end_of_responses_for_an_incomplete_one() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return list(client.responses.create(model="gpt-4o", input="hello", stream=True))

    last = through(call, **LIMIT)[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_anthropic_takes_a_graceful_end_for_a_normal_one() -> None:
    def call(url: str) -> Any:
        with (
            anthropic(url) as client,
            client.messages.stream(model="claude", max_tokens=50, messages=CHAT) as stream,
        ):
            return stream.get_final_message()

    message = through(call, **LIMIT)
    assert message.stop_reason == "max_tokens"
    assert TEXT.startswith(message.content[0].text)


@pytest.mark.parametrize("what", ["chat", "responses"])
def test_openai_raises_on_an_error_chunk(what: str) -> None:
    from openai import APIError

    def call(url: str) -> Any:
        with openai(url) as client, pytest.raises(APIError) as raised:
            if what == "chat":
                list(client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True))
            else:
                list(client.responses.create(model="gpt-4o", input="hello", stream=True))
        return raised.value.message

    assert "completion tokens" in through(call, **ERROR)


def test_anthropic_raises_on_an_error_event() -> None:
    from anthropic import APIStatusError

    def call(url: str) -> Any:
        with (
            anthropic(url) as client,
            pytest.raises(APIStatusError) as raised,
            client.messages.stream(model="claude", max_tokens=50, messages=CHAT) as stream,
        ):
            stream.get_final_message()
        return str(raised.value)

    assert "completion tokens" in through(call, **ERROR)
