"""Loading a bundle: what the model says after load, signatures, successors, and that nothing but BundleInvalid ever
comes out of a document, however it is mutilated."""

from __future__ import annotations

import base64
import gc
import hashlib
import hmac
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.bundle import syntax
from fairvisor.bundle.load import Parsed, check_successor, parse, parse_policy, sign, verify_signature
from fairvisor.bundle.model import CostBased, LlmTokens, Policy, TokenBucket
from fairvisor.clock import NS_PER_S
from fairvisor.errors import MAX_PROBLEMS, BundleInvalid, BundleRefused, EstimatorUnavailable

WALL_NS = 1_800_000_000 * NS_PER_S  # 2027-01-15T08:00:00Z
RULE: dict[str, Any] = {
    "name": "r",
    "limit_keys": ["ip:address"],
    "algorithm": "token_bucket",
    "algorithm_config": {"tokens_per_second": 10, "burst": 20},
}


def policy(**spec: Any) -> dict[str, Any]:
    return {"id": "p", "spec": {"selector": {"pathPrefix": "/"}, "rules": [RULE], **spec}}


def with_config(algorithm: str, **config: Any) -> dict[str, Any]:
    return policy(rules=[{**RULE, "algorithm": algorithm, "algorithm_config": config}])


def load(*policies: Any, strict: bool = False, **fields: Any) -> Parsed:
    document = {"bundle_version": 1, "policies": list(policies), **fields}
    return parse(json.dumps(document).encode(), wall_ns=WALL_NS, environ={}, strict=strict)


def first(parsed: Parsed) -> Policy:
    return parsed.model.policies[0]


def config_of(algorithm: str, **config: Any) -> TokenBucket | CostBased | LlmTokens:
    return first(load(with_config(algorithm, **config))).spec.rules[0].algorithm_config


def errors_of(*policies: Any, **fields: Any) -> list[str]:
    with pytest.raises(BundleInvalid) as invalid:
        load(*policies, **fields)
    return [str(problem) for problem in invalid.value.problems]


# What the model says


@pytest.mark.parametrize("text", ["0.1", "0.3333333333333333", "1e-6", "12345678.9", "3", "3.0", "1E2"])
def test_an_amount_is_exactly_the_decimal_in_the_json(text: str) -> None:
    document = {"bundle_version": 1, "policies": [with_config("cost_based", budget=0, period="1h")]}
    data = json.dumps(document).replace('"budget": 0', f'"budget": {text}')
    config = first(parse(data.encode(), wall_ns=WALL_NS, environ={})).spec.rules[0].algorithm_config
    assert isinstance(config, CostBased)
    assert config.budget == Decimal(text)


def test_the_hash_and_the_bytes_are_those_of_the_document() -> None:
    data = b'{"bundle_version": 1, "policies": []}'
    parsed = parse(data, wall_ns=WALL_NS, environ={})
    assert (parsed.data, parsed.sha256) == (data, hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("number", "read"), [("7", "7"), ("7.0", "7"), ("7.5", "7.5"), ("9007199254740992", "9007199254740992")]
)
def test_a_whole_version_is_an_int(number: str, read: str) -> None:
    parsed = parse(f'{{"bundle_version": {number}, "policies": []}}'.encode(), wall_ns=WALL_NS, environ={})
    assert repr(parsed.model.bundle_version) == read


@pytest.mark.parametrize(
    ("text", "instant_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2027-01-15T08:00:00Z", WALL_NS),
        ("2027-01-15T08:00Z", WALL_NS),
        ("2027-01-15T08:00:00+00:00", WALL_NS),
        ("2027-01-15T08:00:00.000000001Z", WALL_NS + 1),
        ("2027-01-15T08:00:00,5Z", WALL_NS + NS_PER_S // 2),
    ],
)
def test_instants_are_nanoseconds_since_the_epoch(text: str, instant_ns: int) -> None:
    assert load(policy(), expires_at=text).model.expires_at_ns == instant_ns


