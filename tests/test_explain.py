"""`fairvisor explain`: the words fit what the engine decided, and rules that can never run are pointed out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairvisor.cli import exits
from fairvisor.cli.main import run

Captured = pytest.CaptureFixture[str]


def bucket(name: str, *keys: str, burst: float = 10, **more: Any) -> dict[str, Any]:
    config = {"tokens_per_second": 1, "burst": burst, **more.pop("config", {})}
    return {"name": name, "limit_keys": keys, "algorithm": "token_bucket", "algorithm_config": config, **more}


def policy(policy_id: str, *rules: dict[str, Any], selector: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"id": policy_id, "spec": {"selector": selector, "rules": rules, **spec}}


class Explainer:
    """Writes a bundle, explains a request and gives the report."""

    def __init__(self, folder: Path, capsys: Captured) -> None:
        self._file = folder / "policy.json"
        self._capsys = capsys

    def __call__(
        self, *policies: dict[str, Any], arguments: tuple[str, ...], **bundle: Any
    ) -> dict[str, Any]:
        self._file.write_text(json.dumps({"bundle_version": 1, "policies": policies, **bundle}))
        assert run(["explain", str(self._file), "--format", "json", *arguments]) == 0
        report: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return report

    def text(self, *policies: dict[str, Any], arguments: tuple[str, ...]) -> str:
        self._file.write_text(json.dumps({"bundle_version": 1, "policies": policies}))
        assert run(["explain", str(self._file), *arguments]) == 0
        return self._capsys.readouterr().out


@pytest.fixture
def explain(tmp_path: Path, capsys: Captured) -> Explainer:
    return Explainer(tmp_path, capsys)


API = {"pathPrefix": "/api"}


def limits(report: dict[str, Any], policy_id: str) -> dict[str, str]:
    found = next(each for each in report["policies"] if each["id"] == policy_id)
    return {limit["rule"]: limit["why"] for limit in found["limits"]}


def test_a_match_on_networks_runs_for_the_addresses_in_them_and_says_which_it_missed(
    explain: Explainer,
) -> None:
    rule = bucket("inside", match={"ip:address": ["10.0.0.0/8", "2001:db8::/32"]})
    api = policy("api", rule, selector=API)
    for client in ("10.1.2.3", "2001:db8:7::1"):
        report = explain(api, arguments=("--path", "/api", "-H", f"X-Forwarded-For: {client}"))
        assert limits(report, "api")["inside"].startswith("allows")
    report = explain(api, arguments=("--path", "/api", "-H", "X-Forwarded-For: 11.1.2.3"))
    missed = "does not run: ip:address is '11.1.2.3', not '10.0.0.0/8' or '2001:db8::/32'"
    assert limits(report, "api")["inside"] == missed


def test_an_allowed_request_names_the_tightest_limit_and_what_each_took(explain: Explainer) -> None:
    wide, narrow = bucket("wide", burst=100), bucket("narrow", burst=4)
    report = explain(policy("api", wide, narrow, selector=API), arguments=("--path", "/api/x?y=1"))
    assert limits(report, "api") == {
        "wide": "allows: takes 1, 99 of 100 left, full again in 1 s",
        "narrow": "allows: takes 1, 3 of 4 left, full again in 1 s",
    }
    assert report["decision"]["why"] == "api/narrow is the tightest limit"
    assert report["answer"]["status"] == 204
    assert 'RateLimit: "narrow";r=3;t=1' in report["answer"]["headers"]


def test_a_rejected_request_names_the_rule_and_what_was_not_asked_after_it(explain: Explainer) -> None:
    dear = bucket("dear", config={"cost_source": "header:x-cost"})
    report = explain(
        policy("api", dear, bucket("later"), selector=API),
        arguments=("--path", "/api", "-H", "X-Cost: 11"),
    )
    assert limits(report, "api") == {
        "dear": "rejects, rate_limit_exceeded: it can never fit",
        "later": "not asked: the decision was made before",
    }
    assert report["decision"]["why"] == "rate_limit_exceeded by api/dear"
    assert report["answer"]["status"] == 429


def test_the_values_that_a_rule_counts_by_are_shown(explain: Explainer) -> None:
    rule = bucket("per-key", "header:x-api-key", "ip:address", "query:team")
    report = explain(
        policy("api", rule, selector=API),
        arguments=("--path", "/api?team=a%20b", "-H", "X-Api-Key: k1", "-H", "X-Forwarded-For: 203.0.113.7"),
    )
    assert report["policies"][0]["limits"][0]["keys"] == {
        "header:x-api-key": "k1",
        "ip:address": "203.0.113.7",
        "query:team": "a b",
    }


def test_a_rule_that_does_not_run_says_what_differs_or_is_missing(explain: Explainer) -> None:
    gold = bucket("gold", match={"header:x-tier": ["gold", "silver"]})
    keyed = bucket("keyed", "header:x-api-key")
    report = explain(
        policy("api", gold, keyed, selector=API, fallback_limit=bucket("rest")),
        arguments=("--path", "/api", "-H", "x-tier: free"),
    )
    assert limits(report, "api") == {
        "gold": "does not run: header:x-tier is 'free', not 'gold' or 'silver'",
        "keyed": "does not run: header:x-api-key is missing",
        "rest": "allows: takes 1, 9 of 10 left, full again in 1 s",
    }


def test_the_fallback_is_not_used_when_a_rule_ran(explain: Explainer) -> None:
    report = explain(
        policy("api", bucket("keyed", "header:k"), selector=API, fallback_limit=bucket("rest")),
        arguments=("--path", "/api", "-H", "k: v"),
    )
    assert limits(report, "api")["rest"] == "not used: a rule ran"


def test_a_value_that_comes_twice_is_explained_as_it_is_decided(explain: Explainer) -> None:
    twice = ("-H", "X-Api-Key: a", "-H", "X-Api-Key: b", "-H", "Cookie: s=a; s=b")
    api = policy("api", bucket("session", "cookie:s", on_ambiguous="last"), selector=API)
    strict = policy("strict", bucket("key", "header:x-api-key"), selector=API)
    report = explain(api, strict, arguments=("--path", "/api", *twice))
    assert limits(report, "strict") == {"key": "rejects, ambiguous_request: header:x-api-key"}
    assert report["policies"][0]["limits"][0]["keys"] == {"cookie:s": "b"}
    assert report["policies"][1]["limits"][0]["keys"] == {"header:x-api-key": "(several values)"}
    assert report["answer"]["status"] == 400


@pytest.mark.parametrize(
    ("selector", "why"),
    [
        ({"pathPrefix": "/web"}, "the path is not below /web"),
        ({"pathExact": "/api"}, "the path is not /api"),
        ({"pathPrefix": "/api", "methods": ["POST", "PUT"]}, "the method is not POST or PUT"),
        ({"pathPrefix": "/api", "hosts": ["*.example.com"]}, "the host is not *.example.com"),
    ],
)
def test_a_policy_that_does_not_apply_says_why(
    explain: Explainer, selector: dict[str, Any], why: str
) -> None:
    report = explain(
        policy("other", bucket("any"), selector=selector),
        arguments=("--path", "/api/x", "--host", "example.com"),
    )
    assert report["policies"][0]["why"] == f"does not apply, {why}"
    assert report["decision"]["why"] == "no policy applies"
    assert report["answer"] == {"status": 204, "headers": [], "body": "", "delay_ms": 0}


def test_a_shadow_policy_is_named_and_stops_nothing(explain: Explainer) -> None:
    dear = bucket("dear", config={"cost_source": "header:x-cost"})
    report = explain(
        policy("trial", dear, selector=API, mode="shadow"), arguments=("--path", "/api", "-H", "X-Cost: 11")
    )
    assert report["policies"][0]["shadow"] is True
    assert report["decision"]["action"] == "allow"
    assert report["decision"]["would_reject"] == ["trial/dear"]


def test_a_kill_switch_is_named_before_every_policy(explain: Explainer) -> None:
    switch = {"scope_key": "header:x-tenant", "scope_value": "evil", "route": "/api*", "reason": "abuse"}
    report = explain(
        policy("api", bucket("any"), selector=API),
        arguments=("--path", "/api", "-H", "x-tenant: evil"),
        kill_switches=[switch],
    )
    killed = "kill_switch_active by the kill switch for header:x-tenant evil on /api* (abuse)"
    assert report["decision"]["why"] == killed
    assert limits(report, "api") == {"any": "not asked: the decision was made before"}


def test_explaining_for_people_shows_the_same(explain: Explainer) -> None:
    shown = explain.text(policy("api", bucket("any", "header:k"), selector=API), arguments=("--path", "/api"))
    assert "policy api: applies" in shown
    assert "    header:k = missing" in shown
    assert "decision: allow, no limit ran" in shown


@pytest.mark.parametrize(
    ("rule", "selector", "warning"),
    [
        (
            {"match": {"request:method": ["POST"]}},
            {"pathPrefix": "/", "methods": ["GET"]},
            'rules[0].match["request:method"]: never holds: the selector\'s methods exclude it',
        ),
        (
            {"match": {"request:host": ["example.com"]}},
            {"pathPrefix": "/", "hosts": ["*.example.com"]},
            'rules[0].match["request:host"]: never holds: the selector\'s hosts exclude it',
        ),
        (
            {"match": {"request:path": ["/apis", "/"]}},
            {"pathPrefix": "/api"},
            'rules[0].match["request:path"]: never holds: the selector\'s paths exclude it',
        ),
        (
            {"limit_keys": ["ip:country"]},
            {"pathPrefix": "/"},
            "rules[0].limit_keys[0]: ip:country is never there: no source is configured that fills it",
        ),
        (
            {"match": {"ip:tor": ["true"]}},
            {"pathPrefix": "/"},
            'rules[0].match["ip:tor"]: ip:tor is never there: no source is configured that fills it',
        ),
    ],
)
def test_a_rule_that_can_never_run_is_a_warning(
    explain: Explainer, rule: dict[str, Any], selector: dict[str, Any], warning: str
) -> None:
    report = explain(
        policy("p", {**bucket("any"), **rule}, selector=selector), arguments=("--path", "/x", "--host", "h")
    )
    assert report["warnings"] == [f"policies[0].spec.{warning}"]


@pytest.mark.parametrize(
    ("rule", "selector"),
    [
        ({"match": {"request:method": ["post"]}}, {"pathPrefix": "/", "methods": ["POST"]}),
        ({"match": {"request:host": ["a.b.example.com"]}}, {"pathPrefix": "/", "hosts": ["*.example.com"]}),
        ({"match": {"request:path": ["/api/x", "/no"]}}, {"pathPrefix": "/api/"}),
        ({"match": {"request:path": ["/exact"]}}, {"pathExact": "/exact"}),
        ({"limit_keys": ["ua:bot_category"]}, {"pathPrefix": "/"}),
    ],
)
def test_a_rule_that_some_request_reaches_is_no_warning(
    explain: Explainer, rule: dict[str, Any], selector: dict[str, Any]
) -> None:
    report = explain(
        policy("p", {**bucket("any"), **rule}, selector=selector), arguments=("--path", "/x", "--host", "h")
    )
    assert report["warnings"] == []


@pytest.mark.parametrize(
    ("rule", "warned"),
    [
        (bucket("all"), True),
        (bucket("all", "ip:address"), True),
        (bucket("all", "header:k", on_missing="shared"), True),
        (bucket("some", "header:k"), False),
        (bucket("some", match={"header:k": "v"}), False),
    ],
)
def test_a_fallback_behind_a_rule_that_always_runs_is_a_warning(
    explain: Explainer, rule: dict[str, Any], warned: bool
) -> None:
    report = explain(
        policy("p", rule, selector={"pathPrefix": "/"}, fallback_limit=bucket("rest")),
        arguments=("--path", "/x"),
    )
    expected = (
        f'policies[0].spec.fallback_limit: is never used: the rule "{rule["name"]}" runs for every request'
    )
    assert report["warnings"] == ([expected] if warned else [])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--path", "/x", "-H", "no colon"), exits.USAGE, "'no colon' is not 'NAME: VALUE'"),
        (("--path", "/x"), exits.USAGE, "--host is needed: the bundle selects by host"),
        ((), exits.USAGE, "Missing option '--path'"),
        (("--path", "/../x", "--host", "h"), exits.FAILED, "Error: the path climbs above the root with '..'"),
        (
            ("--path", "/x", "--host", "a b"),
            exits.FAILED,
            "Error: the host 'a b' is not a host name or address",
        ),
        (("--path", "/x", "--body", "missing"), exits.FAILED, "Error: cannot read missing: No such file"),
    ],
)
def test_a_request_that_cannot_be_made_is_a_message(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "policy.json"
    selector = {"pathPrefix": "/", "hosts": ["h"]}
    file.write_text(
        json.dumps({"bundle_version": 1, "policies": [policy("p", bucket("any"), selector=selector)]})
    )
    assert run(["explain", str(file), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_bundle_that_is_not_valid_is_not_explained(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"bundle_version": 0, "policies": []}')
    assert run(["explain", str(file), "--path", "/x"]) == exits.FAILED
    assert capsys.readouterr().err.startswith("Error: bundle_version: ")
