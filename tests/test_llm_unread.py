"""A body that cannot be read, or that parsers read differently, escapes nothing that looks at its model or size."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge import Edge, Json, Reply, bucket, policy, tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from request_transports import TRANSPORTS, World

CHAT = "/v1/chat/completions"
SWITCH = [{"scope_key": "llm:model", "scope_value": "gpt-4o"}]
FORM = {"content-type": "application/x-www-form-urlencoded"}
UNREADABLE = [
    b'{"model": "gpt-4o"}x',
    b'{"model": "gpt-4o", "a": "\xff"}',
    b'{"model": "gpt-4o", "a": %s}' % (b"[" * 1100 + b"]" * 1100),
    b'{"model": "gpt-4o", "a": %s}' % (b"[" * 5000 + b"]" * 5000),
    b'{"model": "gpt-4o", "a": %s}' % (b"9" * 5000),
    b'{"model": "x", "model": "gpt-4o"}',
    b'{"model": "gpt-4o", "model": "x"}',
    b'{"MODEL": "gpt-4o"}',
    b'{"model": "x", "Model": "gpt-4o"}',
    b'{"model": "gpt-4o", "a": NaN}',
    b'[{"model": "gpt-4o"}]',
    b"\x1f\x8b\x08\x00",
]


def switched(body: bytes, path: str = CHAT, *policies: Json, switches: Any = None, **more: Any) -> Reply:
    """What a kill switch on gpt-4o makes of a body."""
    edge = Edge(*policies, kill_switches=switches or SWITCH)
    return edge.ask("POST", path, body=body, **more)


@pytest.mark.parametrize("body", UNREADABLE)
def test_a_kill_switch_on_a_model_stops_what_may_be_for_it(body: bytes) -> None:
    assert switched(body).reason == "kill_switch_active"


@pytest.mark.parametrize(
    "name", [" " * 300 + "gpt-4o", "gpt-4o:online", "a/" * 200 + "GPT-4o ", "gpt-4o:free"]
)
def test_no_padding_and_no_suffix_makes_another_model(name: str) -> None:
    assert switched(json.dumps({"model": name}).encode()).reason == "kill_switch_active"


@pytest.mark.parametrize(
    ("path", "document"),
    [
        (CHAT, {"model": "x", "models": ["y", "gpt-4o"]}),
        (CHAT, {"model": "x", "fallbacks": [{"x": ["gpt-4o"]}]}),
        (CHAT, {"model": "x,gpt-4o"}),
        (CHAT, {"model": "x", "extra_body": {"model": "gpt-4o"}}),
        (CHAT, {"model": "x", "extra_body": {"models": ["y", "gpt-4o"]}}),
        (f"{CHAT}?model=gpt-4o", {"model": "x"}),
        (f"{CHAT}?model=x&mod%65l=gpt-4o", {"model": "x"}),
        (f"{CHAT};%2Fmodel%2Fx%2Finvoke", {"model": "gpt-4o"}),
        ("/model/x/invoke", {"model": "gpt-4o"}),
        ("/model/gpt-4o/invoke", {"model": "x"}),
        ("/v1/models/gpt-4o%3AgenerateContent", {}),
    ],
)
def test_a_kill_switch_looks_at_every_model_that_is_named(path: str, document: Json) -> None:
    assert switched(json.dumps(document).encode(), path).reason == "kill_switch_active"


@pytest.mark.parametrize("path", ["/model/gpt-4o/invoke", "/v1/realtime?model=gpt-4o"])
def test_path_and_query_name_a_model_without_a_body(path: str) -> None:
    edge = Edge(kill_switches=SWITCH)
    assert edge.ask("GET", path).reason == "kill_switch_active"


def test_elsewhere_only_a_json_object_names_a_model() -> None:
    """A body that is no LLM request, sent to where none can be, is none of a kill switch's business."""
    for body in (b"\x00\x01", b"text", b'{"model": "gpt-4o"}x', b'{"Model": "T"}', b"model=gpt-4o"):
        assert switched(body, "/upload", headers=FORM).status == 204
    assert switched(b"", "/upload?model=gpt-4o").status == 204
    assert switched(b'{"model": "gpt-4o"}', "/upload").reason == "kill_switch_active"


