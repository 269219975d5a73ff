"""LLM traffic through the proxy: what the counters hold after every way a response can end."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from edge import Edge, moment, policy, tokens
from proxy_bench import Bench, Handler, bench, read_request, run

from fairvisor.clock import read_now
from fairvisor.metrics import Counter, TokenMeter
from fairvisor.metrics.families import SETTLEMENTS
from fairvisor.proxy.account import Ledger
from fairvisor.proxy.pace import Timeouts

TPM = 100_000
CHAT = "/v1/chat/completions"


def rule(**more: Any) -> Any:
    return policy("llm", tokens("tokens", tpm=TPM, tokens_per_day=1_000_000, **more))


def request(document: Any, path: str = CHAT, *headers: str) -> bytes:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lines = "".join(f"{line}\r\n" for line in headers)
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{lines}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


ASK = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 500}
STREAM = {**ASK, "stream": True}


def answer(body: bytes, *lines: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n" + "".join(f"{line}\r\n" for line in lines)
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def sse(*events: Any) -> list[bytes]:
    """The events of a stream: documents as data, text as it is."""
    return [
        event.encode() if isinstance(event, str) else b"data: " + json.dumps(event).encode() + b"\n\n"
        for event in events
    ]


def chat_chunk(text: str, **more: Any) -> Any:
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}  # fmt: skip


USAGE_CHUNK = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [],
               "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}}  # fmt: skip
DONE = "data: [DONE]\n\n"


def streaming(events: list[bytes], *, end: bool = True, cut: int = 0, pause_after: int = -1) -> Handler:
    """An upstream that sends these events in chunks; `cut` splits the bytes anew, `pause_after` stops and waits."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            pieces = events
            if cut:
                text = b"".join(events)
                pieces = [text[at : at + cut] for at in range(0, len(text), cut)]
            for number, piece in enumerate(pieces):
                if number == pause_after:
                    await writer.drain()
                    await reader.read()
                    return
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asyncio.sleep(0)
            if not end:
                await writer.drain()
                return
            writer.write(b"0\r\n\r\n")

    return serve


def replying(*replies: bytes) -> Handler:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await read_request(reader)
            writer.write(reply)
        await reader.read()

    return serve


def consumed(proxy: Bench) -> int:
    return proxy.metric("tokens_consumed_total")


def settled(proxy: Bench, how: str = "settled") -> int:
    return proxy.metric("settlements_total", result=how)


def check(handler: Handler, test: Callable[[Bench], Any], *, policies: Any = None, **more: Any) -> None:
    async def whole() -> None:
        async with bench(policies or rule(), handler=handler, **more) as proxy:
            await test(proxy)

    run(whole())


