"""What a hostile client of the proxy cannot do: fill the memory, stay for ever, hide what it is counted by."""

from __future__ import annotations

import gzip
import random

import pytest
from edge import bucket, budget, policy, tokens
from fuzz.one_request import read_requests
from proxy_bench import OK, bench, run
from proxy_wires import LIMITS, UPSTREAM_MS, Client, Wired

from fairvisor.http.hub import HIGH_WATER_BYTES
from fairvisor.http.kept import Gathered
from fairvisor.proxy.bodies import ChunkedBody
from fairvisor.proxy.exchange import MAX_REPLAY
from fairvisor.proxy.front import MAX_AT_ONCE, MAX_BUFFERED
from fairvisor.proxy.inbox import WINDOW_BYTES

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
PAGE_BYTES = 60_000
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (PAGE_BYTES, b"x" * PAGE_BYTES)
OPEN = policy("p", bucket("r", rate=1e6, burst=1e6))
NONE_LEFT = policy("p", bucket("r", burst=1, rate=0.001))
LLM = policy("p", tokens("t", tpm=1e9))
BODY_BYTES = 128 * 1024  # what is read before the decision
READS_BODIES = {"FAIRVISOR_MAX_BODY": str(BODY_BYTES), "FAIRVISOR_TRUSTED_PEERS": "none"}
KEPT_BYTES = 4 << 20
SMALL = LIMITS._replace(max_kept_bytes=KEPT_BYTES)
READ_BYTES = 256_000  # what a loop reads at once
MIB = 1 << 20
HEADER_S = LIMITS.header_timeout_ms / 1000


def answer_all(proxy: Wired, response: bytes) -> int:
    """The upstream answers as long as there are requests; gives how many it answered."""
    answered = 0
    while more := proxy.answer(response):
        answered += more
    return answered


# a client that does not read


def test_nothing_is_begun_while_a_client_does_not_read() -> None:
    """20,740 requests in 560 KB, answered with 60 KB each, once filled the memory with 1.3 GB."""
    proxy = Wired(OPEN)
    client = proxy.connect(reads=False)
    client.send(GET * 20_740)
    answered = answer_all(proxy, PAGE)
    assert answered <= HIGH_WATER_BYTES // PAGE_BYTES + 1
    assert client.wire.most_unread <= HIGH_WATER_BYTES + PAGE_BYTES + 1000
    assert client.wire.held
    assert proxy.hub.kept.total_bytes <= MAX_BUFFERED + READ_BYTES
    proxy.later(max(HEADER_S, UPSTREAM_MS / 1000) + 1)
    assert client.wire.aborted


def test_rejected_requests_are_not_answered_while_a_client_does_not_read() -> None:
    proxy = Wired(NONE_LEFT)
    client = proxy.connect(reads=False)
    client.send(GET)
    answer_all(proxy, OK)
    client.send(GET * 20_000)
    assert client.wire.most_unread <= HIGH_WATER_BYTES + 1000
    assert client.wire.held


def test_what_comes_after_the_end_is_read_a_piece_in_a_turn() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    client.send(b"no request\r\n\r\n")
    assert client.statuses == [400]
    for _ in range(3):
        client.front.data_received(b"x" * READ_BYTES)
        assert client.wire.held
        proxy.clock.turns()
        assert not client.wire.held


def test_requests_are_read_through_a_window_and_come_out_whole() -> None:
    """However heads and bodies lie to its borders."""
    proxy = Wired(OPEN)
    client = proxy.connect()
    sizes = [1, 100, WINDOW_BYTES - 60, WINDOW_BYTES, 3 * WINDOW_BYTES + 1] * 4
    bodies = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    posts = [
        b"POST /%d HTTP/1.1\r\nHost: a\r\nX: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (number, b"x" * (number * 300), len(body), body)
        for number, body in enumerate(bodies)
    ]
    client.send(b"".join(posts))
    answer_all(proxy, OK)
    assert client.statuses == [200] * len(bodies)
    assert all(body in proxy.requests for body in bodies)


def test_a_client_that_reads_again_gets_every_answer_in_order() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect(reads=False)
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(5000)))
    answered = 0
    while answered < 5000:
        answered += answer_all(
            proxy, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: %b\r\n\r\n" % (b"x" * 1000)
        )
        client.wire.read_all()
        client.deliver()
    assert client.statuses == [200] * 5000
    targets = [int(line.split(b" ")[1][1:]) for line in proxy.requests.split(b"\r\n") if line[:4] == b"GET "]
    assert sorted(targets) == list(range(5000))
    assert not client.wire.held
    assert proxy.hub.kept.total_bytes == 0


