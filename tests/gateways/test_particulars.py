"""What one gateway does and the others do not: bodies, internal redirects, settling; and what the variants share."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from edge_server import Edge, wait_until
from gateway_servers import CONFIGURATIONS, Gateway, StartGateway
from request_checks import Received

needs = pytest.mark.needs


@pytest.fixture(scope="module")
def edge(start_edge: Callable[..., Edge]) -> Edge:
    return start_edge("stories")


def post(gateway: Gateway, path: str, key: str, body: bytes, *lines: str) -> Received:
    """A JSON body, as a client of an LLM sends it."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: edge",
        f"X-API-Key: {key}",
        "Content-Type: application/json",
        *lines,
    ]
    return gateway.ask("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)


def chat(most: int) -> bytes:
    """A chat request that asks for so many tokens of completion."""
    return json.dumps(
        {"model": "m", "max_tokens": most, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()


@needs("nginx")
def test_nginx_asks_again_on_an_internal_redirect_and_is_charged_once(
    edge: Edge, start_gateway: StartGateway
) -> None:
    gateway = start_gateway("nginx", edge.bind[1])
    raw = b"GET /files/a HTTP/1.1\r\nHost: edge\r\nX-API-Key: redirects\r\n\r\n"
    answers = [gateway.ask(raw) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert [answer.header("ratelimit-remaining") for answer in answers] == ["2", "1", "0", "0"]


@needs("envoy")
@pytest.mark.parametrize(("name", "reserved"), [("envoy", {100}), ("envoy-bodies", range(40, 60))])
def test_envoy_sends_a_body_where_it_is_told_to(
    name: str, reserved: range | set[int], edge: Edge, start_gateway: StartGateway
) -> None:
    """Without it the default of the rule is reserved, with it what the request asks for."""
    received = post(start_gateway(name, edge.bind[1]), "/v1/chat/completions", name, chat(40))
    assert received.status == 200
    assert 250 - int(received.header("ratelimit-remaining") or 0) in reserved


@needs("envoy")
def test_a_body_beyond_what_envoy_sends_along_reaches_the_application_whole(
    edge: Edge, start_gateway: StartGateway
) -> None:
    gateway = start_gateway("envoy-bodies", edge.bind[1])
    received = post(gateway, "/nothing", "large", b"x" * 3_000_000)
    assert received.status == 200
    assert b'"body_bytes": 3000000' in received.body


@needs("nginx", "envoy")
@pytest.mark.parametrize("name", ["envoy-bodies", "kong"])
def test_loops_are_found_in_bodies_that_are_sent_along(
    name: str, edge: Edge, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(name, edge.bind[1])
    bodies = [chat(1), chat(1), chat(2), chat(1)]
    statuses = [post(gateway, f"/prompt/{name}", "loop", body).status for body in bodies]
    assert statuses == [200, 200, 200, 429]


@pytest.fixture(scope="module")
def kong(edge: Edge, start_gateway: StartGateway) -> Gateway:
    return start_gateway("kong", edge.bind[1])


def room(gateway: Gateway, key: str, tokens: int) -> bool:
    """Whether a request for so many tokens passes. A refused one takes nothing."""
    return post(gateway, "/v1/chat/completions", key, chat(tokens)).status == 200


OPENAI = '{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}'
OPENAI_STREAM = (
    r'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    r'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n'
)
ANTHROPIC_STREAM = (
    r'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
    r'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":4}}\n\n'
)
RESPONSES_STREAM = (
    r'data: {"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}\n\n'
)
GEMINI = '{"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4,"totalTokenCount":7}}'


@needs("nginx")
@pytest.mark.parametrize(
    "answer", [OPENAI, OPENAI_STREAM, ANTHROPIC_STREAM, RESPONSES_STREAM, GEMINI], ids=range(5)
)
def test_kong_settles_with_the_usage_of_the_response(
    answer: str, kong: Gateway, request: pytest.FixtureRequest
) -> None:
    """Of 250 tokens some 200 are reserved; once 7 were used, there is room for 230 more, and not for 240."""
    key = request.node.name
    received = post(kong, "/v1/chat/completions", key, chat(200), f"X-Want-Body: {answer}")
    assert received.status == 200
    assert received.body == answer.replace("\\n", "\n").encode()
    wait_until(lambda: room(kong, key, 225))
    assert not room(kong, key, 10)


@needs("nginx")
def test_kong_gives_back_what_a_failed_upstream_did_not_use(kong: Gateway) -> None:
    assert post(kong, "/v1/chat/completions", "failed", chat(200), "X-Want-Status: 500").status == 500
    wait_until(lambda: room(kong, "failed", 240))


@needs("nginx")
def test_kong_lets_a_reservation_stand_whose_usage_is_not_told(kong: Gateway) -> None:
    """The settlement of a later request says that the earlier one would have been settled by now."""
    post(kong, "/v1/chat/completions", "untold", chat(200), 'X-Want-Body: {"choices":[]}')
    post(kong, "/v1/chat/completions", "told", chat(200), f"X-Want-Body: {OPENAI}")
    wait_until(lambda: room(kong, "told", 225))
    assert not room(kong, "untold", 100)


def lines(path: str) -> list[str]:
    text = (CONFIGURATIONS / path).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize(
    ("closed", "other", "only_closed", "only_other"),
    [
        (
            "envoy/envoy.yaml",
            "envoy/envoy-fail-open.yaml",
            {"failure_mode_allow: false", "status_on_error: {code: ServiceUnavailable}"},
            {"failure_mode_allow: true"},
        ),
        (
            "envoy/envoy.yaml",
            "envoy/envoy-bodies.yaml",
            set(),
            {"with_request_body: {max_request_bytes: 1048576, allow_partial_message: true}"},
        ),
    ],
)
def test_variants_differ_only_in_what_they_are_about(
    closed: str, other: str, only_closed: set[str], only_other: set[str]
) -> None:
    assert set(lines(closed)) - set(lines(other)) == only_closed
    assert set(lines(other)) - set(lines(closed)) == only_other


def test_the_haproxy_variants_differ_in_one_line() -> None:
    closed, opened = lines("haproxy/haproxy.cfg"), lines("haproxy/haproxy-fail-open.cfg")
    (refusal,) = set(closed) - set(opened)
    assert refusal.startswith("http-request return status 503")
    assert not set(opened) - set(closed)