USAGES = [
    (CHAT, {"usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}}, 21),
    ("/v1/embeddings", {"usage": {"prompt_tokens": 8, "total_tokens": 8}}, 8),
    ("/v1/responses", {"usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}}, 12),
    ("/v1/messages", {"usage": {"input_tokens": 5, "cache_read_input_tokens": 10, "output_tokens": 7}}, 22),
    (
        "/v1beta/models/gemini-2.5-pro:generateContent",
        {"usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 6, "totalTokenCount": 10}},
        10,
    ),
]


@pytest.mark.parametrize(("path", "document", "total"), USAGES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_usage_of_a_json_answer_is_settled_exactly(
    path: str, document: Any, total: int, packed: bool
) -> None:
    body = json.dumps({"id": "x", **document}).encode()
    reply = answer(gzip.compress(body, mtime=0), "Content-Encoding: gzip") if packed else answer(body)

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request(ASK, path, "Accept-Encoding: br, gzip"))
        assert response.status == 200
        assert (gzip.decompress(response.body) if packed else response.body) == body
        assert "x-fairvisor-reservation" not in response.headers
        assert (settled(proxy), consumed(proxy)) == (1, total)
        assert b"Accept-Encoding: gzip\r\n" in proxy.upstream.received[0]

    check(replying(reply), test)


@pytest.mark.parametrize("cut", [0, 1, 7, 1000])
def test_a_stream_whose_client_did_not_ask_for_usage_gets_none_and_is_settled(cut: int) -> None:
    shown = sse(chat_chunk("Hel"), chat_chunk("lo"), DONE)
    events = [*shown[:2], *sse(USAGE_CHUNK), shown[2]]

    async def test(proxy: Bench) -> None:
        body = json.dumps(STREAM, indent=1).encode()
        response = await proxy.ask(request(body))
        assert response.body == b"".join(shown)
        assert (settled(proxy), consumed(proxy)) == (1, 14)
        sent = proxy.upstream.received[0].partition(b"\r\n\r\n")[2]
        assert json.loads(sent) == {**STREAM, "stream_options": {"include_usage": True}}
        assert sent.endswith(body[1:])
        assert b"Accept-Encoding: identity\r\n" in proxy.upstream.received[0]

    check(streaming(events, cut=cut), test)


def test_a_stream_whose_client_asked_for_usage_passes_byte_for_byte() -> None:
    events = sse(chat_chunk("Hel", usage=None), ": a comment\r\n\r\n", USAGE_CHUNK, DONE)
    asking = {**STREAM, "stream_options": {"include_usage": True}}

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request(asking))
        assert response.body == b"".join(events)
        assert (settled(proxy), consumed(proxy)) == (1, 14)
        assert json.loads(proxy.upstream.received[0].partition(b"\r\n\r\n")[2]) == asking

    check(streaming(events, cut=5), test)


def test_an_explicit_no_is_answered_without_usage() -> None:
    shown = sse(chat_chunk("Hel"), DONE)
    events = [shown[0], *sse(USAGE_CHUNK), shown[1]]

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request({**STREAM, "stream_options": {"include_usage": False, "x": 1}}))
        assert response.body == b"".join(shown)
        sent = json.loads(proxy.upstream.received[0].partition(b"\r\n\r\n")[2])
        assert sent["stream_options"] == {"include_usage": True, "x": 1}

    check(streaming(events), test)


def test_anthropics_cumulative_usage() -> None:
    events = sse(
        {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
        "event: message_stop\ndata: {}\n\n",
    )

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request(STREAM, "/v1/messages"))
        assert response.body == b"".join(events)
        assert (settled(proxy), consumed(proxy)) == (1, 40)

    check(streaming(events, cut=11), test)


def test_what_the_proxy_settles_leaves_nothing_in_the_table() -> None:
    """An exchange ends once, so no nonce has to say that it did."""
    reply = answer(b'{"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21}}')

    async def test(proxy: Bench) -> None:
        for _ in range(5):
            await proxy.ask(request(ASK))
        assert (settled(proxy), consumed(proxy)) == (5, 5 * 21)
        table = proxy.segment.table
        totals = table.census(0, table.slots, read_now().mono_ns)[3]
        assert totals <= 2, "that of the day; at midnight, of both days"

    check(replying(*[reply] * 5), test)


def test_an_account_is_settled_once() -> None:
    edge = Edge(rule())
    reply = edge.ask("POST", CHAT, body=ASK)
    results = {result: Counter(edge.segment, SETTLEMENTS, result) for result in SETTLEMENTS.known}
    ledger = Ledger(edge.counters, edge.segment.reservation_key, False, lambda: moment(0),
                    TokenMeter(edge.segment), {}, results, {})  # fmt: skip
    account = ledger.open(reply.reservation, reply.context, reply.decision, whole=True)
    account.failed()
    left = edge.ask("POST", CHAT, body=ASK).remaining
    account.failed()
    assert edge.metric("settlements_total", result="failed_upstream") == 1
    assert edge.ask("POST", CHAT, body=ASK).remaining < left


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many", "500 Oops", "302 Found"])
def test_a_failed_upstream_gives_everything_back(status: str) -> None:
    reply = answer(b'{"error":{}}', status=status)

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(ASK))).status == int(status[:3])
        assert settled(proxy, "failed_upstream") == 1
        assert proxy.metric("token_reservation_unused_total") == proxy.metric("tokens_reserved_total")

    check(replying(reply), test)


@pytest.mark.parametrize(
    "handler",
    [replying(b""), replying(b"nonsense\r\n\r\n"), streaming(sse(chat_chunk("a")), end=False)],
    ids=["hang", "malformed", "reset"],
)
def test_an_upstream_that_breaks_gives_everything_back(handler: Handler) -> None:
    async def test(proxy: Bench) -> None:
        client = await proxy.connect()
        client.send(request(STREAM))
        await client.rest() if handler.__qualname__.startswith("streaming") else await client.response()
        assert settled(proxy, "failed_upstream") == 1

    check(handler, test, timeouts=Timeouts(200, 200))


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"usage":null}',
        b'{"usage":{"prompt_tokens":-5,"completion_tokens":-3}}',
        b'{"usage":{"prompt_tokens":1e300}}',
        b"<html>",
        b'{"usage":{"prompt_tok',
    ],
)
def test_without_a_usage_that_can_be_believed_the_reservation_stands(body: bytes) -> None:
    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(ASK))).body == body
        assert settled(proxy) == settled(proxy, "failed_upstream") == 0
        assert proxy.metric("usage_missing_total", reason="no_usage") == 1

    check(replying(answer(body)), test)