def test_a_long_pipeline_lets_others_begin_in_between() -> None:
    proxy = Wired(NONE_LEFT)
    client, other = proxy.connect(), proxy.connect()
    client.send(GET)
    answer_all(proxy, OK)
    client.front.data_received(GET * 1000)
    assert client.wire.held
    proxy.clock.go_on(0)
    assert len(client.statuses) == 1 + MAX_AT_ONCE
    other.front.data_received(GET)
    assert other.statuses == [429]
    proxy.clock.turns()
    assert len(client.statuses) == 1001
    assert not client.wire.held


def test_a_client_that_sends_its_body_and_does_not_read_is_dropped() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect(reads=False)
    client.send(POST + b"Content-Length: 1000000\r\n\r\n")
    proxy.answer(PAGE[:-1])
    proxy.answer(b"x" * HIGH_WATER_BYTES)
    seconds = 0
    while not client.wire.closed:
        client.send(b"x" * 1000)
        proxy.later(1)
        seconds += 1
        assert seconds <= UPSTREAM_MS / 1000 + 1


def test_hostile_pipelines_of_500_clients_fit_the_bound() -> None:
    proxy = Wired(OPEN)
    clients = [proxy.connect(reads=False) for _ in range(500)]
    for client in clients:
        client.send(GET * 20_740)
    answer_all(proxy, PAGE)
    assert proxy.hub.kept.total_bytes <= LIMITS.max_kept_bytes
    assert sum(client.wire.most_unread for client in clients if not client.wire.closed) < 32 * MIB
    for client in clients:
        client.leave()
    assert proxy.hub.kept.total_bytes == 0


# what is kept


def hold_a_body(proxy: Wired, size_bytes: int = BODY_BYTES - 1) -> Client:
    """A client that sends all of its body but a byte."""
    client = proxy.connect()
    client.send(POST + b"Content-Length: %d\r\n\r\n" % (size_bytes + 1) + b"x" * size_bytes)
    return client


def test_bodies_that_wait_for_the_decision_have_a_bound_together() -> None:
    """500 clients that sent 1 MiB less a byte and then waited once filled the memory with 500 MB."""
    proxy = Wired(LLM, limits=SMALL, environ=READS_BODIES)
    clients = [hold_a_body(proxy) for _ in range(500)]
    assert proxy.hub.kept.total_bytes <= KEPT_BYTES
    ended = [client for client in clients if client.received]
    assert proxy.given_up == len(ended) >= 500 - KEPT_BYTES // (BODY_BYTES - 1)
    assert {client.statuses[0] for client in ended} == {503}
    assert b"Retry-After: 1\r\n" in ended[0].received
    assert b"FAIRVISOR_MAX_KEPT_BYTES" in ended[0].received
    assert proxy.requests == b""
    for client in clients:
        client.leave()
    assert proxy.hub.kept.total_bytes == 0


def test_who_keeps_most_for_longest_ends_first() -> None:
    """A client on a slow line is not ended for those who hold large bodies, although it began before them."""
    proxy = Wired(LLM, limits=SMALL, environ=READS_BODIES)
    slow = proxy.connect()
    slow.send(POST + b"Content-Length: 20000\r\n\r\n" + b"x" * 5000)
    for number in range(500):
        hold_a_body(proxy)
        if number % 50 == 0:
            slow.send(b"x" * 1000)
            proxy.later(0.5)
    slow.send(b"x" * 5000)
    assert answer_all(proxy, OK) == 1
    assert slow.statuses == [200]


def test_a_body_that_came_whole_waits_for_nobody() -> None:
    proxy = Wired(LLM, limits=SMALL, environ=READS_BODIES)
    for _ in range(100):
        hold_a_body(proxy)
    client = proxy.connect()
    client.send(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)
    assert answer_all(proxy, OK) == 1
    assert client.statuses == [200]


def test_a_body_that_waits_for_a_throttle_is_counted() -> None:
    throttled = budget(
        "r", staged_actions=[{"threshold_percent": 10, "action": "throttle", "delay_ms": 5000}]
    )
    proxy = Wired(policy("p", throttled, tokens("t", tpm=1e9)))
    client = proxy.connect()
    client.send(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000)
    assert proxy.hub.kept.total_bytes >= 100_000
    proxy.later(6)
    assert proxy.hub.kept.total_bytes == 0
    answer_all(proxy, OK)
    assert client.statuses == [200]


