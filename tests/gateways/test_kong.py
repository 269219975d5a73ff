"""The Kong plugin: which bodies are counted, which answers are settled, and what the client sees of both."""

from __future__ import annotations

import gzip
import json
import subprocess
import zlib
from collections.abc import Callable, Iterator
from email.message import Message
from itertools import count
from pathlib import Path

import pytest
from application import Application, Fields, nothing
from edge_server import Edge, wait_until
from fake_edge import FakeEdge
from gateway_servers import KINDS, Gateway, exchange
from request_checks import Received

pytestmark = pytest.mark.needs("nginx")

BURST = 2_000_000
KEYS = (f"key-{number}" for number in count())


@pytest.fixture(scope="module")
def edge(start_edge: Callable[..., Edge]) -> Edge:
    return start_edge("tokens", FAIRVISOR_WORKER_PROCESSES="1")


@pytest.fixture(scope="module")
def shared_application() -> Iterator[Application]:
    application = Application()
    yield application
    application.stop()


@pytest.fixture
def application(shared_application: Application) -> Application:
    shared_application.respond = nothing
    return shared_application


@pytest.fixture(scope="module")
def kong(
    edge: Edge, shared_application: Application, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    gateway = start_kong(tmp_path_factory.mktemp("kong"), edge.bind[1], shared_application)
    yield gateway
    gateway.stop()


@pytest.fixture(scope="module")
def kong_of_fake(
    fake_edge: FakeEdge, shared_application: Application, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    gateway = start_kong(tmp_path_factory.mktemp("fake"), fake_edge.port, shared_application)
    yield gateway
    gateway.stop()


def start_kong(place: Path, edge: int, application: Application) -> Gateway:
    return Gateway(KINDS["kong"], KINDS["kong"].closed, place, edge, application.port, patient=True)


def chat(size: int, most: int = 50) -> bytes:
    """Return a chat request of so many bytes, with what it asks for behind the prompt."""
    frame = json.dumps({"model": "m", "messages": [{"role": "user", "content": "@"}], "max_tokens": most})
    padding = "pad " * ((size - len(frame) + 1) // 4)
    return frame.replace("@", padding.ljust(size - len(frame) + 1)).encode()


def post(
    body: bytes, key: str, *lines: str, path: str = "/v1/chat/completions", chunked: bool = False
) -> bytes:
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = [f"POST {path} HTTP/1.1", "Host: edge", f"X-API-Key: {key}", *lines, framing, "", ""]
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    return "\r\n".join(head).encode() + sent


def reserved(received: Received) -> int:
    assert received.status in (200, 204), received
    return BURST - int(received.header("ratelimit-remaining") or 0)


def left(gateway: Gateway, key: str) -> int:
    """Return how many tokens are left, which a request that generates nothing shows."""
    received = gateway.ask(post(b'{"input": "a"}', key, path="/v1/embeddings"))
    return int(received.header("ratelimit-remaining") or 0)


JSON = "Content-Type: application/json"


@pytest.mark.parametrize("size", [1_000, 7_000, 9_000, 40_000, 1_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_any_size_reserves_what_it_asks_for(
    size: int, chunked: bool, kong: Gateway, edge: Edge, application: Application
) -> None:
    """Above client_body_buffer_size (8 KiB) it is in a file."""
    body = chat(size)
    lines = ["X-Original-Method: POST", "X-Original-URI: /v1/chat/completions", JSON]
    direct = exchange(edge.bind, post(body, next(KEYS), *lines, path="/v1/decision"))
    assert reserved(direct) > size // 5
    received = kong.ask(post(body, next(KEYS), JSON, chunked=chunked))
    assert reserved(received) == reserved(direct)
    assert application.body == body


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Type: Application/JSON"],
        ["Content-Type: text/json; charset=utf-8"],
        ["Content-Type: application/vnd.api+json"],
        ["Content-Type: application/octet-stream"],
        ["Content-Type: application/grpc"],
        [],
    ],
)
def test_no_content_type_hides_a_body(lines: list[str], kong: Gateway, application: Application) -> None:
    assert reserved(kong.ask(post(chat(1_000, 2_000), next(KEYS), *lines))) > 2_000


def test_a_compressed_body_is_read(kong: Gateway, application: Application) -> None:
    body = gzip.compress(chat(1_000, 2_000))
    received = kong.ask(post(body, next(KEYS), JSON, "Content-Encoding: gzip"))
    assert reserved(received) > 2_000


def test_of_a_body_above_the_bound_all_bytes_count(kong: Gateway, application: Application) -> None:
    """The mebibyte that is sent, and a token for four bytes of what is not; it reaches the application whole."""
    body = chat(3_000_000)
    assert reserved(kong.ask(post(body, next(KEYS), JSON))) > 3_000_000 // 5
    assert application.body == body


@pytest.mark.needs("curl")
def test_a_body_that_cannot_be_read_ahead_counts_as_the_largest(
    kong: Gateway, application: Application
) -> None:
    """Over HTTP/2 without a Content-Length, which a client may choose."""
    url = "http://edge/v1/chat/completions"
    options = ["--http2-prior-knowledge", "--unix-socket", str(kong.folder / "http2.sock")]
    command = ["curl", "-s", "-i", *options, "-H", f"X-API-Key: {next(KEYS)}", "-X", "POST", "-T", "-", url]
    shown = subprocess.run(command, input=chat(9_000), capture_output=True, check=True).stdout.decode()
    remaining = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)[
        "ratelimit-remaining"
    ]
    assert BURST - int(remaining) == (1 << 20) // 4 + 100


def test_the_body_of_a_grpc_service_is_not_waited_for(
    fake_edge: FakeEdge, kong_of_fake: Gateway, application: Application
) -> None:
    fake_edge.answer(b"HTTP/1.1 204 No Content\r\n\r\n")
    lines = ["Content-Type: application/grpc", "X-Service-Protocol: grpcs"]
    assert kong_of_fake.ask(post(b"\0\0\0\0\1a", "k", *lines, path="/plain")).status == 200
    asked = fake_edge.asked.lower()
    assert b"content-length: 0" in asked
    assert b"x-fairvisor-body-bytes" not in asked


# Answers

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def encoded(body: bytes) -> Callable[[Message], tuple[Fields, bytes]]:
    """Return an application that encodes its answer where it is asked for that, as providers do."""

    def respond(headers: Message) -> tuple[Fields, bytes]:
        for coding, encode in (("br", zlib.compress), ("gzip", gzip.compress), ("deflate", zlib.compress)):
            if coding in headers.get("Accept-Encoding", "identity"):
                return [("Content-Type", "application/json"), ("Content-Encoding", coding)], encode(body)
        return [("Content-Type", "application/json")], body

    return respond


def test_no_coding_hides_the_usage(kong: Gateway, application: Application) -> None:
    for accepted in ("gzip, deflate, br, zstd", "br;q=1.0, *;q=0.1", "deflate", "GZIP", "identity"):
        application.respond = encoded(json.dumps({"usage": USAGE}).encode())
        key = next(KEYS)
        assert reserved(kong.ask(post(chat(400, 4_000), key, JSON, f"Accept-Encoding: {accepted}"))) > 4_000
        wait_until(lambda key=key: left(kong, key) > BURST - 100)


def test_what_holds_no_reservation_is_encoded_as_the_client_likes(
    kong: Gateway, application: Application
) -> None:
    kong.ask(post(b"{}", next(KEYS), "Accept-Encoding: gzip, br", path="/plain"))
    assert application.headers["Accept-Encoding"] == "gzip, br"


def stream(*documents: object) -> bytes:
    return b"".join(b"event: e\r\ndata: %b\r\n\r\n" % json.dumps(each).encode() for each in documents)


DELTA = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "word " * 10}}
LONG_STREAM = stream(
    {"type": "message_start", "message": {"usage": {"input_tokens": 30_000, "output_tokens": 1}}},
    *[DELTA] * 15_000,
    {"type": "message_delta", "usage": {"output_tokens": 4_000}},
)
GEMINI_ARRAY = json.dumps(
    [
        {"candidates": [], "usageMetadata": {"promptTokenCount": 30_000, "totalTokenCount": 30_000}},
        {
            "usageMetadata": {
                "promptTokenCount": 30_000,
                "candidatesTokenCount": 4_000,
                "totalTokenCount": 34_000,
            }
        },
    ]
).encode()


