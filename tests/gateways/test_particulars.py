"""What one gateway does and the others do not: bodies, internal redirects, settling; and what the variants share."""

from __future__ import annotations

import json
import re

import pytest
from edge_server import Edge, wait_until
from fake_edge import ALLOW, FakeEdge, carried
from gateway_servers import CONFIGURATIONS, KINDS, Gateway, StartGateway
from request_checks import Received

needs = pytest.mark.needs


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


@pytest.fixture(scope="module")
def nginx(fake_edge: FakeEdge, start_gateway: StartGateway) -> Gateway:
    return start_gateway("nginx", fake_edge.port)


@needs("nginx")
@pytest.mark.parametrize("status", [400, 401, 403, 413, 429])
def test_nginx_gives_a_reject_its_own_status_and_body(
    status: int, fake_edge: FakeEdge, nginx: Gateway
) -> None:
    fake_edge.answer(carried(status, b'{"error":{"code":"x"}}'))
    received = nginx.ask(b"GET /plain HTTP/1.1\r\nHost: edge\r\n\r\n")
    assert (received.status, received.body) == (status, b'{"error":{"code":"x"}}')
    assert received.header("cache-control") == "no-store"


REPEATED = """\
GET /nothing HTTP/1.1
Host: edge
X-API-Key: one
X-API-Key: two
X-API-Key: three, four
Cookie: a=1
Cookie: a=2

"""


@pytest.mark.parametrize("name", [pytest.param(each, marks=needs(KINDS[each].program)) for each in KINDS])
def test_repeated_lines_reach_the_edge_as_they_were_sent(
    name: str, fake_edge: FakeEdge, start_gateway: StartGateway
) -> None:
    """One by one and in order: a value that came on two lines cannot be mistaken for one with a comma in it."""
    fake_edge.answer(ALLOW)
    gateway = start_gateway(name, fake_edge.port)
    assert gateway.ask(REPEATED.replace("\n", "\r\n").encode()).status == 200
    asked = fake_edge.asked.decode()
    assert re.findall(r"(?mi)^x-api-key: (.*)\r$", asked) == ["one", "two", "three, four"]
    assert re.findall(r"(?mi)^cookie: (.*)\r$", asked) == ["a=1", "a=2"]


@needs("nginx")
@pytest.mark.parametrize(
    "lines",
    [
        "X-Original-URI: /nothing",
        "X-Original-URL: http://edge/nothing",
        "X-Original-Method: OPTIONS",
        "X-Original-Host: other",
        "X-Forwarded-Uri: /nothing",
        "X-Fairvisor-Request-Id: 1",
        "X_Original_URL: http://edge/nothing",
        "Connection: X-Original-URL, X-Original-Method",
    ],
)
def test_a_client_of_ingress_nginx_cannot_choose_its_path_or_repeat_an_id(
    lines: str, edge: Edge, start_gateway: StartGateway, request: pytest.FixtureRequest
) -> None:
    gateway = start_gateway("ingress-nginx-ingress.yaml", edge.bind[1])
    key = f"ingress {request.node.name}"
    raw = f"GET /plain HTTP/1.1\r\nHost: edge\r\nX-API-Key: {key}\r\n{lines}\r\n\r\n".encode()
    assert [gateway.ask(raw).status for _ in range(4)] == [200, 200, 200, 403]


@needs("nginx")
def test_a_client_of_ingress_nginx_is_its_connection(edge: Edge, start_gateway: StartGateway) -> None:
    gateway = start_gateway("ingress-nginx-ingress.yaml", edge.bind[1])
    raw = b"GET /address HTTP/1.1\r\nHost: edge\r\nX-Forwarded-For: 203.0.113.%d\r\nX-Real-IP: 203.0.113.9\r\n\r\n"
    statuses = [gateway.ask(raw % number, "127.0.0.77").status for number in range(6)]
    assert statuses[-1] == 403
    assert gateway.ask(raw % 0, "127.0.0.78").status == 200


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
            {
                "with_request_body: {max_request_bytes: 1048576, allow_partial_message: true}",
                'header: {key: x-fairvisor-body-bytes, value: "%REQ(content-length)%"}',
                "- {exact: x-fairvisor-body-bytes}",
            },
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
