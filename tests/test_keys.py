"""For whom a rule counts: `match`, limit keys, `on_missing`, and that no two counters are taken for one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from edge import Edge, bucket, policy
from hypothesis import example, given
from hypothesis import strategies as st
from test_identity import HS_KEY, identity
from test_tokens import public_jwk, signed, unsigned

from fairvisor.bundle.compile import Options
from fairvisor.rules.keys import MAX_REMEMBERED, REMEMBERED_KEYS, Keyring, Keys, hash64, joined, spelled

PARTS = st.lists(st.text("ab|:10é", max_size=4), max_size=4)


@given(PARTS, PARTS)
def test_joined_parts_cannot_be_read_in_two_ways(one: list[str], other: list[str]) -> None:
    assert (joined(one) == joined(other)) == (one == other)


VALUES = st.lists(st.none() | st.text("a\n:-0", max_size=4), min_size=2, max_size=2)


@example(["a\n", "a"], ["a", "\na"])
@example([None, "\n"], ["-:", "\n"])
@example(["a", None], ["a", "-:"])
@given(VALUES, VALUES)
def test_spelled_values_cannot_be_read_in_two_ways(one: list[str | None], other: list[str | None]) -> None:
    """An empty value is a missing one."""
    same = [value or None for value in one] == [value or None for value in other]
    assert (spelled(one) == spelled(other)) == same


def test_a_key_depends_on_the_seed_and_takes_any_text() -> None:
    assert hash64("a", 1) != hash64("a", 2)
    assert hash64("\ud800", 1) != hash64("?", 1)


def test_the_same_values_have_the_same_key_however_often_it_is_asked_for() -> None:
    keyring = Keyring(7)
    some, other = Keys(keyring, "policy:"), Keys(keyring, "other:")
    texts = [f"{number}" for number in range(REMEMBERED_KEYS + 10)] + ["x" * (MAX_REMEMBERED + 1)]
    for _ in range(2):
        assert [some.key(text) for text in texts] == [hash64("policy:" + text, 7) for text in texts]
        assert (
            other.key(("a", None))
            == hash64("other:" + spelled(["a", None]), 7)
            == keyring.key("other:", ("a", None))
        )


def test_clients_cannot_fill_the_memory_with_keys() -> None:
    def taken(identities: Iterable[str]) -> int:
        """What is still held, in bytes, after the rules of a keyring were asked for all of these."""
        keyring = Keyring(7)
        rules = [Keys(keyring, f"rule {number}:") for number in range(10)]
        tracemalloc.start()
        for number, text in enumerate(identities):
            rules[number % 10].key(text)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert rules[0].key("a") == hash64("rule 0:a", 7)
        return held

    assert taken(f"{number:0{MAX_REMEMBERED - 7}}" for number in range(10 * REMEMBERED_KEYS)) < 4 << 20
    assert taken(f"{number:0{MAX_REMEMBERED + 1}}" for number in range(100)) < 10_000


def test_each_value_has_its_counter_and_no_limit_keys_are_one_for_all() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key", burst=2)))
    assert [edge.admits(key=key) for key in "ab"] == [2, 2]
    edge = Edge(policy("p", bucket("r", burst=2)))
    assert [edge.admits(key=key) for key in "ab"] == [2, 0]


@pytest.mark.parametrize(
    "other",
    [
        {"x-a": "a", "x-b": "b|c"},
        {"x-a": "", "x-b": "a|bc"},
        {"x-a": "a|b1:c", "x-b": "c"},
        {"x-a": "c", "x-b": "a|b"},
    ],
)
def test_pairs_of_values_are_told_apart(other: dict[str, str]) -> None:
    edge = Edge(policy("p", bucket("r", "header:x-a", "header:x-b", burst=1, on_missing="shared")))
    assert edge.admits(headers={"x-a": "a|b", "x-b": "c"}) == 1
    assert edge.admits(headers=other) == 1


def test_policies_and_rules_of_the_same_keys_have_their_own_counters() -> None:
    one = bucket("r", "header:x-key", burst=2)
    edge = Edge(policy("p", one, path="/p"), policy("q", one, {**one, "name": "s"}, path="/q"))
    assert edge.admits(path="/p", key="a") == 2
    assert edge.admits(path="/q", key="a") == 2


MISSING = [{}, {"x-key": ""}]


@pytest.mark.parametrize("headers", MISSING)
def test_a_missing_or_empty_key_skips_the_rule_and_is_counted(headers: dict[str, str]) -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key", burst=1)))
    assert edge.admits(headers=headers, most=5) == 5
    assert edge.ask(headers=headers).rule is None
    assert edge.metric("descriptor_missing_total", policy="p", rule="r", descriptor="header:x-key") == 6


@pytest.mark.parametrize("headers", MISSING)
def test_a_missing_key_rejects_where_the_rule_says_so(headers: dict[str, str]) -> None:
    edge = Edge(policy("p", bucket("r", "request:method", "header:x-key", burst=1, on_missing="reject")))
    reply = edge.ask(headers=headers)
    assert (reply.reason, reply.rule, reply.should_retry) == ("descriptor_missing", "p/r", False)
    assert 60 <= reply.retry_after <= 90
    assert "RateLimit" not in reply.headers
    assert edge.metric("descriptor_missing_total", descriptor="header:x-key") == 1
    assert edge.metric("descriptor_missing_total", descriptor="request:method") == 0
    assert edge.ask(key="a").status == 204


@pytest.mark.parametrize("headers", MISSING)
def test_missing_keys_share_a_counter_that_no_client_can_name(headers: dict[str, str]) -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key", burst=2, on_missing="shared")))
    assert edge.admits(headers=headers) == 2
    assert edge.admits(headers={"x-key": ""}) == 0
    assert [edge.admits(key=key) for key in ("-:", "-", "None", "0:")] == [2, 2, 2, 2]


def test_the_bundle_says_what_rules_do_about_missing_keys_unless_they_do() -> None:
    defaults = {"on_missing": "reject"}
    assert Edge(policy("p", bucket("r", "header:x-key")), defaults=defaults).ask().status == 429
    own = bucket("r", "header:x-key", on_missing="skip")
    assert Edge(policy("p", own), defaults=defaults).ask().status == 204


def test_a_rule_runs_only_where_its_whole_match_holds() -> None:
    match = {"header:x-plan": ["free", "trial"], "request:method": "post", "header:x-n": 5}
    edge = Edge(policy("p", bucket("r", burst=1, match=match)))
    hit = {"x-plan": "trial", "x-n": "5"}
    assert edge.ask("POST", headers=hit).rule == "p/r"
    assert edge.ask("POST", headers=hit).status == 429
    for method, headers in [
        ("GET", hit),
        ("POST", hit | {"x-plan": "Trial"}),
        ("POST", hit | {"x-plan": "free, trial"}),
        ("POST", hit | {"x-n": "5.0"}),
        ("POST", {"x-plan": "trial"}),
    ]:
        assert edge.ask(method, headers=headers).rule is None


def test_a_rule_whose_match_does_not_hold_misses_nothing() -> None:
    rule = bucket("r", "header:x-key", on_missing="reject", match={"request:method": "POST"})
    edge = Edge(policy("p", rule))
    assert edge.ask("GET").status == 204
    assert edge.metric("descriptor_missing_total") == 0
    assert edge.ask("POST").reason == "descriptor_missing"


@pytest.mark.parametrize(
    ("descriptor", "written"),
    [("query:k", {"path": "/v1/x?k=a&k=b"}), ("cookie:k", {"headers": {"cookie": "k=a; k=b"}})],
)
def test_on_ambiguous_takes_what_the_application_reads(descriptor: str, written: dict[str, Any]) -> None:
    plain = {"a": one_of(descriptor, "a"), "b": one_of(descriptor, "b")}
    for choice, counted in (("first", "a"), ("last", "b")):
        edge = Edge(policy("p", bucket("r", descriptor, burst=2, on_ambiguous=choice)))
        edge.ask(**written)
        assert edge.ask(**plain[counted]).remaining == 0
    assert Edge(policy("p", bucket("r", descriptor))).ask(**written).reason == "ambiguous_request"


def one_of(descriptor: str, value: str) -> dict[str, Any]:
    """Return a request with one value of a query parameter or a cookie."""
    if descriptor.startswith("query:"):
        return {"path": f"/v1/x?k={value}"}
    return {"headers": {"cookie": f"k={value}"}}


TWICE = {"headers": [("x-key", "a"), ("x-key", "b")]}


def test_a_shadow_reports_what_is_ambiguous() -> None:
    edge = Edge(policy("p", bucket("r", "header:x-key"), mode="shadow"))
    reply = edge.ask(**TWICE)
    assert reply.status == 204
    assert [verdict.reason for verdict in reply.decision.would_reject] == ["ambiguous_request"]


def test_a_match_holds_when_any_value_does_and_a_rule_that_does_not_read_it_counts() -> None:
    edge = Edge(policy("p", bucket("r", burst=1, match={"header:x-key": "b"})))
    assert [edge.ask(**TWICE).status for _ in range(2)] == [204, 429]


def test_defaults_say_what_rules_do_not() -> None:
    rule = bucket("r", "query:k", on_missing="reject")
    defaults = {"on_ambiguous": "last", "missing_status": 401, "on_invalid_token": "reject"}
    edge = Edge(policy("p", rule), policy("q", bucket("r", "jwt:sub"), path="/token"), defaults=defaults)
    edge.identity = identity((HS_KEY,))
    assert edge.ask(path="/v1/x?k=a&k=b").status == 204
    assert edge.ask(path="/v1/x").status == 401
    expired = {"authorization": signed({"sub": "a", "exp": 0}, "HS256", kid="s1")}
    assert edge.ask(path="/token", headers=expired).status == 401
    own = bucket("r", "query:k", on_missing="reject", missing_status=429, on_ambiguous="reject")
    edge = Edge(policy("p", own), defaults=defaults)
    assert edge.ask(path="/v1/x").status == 429
    assert edge.ask(path="/v1/x?k=a&k=b").status == 400


def test_more_than_four_credentials_are_not_looked_at() -> None:
    edge = Edge(policy("p", bucket("r", match={"jwt:sub": "a"})))
    edge.identity = identity((HS_KEY,))
    tokens = [signed({"sub": name}, "HS256", kid="s1") for name in "bcdea"]
    lines = [("authorization", token) for token in tokens]
    assert edge.ask(headers=lines[1:]).remaining == 4, "one of four matches"
    assert edge.ask(headers=lines).reason == "ambiguous_request"


# --- several issuers --------------------------------------------------------------------------------------------------

A, B = "https://a.example", "https://b.example"
PER_SUBJECT = policy("p", bucket("r", "jwt:sub", burst=2, rate=0.001))


def issuers(*names: str) -> dict[str, list[dict[str, str]]]:
    return {"jwt_issuers": [{"issuer": name, "url": f"{name}/jwks.json"} for name in names]}


def of(issuer: str | None, sub: str = "ann", **claims: object) -> dict[str, bytes]:
    """A token's header; who signed it is not looked at here."""
    document = {"sub": sub, **claims} if issuer is None else {"sub": sub, "iss": issuer, **claims}
    return {"authorization": unsigned({"alg": "none"}, document)}


