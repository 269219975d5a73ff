"""The real `openai` and `anthropic` SDKs against our 429: their own error, our message, our Retry-After, no vain retry.

A server on 127.0.0.1 answers every call as the edge would; the SDKs' sleep is replaced by a list of what they wanted
to wait. The two packages are test dependencies; without them these tests are left out and listed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fairvisor.decision import Reason
from fairvisor.llm.dialect import MESSAGES, dialect_of, error_body

CHAT = [{"role": "user", "content": "hello"}]
SECONDS = 17


class RefusingEdge(ThreadingHTTPServer):
    """Refuses every POST with `reason`, in the dialect of its path; counts the calls."""

    reason = Reason.TPM_EXCEEDED
    hopeless = False
    retry_after = SECONDS

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Refusal)
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Refusal(BaseHTTPRequestHandler):
    """One refused request."""

    protocol_version = "HTTP/1.1"
    server: RefusingEdge

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        edge = self.server
        edge.calls.append(self.path)
        body = error_body(dialect_of(self.path), edge.reason, edge.retry_after)
        self.send_response(429)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", str(edge.retry_after))
        self.send_header("X-Fairvisor-Reason", edge.reason.value)
        if edge.hopeless:
            self.send_header("X-Should-Retry", "false")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def edge() -> Iterator[RefusingEdge]:
    server = RefusingEdge()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the SDKs wanted to wait, in seconds; nobody waits."""
    import time

    wanted: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(
        time, "sleep", lambda seconds: wanted.append(seconds) if seconds >= 0.1 else sleep(seconds)
    )
    return wanted


@pytest.mark.needs("openai")
class TestOpenAI:
    def ask(self, edge: RefusingEdge, surface: str = "chat") -> Any:
        """The error that the SDK raises."""
        import openai

        with (
            openai.OpenAI(base_url=f"{edge.url}/v1", api_key="k") as client,
            pytest.raises(openai.RateLimitError) as raised,
        ):
            if surface == "responses":
                client.responses.create(model="gpt-4o", input="hello")
            elif surface == "embeddings":
                client.embeddings.create(model="text-embedding-3-small", input="hello")
            else:
                client.chat.completions.create(model="gpt-4o", messages=CHAT, stream=surface == "stream")  # type: ignore
        return raised.value

    @pytest.mark.parametrize("surface", ["chat", "stream", "responses", "embeddings"])
    def test_it_raises_its_own_error_with_our_message(
        self, edge: RefusingEdge, waits: list[float], surface: str
    ) -> None:
        error = self.ask(edge, surface)
        assert error.status_code == 429
        assert MESSAGES[Reason.TPM_EXCEEDED] in str(error)
        assert (error.code, error.type, error.param) == ("tpm_exceeded", "tokens", None)
        assert error.body["retry_after"] == SECONDS

    def test_it_waits_for_retry_after_where_a_retry_can_help(
        self, edge: RefusingEdge, waits: list[float]
    ) -> None:
        self.ask(edge)
        assert waits == [SECONDS, SECONDS]
        assert len(edge.calls) == 3

    def test_it_does_not_retry_where_none_can_help(self, edge: RefusingEdge, waits: list[float]) -> None:
        edge.reason, edge.hopeless = Reason.BUDGET_EXHAUSTED, True
        error = self.ask(edge)
        assert waits == []
        assert edge.calls == ["/v1/chat/completions"]
        assert (error.code, error.type) == ("budget_exhausted", "insufficient_quota")

    def test_it_does_not_wait_longer_than_two_minutes(self, edge: RefusingEdge, waits: list[float]) -> None:
        edge.retry_after = 121
        self.ask(edge)
        assert waits == []
        assert len(edge.calls) == 1

    def test_azure_s_client_does_the_same(self, edge: RefusingEdge, waits: list[float]) -> None:
        import openai

        azure = openai.AzureOpenAI(azure_endpoint=edge.url, api_key="k", api_version="2024-06-01")
        with azure as client, pytest.raises(openai.RateLimitError, match="Too many tokens per minute"):
            client.chat.completions.create(model="my-gpt", messages=CHAT)  # type: ignore
        assert waits == [SECONDS, SECONDS]
        assert edge.calls[0].startswith("/openai/deployments/my-gpt/chat/completions")

    def test_the_asynchronous_client_does_the_same(
        self, edge: RefusingEdge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import anyio
        import openai

        waits = keep_waits(monkeypatch)

        async def ask() -> None:
            async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="k") as client:
                await client.chat.completions.create(model="gpt-4o", messages=CHAT)  # type: ignore

        with pytest.raises(openai.RateLimitError, match="Too many tokens per minute"):
            anyio.run(ask)
        assert waits == [SECONDS, SECONDS]


@pytest.mark.needs("anthropic")
class TestAnthropic:
    def ask(self, edge: RefusingEdge, surface: str = "messages") -> Any:
        """The error that the SDK raises."""
        import anthropic

        with (
            anthropic.Anthropic(base_url=edge.url, api_key="k") as client,
            pytest.raises(anthropic.RateLimitError) as raised,
        ):
            if surface == "count_tokens":
                client.messages.count_tokens(model="claude-of-this-test", messages=CHAT)  # type: ignore
            else:
                client.messages.create(
                    model="claude-of-this-test",
                    max_tokens=64,
                    messages=CHAT,  # type: ignore
                    stream=surface == "stream",
                )
        return raised.value

    @pytest.mark.parametrize("surface", ["messages", "stream", "count_tokens"])
    def test_it_raises_its_own_error_with_our_message(
        self, edge: RefusingEdge, waits: list[float], surface: str
    ) -> None:
        error = self.ask(edge, surface)
        assert error.status_code == 429
        assert MESSAGES[Reason.TPM_EXCEEDED] in str(error)
        assert error.body["type"] == "error"
        assert error.body["error"]["type"] == "rate_limit_error"
        assert error.body["error"]["reason"] == "tpm_exceeded"

    def test_it_waits_for_retry_after_where_a_retry_can_help(
        self, edge: RefusingEdge, waits: list[float]
    ) -> None:
        self.ask(edge)
        assert waits == [SECONDS, SECONDS]
        assert len(edge.calls) == 3

    def test_it_does_not_retry_where_none_can_help(self, edge: RefusingEdge, waits: list[float]) -> None:
        edge.reason, edge.hopeless = Reason.KILL_SWITCH_ACTIVE, True
        error = self.ask(edge)
        assert waits == []
        assert edge.calls == ["/v1/messages"]
        assert MESSAGES[Reason.KILL_SWITCH_ACTIVE] in str(error)

    def test_the_asynchronous_client_does_the_same(
        self, edge: RefusingEdge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import anthropic
        import anyio

        waits = keep_waits(monkeypatch)

        async def ask() -> None:
            async with anthropic.AsyncAnthropic(base_url=edge.url, api_key="k") as client:
                await client.messages.create(model="claude-of-this-test", max_tokens=64, messages=CHAT)  # type: ignore

        with pytest.raises(anthropic.RateLimitError, match="Too many tokens per minute"):
            anyio.run(ask)
        assert waits == [SECONDS, SECONDS]


def keep_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What asynchronous clients want to wait, in seconds; nobody waits."""
    import anyio

    wanted: list[float] = []

    async def note(seconds: float) -> None:
        wanted.append(seconds)

    monkeypatch.setattr(anyio, "sleep", note)
    return wanted
