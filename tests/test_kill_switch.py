"""Kill switches: whom they stop, where, until when, and that nothing softens them."""

from __future__ import annotations

from typing import Any

import pytest
from edge import Edge, bucket, instant, policy
from test_tokens import unsigned

DAY = 86_400


def switch(scope_key: str, scope_value: Any, **more: Any) -> dict[str, Any]:
    return {"scope_key": scope_key, "scope_value": scope_value, **more}


def edge(*switches: dict[str, Any], mode: str = "enforce", **more: Any) -> Edge:
    return Edge(policy("p", bucket("r", burst=1000), mode=mode), kill_switches=[*switches], **more)


def test_a_switch_stops_whoever_carries_the_value() -> None:
    stopped = edge(switch("header:X-Key", "bad"))
    reply = stopped.ask(key="bad")
    assert (reply.status, reply.reason, reply.should_retry) == (429, "kill_switch_active", False)
    assert 3600 <= reply.retry_after <= 3660
    assert [stopped.ask(key=key).status for key in ("Bad", "bad2", "")] == [204, 204, 204]
    assert stopped.ask().status == 204, "a missing descriptor does not match"
    assert stopped.metric("decisions_total", action="reject", reason="kill_switch_active") == 1


def test_nothing_is_charged_by_a_stopped_request() -> None:
    stopped = edge(switch("header:x-key", "bad"))
    stopped.ask(key="bad")
    assert stopped.ask(key="good").remaining == 999


def test_a_star_is_any_value_that_is_there() -> None:
    stopped = edge(switch("header:x-key", "*"))
    assert [stopped.ask(key=key).status for key in ("a", "*")] == [429, 429]
    assert [stopped.ask().status, stopped.ask(key="").status] == [204, 204]