@pytest.mark.parametrize("answer", [LONG_STREAM, GEMINI_ARRAY], ids=["a stream of 2 MB", "an array"])
def test_usage_is_found_at_both_ends_of_an_answer(
    answer: bytes, kong: Gateway, application: Application
) -> None:
    """Anthropic has the input at the start of a stream and the output at its end."""
    application.respond = lambda _: ([("Content-Type", "text/event-stream")], answer)
    key = next(KEYS)
    received = kong.ask(post(chat(400, 10), key, JSON))
    assert received.body == answer
    application.respond = nothing
    wait_until(lambda: left(kong, key) <= BURST - 34_000)
    assert left(kong, key) > BURST - 34_200


LIMITS = ["RateLimit", "RateLimit-Policy", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"]


def own_limits(_: Message) -> tuple[Fields, bytes]:
    return [(name, "99") for name in LIMITS], b"{}"


@pytest.mark.parametrize("shown", ['RateLimit: "plain";r=2;t=3', "RateLimit-Limit: 3"])
def test_no_limit_of_the_application_contradicts_ours(
    shown: str, fake_edge: FakeEdge, kong_of_fake: Gateway, application: Application
) -> None:
    """Also not in the form that FAIRVISOR_RATELIMIT_HEADERS leaves out."""
    application.respond = own_limits
    fake_edge.answer(f"HTTP/1.1 204 No Content\r\n{shown}\r\n\r\n".encode())
    received = kong_of_fake.ask(post(b"{}", "k", path="/plain"))
    fields = [f"{name}: {value}" for name, value in received.headers if name.lower().startswith("ratelimit")]
    assert fields == [shown]


def test_the_application_shows_its_limits_where_there_are_no_others(
    fake_edge: FakeEdge, kong_of_fake: Gateway, application: Application
) -> None:
    application.respond = own_limits
    fake_edge.answer(b"HTTP/1.1 204 No Content\r\nX-Fairvisor-Warning: loop_warn\r\n\r\n")
    received = kong_of_fake.ask(post(b"{}", "k", path="/plain"))
    assert [received.header(name) for name in LIMITS] == ["99"] * 5
    assert received.header("x-fairvisor-warning") == "loop_warn"


def test_a_reject_reaches_the_client_whole(fake_edge: FakeEdge, kong_of_fake: Gateway) -> None:
    answer = {"X-Fairvisor-Reason": "tpm_exceeded", "x-ratelimit-remaining-tokens": "0", "grpc-status": "8"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
    fake_edge.answer(f"HTTP/1.1 429 Too Many Requests\r\n{lines}Content-Length: 2\r\n\r\n{{}}".encode())
    received = kong_of_fake.ask(post(b"{}", "k", path="/plain"))
    assert (received.status, received.body) == (429, b"{}")
    assert {name: received.header(name) for name in answer} == answer


def test_a_grpc_call_is_rejected_in_its_own_terms(kong: Gateway) -> None:
    raw = post(b"", "grpc", "Content-Type: application/grpc", "TE: trailers", path="/plain/pkg.Service/M")
    received = [kong.ask(raw) for _ in range(4)][-1]
    assert (received.status, received.body) == (429, b"")
    assert received.header("grpc-status") == "8"
    assert received.header("content-type") == "application/grpc"
