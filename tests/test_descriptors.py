"""Descriptors: what each one reads from a request, how values are compared, what counts as missing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from edge import CLIENT, identity_of, moment

from fairvisor.bundle.fields import FIXED_DESCRIPTORS
from fairvisor.context import Context
from fairvisor.descriptors import compile_descriptor, compile_match
from fairvisor.identity import Identity
from fairvisor.identity.tokens import Tokens
from fairvisor.llm.models import compile_aliases
from fairvisor.settings import Settings

TRUSTED = (("FAIRVISOR_TRUSTED_HINTS", "x-country-code,x-asn,x-asn-type,x-tor-exit"),)


def context(
    headers: dict[str, str | bytes] | None = None,
    target: str = "/v1/x",
    *,
    method: str = "GET",
    host: str = "api.example.com",
    client: str = CLIENT,
    hints: bool = False,
    body: dict[str, Any] | None = None,
    claims: dict[str, Any] | None = None,
) -> Context:
    raw = {
        name: value.encode() if isinstance(value, str) else value for name, value in (headers or {}).items()
    }
    if claims is not None:
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
            for part in ({"alg": "none"}, claims)
        ]
        raw["authorization"] = b"Bearer " + b".".join(parts) + b".x"
    data = None if body is None else json.dumps(body).encode()
    asked = Context(method, host, target, raw, client, identity_of(TRUSTED if hints else ()), moment(0), data)
    asked.path = asked.coarse_path = target.partition("?")[0]
    return asked


def read(name: str, asked: Context, aliases: dict[str, str] | None = None) -> str | None:
    return compile_descriptor(name, compile_aliases(aliases or {})).read(asked)


def matches(name: str, asked: Context, *values: str, aliases: dict[str, str] | None = None) -> bool:
    return compile_match(name, values, compile_aliases(aliases or {}))(asked)


def test_a_header_in_any_case() -> None:
    assert read("header:X-Key", context({"x-key": "a"})) == "a"
    assert read("header:x-key", context({"x-key": b"caf\xc3\xa9"})) == "café"
    assert read("header:x-key", context({"x-key": b"caf\xe9"})) == "café"
    assert read("header:x-key", context({"x-key": "a, b"})) == "a, b"
    assert read("header:x-key", context()) is None


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("/?k=1", "1"),
        ("/?a=0&k=1&%6B=%31", "1"),
        ("/?k=%2531", "%31"),
        ("/?k=a+b%2Bc", "a b+c"),
        ("/?%6B=1", "1"),
        ("/?k", ""),
        ("/?k=1#&k=2", "1"),
        ("/?K=1", None),
        ("/#?k=1", None),
        ("/", None),
    ],
)
def test_a_query_parameter_decoded_once(target: str, value: str | None) -> None:
    assert read("query:k", context(target=target)) == value


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("k=1", "1"),
        ("a=0; k=1; k=%31", "1"),
        (" k = 1 ;k= 1; k =1", "1"),
        ('k="a b"', "a b"),
        ("k=%2531", "%31"),
        ("k=a+b", "a+b"),
        ("a=0, k=1", "1"),
        ("ks=1", None),
        ("k", None),
    ],
)
def test_a_cookie_decoded_once(header: str, value: str | None) -> None:
    assert read("cookie:k", context({"cookie": header})) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sub", "u1"),
        ("https://example.com/org", "acme"),
        ("org.id", "literal"),
        ("team.name", "core"),
        ("n", "7"),
        ("pi", "3.5"),
        ("yes", "true"),
        ("roles", None),
        ("team", None),
        ("nothing", None),
        ("absent", None),
        ("empty", ""),
    ],
)
def test_claims_literal_name_first_then_dots_reach_in(name: str, value: str | None) -> None:
    claims = {
        "sub": "u1",
        "https://example.com/org": "acme",
        "org.id": "literal",
        "org": {"id": "nested"},
        "team": {"name": "core"},
        "n": 7,
        "pi": 3.5,
        "yes": True,
        "roles": ["a", "b"],
        "nothing": None,
        "empty": "",
    }
    assert read(f"jwt:{name}", context(claims=claims)) == value
    assert read(f"jwt:{name}", context()) is None


def test_match_on_an_array_of_claims_means_contains() -> None:
    asked = context(claims={"roles": ["admin", 7, {"x": 1}], "sub": "u"})
    assert matches("jwt:roles", asked, "admin")
    assert matches("jwt:roles", asked, "x", "7")
    assert not matches("jwt:roles", asked, "adm")
    assert matches("jwt:sub", asked, "u")
    assert not matches("jwt:sub", context(), "u")


@pytest.mark.parametrize("name", ["ip:address", "ip:addr"])
@pytest.mark.parametrize(
    ("value", "inside", "outside"),
    [
        (
            "10.0.0.0/8",
            ["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"],
            ["11.0.0.0", "9.255.255.255", "::a00:1"],
        ),
        ("::ffff:10.0.0.0/104", ["10.1.2.3", "::ffff:10.1.2.3"], ["11.0.0.1", "::1"]),
        ("192.0.2.7/32", ["192.0.2.7"], ["192.0.2.6"]),
        ("0.0.0.0/0", ["8.8.8.8"], ["2001:db8::1", ""]),
        ("::/0", ["2001:db8::1"], ["8.8.8.8", "::ffff:8.8.8.8", ""]),
        ("2001:db8::/32", ["2001:db8:ffff::1"], ["2001:db9::1", "32.1.13.184"]),
        ("2001:db8::/48", ["2001:db8:0:ffff::1"], ["2001:db8:1::1"]),
        ("2001:db8::/96", ["2001:db8::ffff:1"], ["2001:db8::1:0:1"]),
    ],
)
def test_match_on_an_address_takes_networks(
    name: str, value: str, inside: list[str], outside: list[str]
) -> None:
    assert [client for client in inside if not matches(name, context(client=client), value)] == []
    assert [client for client in outside if matches(name, context(client=client), value)] == []
    assert matches(name, context(client=inside[0]), "203.0.113.9", value, "198.51.100.0/24")


@pytest.mark.parametrize("name", ["ip:address", "ip:addr"])
def test_clients_are_counted_by_address_or_by_their_ipv6_network(name: str) -> None:
    assert read(name, context(client="192.0.2.7")) == "192.0.2.7"
    assert read(name, context(client="2001:db8::1:2")) == "2001:db8::/64"
    assert read(name, context(client="::ffff:192.0.2.7")) == "192.0.2.7"
    assert read(name, context(client="")) in (None, "")


def test_match_on_an_address_takes_the_full_one_and_the_network() -> None:
    asked = context(client="2001:db8::1")
    assert matches("ip:address", asked, "2001:db8::1")
    assert matches("ip:address", asked, "2001:db8::/64")
    assert not matches("ip:address", asked, "2001:db8::2")


@pytest.mark.parametrize(
    ("name", "header", "value"),
    [
        ("ip:country", "x-country-code", "DE"),
        ("ip:asn", "x-asn", "64500"),
        ("ip:type", "x-asn-type", "hosting"),
        ("ip:tor", "x-tor-exit", "true"),
    ],
)
def test_what_a_gateway_says_of_a_client_counts_where_it_is_trusted(
    name: str, header: str, value: str
) -> None:
    """A hint counts from a trusted peer and when the settings name it."""
    assert read(name, context({header: value}, client="127.0.0.1", hints=True)) == value
    assert read(name, context({header: value}, client="127.0.0.1")) is None


def test_bots() -> None:
    bot = context({"user-agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"})
    assert (read("ua:bot", bot), read("ua:bot_category", bot)) == ("true", "search-engine")
    person = context({"user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"})
    assert (read("ua:bot", person), read("ua:bot_category", person)) == ("false", None)
    assert read("ua:bot", context()) == "false"


def test_the_request_itself() -> None:
    asked = context(method="PUT", target="/v1/y?q")
    assert read("request:method", asked) == "PUT"
    assert read("request:host", asked) == "api.example.com"
    assert read("request:path", asked) == "/v1/y"


def test_models_are_canonical() -> None:
    asked = context(body={"model": "openai/GPT-4o-2024-08-06"})
    assert read("llm:model", asked) == "gpt-4o"
    assert read("llm:model", asked, {"gpt-4o": "big"}) == "big"
    assert read("llm:model", context(body={"model": "fast"}), {"FAST": "gpt-4o"}) == "gpt-4o"
    assert read("llm:model", context(body={})) is None
    assert read("llm:model", context()) is None


def test_values_to_match_are_spelled_as_the_descriptor_spells_them() -> None:
    assert matches("request:method", context(method="POST"), "post")
    assert matches("request:host", context(host="api.example.com"), "API.Example.com.")
    assert matches("request:path", context(target="/v1/x"), "/v1//%78")
    assert matches("llm:model", context(body={"model": "gpt-4o"}), "OpenAI/GPT-4o-2024-08-06")
    assert matches("llm:model", context(body={"model": "gpt-4o"}), "big", aliases={"gpt-4o": "big"})
    assert not matches("header:x", context({"x": "A"}), "a")


@pytest.mark.parametrize("target", ["/v1/x", "/v1%2Fx", "/v1/x;a=1", "/v1/y/..%2fx", "/v1/x?q"])
def test_a_match_on_the_path_sees_every_reading_of_it(target: str) -> None:
    assert matches("request:path", context(target=target), "/v1/x")
    assert not matches("request:path", context(target=target), "/v1")


def test_every_known_descriptor_can_be_read() -> None:
    for name in FIXED_DESCRIPTORS:
        read(name, context())


def test_nothing_is_looked_up_that_no_policy_asks_for() -> None:
    identity = Identity.from_settings(Settings.load({}, {}))
    identity.tokens = Tokens(lambda: None)
    refused: list[str] = []
    identity.tokens.refused.told = refused.append
    headers = {"x-key": b"a", "authorization": b"Bearer no-token"}
    asked = Context("GET", "h", "/v1/x", headers, CLIENT, identity, moment(0))
    assert read("header:x-key", asked) == "a"
    assert refused == []
    read("jwt:sub", asked)
    read("jwt:sub", asked)
    assert refused == ["malformed"]