def test_pieces_of_two_bytes_cost_two_bytes() -> None:
    gathered = Gathered()
    for _ in range(1000):
        gathered.add(b"ab")
    assert (gathered.size_bytes, gathered.joined()) == (2000, b"ab" * 1000)
    whole = b"whole"
    assert Gathered(whole).joined() is whole


def test_a_body_is_kept_for_a_second_try_only_when_it_is_small() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000)
    assert MAX_REPLAY < 200_000
    assert proxy.hub.kept.total_bytes == 0


# what comes slowly

DRIPS = {
    "body": (POST + b"Content-Length: 100000\r\n\r\n", b"x"),
    "chunk": (CHUNKED + b"ffff\r\n", b"x"),
    "extension": (CHUNKED + b"1;", b"x"),
    "size": (CHUNKED, b"0"),
    "trailers": (CHUNKED + b"0\r\n", b"A: b\r\n"),
    "trailer": (CHUNKED + b"0\r\nA: ", b"b"),
}


@pytest.mark.parametrize("policies", [OPEN, LLM], ids=["forwarded", "undecided"])
@pytest.mark.parametrize(("start", "drop"), DRIPS.values(), ids=DRIPS)
def test_a_body_that_drips_ends(start: bytes, drop: bytes, policies: object) -> None:
    """A byte a second: each arrives within the limit for a read, the body never does."""
    proxy = Wired(policies)
    client = proxy.connect()
    client.send(start)
    seconds = 0
    while not client.received:
        client.send(drop)
        proxy.later(1)
        seconds += 1
        assert seconds <= 2 * HEADER_S
    assert client.statuses[0] in (400, 408)
    assert proxy.hub.kept.total_bytes == 0


def test_a_slow_upload_that_goes_on_is_not_ended() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    client.send(POST + b"Content-Length: 60000\r\n\r\n")
    for _ in range(100):
        client.send(b"x" * 600)
        proxy.later(1)
    answer_all(proxy, OK)
    assert client.statuses == [200]


def test_the_time_in_which_the_upstream_does_not_read_is_not_the_clients() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    client.send(POST + b"Content-Length: 60000\r\n\r\n" + b"x" * 1000)
    link, _ = proxy.busy[0]
    link.pause_writing()
    assert client.wire.held
    for _ in range(30):
        proxy.later(1)
    link.resume_writing()
    proxy.later(1)
    client.send(b"x" * 59_000)
    answer_all(proxy, OK)
    assert client.statuses == [200]


@pytest.mark.parametrize("drop", [b"\r\n", b"\r", b"G", b"A"])
def test_no_drop_before_a_request_line_keeps_a_connection(drop: bytes) -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    seconds = 0.0
    while not client.wire.closed:
        client.send(drop)
        proxy.later(0.4)
        seconds += 0.4
        assert seconds <= HEADER_S + 2


def test_one_empty_line_before_a_request_is_ignored() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    client.send(b"\r\n")
    client.send(GET)
    answer_all(proxy, OK)
    assert client.statuses == [200]


@pytest.mark.parametrize("trailers", [b"a:b\r\n" * 65, b"a: " + b"b" * 9000 + b"\r\n"])
def test_trailers_are_bounded(trailers: bytes) -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    client.send(CHUNKED + b"0\r\n" + trailers + b"\r\n")
    assert client.statuses == [400]


# heads


def test_a_token_may_fill_the_head() -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    start = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
    client.send(start + b"x" * (64 * 1024 - len(start)) + b"\r\n\r\n")
    answer_all(proxy, OK)
    assert client.statuses == [200]
    client = proxy.connect()
    client.send(start + b"x" * (64 * 1024) + b"\r\n\r\n")
    assert client.statuses == [431]


def test_the_head_has_the_size_that_the_setting_says() -> None:
    proxy = Wired(OPEN, limits=LIMITS._replace(max_head_bytes=200_000))
    client = proxy.connect()
    client.send(GET[:-2] + b"X: " + b"x" * 190_000 + b"\r\n\r\n", 1000)
    answer_all(proxy, OK)
    assert client.statuses == [200]