def test_descriptors_methods_and_hosts_have_one_spelling() -> None:
    spec = first(
        load(
            policy(
                selector={
                    "pathPrefix": "/",
                    "methods": ["get"],
                    "hosts": ["API.Example.com.", "[2001:DB8:0::1]:443"],
                },
                rules=[
                    {**RULE, "limit_keys": ["header:X-API-Key", "ip:addr", "cookie:Sid", "jwt:Realm.Role"]}
                ],
            )
        )
    ).spec
    assert spec.selector.methods == ("GET",)
    assert spec.selector.hosts == ("api.example.com", "[2001:db8::1]")
    assert spec.rules[0].limit_keys == ("header:x-api-key", "ip:address", "cookie:Sid", "jwt:Realm.Role")


def test_match_values_are_the_text_that_requests_are_compared_with() -> None:
    match = {"header:x-a": ["free", 1], "query:b": 0.5, "cookie:c": True}
    assert first(load(policy(rules=[{**RULE, "match": match}]))).spec.rules[0].match == {
        "header:x-a": ("free", "1"),
        "query:b": ("0.5",),
        "cookie:c": ("true",),
    }


def test_burst_tokens_are_the_tokens_per_minute_unless_given() -> None:
    absent = config_of("token_bucket_llm", tokens_per_minute=500)
    given_ = config_of("token_bucket_llm", tokens_per_minute=500, burst_tokens=700)
    assert isinstance(absent, LlmTokens)
    assert isinstance(given_, LlmTokens)
    assert (absent.burst_tokens, given_.burst_tokens) == (500, 700)


@pytest.mark.parametrize(
    ("stages", "read"),
    [
        (None, [(100, "reject")]),
        ([], [(100, "reject")]),
        ([{"threshold_percent": 80, "action": "warn"}], [(80, "warn"), (100, "reject")]),
        ([{"threshold_percent": 80, "action": "reject"}], [(80, "reject")]),
    ],
)
def test_a_budget_always_rejects_somewhere(stages: Any, read: list[tuple[int, str]]) -> None:
    extra = {} if stages is None else {"staged_actions": stages}
    config = config_of("cost_based", budget=10, period="1h", **extra)
    assert isinstance(config, CostBased)
    assert [(stage.threshold_percent, stage.action) for stage in config.staged_actions] == read


def test_a_fallback_limit_without_a_name_has_one() -> None:
    nameless = {name: value for name, value in RULE.items() if name != "name"}
    spec = first(load(policy(fallback_limit=nameless))).spec
    assert spec.fallback_limit is not None
    assert spec.fallback_limit.name == "fallback_limit"


def test_the_model_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        first(load(policy())).id = "other"


# Defaults

LOOP = {"window_seconds": 60, "threshold_identical_requests": 5}
BREAKER = {"spend_rate_threshold_per_minute": 100}
DEFAULTS = {"mode": "shadow", "on_missing": "reject", "loop_detection": LOOP, "circuit_breaker": BREAKER}


def test_defaults_fill_in_what_a_policy_does_not_say() -> None:
    nameless = {name: value for name, value in RULE.items() if name != "name"}
    spec = first(load(policy(fallback_limit=nameless), defaults=DEFAULTS)).spec
    assert spec.mode == "shadow"
    assert [rule.on_missing for _, rule in spec.placed_rules()] == ["reject", "reject"]
    assert spec.loop_detection is not None
    assert spec.circuit_breaker is not None


def test_a_policy_that_speaks_for_itself_is_left_alone() -> None:
    own = policy(
        mode="enforce",
        rules=[{**RULE, "on_missing": "skip"}],
        loop_detection={**LOOP, "threshold_identical_requests": 9},
        circuit_breaker={"enabled": False},
    )
    spec = first(load(own, defaults=DEFAULTS)).spec
    assert (spec.mode, spec.rules[0].on_missing) == ("enforce", "skip")
    assert spec.loop_detection is not None
    assert spec.loop_detection.threshold_identical_requests == 9
    assert spec.circuit_breaker is None


