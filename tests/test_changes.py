"""What one bundle changes about another: the limits whose numbers differ, what came and what went."""

from __future__ import annotations

import json
from typing import Any

from edge import bucket, budget, bundle, policy, tokens

from fairvisor.bundle.changes import MAX_SHOWN, Change, changes
from fairvisor.bundle.load import parse
from fairvisor.bundle.model import Bundle


def model(document: dict[str, Any]) -> Bundle:
    return parse(
        json.dumps(document).encode(), wall_ns=0, environ={"S": "a secret of 32 bytes, or of more"}
    ).model


def found(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    return [*changes(model(old), model(new))]


def test_the_same_bundle_changes_nothing() -> None:
    document = bundle(policy("p", bucket("r"), budget("b"), tokens("t", tpm=10)), bundle_version=1)
    assert found(document, {**document, "bundle_version": 2, "issued_at": "2026-03-02T00:00:00Z"}) == []


def test_a_number_that_differs_is_named_with_what_it_was_and_is() -> None:
    assert found(bundle(policy("p", bucket("r", burst=5))), bundle(policy("p", bucket("r", burst=7.5)))) == [
        Change("p", "r", "algorithm_config.burst", 5, 7.5)
    ]


def test_another_spelling_of_the_same_is_no_change() -> None:
    one, other = bucket("r", "header:x-key"), bucket("r", "header:X-Key")
    other["algorithm_config"]["rps"] = other["algorithm_config"].pop("tokens_per_second")
    other["on_missing"] = "skip"
    assert found(bundle(policy("p", one)), bundle(policy("p", other))) == []


def test_a_changed_default_is_a_change_of_every_policy_that_takes_it() -> None:
    policies = [policy("a", bucket("r")), policy("b", bucket("r"), mode="enforce")]
    assert found(bundle(*policies), bundle(*policies, defaults={"mode": "shadow"})) == [
        Change("", "", "defaults.mode", "enforce", "shadow"),
        Change("a", "", "mode", "enforce", "shadow"),
    ]


def test_a_rule_that_comes_or_goes_is_named_with_its_numbers() -> None:
    old = bundle(policy("p", bucket("r", burst=5)))
    new = bundle(policy("p", budget("b", amount=100)))
    went, came = found(old, new)
    assert (went.rule, went.field, went.new) == ("r", "", None)
    assert isinstance(went.old, dict)
    assert (went.old["algorithm"], went.old["burst"]) == ("token_bucket", 5)
    assert (came.rule, came.old) == ("b", None)
    assert isinstance(came.new, dict)
    assert came.new["budget"] == 100


def test_a_policy_that_comes_or_goes_is_named_with_each_of_its_rules() -> None:
    old, new = bundle(policy("a", bucket("r"), bucket("s"))), bundle(policy("b", bucket("r")))
    assert [(each.policy, each.rule, each.old is None, each.new is None) for each in found(old, new)] == [
        ("a", "", False, True),
        ("a", "r", False, True),
        ("a", "s", False, True),
        ("b", "", True, False),
        ("b", "r", True, False),
    ]


def test_where_a_policy_applies_and_what_watches_it_are_told() -> None:
    loop = {"enabled": True, "window_seconds": 60, "threshold_identical_requests": 5}
    old, new = policy("p", bucket("r")), policy("p", bucket("r"), loop_detection=loop)
    new["spec"]["selector"] = {"pathPrefix": "/other"}
    told = {each.field: (each.old, each.new) for each in found(bundle(old), bundle(new))}
    assert told["selector.pathPrefix"] == ("/", "/other")
    assert told["loop_detection.threshold_identical_requests"] == (None, 5)


def test_a_rule_that_becomes_the_fallback_is_a_change() -> None:
    old = policy("p", bucket("r"), bucket("s"))
    new = policy("p", bucket("r"), fallback_limit=bucket("s"))
    assert found(bundle(old), bundle(new)) == [Change("p", "s", "is_fallback", False, True)]


def test_stages_of_a_budget_are_shown_together() -> None:
    stages = [{"threshold_percent": 80, "action": "warn"}]
    (change,) = found(
        bundle(policy("p", budget("b"))), bundle(policy("p", budget("b", staged_actions=stages)))
    )
    assert change.field == "algorithm_config.staged_actions"
    assert change.old == [{"threshold_percent": 100, "action": "reject"}]


def test_kill_switches_are_known_by_what_they_stop() -> None:
    one = {"scope_key": "header:x-key", "scope_value": "a"}
    until = {**one, "expires_at": "2026-03-02T00:00:00Z", "reason": "abuse"}
    other = {"scope_key": "header:x-key", "scope_value": "b", "route": "/x"}
    rest = policy("p", bucket("r"))
    assert found(bundle(rest, kill_switches=[one]), bundle(rest, kill_switches=[other, until])) == [
        Change("", "", "kill_switches", "on", {"reason": "abuse", "expires_at": "2026-03-02T00:00:00Z"},
               ("header:x-key", "a")),
        Change("", "", "kill_switches", None, {"route": "/x"}, ("header:x-key", "b")),
    ]  # fmt: skip


def test_overrides_of_the_whole_bundle_are_told() -> None:
    override = {"enabled": True, "reason": "trying", "expires_at": "2026-03-02T00:00:00Z"}
    rest = policy("p", bucket("r"))
    told = found(bundle(rest), bundle(rest, global_shadow=override))
    assert {each.field: each.new for each in told} == {
        "global_shadow.enabled": True,
        "global_shadow.reason": "trying",
        "global_shadow.expires_at": "2026-03-02T00:00:00Z",
    }


def test_keys_are_named_and_never_shown() -> None:
    rest = policy("p", bucket("r"))
    keys = [{"secret_env": "S", "kid": "one"}]
    issuer = {"issuer": "https://id.example", "url": "https://id.example/jwks.json"}
    for_one, both = (
        found(bundle(rest), bundle(rest, jwt_keys=keys)),
        found(bundle(rest, jwt_issuers=[issuer]), bundle(rest, jwt_issuers=[{**issuer, "audience": "api"}])),
    )
    assert [(each.field, each.old) for each in for_one] == [("jwt_keys", [])]
    (change,) = both
    assert change.field == "jwt_issuers"
    assert str(change.new).startswith("['https://id.example (")
    assert change.old != change.new


def test_a_value_that_fits_no_line_is_cut() -> None:
    rules = [
        bucket("r", match={"header:x-key": [f"value-{number}" for number in range(size)]})
        for size in (500, 501)
    ]
    (change,) = found(bundle(policy("p", rules[0])), bundle(policy("p", rules[1])))
    assert change.field == "match"
    assert isinstance(change.old, str)
    assert len(change.old) == MAX_SHOWN