def test_an_encoding_that_cannot_be_read_leaves_the_reservation() -> None:
    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(ASK))).body == b"xyz"
        assert proxy.metric("usage_missing_total", reason="encoding") == 1

    check(replying(answer(b"xyz", "Content-Encoding: br")), test)


def test_a_client_that_leaves_a_stream_pays_the_prompt_and_what_was_streamed() -> None:
    events = sse(*[chat_chunk(f"word{n}") for n in range(5)], DONE)

    async def test(proxy: Bench) -> None:
        client = await proxy.connect()
        client.send(request(STREAM))
        await client.reader.readuntil(b"word3")
        client.close()
        await proxy.until(lambda: settled(proxy) == 1)
        assert 4 + 4 <= consumed(proxy) <= 30

    check(streaming(events, pause_after=4), test)


def test_a_client_that_leaves_before_an_answer_that_comes_whole_leaves_the_reservation() -> None:
    async def test(proxy: Bench) -> None:
        client = await proxy.connect()
        client.send(request(ASK))
        await proxy.until(lambda: proxy.upstream.open == 1 and proxy.upstream.received[0].endswith(b"}"))
        client.close()
        await proxy.until(lambda: proxy.metric("usage_missing_total", reason="client_gone") == 1)

    check(replying(b""), test)


def test_a_large_answer_of_embeddings_is_scanned_for_its_usage() -> None:
    vectors = [{"embedding": [0.1] * 1000} for _ in range(100)]
    body = json.dumps({"data": vectors, "usage": {"prompt_tokens": 77, "total_tokens": 77}}).encode()

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(ASK, "/v1/embeddings"))).body == body
        assert consumed(proxy) == 77

    check(replying(answer(body)), test)


def test_a_body_beyond_what_counts_is_forwarded_whole() -> None:
    big = {**ASK, "messages": [{"role": "user", "content": "x " * 600_000}]}

    async def test(proxy: Bench) -> None:
        sent = request(big)
        assert (await proxy.ask(sent)).status == 200
        assert proxy.upstream.received[0].endswith(sent.partition(b"\r\n\r\n")[2])

    check(replying(answer(b"{}")), test, policies=policy("llm", tokens("tokens", tpm=1e8)))


def words(count: int) -> list[Any]:
    return [chat_chunk("word") for _ in range(count)]


def test_a_stream_past_its_limit_ends_as_openai_ends_one() -> None:
    limited = rule(max_completion_tokens=10)

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request(STREAM))
        documents = [line[6:] for line in response.body.decode().split("\n\n") if line]
        assert documents[-1] == "[DONE]"
        last = json.loads(documents[-2])
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["id"] == "c1"
        assert last["usage"]["completion_tokens"] >= 10
        assert len(documents) == 12
        assert proxy.metric("streams_ended_total", how="graceful_close") == 1
        assert settled(proxy) == 1
        await proxy.until(lambda: proxy.upstream.open == 0)

    check(streaming(sse(*words(50), DONE), pause_after=40), test, policies=limited)


def test_a_stream_past_its_limit_is_noted_with_its_rule_whose_it_was_and_its_tokens() -> None:
    limited = policy("llm", tokens("tokens", "header:x-tenant", tpm=TPM, max_completion_tokens=10))
    noted: list[tuple[str, Any, str, int]] = []

    async def test(proxy: Bench) -> None:
        ledger = proxy.gate._ledger
        ledger._note_ended = lambda limit, described, reason, streamed: noted.append(
            (limit.tally.rule, described, reason, streamed)
        )
        await proxy.ask(request(STREAM, CHAT, "X-Tenant: acme"))

    check(streaming(sse(*words(50), DONE)), test, policies=limited)
    ((name, described, reason, streamed),) = noted
    assert (name, described, reason) == (
        "tokens",
        (("header:x-tenant", "acme"),),
        "max_completion_tokens_exceeded",
    )
    assert 10 <= streamed <= 12


