"""Encoded bodies through the proxy: requests are read decoded, and no answer that swells holds up anybody else."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from edge import bucket, policy, tokens
from proxy_bench import Bench, bench, run
from test_proxy_llm import (
    ASK,
    CHAT,
    DONE,
    STREAM,
    USAGE_CHUNK,
    answer,
    chat_chunk,
    check,
    consumed,
    replying,
    request,
    rule,
    settled,
    sse,
    streaming,
    words,
)

from fairvisor.codings import SLICE_BYTES, Decoder

MIB = 1 << 20
SWITCH = {"kill_switches": [{"scope_key": "llm:model", "scope_value": "gpt-4o"}]}
ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda data: bytes(import_module("brotli").compress(data, quality=5)),
}


def coded(document: Any, coding: str, data: bytes | None = None) -> bytes:
    body = ENCODED[coding](json.dumps(document).encode()) if data is None else data
    return request(body, CHAT, f"Content-Encoding: {coding}")


# Requests


@pytest.mark.parametrize("coding", ENCODED)
def test_an_encoded_request_is_read_as_what_it_decodes_to(coding: str) -> None:
    async def test() -> None:
        async with bench(more=SWITCH) as proxy:
            assert (await proxy.ask(coded(ASK, coding))).status == 429
            sent = coded({**ASK, "model": "o1"}, coding)
            assert (await proxy.ask(sent)).status == 200
            assert proxy.upstream.received[0].endswith(sent.partition(b"\r\n\r\n")[2])

    run(test())


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"no gzip"),
        ("gzip", gzip.compress(b'{"model": "o1"}', mtime=0)[:-1]),
        ("gzip", gzip.compress(b'{"model": "o1"}', mtime=0) + b"x"),
        ("gzip", gzip.compress(bytes(8 * MIB), mtime=0)),
        ("gzip", b'{"model": "o1"}'),
        ("compress", b"\x1f\x9d\x90"),
        ("gzip, gzip", gzip.compress(b'{"model": "o1"}', mtime=0)),
    ],
)
def test_what_cannot_be_decoded_may_ask_any_model(coding: str, body: bytes) -> None:
    async def test() -> None:
        async with bench(more=SWITCH) as proxy:
            assert (await proxy.ask(coded(None, coding, body))).status == 429

    run(test())


def test_what_is_read_of_an_encoded_request_counts_and_it_passes_as_it_came() -> None:
    """The edge does not ask for the usage in a body that it would have to encode again."""
    sent = coded({**STREAM, "messages": [{"role": "user", "content": "word " * 5000}]}, "gzip")

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(sent)).status == 200
        assert 5000 <= proxy.metric("tokens_reserved_total") <= 6000
        assert proxy.upstream.received[0].endswith(sent.partition(b"\r\n\r\n")[2])

    check(replying(answer(b"{}")), test)


def test_a_large_encoded_request_is_decoded_between_others() -> None:
    """Four mebibytes of it are decoded in slices, and another client is answered before they all are."""
    environ = {"FAIRVISOR_MAX_BODY": str(8 * MIB), "FAIRVISOR_TRUSTED_PEERS": "none"}
    large = coded({**ASK, "model": "o1", "messages": "x" * 4 * MIB}, "gzip")
    tiny = policy("tiny", bucket("r"), path="/tiny")

    async def test() -> None:
        async with bench(tiny, more=SWITCH, environ=environ) as proxy:
            client, other = await proxy.connect(), await proxy.connect()
            client.send(large)
            await proxy.until(lambda: len(proxy.hub._works) == 1)
            assert (await other.ask(b"GET /tiny HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            assert len(proxy.hub._works) == 1
            assert (await client.response()).status == 200

    run(test())


def test_a_policy_that_reads_no_model_decodes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "step", lambda _: pytest.fail("it is decoded"))

    async def test() -> None:
        async with bench(policy("p", bucket("r", burst=100))) as proxy:
            assert (await proxy.ask(coded(ASK, "gzip"))).status == 200

    run(test())


# Answers

USAGE = {"usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}}


@pytest.mark.parametrize("coding", ENCODED)
@pytest.mark.parametrize("padding", [0, 300_000, 6 * MIB])
def test_the_usage_of_an_encoded_answer_is_settled_exactly(coding: str, padding: int) -> None:
    body = ENCODED[coding](json.dumps({"text": "x" * padding, **USAGE}).encode())

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(ASK))).body == body
        await proxy.until(lambda: settled(proxy) + proxy.metric("usage_missing_total") == 1)
        assert consumed(proxy) == (
            0 if padding == 6 * MIB else 21
        )  # that one is more than 64 times what came

    check(replying(answer(body, f"Content-Encoding: {coding}")), test)


@pytest.mark.parametrize("coding", ENCODED)
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_an_encoded_answer_passes_as_it_came_and_nothing_after_it(coding: str, kind: str) -> None:
    """It is read in many slices, and comes in many pieces."""
    text = "".join(f"{number * number}," for number in range(30_000))
    body = ENCODED[coding](
        f"data: {json.dumps({'text': text, **USAGE})}\n\n"[6 * (kind[0] == "a") :].encode()
    )

    async def test(proxy: Bench) -> None:
        client = await proxy.connect()
        for _ in range(3):
            assert (await client.ask(request(ASK))).body == body

    check(replying(answer(body, f"Content-Encoding: {coding}", kind=kind)), test)


def test_a_bomb_is_decoded_in_bounded_slices_between_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets the answer as it came, its reservation stands, and another client is served meanwhile."""
    bomb = gzip.compress(bytes(64 * MIB), mtime=0)
    slices: list[int] = []
    step = Decoder.step

    def counted(decoder: Decoder) -> bytes:
        plain = step(decoder)
        slices.append(len(plain))
        return plain

    monkeypatch.setattr(Decoder, "step", counted)

    async def test(proxy: Bench) -> None:
        client, other = await proxy.connect(), await proxy.connect()
        client.send(request(ASK))
        await proxy.until(lambda: bool(slices))
        before = len(slices)
        assert (await other.ask(request(ASK))).status == 429
        assert len(slices) < 4 * MIB // SLICE_BYTES, before
        assert (await client.response()).body == bomb
        await proxy.until(lambda: proxy.metric("usage_missing_total", reason="encoding") == 1)
        assert max(slices) <= SLICE_BYTES
        assert 4 * MIB // SLICE_BYTES <= len(slices) <= 4 * MIB // SLICE_BYTES + 2

    check(replying(answer(bomb, "Content-Encoding: gzip")), test, policies=policy("p", tokens("t", tpm=600)))


