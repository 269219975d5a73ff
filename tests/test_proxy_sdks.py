"""The real SDKs through the proxy, unchanged, before a provider that speaks their formats.

The SDKs run in threads, the proxy and the provider in a loop of their own. After each call the counters hold exactly
the tokens that the provider tells, and the bytes that the SDK has read are those that the provider sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from edge import policy, tokens
from llm_provider import TEXT, USED, USED_BY_A_TOOL, USED_BY_AN_EMBEDDING, Provider
from proxy_bench import Bench, Client, bench, run

pytestmark = [pytest.mark.needs("openai"), pytest.mark.needs("anthropic"), pytest.mark.needs("google.genai")]

PATIENCE_S = 100  # an SDK may take seconds to import
CHAT: Any = [{"role": "user", "content": "hello"}]
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
CITY = {"city": "Paris"}
TPM = {"tpm": 1, "burst_tokens": 100_000, "tokens_per_day": 100_000}  # nothing comes back while a test runs


class Witness:
    """A relay before the proxy that keeps what the SDK reads."""

    def __init__(self, proxy_port: int) -> None:
        self.read: list[bytes] = []
        self._proxy_port = proxy_port

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._proxy_port)
        sending = asyncio.create_task(self._pass(reader, behind))
        try:
            while data := await behind_reader.read(65536):
                self.read.append(data)
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            sending.cancel()
            writer.close()
            behind.close()

    async def _pass(self, reader: asyncio.StreamReader, behind: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            behind.write(data)
        behind.close()

    async def body(self) -> bytes:
        """The content of the last response, without its framing."""
        reader = asyncio.StreamReader(limit=1 << 20)
        reader.feed_data(b"".join(self.read))
        reader.feed_eof()
        return (await Client(reader, None).response()).body  # type: ignore[arg-type]


@asynccontextmanager
async def witness(proxy: Bench) -> AsyncIterator[tuple[Witness, str]]:
    """A witness, and where the SDK finds it."""
    made = Witness(proxy.port)
    server = await asyncio.start_server(made.relay, "127.0.0.1", 0)
    try:
        yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def through(
    call: Callable[[str], Any],
    *,
    used: int | None = None,
    takes_out: bytes = b"",
    backend: str = "http://a",
    **more: Any,
) -> Any:
    """What `call` gives when it is told where the proxy is.

    `used`: what the counters must hold afterwards; then the SDK must have read what the provider sent, but for the
    event in which `takes_out` stands, if any. `backend` is where the proxy is told that the provider is.
    """
    found: list[Any] = []
    provider = Provider()

    async def test() -> None:
        limited = policy("llm", tokens("tokens", **TPM, **more))
        environ = {"FAIRVISOR_BACKEND_URL": backend}
        async with (
            bench(limited, handler=provider.serve, environ=environ) as proxy,
            witness(proxy) as (seen, url),
        ):
            found.append(await asyncio.wait_for(asyncio.to_thread(call, url), PATIENCE_S))
            await proxy.until(lambda: proxy.metric("settlements_total", result="settled") == 1)
            if used is not None:
                assert proxy.taken("llm", "tokens") == [used, used]
                assert await seen.body() == without(provider.sent[-1], takes_out)

    run(test(), PATIENCE_S)
    return found[0]


def without(content: bytes, part: bytes) -> bytes:
    """A stream without the event that has this part."""
    events = content.split(b"\n\n")
    return b"\n\n".join(event for event in events if not part or part not in event)


def openai(url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)


def azure(url: str) -> Any:
    from openai import AzureOpenAI

    return AzureOpenAI(azure_endpoint=url, api_key="k", api_version="2024-10-21", max_retries=0)


def anthropic(url: str) -> Any:
    from anthropic import Anthropic

    return Anthropic(base_url=url, api_key="k", max_retries=0)


def gemini(url: str) -> Any:
    from google import genai

    return genai.Client(api_key="k", http_options={"base_url": url})


USAGE = b'"choices": [], "usage"'  # OpenAI's chunk of usage, which a client that did not ask does not see


@pytest.mark.parametrize("connect", [openai, azure])
def test_openai_chat(connect: Callable[[str], Any]) -> None:
    def call(url: str) -> Any:
        with connect(url) as client:
            return client.chat.completions.create(model="gpt-4o", messages=CHAT).choices[0].message.content

    assert through(call, used=USED) == TEXT


@pytest.mark.parametrize("connect", [openai, azure])
def test_openai_chat_streamed_without_asking_for_usage(connect: Callable[[str], Any]) -> None:
    def call(url: str) -> Any:
        with connect(url) as client:
            return list(client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True))

    chunks = through(call, used=USED, takes_out=USAGE)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert all(chunk.usage is None for chunk in chunks)


def test_mistral_is_not_asked_for_its_usage_and_tells_it() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return list(client.chat.completions.create(model="mistral-large", messages=CHAT, stream=True))

    chunks = through(call, used=USED, backend="https://api.mistral.ai")
    assert chunks[-1].usage.total_tokens == USED


def test_openai_chat_streamed_with_usage() -> None:
    def call(url: str) -> Any:
        asking = {"include_usage": True}
        with openai(url) as client:
            create = client.chat.completions.create
            return list(create(model="gpt-4o", messages=CHAT, stream=True, stream_options=asking))

    assert through(call, used=USED)[-1].usage.total_tokens == USED


@pytest.mark.parametrize("streamed", [False, True])
def test_openai_calls_a_tool(streamed: bool) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]

    def call(url: str) -> Any:
        with openai(url) as client:
            if not streamed:
                done = client.chat.completions.create(model="gpt-4o", messages=CHAT, tools=tools)
            else:
                ask = {"model": "gpt-4o", "messages": CHAT, "tools": tools}
                with client.chat.completions.stream(**ask) as stream:
                    done = stream.get_final_completion()
            return done.choices[0].message.tool_calls[0].function

    function = through(call, used=USED_BY_A_TOOL, takes_out=USAGE if streamed else b"")
    assert (function.name, function.arguments) == ("weather", '{"city": "Paris"}')


@pytest.mark.parametrize("streamed", [False, True])
def test_openai_asynchronously(streamed: bool) -> None:
    from openai import AsyncOpenAI

    async def ask(url: str) -> Any:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
            if not streamed:
                done = await client.chat.completions.create(model="gpt-4o", messages=CHAT)
                return done.choices[0].message.content
            stream = await client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    taken = USAGE if streamed else b""
    assert through(lambda url: asyncio.run(ask(url)), used=USED, takes_out=taken) == TEXT


def test_openai_responses() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return client.responses.create(model="gpt-4o", input="hello").usage.total_tokens

    assert through(call, used=USED) == USED


def test_openai_responses_streamed() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            return list(client.responses.create(model="gpt-4o", input="hello", stream=True))

    seen = through(call, used=USED)
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == TEXT


def test_openai_embeddings() -> None:
    def call(url: str) -> Any:
        with openai(url) as client:
            made = client.embeddings.create(model="e", input="hello", encoding_format="float")
            return made.data[0].embedding

    assert through(call, used=USED_BY_AN_EMBEDDING) == [0.5, 0.25]


def test_anthropic_messages() -> None:
    def call(url: str) -> Any:
        with anthropic(url) as client:
            return client.messages.create(model="claude", max_tokens=50, messages=CHAT).content[0].text

    assert through(call, used=USED) == TEXT


def test_anthropic_messages_streamed() -> None:
    def call(url: str) -> Any:
        with (
            anthropic(url) as client,
            client.messages.stream(model="claude", max_tokens=50, messages=CHAT) as stream,
        ):
            return stream.get_final_message()

    message = through(call, used=USED)
    assert (message.content[0].text, message.stop_reason) == (TEXT, "end_turn")


@pytest.mark.parametrize("streamed", [False, True])
def test_anthropic_calls_a_tool(streamed: bool) -> None:
    tools = [{"name": "weather", "input_schema": PARAMETERS}]
    ask = {"model": "claude", "max_tokens": 50, "messages": CHAT, "tools": tools}

    def call(url: str) -> Any:
        with anthropic(url) as client:
            if not streamed:
                return client.messages.create(**ask)
            with client.messages.stream(**ask) as stream:
                return stream.get_final_message()

    message = through(call, used=USED_BY_A_TOOL)
    assert (message.content[0].input, message.stop_reason) == (CITY, "tool_use")


@pytest.mark.parametrize("streamed", [False, True])
def test_anthropic_asynchronously(streamed: bool) -> None:
    from anthropic import AsyncAnthropic

    async def ask(url: str) -> Any:
        wanted = {"model": "claude", "max_tokens": 50, "messages": CHAT}
        async with AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client:
            if not streamed:
                return (await client.messages.create(**wanted)).content[0].text
            async with client.messages.stream(**wanted) as stream:
                return await stream.get_final_text()

    assert through(lambda url: asyncio.run(ask(url)), used=USED) == TEXT


def test_gemini() -> None:
    def call(url: str) -> Any:
        with gemini(url) as client:
            return client.models.generate_content(model="gemini-2.5-flash", contents="hello").text

    assert through(call, used=USED) == TEXT


def test_gemini_streamed() -> None:
    def call(url: str) -> Any:
        with gemini(url) as client:
            stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hello")
            return list(stream)

    chunks = through(call, used=USED)
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert chunks[-1].usage_metadata.total_token_count == USED


@pytest.mark.parametrize("streamed", [False, True])
def test_gemini_calls_a_tool(streamed: bool) -> None:
    declared = {"name": "weather", "parameters_json_schema": PARAMETERS}
    ask: Any = {
        "model": "gemini-2.5-flash",
        "contents": "hello",
        "config": {"tools": [{"function_declarations": [declared]}]},
    }

    def call(url: str) -> Any:
        with gemini(url) as client:
            if not streamed:
                return client.models.generate_content(**ask)
            return list(client.models.generate_content_stream(**ask))[-1]

    (function,) = through(call, used=USED_BY_A_TOOL).function_calls
    assert (function.name, function.args) == ("weather", CITY)


@pytest.mark.parametrize("streamed", [False, True])
def test_gemini_asynchronously(streamed: bool) -> None:
    async def ask(url: str) -> Any:
        wanted = {"model": "gemini-2.5-flash", "contents": "hello"}
        async with gemini(url).aio as client:
            if not streamed:
                return (await client.models.generate_content(**wanted)).text
            stream = await client.models.generate_content_stream(**wanted)
            return "".join([chunk.text async for chunk in stream])

    assert through(lambda url: asyncio.run(ask(url)), used=USED) == TEXT


def test_gemini_embeddings() -> None:
    def call(url: str) -> Any:
        with gemini(url) as client:
            made = client.models.embed_content(model="gemini-embedding-001", contents="hello")
            return made.embeddings[0].values

    assert through(call, used=USED_BY_AN_EMBEDDING) == [0.5, 0.25]


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


def test_gemini_takes_a_graceful_end_for_a_normal_one() -> None:
    def call(url: str) -> Any:
        with gemini(url) as client:
            stream = client.models.generate_content_stream(model="gemini-2.5-flash", contents="hello")
            return list(stream)

    chunks = through(call, **LIMIT)
    assert chunks[-1].candidates[0].finish_reason == "MAX_TOKENS"
    assert TEXT.startswith("".join(chunk.text or "" for chunk in chunks))


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


def test_gemini_raises_on_an_error_chunk() -> None:
    from google.genai.errors import APIError

    def call(url: str) -> Any:
        with gemini(url) as client, pytest.raises(APIError) as raised:
            list(client.models.generate_content_stream(model="gemini-2.5-flash", contents="hello"))
        return str(raised.value)

    assert "completion tokens" in through(call, **ERROR)
