"""The reverse proxy between real sockets: what reaches the upstream, what comes back, and what ends when."""

from __future__ import annotations

import asyncio

import pytest
from edge import bucket, policy
from proxy_bench import OK, Bench, Upstream, bench, read_request, run

from fairvisor.proxy.pace import Timeouts

OPEN = policy("open", bucket("r", burst=1000, rate=1000))
GET = b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n"


def test_a_request_passes_and_its_answer_comes_back() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            response = await proxy.ask(GET)
            assert response.status == 200
            assert response.body == b"ok"
            assert response.headers["ratelimit-remaining"] == "999"
            assert response.headers["via"] == "1.1 fairvisor"
            received = proxy.upstream.received[0].split(b"\r\n")
            assert received[0] == b"GET /a?b=c HTTP/1.1"
            assert b"Host: a.example" in received
            assert b"X-Forwarded-For: 127.0.0.1" in received
            assert b"X-Forwarded-Proto: http" in received
            assert b"Via: 1.1 " + proxy.gate.pseudonym in received

    run(test())


def test_connections_are_kept_on_both_sides() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            client = await proxy.connect()
            for _ in range(5):
                assert (await client.ask(GET)).status == 200
            assert len(proxy.upstream.received) == 1

    run(test())


def test_a_rejected_request_never_reaches_the_upstream() -> None:
    async def test() -> None:
        async with bench(policy("p", bucket("r", burst=1, rate=0.001))) as proxy:
            client = await proxy.connect()
            assert (await client.ask(GET)).status == 200
            refused = await client.ask(GET)
            assert refused.status == 429
            assert refused.headers["x-fairvisor-reason"] == "rate_limit_exceeded"
            assert proxy.upstream.received[0].count(b"GET /a") == 1

    run(test())


def test_no_cache_may_keep_what_the_proxy_answers_itself() -> None:
    """Its rejects, its errors and its own 502 carry `no-store`; of an upstream's answer it says nothing."""

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"nonsense\r\n\r\n")

    async def test() -> None:
        async with bench(policy("p", bucket("r", burst=1, rate=0.001))) as proxy:
            client = await proxy.connect()
            assert "cache-control" not in (await client.ask(GET)).headers
            assert (await client.ask(GET)).headers["cache-control"] == "no-store"
            malformed = await proxy.ask(b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (malformed.status, malformed.headers["cache-control"]) == (400, "no-store")
        async with bench(OPEN, handler=broken) as proxy:
            failed = await proxy.ask(GET)
            assert (failed.status, failed.headers["cache-control"]) == (502, "no-store")

    run(test())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", "malformed"),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "method_not_allowed"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "malformed"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n", "malformed"),
    ],
)
def test_what_is_not_decided_is_counted_and_logged(
    data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            assert (await proxy.ask(data)).status >= 400
            counted = proxy.metric("undecided_requests_total", endpoint="proxy", reason=reason)
            assert counted == proxy.metric("undecided_requests_total") == 1

    run(test())
    assert [line for line in caplog.messages if line.startswith("proxy answered ") and "127.0.0.1" in line]


def test_bodies_pass_both_ways_sized_and_chunked() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            if b"chunked" in head.lower():
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n%b\r\n0\r\nX-Sum: 7\r\n\r\n" % (len(body), body))
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def test() -> None:
        async with bench(OPEN, handler=echo) as proxy:
            client = await proxy.connect()
            big = bytes(range(256)) * 8192
            start = b"POST / HTTP/1.1\r\nHost: a\r\n"
            sized = await client.ask(start + b"Content-Length: %d\r\n\r\n" % len(big) + big)
            assert sized.body == big
            chunked = await client.ask(
                start + b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n4\r\ndefg\r\n0\r\nA: b\r\n\r\n"
            )
            assert chunked.body == b"abcdefg"
            assert chunked.raw.endswith(b"0\r\nX-Sum: 7\r\n\r\n")
            assert b"x=y" not in proxy.upstream.received[0]
            assert proxy.upstream.received[0].endswith(b"0\r\nA: b\r\n\r\n")

    run(test())


def test_a_body_that_comes_byte_by_byte_is_the_same_body() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            client = await proxy.connect()
            data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
            for at in range(len(data)):
                client.send(data[at : at + 1])
                await asyncio.sleep(0)
            assert (await client.response()).status == 200
            assert b"Transfer-Encoding: chunked" in proxy.upstream.received[0]

    run(test())


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 10\r\n\r\n", 304, b""),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", 200, b"ab"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, b"x"),
    ],
)
def test_the_framing_of_responses(reply: bytes, status: int, body: bytes) -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            proxy.upstream.reply = reply
            client = await proxy.connect()
            for _ in range(2):
                response = await client.ask(GET)
                assert (response.status, response.body) == (status, body)

    run(test())