def test_with_several_issuers_each_has_a_counter_of_its_own_for_a_claim() -> None:
    edge = Edge(PER_SUBJECT, **issuers(A, B))
    assert [edge.admits(headers=of(A)), edge.admits(headers=of(B)), edge.admits(headers=of(A))] == [2, 2, 0]
    rejected = edge.ask(headers=of(A))
    verdict = rejected.decision.verdict
    assert verdict is not None
    assert verdict.limit.describe(rejected.context) == (("jwt:sub", "https://a.example ann"),)


def test_with_one_issuer_counters_keep_theirs() -> None:
    edge = Edge(PER_SUBJECT)
    assert edge.admits(headers=of(A)) == 2
    edge.reload(PER_SUBJECT, **issuers(A))
    assert edge.admits(headers=of(A)) == 0
    edge.reload(PER_SUBJECT, **issuers(A, B))
    assert edge.admits(headers=of(A)) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((A, "b c"), (f"{A} b", "c")),
        ((A, "b"), (f"{A}%20b", "b")),
        (("a b", "c"), ("a%20b", "c")),
        ((None, f"{A} b"), (A, "b")),
    ],
)
def test_no_issuer_and_value_are_taken_for_another(
    one: tuple[str | None, str], other: tuple[str | None, str]
) -> None:
    edge = Edge(PER_SUBJECT, **issuers(A, B))
    assert edge.admits(headers=of(*one)) == 2
    assert edge.admits(headers=of(*other)) == 2