def test_an_llm_request_is_expected_where_a_policy_or_the_switch_says_so() -> None:
    body = UNREADABLE[0]
    assert switched(body, "/x", policy("p", bucket("r", match={"llm:model": "o1"}))).reason
    assert switched(body, "/x", policy("p", bucket("r", "llm:model"))).reason
    assert switched(body, "/x", policy("p", tokens("r"))).reason
    assert switched(body, "/x", policy("p", bucket("r"))).status == 204
    routed = [SWITCH[0] | {"route": "/x*"}]
    assert switched(body, "/x", switches=routed).reason == "kill_switch_active"
    assert switched(b"model=gpt-4o", "/x", switches=routed, headers=FORM).reason == "kill_switch_active"
    assert switched(body, CHAT, switches=routed).status == 204


@pytest.mark.parametrize("model", ["gpt-4o", "o1"])
@pytest.mark.parametrize("body", UNREADABLE)
def test_every_rule_for_a_model_counts_what_may_be_for_it(body: bytes, model: str) -> None:
    edge = Edge(policy("p", bucket("r", match={"llm:model": model})))
    assert edge.ask("POST", CHAT, body=body).rule == "p/r"


@pytest.mark.parametrize("tail", [b"x", b"\xff", b" {}"])
def test_a_prompt_that_cannot_be_read_is_as_long_as_its_bytes(tail: bytes) -> None:
    edge = Edge(policy("p", tokens("t", tpm=100_000, max_prompt_tokens=1000)))
    long = json.dumps(
        {"model": "gpt-4o", "messages": [{"role": "user", "content": "word " * 12_000}]}
    ).encode()
    assert edge.ask("POST", CHAT, body=long).reason == "prompt_tokens_exceeded"
    assert edge.ask("POST", CHAT, body=long + tail).reason == "prompt_tokens_exceeded"


def test_a_cap_in_text_is_a_cap() -> None:
    edge = Edge(policy("p", tokens("t", tpm=100_000, max_tokens_per_request=4000)))
    reply = edge.ask("POST", CHAT, body={"model": "gpt-4o", "max_tokens": "10000"})
    assert reply.reason == "max_tokens_per_request_exceeded"


# unreadable_body: "reject"


@pytest.mark.parametrize("body", UNREADABLE)
def test_unreadable_bodies_can_be_rejected(body: bytes) -> None:
    edge = Edge(policy("p", tokens("t", tpm=100_000)), defaults={"unreadable_body": "reject"})
    reply = edge.ask("POST", CHAT, body=body)
    assert (reply.status, reply.reason) == (400, "unreadable_body")
    assert reply.headers["X-Should-Retry"] == "false"
    assert edge.ask("POST", CHAT, body={"model": "gpt-4o"}).status == 204
    assert edge.ask("POST", CHAT).status == 204


def test_unreadable_bodies_are_rejected_only_where_a_policy_reads_them() -> None:
    edge = Edge(policy("p", bucket("r")), defaults={"unreadable_body": "reject"})
    assert edge.ask("POST", CHAT, body=UNREADABLE[0]).status == 204


def test_in_shadow_an_unreadable_body_is_reported() -> None:
    edge = Edge(policy("p", tokens("t"), mode="shadow"), defaults={"unreadable_body": "reject"})
    reply = edge.ask("POST", CHAT, body=UNREADABLE[0])
    assert reply.status == 204
    assert [verdict.reason for verdict in reply.decision.would_reject] == ["unreadable_body"]


# Whatever a parser reads

NAMES = st.sampled_from(["model", "Model", "MODEL", "mod\\u0065l", "messages", "n", "x", "a model", "mode"])
MODELS = st.sampled_from(
    ["gpt-4o", "GPT-4o", " gpt-4o", "openai/gpt-4o", "gpt\\u002d4o", "gpt-4o-2024-08-06", "o1"]
)
VALUES = st.one_of(
    MODELS.map(lambda name: f'"{name}"'),
    st.sampled_from(
        ["1", "null", "NaN", "[]", '{"model": "gpt-4o"}', '"\\\\"', "1e999", "9" * 5000, '"\\ud800"']
    ),
)
GAPS = st.sampled_from(["", " ", "\n\t"])
FIELDS = st.tuples(GAPS, NAMES, GAPS, VALUES).map(lambda each: f'{each[0]}"{each[1]}"{each[2]}:{each[3]}')
BODIES = st.tuples(
    st.sampled_from(["", " ", "\ufeff"]),
    st.lists(FIELDS, min_size=1, max_size=5),
    st.sampled_from(["", "\n", "x", "{}", "\x00", " // c"]),
    st.sampled_from(["utf-8", "utf-8", "utf-16"]),
).map(lambda each: f"{each[0]}{{{','.join(each[1])}}}{each[2]}".encode(each[3]))