def test_the_answer_to_head_has_the_length_and_no_body() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            proxy.upstream.reply = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
            client = await proxy.connect()
            for _ in range(2):
                response = await client.ask(GET.replace(b"GET", b"HEAD"), to_head=True)
                assert response.headers["content-length"] == "5"

    run(test())


def test_a_response_that_ends_with_its_connection_is_sent_in_chunks() -> None:
    async def until_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall")

    async def test() -> None:
        async with bench(OPEN, handler=until_close) as proxy:
            client = await proxy.connect()
            for _ in range(2):
                response = await client.ask(GET)
                assert response.body == b"all"
                assert response.headers["transfer-encoding"] == "chunked"
            old = await proxy.ask(GET.replace(b"1.1", b"1.0"))
            assert (old.body, old.headers["connection"]) == (b"all", "close")

    run(test())


def test_hop_by_hop_headers_end_here() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            proxy.upstream.reply = (
                b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Up\r\nX-Up: 1\r\nKeep-Alive: timeout=5\r\n"
                b"Content-Length: 2\r\n\r\nok"
            )
            response = await proxy.ask(
                b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nTE: gzip\r\n"
                b"Keep-Alive: 1\r\nProxy-Authorization: x\r\nX-Stays: 1\r\n\r\n"
            )
            assert "x-up" not in response.headers
            assert "keep-alive" not in response.headers
            assert response.headers["connection"] == "close"
            received = proxy.upstream.received[0]
            assert b"X-Stays: 1" in received
            for gone in (b"X-Mine", b"TE:", b"Keep-Alive", b"Proxy-Authorization", b"Connection"):
                assert gone not in received

    run(test())


def test_only_a_trusted_peer_says_who_the_client_is() -> None:
    spoofed = (
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX_Forwarded_For: 1.2.3.4\r\n"
        b"X-Real-IP: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n"
    )

    async def test() -> None:
        async with bench(OPEN) as proxy:
            await proxy.ask(spoofed)
            assert b"1.2.3.4" not in proxy.upstream.received[0]
        trusting = {"FAIRVISOR_TRUSTED_PEERS": "127.0.0.0/8"}
        async with bench(OPEN, environ=trusting) as proxy:
            await proxy.ask(spoofed)
            assert b"X-Forwarded-For: 1.2.3.4, 127.0.0.1\r\n" in proxy.upstream.received[0]
            assert b"X-Forwarded-Proto: https\r\n" in proxy.upstream.received[0]

    run(test())