def test_a_stream_past_its_limit_can_end_with_an_error() -> None:
    limited = rule(max_completion_tokens=10, streaming={"on_limit_exceeded": "error_chunk"})

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request(STREAM))
        assert b'"code":"max_completion_tokens_exceeded"' in response.body
        assert proxy.metric("streams_ended_total", how="error_chunk") == 1

    check(streaming(sse(*words(50), DONE)), test, policies=limited)


def fallback(**config: Any) -> Any:
    """A policy whose only rule does not apply, so that its fallback does."""
    absent = tokens("absent", "header:x-key", tpm=TPM)
    return policy("llm", absent, fallback_limit=tokens("fallback", tpm=TPM, **config))


@pytest.mark.parametrize(
    "policies",
    [
        rule(streaming={"limit": "reservation"}),
        rule(streaming={"limit": "reservation"}, max_completion_tokens=100),
        rule(streaming={"limit": "reservation"}, weights={"input": 3, "output": 0.5}),
        rule(streaming={"limit": "reservation"}, max_completion_tokens=10),
        fallback(max_completion_tokens=10),
        fallback(streaming={"limit": "reservation"}),
    ],
)
def test_a_stream_is_ended_at_its_reservation_or_by_a_fallback_limit(policies: Any) -> None:
    """The client allows 10 tokens, or the rule does."""

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request({**STREAM, "max_tokens": 10}))
        assert response.body.count(b'"content": "word"') == 10
        assert b'"finish_reason":"length"' in response.body
        assert proxy.metric("streams_ended_total", how="graceful_close") == 1
        assert settled(proxy) == 1

    check(streaming(sse(*words(50), DONE)), test, policies=policies)


def test_a_stream_is_not_ended_while_every_policy_is_a_shadow() -> None:
    events = sse(*words(50), DONE)
    shadow = {"global_shadow": {"enabled": True, "reason": "trial", "expires_at": "2099-01-01T00:00:00Z"}}

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(STREAM))).body == b"".join(events)

    check(streaming(events), test, policies=rule(max_completion_tokens=10), more=shadow)


def test_a_stream_that_takes_too_long_in_all_is_cut_and_what_was_streamed_is_paid() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while not writer.is_closing():
            writer.write(sse(chat_chunk("word"))[0])
            await asyncio.sleep(0.01)

    async def test(proxy: Bench) -> None:
        client = await proxy.connect()
        client.send(request(STREAM))
        streamed = await client.rest()
        assert not streamed.endswith(b"0\r\n\r\n")
        assert settled(proxy) == 1
        assert consumed(proxy) >= streamed.count(b"word") > 0
        assert proxy.metric("upstream_failures_total") == 0
        await proxy.until(lambda: proxy.upstream.open == 0)

    check(endless, test, timeouts=Timeouts(5_000, 5_000, 1_000))


@pytest.mark.parametrize(
    "policies",
    [
        rule(max_completion_tokens=10, streaming={"enforce_mid_stream": False}),
        rule(max_completion_tokens=10, streaming={"enabled": False}),
        policy("s", tokens("t", tpm=TPM, max_completion_tokens=10), mode="shadow"),
        rule(),
    ],
)
def test_streams_that_are_not_to_be_ended_pass_whole(policies: Any) -> None:
    events = sse(*words(50), DONE)

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(STREAM))).body == b"".join(events)

    check(streaming(events), test, policies=policies)


def test_a_hundred_streams_leave_nothing_behind() -> None:
    events = sse(*words(5), USAGE_CHUNK, DONE)

    async def test(proxy: Bench) -> None:
        clients = [await proxy.connect() for _ in range(10)]
        for _ in range(10):
            for client in clients:
                client.send(request(STREAM))
            for client in clients:
                assert (await client.response()).status == 200
        assert (settled(proxy), consumed(proxy)) == (100, 1400)
        backend = proxy.backends.choose(0, [])
        assert backend.active == 0
        assert len(backend.idle) <= 10

    check(streaming(events), test)