class Fields(list[tuple[str, Any]]):
    """The fields of an object, repeated ones included."""


def first(fields: Fields) -> Any:
    return dict(reversed(fields)).get("model")


def last(fields: Fields) -> Any:
    return dict(fields).get("model")


def any_case(fields: Fields) -> Any:
    """The last that is the name in any case, as Go's encoding/json reads."""
    return {name.casefold(): value for name, value in fields}.get("model")


def whole(text: str) -> Any:
    return json.loads(text, object_pairs_hook=Fields)


def tolerant(text: str) -> Any:
    """The value without a look at what follows it, as Go's Decoder and Jackson read."""
    return json.JSONDecoder(object_pairs_hook=Fields).raw_decode(text.lstrip())[0]


def models_read(body: bytes) -> Iterator[str]:
    """The model that each kind of parser reads in a body, where it reads one."""
    text = body.decode(json.detect_encoding(body))
    for read in (whole, tolerant):
        try:
            fields = read(text)
        except ValueError:
            continue
        for choose in (first, last, any_case):
            name = choose(fields)
            if isinstance(name, str):
                yield name


@settings(max_examples=400)
@given(BODIES)
def test_whatever_a_parser_reads_a_kill_switch_on_it_stops(body: bytes) -> None:
    """However a body is spelled: what some parser takes for gpt-4o, a kill switch on gpt-4o stops."""
    reply = switched(body)
    for name in models_read(body):
        if "4o" in name:
            assert reply.reason == "kill_switch_active", name


# Encoded bodies, through every transport (the proxy's are in test_proxy_codings.py)


def world(place: Path, **environ: str) -> World:
    document = {"bundle_version": 1, "policies": [], "kill_switches": SWITCH}
    (place / "bundle.json").write_text(json.dumps(document))
    made = World(place, place, environ, 1_700_000_000 * 10**9)
    made.load("bundle.json")
    return made


def encoded(body: bytes, coding: str = "gzip") -> bytes:
    lines = f"POST /v1/ext-authz{CHAT} HTTP/1.1\r\nHost: a\r\nContent-Encoding: {coding}\r\n"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("way", TRANSPORTS)
def test_an_encoded_body_is_read_decoded_by_every_transport(way: str, tmp_path: Path) -> None:
    transport = TRANSPORTS[way](world(tmp_path, FAIRVISOR_MAX_BODY="1048576"))
    for model, padding, status in (
        ("gpt-4o", 9, 429),
        ("o1", 9, 200),
        ("gpt-4o", 900_000, 429),
        ("o1", 900_000, 200),
    ):
        body = gzip.compress(json.dumps({"messages": "x" * padding, "model": model}).encode(), mtime=0)
        assert transport.ask(encoded(body), "127.0.0.1").status == status, (model, padding)


@pytest.mark.parametrize("way", TRANSPORTS)
def test_an_encoded_body_that_cannot_be_decoded_is_unread_for_every_transport(
    way: str, tmp_path: Path
) -> None:
    transport = TRANSPORTS[way](world(tmp_path, FAIRVISOR_MAX_BODY="1048576"))
    plain = b'{"model": "o1"}'
    for body, coding in (
        (gzip.compress(plain, mtime=0)[:-1], "gzip"), (gzip.compress(bytes(2**22), mtime=0), "gzip"), (plain, "gzip"),
        (plain, "compress"), (gzip.compress(plain, mtime=0), "gzip, gzip"),
    ):  # fmt: skip
        assert transport.ask(encoded(body, coding), "127.0.0.1").status == 429, (body[:20], coding)
    assert transport.ask(encoded(plain, "identity"), "127.0.0.1").status == 200