def test_a_token_without_the_claim_misses_it_whoever_issued_it() -> None:
    strict = policy("p", bucket("r", "jwt:org", burst=2, on_missing="reject"))
    assert Edge(strict, **issuers(A, B)).ask(headers=of(A)).reason == "descriptor_missing"


def test_a_match_may_name_the_issuer_and_a_claim_means_every_issuers() -> None:
    edge = Edge(
        policy("p", bucket("r", burst=2, match={"jwt:sub": "ann", "jwt:iss": A})),
        policy("q", bucket("s", burst=3, match={"jwt:sub": "bob"})),
        **issuers(A, B),
    )
    assert edge.admits(headers=of(A)) == 2
    assert edge.admits(headers=of(B), most=9) == 9
    assert [edge.admits(headers=of(A, "bob")), edge.admits(headers=of(B, "bob"))] == [3, 0]


def test_a_kill_switch_may_name_the_issuer_and_a_claim_means_every_issuers() -> None:
    edge = Edge(
        PER_SUBJECT,
        kill_switches=[
            {"scope_key": "jwt:iss", "scope_value": B},
            {"scope_key": "jwt:sub", "scope_value": "mallory"},
        ],
        **issuers(A, B),
    )
    assert edge.ask(headers=of(A)).status == 204
    for stopped in (of(B), of(A, "mallory"), of(None, "mallory")):
        assert edge.ask(headers=stopped).reason == "kill_switch_active"