SMUGGLING = {
    "length and chunked": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "the same length twice": b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": b"Content-Length: +3\r\n\r\nabc",
    "a negative length": b"Content-Length: -3\r\n\r\nabc",
    "a hex length": b"Content-Length: 0x3\r\n\r\nabc",
    "an empty length": b"Content-Length:\r\n\r\n",
    "an enormous length": b"Content-Length: 99999999999999999999\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, chunked": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "vertical tab before chunked": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before the colon": b"Content-Length\t: 3\r\n\r\nabc",
    "a folded line": b"X-A: b\r\n c\r\n\r\n",
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a line that begins with a space": b" X-A: b\r\n\r\n",
    "a bare LF": b"X-A: b\nX-B: c\r\n\r\n",
    "a bare LF before a coding": b"X-A: b\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare CR": b"X-A: b\rTransfer-Encoding: chunked\r\n\r\n",
    "a NUL": b"X-A: b\0\r\n\r\n",
    "no colon": b"X-A\r\n\r\n",
    "no name": b": b\r\n\r\n",
    "a name with brackets": b"X[A]: b\r\n\r\n",
    "two hosts": b"Host: b\r\n\r\n",
    "a length with a space inside": b"Content-Length: 3 4\r\n\r\nabc",
    "a length and an empty coding": b"Content-Length: 3\r\nTransfer-Encoding:\r\n\r\nabc",
    "an empty coding": b"Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "two codings in two cases": b"transfer-encoding: chunked\r\nTRANSFER-ENCODING: identity\r\n\r\n0\r\n\r\n",
    "chunked with a parameter": b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
    "chunked with a comma after it": b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
    "a folded length": b"Content-Length:\r\n\t3\r\n\r\nabc",
    "a length with a NUL": b"Content-Length: 3\0\r\n\r\nabc",
    "length named by another name's underscore": b"Content_Length: 3\r\n\r\nabc",
    "chunk size with a minus": b"Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
    "chunk size after a space": b"Transfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n",
    "an extension without a size": b"Transfer-Encoding: chunked\r\n\r\n;a=b\r\na\r\n0\r\n\r\n",
    "a NUL in an extension": b"Transfer-Encoding: chunked\r\n\r\n1;\0\r\na\r\n0\r\n\r\n",
    "chunk size with a sign": b"Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    "chunk size with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    "chunk size with an underscore": b"Transfer-Encoding: chunked\r\n\r\n0_1\r\na\r\n0\r\n\r\n",
    "chunk size with a space": b"Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
    "chunk size before LF": b"Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
    "an enormous chunk": b"Transfer-Encoding: chunked\r\n\r\n1ffffffffffffffff\r\na\r\n0\r\n\r\n",
    "a chunk longer than it says": b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "a chunk that ends in LF": b"Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
    "an empty chunk size": b"Transfer-Encoding: chunked\r\n\r\n\r\n\r\n",
    "a bare LF in an extension": b"Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n",
    "a very long extension": b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2000 + b"\r\na\r\n0\r\n\r\n",
    "a trailer without a colon": b"Transfer-Encoding: chunked\r\n\r\n0\r\nnonsense\r\n\r\n",
    "a folded trailer": b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n",
    "Connection: content-length": b"Content-Length: 3\r\nConnection: content-length\r\n\r\nabc",
    "Connection: host": b"Connection: close, host\r\n\r\n",
    "another expectation": b"Expect: 200-maybe\r\nContent-Length: 1\r\n\r\na",
}


@pytest.mark.parametrize("fields", SMUGGLING.values(), ids=SMUGGLING)
def test_nothing_ambiguous_is_forwarded(fields: bytes) -> None:
    """A 400, the connection is closed, and no upstream has seen a complete request."""

    async def test() -> None:
        async with bench(OPEN) as proxy:
            client = await proxy.connect()
            client.send(
                b"POST /one HTTP/1.1\r\nHost: a\r\n" + fields + b"GET /two HTTP/1.1\r\nHost: a\r\n\r\n"
            )
            answers = await client.rest()
            assert answers.startswith(b"HTTP/1.1 400 ")
            assert answers.count(b"HTTP/1.1 ") == 1
            for received in proxy.upstream.received:
                assert b"/two" not in received
                assert not received.endswith((b"0\r\n\r\n", b"abc"))

    run(test())


@pytest.mark.parametrize(
    "fields", [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5"]
)
def test_chunks_are_unknown_to_http_1_0(fields: bytes) -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            answer = await proxy.ask(b"POST / HTTP/1.0\r\nHost: a\r\n" + fields + b"\r\n\r\n0\r\n\r\n")
            assert answer.status == 400
            assert proxy.upstream.received == []

    run(test())


def test_extensions_and_odd_sizes_of_chunks_end_here() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            start = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer = await proxy.ask(start + b'0003;a="b"\r\nabc\r\n00;x\r\nContent-Length: 9\r\n\r\n')
            assert answer.status == 200
            assert proxy.upstream.received[0].endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    run(test())


def test_two_tokens_and_names_that_pose_as_others() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            start = b"POST / HTTP/1.1\r\nHost: a\r\n"
            posing = b"Content-Length: 3\r\nContent_Length: 4\r\nTransfer_Encoding: chunked\r\n\r\nabc"
            assert (await proxy.ask(start + posing)).status == 400
            assert proxy.upstream.received == []

    run(test())


@pytest.mark.parametrize(
    "line",
    [
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET /",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.2",
        b"GET /a b HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET a HTTP/1.1",
        b"GET /#f HTTP/1.1",
        b"GET http://other/ HTTP/1.1",
        b"GET http://a@b/ HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET /%00 HTTP/1.1",
        b"GET /../x HTTP/1.1",
    ],
)
def test_request_lines_that_can_be_read_in_two_ways(line: bytes) -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            assert (await proxy.ask(line + b"\r\nHost: a\r\n\r\n")).status == 400
            assert proxy.upstream.received == []

    run(test())


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (b"GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /x?y HTTP/1.1"),
        (b"GET http://A HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1"),
        (b"\r\nGET //a/./b%2fc;d HTTP/1.1\r\nHost: a\r\n\r\n", b"GET //a/./b%2fc;d HTTP/1.1"),
    ],
)
def test_the_bytes_of_a_target_are_forwarded_unchanged(request_: bytes, line: bytes) -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            assert (await proxy.ask(request_)).status == 200
            assert proxy.upstream.received[0].split(b"\r\n")[0] == line

    run(test())