@pytest.mark.parametrize(
    ("value", "stopped", "passing"),
    [
        ("192.0.2.7", ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.2.8"]),
        ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255"], ["192.0.3.0", "2001:db8::1"]),
        ("0.0.0.0/0", ["8.8.8.8"], ["2001:db8::1"]),
        ("::ffff:192.0.2.7", ["192.0.2.7"], ["192.0.2.8"]),
        ("2001:db8::1", ["2001:db8::1", "2001:db8:0::0:1"], ["2001:db8::2"]),
        ("2001:db8::/32", ["2001:db8:1::1"], ["2001:db9::1", "32.1.13.184"]),
        ("*", ["192.0.2.1", "2001:db8::1"], []),
    ],
)
@pytest.mark.parametrize("key", ["ip:address", "ip:addr"])
def test_addresses_and_networks_are_compared_with_the_full_address(
    key: str, value: str, stopped: list[str], passing: list[str]
) -> None:
    switched = edge(switch(key, value))
    assert {switched.ask(client=client).status for client in stopped} == {429}
    assert {switched.ask(client=client).status for client in passing} <= {204}
    assert switched.ask(client="").status == 204, "a unix socket that names no client"


def test_many_networks_of_many_lengths() -> None:
    switched = edge(
        *(switch("ip:address", f"10.{n}.0.0/16") for n in range(100)), switch("ip:address", "10.200.1.1")
    )
    assert switched.ask(client="10.99.3.4").status == 429
    assert switched.ask(client="10.100.3.4").status == 204
    assert switched.ask(client="10.200.1.1").status == 429


@pytest.mark.parametrize(
    ("route", "stopped", "passing"),
    [
        ("/v1/x", ["/v1/x", "/v1//x?q", "/v1/%78", "/v1%2Fx", "/v1/x;a"], ["/v1/x/", "/v1/xy", "/v1"]),
        ("/v1//%78", ["/v1/x"], ["/v1"]),
        ("/v1/x*", ["/v1/x", "/v1/xy", "/v1/x/y", "/v1/%78z", "/a/..%2Fv1%2Fxy"], ["/v1/y", "/v1"]),
        ("/*", ["/", "/anything"], []),
    ],
)
def test_a_route_is_an_exact_path_or_a_raw_prefix_of_it(
    route: str, stopped: list[str], passing: list[str]
) -> None:
    switched = edge(switch("header:x-key", "bad", route=route))
    assert [path for path in stopped if switched.ask(path=path, key="bad").status != 429] == []
    assert [path for path in passing if switched.ask(path=path, key="bad").status != 204] == []
    assert switched.ask(path=stopped[0], key="good").status == 204


def test_a_switch_ends_when_it_expires_and_says_when_that_is() -> None:
    switched = edge(switch("header:x-key", "bad", expires_at=instant(600)))
    assert 600 <= switched.ask(key="bad").retry_after <= 660
    assert 1 <= switched.ask(key="bad", at=599.5).retry_after <= 2
    assert switched.ask(key="bad", at=600).status == 204


def test_a_switch_that_expired_does_not_hide_another() -> None:
    old, new = switch("header:x-key", "bad", expires_at=instant(1)), switch("header:x-key", "bad")
    assert edge(old, new).ask(key="bad", at=2).status == 429


@pytest.mark.parametrize(
    ("key", "value", "request_"),
    [
        ("request:method", "delete", {"method": "DELETE"}),
        ("request:host", "API.example.com", {"host": "api.example.com"}),
        ("request:path", "/v1/x", {"path": "/v1%2Fx"}),
        ("llm:model", "GPT-4o-2024-08-06", {"method": "POST", "body": {"model": "openai/gpt-4o"}}),
        ("query:n", 5, {"path": "/?n=5"}),
        ("cookie:c", "v", {"headers": {"cookie": "c=v"}}),
    ],
)
def test_no_spelling_of_a_value_escapes(key: str, value: Any, request_: dict[str, Any]) -> None:
    switched = edge(switch(key, value))
    assert switched.ask(**request_).status == 429
    assert switched.ask(path="/other").status == 204


TOKENS = [
    # {"sub": "ann"} and {"sub": "bad"}, read unverified
    "Bearer e30.eyJzdWIiOiAiYW5uIn0.x",
    "Bearer e30.eyJzdWIiOiAiYmFkIn0.x",
]


@pytest.mark.parametrize(
    ("key", "pairs"),
    [
        ("header:x-key", [("X-Key", "good"), ("X-Key", "bad")]),
        ("cookie:c", [("Cookie", "c=good; c=bad")]),
        ("cookie:c", [("Cookie", "c=bad"), ("Cookie", "c=good")]),
        ("cookie:c", [("Cookie", 'c="\\142ad"; c=good')]),
        ("jwt:sub", [("Authorization", token) for token in TOKENS]),
        ("jwt:sub", [("Authorization", "Basic YTpi"), ("Authorization", TOKENS[1])]),
    ],
)
def test_a_switch_looks_at_every_value_that_a_request_carries(key: str, pairs: list[tuple[str, str]]) -> None:
    switched = edge(switch(key, "bad"))
    for order in (pairs, pairs[::-1]):
        assert switched.ask(headers=order).reason == "kill_switch_active"


def test_a_switch_works_where_no_policy_applies_and_shadow_does_not_soften_it() -> None:
    switches = [switch("header:x-key", "bad")]
    assert (
        Edge(policy("p", bucket("r"), path="/elsewhere"), kill_switches=switches).ask(key="bad").status == 429
    )
    assert edge(*switches, mode="shadow").ask(key="bad").status == 429
    shadow = {"enabled": True, "reason": "drill", "expires_at": instant(DAY)}
    assert edge(*switches, global_shadow=shadow).ask(key="bad").status == 429


def test_an_override_lifts_all_switches_until_it_expires() -> None:
    override = {"enabled": True, "reason": "a mistake in the night", "expires_at": instant(60)}
    lifted = edge(switch("header:x-key", "bad"), kill_switch_override=override)
    assert lifted.ask(key="bad", at=59).status == 204
    assert lifted.ask(key="bad", at=60).status == 429
    for disabled in ({"enabled": False}, {"enabled": False, "expires_at": instant(60)}):
        assert edge(switch("header:x-key", "bad"), kill_switch_override=disabled).ask(key="bad").status == 429


def test_more_credentials_than_are_looked_at_are_a_reject_that_is_counted() -> None:
    switched = edge(switch("jwt:sub", "mallory"))
    tokens = [unsigned({"alg": "none"}, {"sub": name}) for name in "abcd"]
    assert switched.ask(headers=[("authorization", token) for token in tokens]).status == 204
    tokens.append(unsigned({"alg": "none"}, {"sub": "mallory"}))
    reply = switched.ask(headers=[("authorization", token) for token in tokens])
    assert (reply.status, reply.reason) == (400, "ambiguous_request")
    assert switched.metric("decisions_total", reason="ambiguous_request") == 1
