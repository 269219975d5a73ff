"""One counter or breaker, found by names and values, as an operator asks for it."""

from __future__ import annotations

from typing import Any

import pytest
from edge import Edge, Json, bucket, budget, moment, policy, tokens

from fairvisor.errors import NotFound, RequestError
from fairvisor.lookup import Keys, Lookup

BREAKER = {
    "enabled": True,
    "spend_rate_threshold_per_minute": 100,
    "action": "reject",
    "auto_reset_after_minutes": 5,
    "scope": "key",
}


def find(edge: Edge, keys: Keys, rule: str = "r", policy_id: str = "p", at: float = 0) -> Any:
    return Lookup(edge.bundle, edge.identity, edge.counters).find(policy_id, rule, keys, moment(at))


def reset(edge: Edge, keys: Keys) -> int:
    lookup = Lookup(edge.bundle, edge.identity, edge.counters)
    return lookup.reset(lookup.find("p", "r", keys, moment(0)), moment(0))


def test_it_tells_amounts_in_whole_units_and_times_in_seconds() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key", rate=0.5, burst=10)))
    for _ in range(4):
        edge.ask(key="a")
    assert find(edge, {"header:x-key": "a"}).report() == {
        "policy": "p",
        "rule": "r",
        "mode": "enforce",
        "keys": {"header:x-key": "a"},
        "counters": [
            {"counter": "bucket", "limit": 10.0, "remaining": 6.0, "window_seconds": 20, "reset_seconds": 8}
        ],
    }


@pytest.mark.parametrize(
    ("rule", "asked", "keys"),
    [
        (bucket("r", "ip:address"), {"client": "192.0.2.9"}, {"ip:addr": "192.0.2.9"}),
        (bucket("r", "ip:address"), {"client": "2001:db8::1"}, {"ip:address": "2001:db8::ffff"}),
        (bucket("r", "ip:address"), {"client": "2001:db8::1"}, {"ip:address": "2001:db8::/64"}),
        (bucket("r", "header:X-Key"), {"key": "K"}, {"header:X-KEY": "K"}),
        (bucket("r", "request:method"), {"method": "POST"}, {"request:method": "post"}),
        (bucket("r", "request:path"), {"path": "/a/%62"}, {"request:path": "/a/b"}),
        (bucket("r"), {}, {}),
        (bucket("r", "header:x-key", on_missing="shared"), {}, {"header:x-key": None}),
        (
            budget("r", "header:x-key", "query:q"),
            {"key": "a|b", "path": "/?q=c"},
            {"query:q": "c", "header:x-key": "a|b"},
        ),
        (
            tokens("r", "llm:model", tpm=10_000),
            {"body": {"model": "openai/GPT-4o-2024-08-06", "messages": []}},
            {"llm:model": "gpt-4o"},
        ),
    ],
)
def test_values_are_spelled_as_requests_spell_them(rule: Json, asked: dict[str, Any], keys: Keys) -> None:
    edge = Edge(policy("p", rule))
    assert reset(edge, keys) == 0
    edge.ask(**asked)
    (counter,) = find(edge, keys).report()["counters"]
    assert counter["remaining"] < counter["limit"]
    assert reset(edge, keys) == 1
    (counter,) = find(edge, keys).report()["counters"]
    assert counter["remaining"] == counter["limit"]


def test_a_fallback_is_found_by_its_name() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key"), fallback_limit=bucket("rest")))
    assert find(edge, {}, "rest").rule == "rest"


def test_while_everything_is_a_shadow_the_shadow_counters_are_told() -> None:
    shadow = {"enabled": True, "reason": "trial", "expires_at": "2026-03-02T00:00:10Z"}
    edge = Edge(policy("p", bucket("r", burst=5)), global_shadow=shadow)
    edge.ask()
    assert find(edge, {}).report()["mode"] == "shadow"
    assert find(edge, {}).report()["counters"][0]["remaining"] == 4
    assert find(edge, {}, at=10).report()["mode"] == "enforce"
    assert find(edge, {}, at=10).report()["counters"][0]["remaining"] == 5


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"policy_id": "q"}, NotFound, "no policy 'q'"),
        ({"rule": "s"}, NotFound, "no rule 's'; it has r"),
        ({"keys": {}}, RequestError, "the limit keys of p/r are header:x-key"),
        ({"keys": {"header:x-key": "a", "ip:address": "b"}}, RequestError, "limit keys"),
        ({"keys": {"header:x-key": None}}, RequestError, "without a value of header:x-key"),
        ({"keys": {"header:x-key": ""}}, RequestError, "without a value of header:x-key"),
    ],
)
def test_what_does_not_fit_is_told(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key")))
    with pytest.raises(error, match=told):
        find(edge, **{"keys": {"header:x-key": "a"}, **arguments})


def test_a_breaker_is_found_by_its_policy_and_key() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key"), circuit_breaker=BREAKER), policy("q", bucket("r")))
    lookup = Lookup(edge.bundle, edge.identity, edge.counters)
    breaker, value = lookup.breaker("p", {"header:X-Key": "a"}, moment(0))
    breaker.trip(edge.counters, value, moment(0))
    assert edge.ask(key="a").reason == "circuit_breaker_open"
    for policy_id, keys, told in (
        ("p", {}, "has one for each header:x-key"),
        ("p", {"ip:address": "a"}, "has one for each header:x-key"),
        ("q", {}, "has no circuit breaker"),
    ):
        with pytest.raises(RequestError, match=told):
            lookup.breaker(policy_id, keys, moment(0))