def test_a_head_that_is_too_large() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            answer = await proxy.ask(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n")
            assert answer.status == 431

    run(test())


BAD_RESPONSES = {
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "no http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
    "folded": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "unasked switch": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "gzip coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "endless 1xx": b"HTTP/1.1 102 Wait\r\n\r\n" * 40,
    "closed": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nConte",
}


@pytest.mark.parametrize("reply", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_a_response_that_is_none_is_a_502(reply: bytes) -> None:
    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply)

    async def test() -> None:
        async with bench(OPEN, handler=bad) as proxy:
            client = await proxy.connect()
            client.send(GET)
            answer = await client.response()
            while answer.status == 102:
                answer = await client.response()
            assert answer.status == 502
            assert answer.json["error"]["type"] == "upstream_error"
            assert proxy.metric("upstream_failures_total") == 1

    run(test())


def test_a_response_that_breaks_off_is_not_completed() -> None:
    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await writer.drain()

    async def test() -> None:
        async with bench(OPEN, handler=bad) as proxy:
            client = await proxy.connect()
            client.send(GET)
            assert (await client.rest()).endswith(b"3\r\nabc\r\n")

    run(test())


def test_nobody_at_the_upstreams_address_is_a_502() -> None:
    async def test() -> None:
        async with bench(OPEN, addresses=["http://127.0.0.1:1"]) as proxy:
            client = await proxy.connect()
            for _ in range(2):  # the client's connection lives on
                assert (await client.ask(GET)).status == 502

    run(test())


def test_an_upstream_that_hangs_up_at_once_is_a_502() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async def test() -> None:
        async with bench(OPEN, handler=hang_up) as proxy:
            for _ in range(20):
                assert (await proxy.ask(GET)).status == 502

    run(test())


def test_an_upstream_that_does_not_answer_in_time_is_a_504() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with bench(OPEN, handler=silent, timeouts=Timeouts(100, 100)) as proxy:
            assert (await proxy.ask(GET)).status == 504

    run(test())


def test_an_answer_that_does_not_begin_within_the_whole_time_is_a_504() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with bench(OPEN, handler=silent, timeouts=Timeouts(5_000, 5_000, 100)) as proxy:
            assert (await proxy.ask(GET)).status == 504

    run(test())


def test_an_idle_connection_that_was_closed_is_replaced_when_sending_twice_does_no_harm() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")  # the next request meets a closed connection

    async def test() -> None:
        async with bench(OPEN, handler=once) as proxy:
            client = await proxy.connect()
            assert (await client.ask(GET)).status == 200
            assert (await client.ask(GET)).status == 200
            assert len(proxy.upstream.received) == 2
            assert (
                await client.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            ).status == 502

    run(test())


def test_the_client_waits_for_100_of_the_upstream() -> None:
    async def careful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(3) == b"abc"
        writer.write(OK)

    async def test() -> None:
        async with bench(OPEN, handler=careful) as proxy:
            client = await proxy.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert (await client.response()).status == 100
            assert (await client.ask(b"abc")).status == 200

    run(test())


def test_a_rejected_request_with_an_expectation_gets_no_100() -> None:
    async def test() -> None:
        async with bench(policy("p", bucket("r", burst=1, rate=0.001))) as proxy:
            await proxy.ask(GET)
            client = await proxy.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            answer = await client.response()
            assert (answer.status, answer.headers["connection"]) == (429, "close")

    run(test())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await read_request(reader)
            name = head.split(b" ")[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))

    async def test() -> None:
        async with bench(OPEN, handler=slow_first) as proxy:
            client = await proxy.connect()
            client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(20)))
            assert [(await client.response()).body for _ in range(20)] == [b"/%d" % n for n in range(20)]

    run(test())