def test_without_defaults_a_control_that_is_off_is_absent() -> None:
    spec = first(load(policy(loop_detection={"enabled": False}, circuit_breaker={"enabled": False}))).spec
    assert (spec.mode, spec.rules[0].on_missing) == ("enforce", "skip")
    assert spec.loop_detection is None
    assert spec.circuit_breaker is None


def test_one_policy_reads_as_it_does_in_its_bundle() -> None:
    raw = {**policy(), "unknown": 1, "$comment": "read again when a bundle is reloaded"}
    parsed = load(raw, defaults=DEFAULTS)
    assert parse_policy(raw, parsed.model.defaults) == first(parsed)
    assert "unknown" in raw


def test_one_policy_that_is_wrong_is_refused() -> None:
    with pytest.raises(BundleInvalid, match=r"^id: is required$"):
        parse_policy({"spec": policy()["spec"]}, load().model.defaults)


# Errors and warnings


def test_strict_makes_unknown_fields_errors() -> None:
    unknown = {**policy(), "note": 1, "$comment": "this is not unknown"}
    assert [str(warning) for warning in load(unknown).warnings] == ["policies[0].note: unknown field"]
    with pytest.raises(BundleInvalid, match=r"^policies\[0\].note: unknown field$"):
        load(unknown, strict=True)


def test_an_unknown_field_does_not_hide_what_else_is_wrong() -> None:
    rule = {**RULE, "nme": "x", "algorithm_config": {"tokens_per_second": 10, "burst": 5, "brust": 1}}
    assert errors_of(policy(rules=[rule], selector={"pathPrefix": "/", "host": []})) == [
        'policies[0].spec.selector.host: unknown field; did you mean "hosts"?',
        "policies[0].spec.rules[0].algorithm_config.burst: must be at least 10 (tokens_per_second), not 5",
    ]


def test_errors_of_all_policies_come_at_once() -> None:
    assert errors_of(policy(mode="x"), 5, policy(rules=5), bundle_version=0)[1:] == [
        'policies[0].spec.mode: must be one of "enforce", "shadow", not "x"',
        "policies[1]: must be an object, not 5",
        "policies[2].spec.rules: must be an array, not 5",
        'policies[2].id: "p" is taken by policies[0]',
    ]


def test_a_bundle_over_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syntax, "MAX_BUNDLE_BYTES", 20)
    assert errors_of(policy())[0].startswith("the bundle has ")
    assert "at most 64 MiB" in errors_of(policy())[0]