def test_a_stream_of_any_monotony_is_read_to_its_end() -> None:
    """Four mebibytes are read whatever they shrink to, so that no monotonous answer hides what it used."""
    events = b"".join(sse(*words(20_000), USAGE_CHUNK, DONE))
    body = gzip.compress(events, mtime=0)
    assert len(events) > 64 * len(body)

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request({**STREAM, "stream_options": {"include_usage": True}}))
        assert response.body == body
        await proxy.until(lambda: settled(proxy) == 1)
        assert consumed(proxy) == 14

    check(replying(answer(body, "Content-Encoding: gzip", kind="text/event-stream")), test)


@pytest.mark.parametrize("cut", [0, 100])
def test_an_encoded_stream_is_edited_slice_by_slice(cut: int) -> None:
    """The chunk with the usage that the edge asked for is taken out, and the rest passes decoded."""
    wanted = sse(*words(2000), DONE)
    body = gzip.compress(b"".join(wanted[:-1] + sse(USAGE_CHUNK) + wanted[-1:]))

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request(STREAM))
        assert response.body == b"".join(wanted)
        assert "content-encoding" not in response.headers
        assert consumed(proxy) == 14

    events = [body[at : at + cut] for at in range(0, len(body), cut)] if cut else [body]
    handler = streaming(events)
    check(_encoded(handler), test)


def test_a_stream_that_is_edited_and_cannot_be_decoded_ends() -> None:
    """What was streamed until then is paid."""
    encoder = zlib.compressobj(wbits=31)
    body = encoder.compress(b"".join(sse(*words(50)))) + encoder.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 50

    async def test(proxy: Bench) -> None:
        response = await proxy.ask(request(STREAM))
        assert 40 <= response.body.count(b"word") <= 50
        assert 40 <= consumed(proxy) <= 70

    check(_encoded(streaming([body])), test)


def test_a_client_that_leaves_while_its_answer_is_read_pays_for_it() -> None:
    body = gzip.compress(json.dumps({"text": "x" * 3 * MIB, **USAGE}).encode(), mtime=0)

    async def test(proxy: Bench) -> None:
        client = await proxy.connect()
        client.send(request(ASK))
        await proxy.until(lambda: len(proxy.hub._works) == 1)
        client.close()
        await proxy.until(lambda: not proxy.hub._works)
        assert consumed(proxy) == 21

    check(replying(answer(body, "Content-Encoding: gzip")), test)


def _encoded(handler: Any) -> Any:
    """The same upstream, which says that its stream is encoded."""

    async def serve(reader: Any, writer: Any) -> None:
        write = writer.write

        def encoded(data: bytes) -> None:
            write(data.replace(b"Content-Type: ", b"Content-Encoding: gzip\r\nContent-Type: "))

        writer.write = encoded
        await handler(reader, writer)

    return serve


# Streams without a usage


@pytest.mark.parametrize("stream", [True, "true", 1, "yes"])
@pytest.mark.parametrize("cap", [100, "100"])
def test_a_stream_without_usage_is_charged_what_was_streamed_however_it_was_asked_for(
    stream: object, cap: object
) -> None:
    body = {**ASK, "stream": stream, "max_tokens": cap}

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(body))).status == 200
        assert 2000 <= consumed(proxy) <= 2050
        assert 2000 <= proxy.taken("llm", "tokens")[1] <= 2050
        assert proxy.metric("usage_missing_total", reason="no_usage") == 1

    check(streaming(sse(*words(2000), DONE)), test)


def test_a_stream_that_was_asked_for_in_a_body_that_cannot_be_read_is_charged_what_was_streamed() -> None:
    body = json.dumps({**STREAM, "max_tokens": 10_000}).encode() + b"x"

    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request(body))).status == 200
        assert proxy.upstream.received[0].endswith(body)
        assert 5000 <= consumed(proxy) <= 5100

    check(streaming(sse(*words(5000), DONE)), test)


def test_a_short_stream_without_usage_leaves_the_reservation() -> None:
    async def test(proxy: Bench) -> None:
        assert (await proxy.ask(request({**STREAM, "max_tokens": 5000}))).status == 200
        assert settled(proxy) == 0
        assert proxy.taken("llm", "tokens")[1] >= 5000

    check(streaming(sse(chat_chunk("word"), DONE)), test, policies=rule())
