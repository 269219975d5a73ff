"""The LiteLLM proxy with our callback: refusals reach the client, usage settles, clients cannot choose who they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edge_server import Edge, reserve_port, wait_until
from fake_edge import FakeEdge
from gateway_servers import CONFIGURATIONS, Ports, exchange, install
from request_checks import Received

from fairvisor.clock import NS_PER_S, read_now

pytestmark = pytest.mark.needs("litellm")
STARTED_WITHIN_S = 180
MASTER_KEY = "sk-test-0123456789abcdef0123456789abcdef"
TPM = {"tokens_per_minute": 1, "burst_tokens": 250, "default_max_completion": 100}
RULE = {
    "name": "tokens",
    "limit_keys": ["header:x-tenant", "header:x-litellm-key-hash"],
    "on_missing": "reject",
    "algorithm": "token_bucket_llm",
    "algorithm_config": TPM,
}
BUNDLE = {
    "bundle_version": 1,
    "policies": [{"id": "llm", "spec": {"selector": {"pathPrefix": "/v1"}, "rules": [RULE]}}],
}


class Proxy:
    """A running LiteLLM proxy."""

    def __init__(self, place: Path, edge: int, provider: int, *, fail_open: bool = False) -> None:
        self._reserved = reserve_port()
        self.address: tuple[str, int] = self._reserved.getsockname()
        install(
            ((CONFIGURATIONS / "litellm", "."),),
            place,
            Ports(self.address[1], edge, provider),
            {},
            patient=False,
        )
        environ = {
            **os.environ,
            "EDGE_URL": f"http://127.0.0.1:{edge}",
            "EDGE_FAIL_OPEN": str(fail_open).lower(),
            "LITELLM_MASTER_KEY": MASTER_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "OPENAI_API_KEY": "sk-none",
        }
        command = [
            "litellm",
            "--config",
            "config.yaml",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.address[1]),
        ]
        self.log = place / "litellm.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=place, env=environ, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it answers; it imports for longer than anything else here."""
        end = read_now().mono_ns + STARTED_WITHIN_S * NS_PER_S
        while not self.is_up():
            assert read_now().mono_ns < end, self.log.read_text()[-3000:]

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return exchange(self.address, b"GET /health/liveliness HTTP/1.1\r\nHost: h\r\n\r\n").status == 200
        except OSError:
            return False

    def chat(self, key: str, most: int, *lines: str, **more: object) -> Received:
        """A chat request that asks for so many tokens of completion."""
        message = {"role": "user", "content": "hi"}
        document = {"model": "gpt-4o-mini", "max_tokens": most, "messages": [message], **more}
        body = json.dumps(document).encode()
        head = ["POST /v1/chat/completions HTTP/1.1", "Host: h", f"Authorization: Bearer {MASTER_KEY}"]
        head += [f"X-Tenant: {key}", "Content-Type: application/json", f"Content-Length: {len(body)}", *lines]
        return exchange(self.address, "\r\n".join([*head, "", ""]).encode() + body)

    def stop(self) -> None:
        self._reserved.close()
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def provider() -> Iterator[int]:
    reserved = reserve_port()
    port: int = reserved.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(Path(__file__).parent / "provider.py"), str(port)])
    yield port
    reserved.close()
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def proxies(
    tmp_path_factory: pytest.TempPathFactory, start_edge: Callable[..., Edge], provider: int
) -> Iterator[tuple[Proxy, Proxy, Proxy]]:
    """One before an edge, two before none, of which the last fails open: they start at the same time, because it takes
    them long."""
    bundle = tmp_path_factory.mktemp("bundle") / "bundle.json"
    bundle.write_text(json.dumps(BUNDLE))
    dead = FakeEdge()
    started = (
        Proxy(tmp_path_factory.mktemp("litellm"), start_edge(bundle).bind[1], provider),
        Proxy(tmp_path_factory.mktemp("litellm"), dead.port, provider),
        Proxy(tmp_path_factory.mktemp("litellm"), dead.port, provider, fail_open=True),
    )
    try:
        for proxy in started:
            proxy.wait()
        yield started
    finally:
        for proxy in started:
            proxy.stop()
        dead.stop()


@pytest.fixture
def proxy(proxies: tuple[Proxy, Proxy, Proxy]) -> Proxy:
    return proxies[0]


def test_a_refusal_reaches_the_client(proxy: Proxy) -> None:
    """What can never fit is refused whatever was settled."""
    received = proxy.chat("refused", 260)
    assert received.status == 429
    assert received.header("x-fairvisor-reason") == "max_tokens_per_request_exceeded"
    assert received.header("x-should-retry") == "false"
    assert int(received.header("retry-after") or 0) > 0
    assert b"error" in received.body
    assert received.header("x-fairvisor-reservation") is None


@pytest.mark.parametrize("more", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_usage_settles_the_reservation(proxy: Proxy, more: dict[str, object]) -> None:
    """Of 250 tokens some 200 are reserved; once 7 were used there is room for 225, and not for 245."""
    key = f"used-{len(more)}"
    received = proxy.chat(key, 200, **more)
    assert received.status == 200, received
    assert b"fairvisor-reservation" not in received.body.lower()
    wait_until(lambda: proxy.chat(key, 225, user="fails").status == 400)
    assert proxy.chat(key, 245).status == 429


def test_a_failed_call_costs_nothing(proxy: Proxy) -> None:
    assert proxy.chat("failed", 200, user="fails").status == 400
    wait_until(lambda: proxy.chat("failed", 235, user="fails").status == 400)


def test_a_client_chooses_neither_its_path_nor_its_key_nor_its_reservation(proxy: Proxy) -> None:
    lines = ("X-Original-URI: /nothing", "X_Original_URI: /nothing", "X-LiteLLM-Key-Hash: other")
    received = proxy.chat("spoof", 200, *lines, metadata={"fairvisor_ticket": "mine"})
    assert received.status == 200, received
    wait_until(lambda: proxy.chat("spoof", 225, user="fails").status == 400)
    assert proxy.chat("spoof", 245).status == 429, "the other requests were charged to the same key"


def test_without_an_edge_it_refuses_or_goes_on_as_it_is_told(proxies: tuple[Proxy, Proxy, Proxy]) -> None:
    _, closed, opened = proxies
    assert closed.chat("any", 10).status == 503
    assert opened.chat("any", 10).status == 200