@pytest.mark.parametrize("installed", [True, False])
def test_an_estimator_that_cannot_be_loaded_is_an_error_of_its_rules(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_estimator(name: str) -> None:
        asked.append(name)
        if not installed:
            raise EstimatorUnavailable("it is not there")

    monkeypatch.setattr("fairvisor.bundle.load.load_estimator", load_estimator)
    wanted = with_config("token_bucket_llm", tokens_per_minute=5, token_source={"estimator": "tiktoken"})
    again = {**wanted, "id": "again"}
    place = "spec.rules[0].algorithm_config.token_source.estimator: it is not there"
    if installed:
        assert load(wanted, again).warnings == ()
    else:
        assert errors_of(wanted, again) == [f"policies[0].{place}", f"policies[1].{place}"]
    assert asked == ["tiktoken"], "it is tried once for all rules"


@pytest.mark.parametrize("variable", ["FAIRVISOR_JWKS_FILE", "FAIRVISOR_JWKS_URL"])
def test_claims_are_not_called_unverified_where_a_key_source_is_set(variable: str) -> None:
    document = {"bundle_version": 1, "policies": [policy(rules=[{**RULE, "limit_keys": ["jwt:sub"]}])]}
    data = json.dumps(document).encode()
    assert len(parse(data, wall_ns=WALL_NS, environ={}).warnings) == 1
    assert parse(data, wall_ns=WALL_NS, environ={variable: "somewhere"}).warnings == ()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_before(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        load(policy())
        errors_of(5)
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


# Signatures and successors

KEY = b"a key of the operator"
PAYLOAD = b'{"bundle_version": 1,\n "policies": []}\n'


def signed(payload: bytes, key: bytes = KEY) -> bytes:
    return base64.b64encode(hmac.digest(key, payload, "sha256")) + b"\n" + payload


def test_a_signed_bundle_gives_its_payload() -> None:
    assert verify_signature(signed(PAYLOAD), (KEY,)) == PAYLOAD


@pytest.mark.parametrize(
    "data",
    [
        PAYLOAD,
        b"",
        b"\n" + PAYLOAD,
        signed(PAYLOAD, b"another key"),
        signed(PAYLOAD) + b" ",
        signed(PAYLOAD)[1:],
        b"!" + signed(PAYLOAD),
        signed(PAYLOAD).replace(b"\n", b"", 1),
    ],
)
def test_anything_else_is_not_signed(data: bytes) -> None:
    with pytest.raises(BundleRefused) as refused:
        verify_signature(data, (KEY,))
    assert refused.value.code == "invalid_signature"


@pytest.mark.parametrize("data", [PAYLOAD, signed(PAYLOAD)])
def test_without_a_key_the_payload_is_what_counts(data: bytes) -> None:
    assert verify_signature(data, ()) == PAYLOAD


def test_while_a_signing_key_is_rotated_a_bundle_may_be_signed_with_either() -> None:
    for key in (KEY, b"the one before"):
        assert verify_signature(sign(PAYLOAD, key), (KEY, b"the one before")) == PAYLOAD
    with pytest.raises(BundleRefused, match="invalid_signature"):
        verify_signature(sign(PAYLOAD, b"a third one"), (KEY, b"the one before"))


def test_the_active_bytes_again_are_nothing_new() -> None:
    parsed = load(policy(), expires_at="2020-01-01T00:00:00Z")
    assert check_successor(parsed, 9, parsed.sha256, WALL_NS) is False


@pytest.mark.parametrize("active_version", [None, 0.5])
def test_a_greater_version_is_new(active_version: float | None) -> None:
    assert check_successor(load(policy()), active_version, "other", WALL_NS) is True


@pytest.mark.parametrize("active_version", [1, 1.5, 2**53])
def test_a_version_that_is_not_greater_is_refused(active_version: float) -> None:
    with pytest.raises(BundleRefused) as refused:
        check_successor(load(policy()), active_version, "other", WALL_NS)
    assert refused.value.code == "version_not_monotonic"


@pytest.mark.parametrize(
    ("wall_ns", "is_refused"), [(WALL_NS - 1, False), (WALL_NS, True), (WALL_NS + 1, True)]
)
def test_an_expired_bundle_is_refused_when_it_is_offered(wall_ns: int, is_refused: bool) -> None:
    offered = load(policy(), expires_at="2027-01-15T08:00:00Z")
    if not is_refused:
        assert check_successor(offered, None, None, wall_ns)
        return
    with pytest.raises(BundleRefused) as refused:
        check_successor(offered, None, None, wall_ns)
    assert refused.value.code == "bundle_expired"


# Whatever the document

CORPUS = sorted((Path(__file__).parent / "bundles" / "valid").glob("*.json"))
ENVIRON = {"LONG": "s" * 64}
WORDS = [
    "token_bucket",
    "cost_based",
    "header:a",
    "ip:address",
    "/",
    "*",
    "",
    "é",
    "true",
    "2027-01-01T00:00:00Z",
    "[key]",
]
NAMES = ["rps", "name", "algorithm", "spec", "$comment", "match", "jwk", "enabled", "policies", "x y", ""]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)


def mutilate(data: st.DataObject, part: Any) -> Any:
    """`part` with one thing in it replaced, removed, renamed or added, somewhere."""
    if not isinstance(part, (dict, list)) or not part or data.draw(st.integers(0, 9)) == 0:
        return data.draw(VALUES)
    keys = list(part) if isinstance(part, dict) else list(range(len(part)))
    key = data.draw(st.sampled_from(keys))
    change = data.draw(st.sampled_from(["inside", "inside", "inside", "inside", "remove", "add"]))
    if change == "inside":
        part[key] = mutilate(data, part[key])
    elif change == "remove":
        part.pop(key)
    elif isinstance(part, dict):
        part[data.draw(st.sampled_from(NAMES))] = data.draw(VALUES)
    else:
        part.append(data.draw(VALUES))
    return part


def refused_or_valid(document: bytes) -> None:
    """Anything but BundleInvalid fails the test, and so does an error in pydantic's words or without a place."""
    try:
        parse(document, wall_ns=WALL_NS, environ=ENVIRON)
    except BundleInvalid as invalid:
        assert invalid.problems
        for problem in invalid.problems:
            assert problem.path or problem.message.startswith("the bundle ")
            assert "Input should" not in problem.message
            assert "_ns" not in problem.path


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_mutilated_bundle_raises_anything_else(data: st.DataObject) -> None:
    document = json.loads(data.draw(st.sampled_from(CORPUS)).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        document = mutilate(data, document)
    refused_or_valid(json.dumps(document).encode())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_garbled_bytes_raise_anything_else(data: st.DataObject) -> None:
    document = bytearray(data.draw(st.sampled_from(CORPUS)).read_bytes())
    at = data.draw(st.integers(0, len(document) - 1))
    document[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    refused_or_valid(bytes(document))


# bounded reports

ONE_RULE = {**RULE, "limit_keys": [1] * 50_000}
MANY_NAMES = {f"name{number}": 1 for number in range(50_000)}


@pytest.mark.parametrize(
    ("document", "strict"),
    [
        ({"policies": [policy(rules=[ONE_RULE])]}, False),
        ({"policies": [policy(rules=[1] * 50_000)]}, False),
        ({"policies": [1] * 50_000}, False),
        ({"policies": [policy(rules=[{**RULE, "limit_keys": [None] * 50_000}])]}, False),
        ({"policies": [policy(selector={"pathPrefix": "/", **MANY_NAMES})]}, False),
        ({"policies": [policy(**MANY_NAMES)]}, True),
        ({"policies": [], "kill_switches": [{}] * 50_000}, False),
        ({"policies": [policy()] * 5_000}, False),
    ],
)
def test_a_bundle_with_very_many_errors_has_a_bounded_report(document: dict[str, Any], strict: bool) -> None:
    with pytest.raises(BundleInvalid) as invalid:
        load(*document.pop("policies"), strict=strict, **document)
    problems = invalid.value.problems
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1].message == "there are more errors: only the first 100 are listed"


def test_a_name_given_twice_very_often_has_a_bounded_report() -> None:
    text = '{"bundle_version": 1, "policies": [], ' + ",".join(['"a": 1'] * 5_000) + "}"
    with pytest.raises(BundleInvalid) as invalid:
        parse(text.encode(), wall_ns=WALL_NS, environ={})
    assert len(invalid.value.problems) == MAX_PROBLEMS + 1


def test_a_bundle_with_very_many_warnings_is_valid_and_lists_the_first() -> None:
    warnings = load(policy(**MANY_NAMES)).warnings
    assert len(warnings) == MAX_PROBLEMS + 1
    assert warnings[-1].message == "there are more warnings: only the first 100 are listed"


def test_an_error_with_a_long_name_is_cut() -> None:
    name = "x" * 100_000
    errors = errors_of(
        {**policy(), "id": name}, {**policy(), "id": name}, policy(selector={name: 1}), jwt_keys=name
    )
    assert len(errors) >= 4
    assert max(map(len, errors)) < 1_000


@pytest.mark.parametrize("policies", [[policy(rules=[{**RULE, "limit_keys": [1] * 100_000}])], []])
def test_a_part_with_too_many_values_is_one_error(policies: list[Any]) -> None:
    fields = {} if policies else {"jwt_keys": [1] * 100_000}
    (error,) = errors_of(*policies, **fields)
    assert re.search(r" has 100,0\d\d values; at most 100,000 are read$", error)