@pytest.mark.parametrize("line", [b"CONNECT /", b"CONNECT a:1", b"TRACE /", b"trace /"])
def test_connect_and_trace_are_not_forwarded(line: bytes) -> None:
    proxy = Wired(OPEN)
    client = proxy.connect()
    client.send(line + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.statuses == [405]
    assert b"\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n" in client.received
    assert proxy.requests == b""


def test_a_request_that_comes_back_is_a_loop() -> None:
    """A proxy that was its own upstream made 1,082 requests of one."""
    proxy = Wired(OPEN)
    proxy.connect().send(b"GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 fred, 1.1 fairvisor-0123456789ab\r\n\r\n")
    forwarded = proxy.requests
    assert forwarded.startswith(b"GET / ")
    client = proxy.connect()
    client.send(forwarded)
    assert client.statuses == [508]
    assert proxy.requests == forwarded


def test_a_proxy_that_is_its_own_upstream_says_so() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            proxy.backends.choose(0, []).address = proxy.backends.choose(0, []).address._replace(
                host="127.0.0.1", port=proxy.port
            )
            assert (await proxy.ask(GET)).status == 508
            assert len(proxy.hub.connections) <= 2

    run(test())


# who asks


def test_on_a_unix_socket_nobody_chooses_an_address_unless_peers_are_trusted() -> None:
    by_address = policy("p", bucket("r", "ip:address", burst=1, rate=0.001))
    spoofed = GET[:-2] + b"X-Forwarded-For: 203.0.113.%d\r\nForwarded: for=1.2.3.4\r\n\r\n"
    proxy = Wired(by_address)
    client = proxy.connect("")
    client.send(spoofed % 1)
    assert b"X-Forwarded-For: unknown\r\n" in proxy.requests
    assert b"203.0.113" not in proxy.requests and b"1.2.3.4" not in proxy.requests

    trusting = Wired(by_address, environ={"FAIRVISOR_TRUSTED_PEERS": "127.0.0.1"})
    for status in (200, 429):
        client = trusting.connect("")
        client.send(spoofed % 7)
        answer_all(trusting, OK)
        assert client.statuses == [status]
    assert b"X-Forwarded-For: 203.0.113.7\r\n" in trusting.requests


def test_an_address_that_nobody_may_tell_on_a_unix_socket_is_missing() -> None:
    strict = policy("p", bucket("r", "ip:address", burst=1, rate=0.001, on_missing="reject"))
    client = Wired(strict).connect("")
    client.send(GET[:-2] + b"X-Forwarded-For: 203.0.113.1\r\n\r\n")
    assert client.statuses == [429]
    assert b"descriptor_missing" in client.received


POSING = [
    (b"X_Api_Key", "header:x-api-key"),
    (b"Api-Key", "header:api_key"),
    (b"X-Api_Key", "header:x-api-key"),
]


@pytest.mark.parametrize(("name", "key"), POSING)
def test_a_header_that_poses_as_a_counted_one_is_dropped(name: bytes, key: str) -> None:
    """Upstreams that make variables of names (CGI, WSGI) read X_Api_Key as X-Api-Key."""
    proxy = Wired(policy("p", bucket("r", key, burst=1, rate=0.001)))
    proxy.connect().send(GET[:-2] + name + b": other\r\nX_Else: kept\r\n\r\n")
    assert name + b":" not in proxy.requests
    assert b"X_Else: kept\r\n" in proxy.requests


def test_a_header_that_poses_as_one_of_a_kill_switch_is_dropped() -> None:
    switch = {"scope_key": "header:x-api-key", "scope_value": "bad", "reason": "leaked"}
    proxy = Wired(OPEN, kill_switches=[switch])
    proxy.connect().send(GET[:-2] + b"X_API_KEY: bad\r\n\r\n")
    assert b"X_API_KEY" not in proxy.requests


def test_a_header_with_an_underscore_that_counts_for_nobody_passes() -> None:
    proxy = Wired(OPEN)
    proxy.connect().send(GET[:-2] + b"X_Api_Key: mine\r\n\r\n")
    assert b"X_Api_Key: mine\r\n" in proxy.requests


def test_what_comes_while_a_body_is_decoded_in_slices_stays_behind_it() -> None:
    """4 MB in 4 KB, cut at what is read before the decision: the rest, the end and the next request wait in order."""
    noise = random.Random(1).randbytes(BODY_BYTES)
    packed = gzip.compress(noise + bytes(4 << 20), mtime=0)
    rest = packed[BODY_BYTES:]
    assert rest
    proxy = Wired(LLM, environ=READS_BODIES)
    client = proxy.connect()
    body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (packed[:BODY_BYTES], rest))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n"
    client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n" + GET, 1 << 20)
    answer_all(proxy, OK)
    assert client.statuses == [200, 200]
    whole, left = read_requests(proxy.requests)
    assert (len(whole), left) == (2, b"")
    chunks = ChunkedBody()
    assert chunks.feed(whole[0].partition(b"\r\n\r\n")[2]) == (packed, b"")
    assert chunks.done