def test_an_early_answer_ends_the_connection() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await reader.read()

    async def test() -> None:
        async with bench(OPEN, handler=early) as proxy:
            answer = await proxy.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
            assert (answer.status, answer.headers["connection"]) == (413, "close")

    run(test())


def test_a_websocket_passes_through() -> None:
    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Connection: Upgrade\r\nUpgrade: websocket\r\n" in head
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhi"
        )
        while data := await reader.read(100):
            writer.write(data.upper())

    async def test() -> None:
        async with bench(OPEN, handler=upgrade) as proxy:
            client = await proxy.connect()
            client.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            answer = await client.response()
            assert (answer.status, answer.headers["upgrade"]) == (101, "websocket")
            assert await client.reader.readexactly(2) == b"hi"
            client.send(b"hello")
            assert await client.reader.readexactly(5) == b"HELLO"
            client.writer.write_eof()
            assert await client.rest() == b""
            await proxy.until(lambda: not proxy.hub.connections)
            assert proxy.backends.choose(0, []).active == 0

    run(test())


def test_an_upgrade_to_h2c_is_not_passed_on() -> None:
    async def test() -> None:
        async with bench(OPEN) as proxy:
            answer = await proxy.ask(
                b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
            )
            assert answer.status == 200
            assert b"h2c" not in proxy.upstream.received[0]
            assert b"HTTP2" not in proxy.upstream.received[0]

    run(test())


def test_a_limit_key_that_is_sent_twice_must_be_the_same() -> None:
    keyed = policy("p", bucket("r", "header:x-key", burst=2, rate=0.001))
    start = b"GET / HTTP/1.1\r\nHost: a\r\n"

    async def test() -> None:
        async with bench(keyed) as proxy:
            assert (await proxy.ask(start + b"X-Key: a\r\nX-Key: b\r\n\r\n")).status == 400
            assert (await proxy.ask(start + b"X-Other: a\r\nX-Other: b\r\nX-Key: a\r\n\r\n")).status == 200
            assert (await proxy.ask(start + b"X-Key: a\r\nX-Key: a\r\n\r\n")).status == 200
            assert (await proxy.ask(start + b"X-Key: a\r\n\r\n")).status == 429

    run(test())


def test_a_slow_reader_slows_the_upstream() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async def test() -> None:
        async with bench(OPEN, handler=flood) as proxy:
            client = await proxy.connect()
            client.reader._limit = 1000  # type: ignore[attr-defined]
            client.send(GET)
            before = -1
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 50_000_000
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            got = 0
            while got < 100_000_000:
                got += len(await client.reader.read(1 << 20))

    run(test())


def test_a_client_that_leaves_frees_the_upstream() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with bench(OPEN, handler=silent) as proxy:
            client = await proxy.connect()
            client.send(GET)
            await proxy.until(lambda: proxy.upstream.open == 1)
            client.close()
            await proxy.until(lambda: proxy.upstream.open == 0)
            assert proxy.backends.choose(0, []).active == 0

    run(test())


def test_the_least_busy_upstream_takes_the_next_request_and_a_dead_one_none() -> None:
    async def test() -> None:
        other = await Upstream().start()
        async with bench(OPEN, addresses=["http://127.0.0.1:1", f"http://127.0.0.1:{other.port}"]) as proxy:
            await _ask_often(proxy, 20)
            failures = proxy.metric("upstream_failures_total", upstream="http://127.0.0.1:1")
            assert 3 <= failures < 20
            assert proxy.metric("upstream_ejections_total") == 1
            assert b"".join(other.received).count(b"GET /a") == 20
        assert other.server is not None
        other.server.close()

    run(test())


async def _ask_often(proxy: Bench, times: int) -> None:
    for _ in range(times):
        assert (await proxy.ask(GET)).status == 200