def test_breaker_and_loop_detection_tell_issuers_apart_too() -> None:
    edge = Edge(
        policy(
            "p",
            bucket("r", "jwt:sub", burst=100),
            circuit_breaker={"enabled": True, "spend_rate_threshold_per_minute": 3, "scope": "key"},
        ),
        policy(
            "q",
            bucket("s", "jwt:sub", burst=100),
            path="/loop",
            loop_detection={"enabled": True, "window_seconds": 60, "threshold_identical_requests": 2},
        ),
        **issuers(A, B),
    )
    assert [edge.admits(headers=of(A)), edge.admits(headers=of(B))] == [3, 3]
    carol = [edge.ask(path="/loop", headers=of(issuer, "carol")).status for issuer in (A, B, A)]
    assert carol == [204, 204, 429]


def test_the_issuers_of_keys_and_settings_count_as_well() -> None:
    named = {"jwt_keys": [{"jwk": public_jwk("P-256"), "issuer": B}]}
    unnamed = {"jwt_keys": [{"jwk": public_jwk("P-256")}]}
    for more, options, apart in (
        (issuers(A) | named, Options(), True),
        (issuers(B) | named, Options(), False),
        (issuers(A) | unnamed, Options(), True),
        (unnamed, Options(), False),
        (named, Options(key_issuers=frozenset({A})), True),
        (named, Options(key_issuers=frozenset({None})), False),
        (issuers(A), Options(key_issuers=frozenset({None})), True),
        (issuers(A), Options(key_issuers=frozenset({A})), False),
    ):
        edge = Edge(PER_SUBJECT, options=options, **more)
        assert (edge.admits(headers=of(A)), edge.admits(headers=of(B))) == (2, 2 if apart else 0)
