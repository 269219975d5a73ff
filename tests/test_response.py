"""Answers: every header and every reason, what a client may read and when it should come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import ceil
from typing import Any

import pytest
from edge import Edge, Json, Reply, bucket, budget, moment, policy, tokens
from test_identity import HS_KEY, identity
from test_tokens import signed, unsigned

from fairvisor.context import Context
from fairvisor.decision import STATUSES, Decision, Reason, Unmet, Verdict
from fairvisor.errors import BodyTooLarge, RequestError
from fairvisor.llm.dialect import MESSAGES
from fairvisor.response import (
    Answer,
    Renderer,
    error_answer,
    go_duration,
    json_answer,
    unavailable_answer,
)
from fairvisor.rules.limit import Limit

TRIPLET = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
DRAFT = ("RateLimit", "RateLimit-Policy")


@pytest.mark.parametrize(
    ("form", "names"),
    [("both", {*DRAFT, *TRIPLET}), ("draft", {*DRAFT}), ("legacy", {*TRIPLET}), ("off", set())],
)
def test_the_forms_of_the_ratelimit_headers(form: str, names: set[str]) -> None:
    edge = Edge(policy("p", bucket("r", rate=0.5, burst=2)), form=form)
    assert set(edge.ask().headers) == names
    reply = edge.ask()
    expected = {
        "RateLimit": '"r";r=0;t=4',
        "RateLimit-Policy": '"r";q=2;w=4',
        "RateLimit-Limit": "2",
        "RateLimit-Remaining": "0",
        "RateLimit-Reset": "4",
    }
    assert reply.headers == {name: value for name, value in expected.items() if name in names}
    refused = {"Content-Type", "X-Fairvisor-Reason", "Retry-After"}
    assert set(edge.ask().headers) == names | refused


def test_amounts_are_rounded_down_and_times_up() -> None:
    reply = Edge(policy("p", bucket("r", rate=0.25, burst=2.6, fixed_cost=1.2))).ask()
    assert reply.headers["RateLimit"] == '"r";r=1;t=5'
    assert reply.headers["RateLimit-Policy"] == '"r";q=2;w=11'


def test_rule_names_are_escaped_as_structured_strings() -> None:
    reply = Edge(policy("p", bucket('a "quoted\\ name'))).ask()
    assert reply.headers["RateLimit"].startswith('"a \\"quoted\\\\ name";r=')
    assert reply.headers["RateLimit-Policy"].startswith('"a \\"quoted\\\\ name";q=')


ASKED: Json = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 95}
OPENAI = "/v1/chat/completions"
ANTHROPIC = "/v1/messages"


def token_headers(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.islower()}


def test_tokens_left_in_the_words_of_openai() -> None:
    edge = Edge(policy("p", tokens("t", tpm=600)), llm_headers=True)
    assert token_headers(edge.ask("POST", OPENAI, body=ASKED)) == {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "500",
        "x-ratelimit-reset-tokens": "10s",
    }
    refused = edge.ask("POST", OPENAI, body={**ASKED, "max_tokens": 595})
    assert refused.reason == "tpm_exceeded"
    assert token_headers(refused)["x-ratelimit-reset-tokens"] == "10s"


def test_tokens_left_in_the_words_of_anthropic() -> None:
    edge = Edge(policy("p", tokens("t", tpm=600)), llm_headers=True)
    assert token_headers(edge.ask("POST", ANTHROPIC, body=ASKED, at=0.5)) == {
        "anthropic-ratelimit-tokens-limit": "600",
        "anthropic-ratelimit-tokens-remaining": "500",
        "anthropic-ratelimit-tokens-reset": "2026-03-02T00:00:11Z",
    }


def test_only_token_limits_tell_tokens_and_only_where_they_are_asked_to() -> None:
    limit, other = policy("p", tokens("t", tpm=600)), policy("q", bucket("r", burst=1))
    assert token_headers(Edge(limit).ask("POST", OPENAI, body=ASKED)) == {}
    edge = Edge(limit, other, llm_headers=True)
    assert token_headers(edge.ask("POST", OPENAI, body=ASKED)) == {}, "the other limit is tighter"
    assert token_headers(edge.ask("POST", OPENAI, body=ASKED)) == {}
    gemini = Edge(limit, llm_headers=True).ask("POST", "/v1beta/models/m:generateContent", body=ASKED)
    assert token_headers(gemini) == {}
    never = Edge(limit, llm_headers=True).ask("POST", OPENAI, body={**ASKED, "max_tokens": 9000})
    assert never.reason == "max_tokens_per_request_exceeded"
    assert token_headers(never) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1m0s"), (360, "6m0s"), (3600, "1h0m0s"), (86_399, "23h59m59s")],
)
def test_durations_are_written_as_go_writes_them(seconds: int, text: str) -> None:
    assert go_duration(seconds) == text


@pytest.mark.parametrize("status", [200, 204])
def test_an_allow_has_the_status_it_is_told_and_no_body(status: int) -> None:
    edge = Edge(policy("p", bucket("r"), path="/v1"))
    for path in ("/v1", "/other"):
        reply = edge.ask(path=path)
        context = Context("GET", "", path, {}, "192.0.2.1", edge.identity, moment(0))
        answer = edge.renderer.answer(reply.decision, context, status)
        assert (answer.status, answer.body) == (status, b"")


# Every reason


def empty(edge: Edge, **asked: Any) -> Reply:
    edge.ask(**asked)
    return edge.ask(**asked)


LOOP: Json = {"loop_detection": {"enabled": True, "window_seconds": 100, "threshold_identical_requests": 2}}
HINT = {"x-token-estimate": "50"}


def breaker(minutes: float) -> Json:
    return {
        "circuit_breaker": {
            "enabled": True,
            "spend_rate_threshold_per_minute": 1,
            "auto_reset_after_minutes": minutes,
        }
    }


# reason, what provokes it, whether a retry can help, seconds until it can
REASONS: list[tuple[Reason, Callable[[], Reply], bool, int]] = [
    (
        Reason.RATE_LIMIT_EXCEEDED,
        lambda: empty(Edge(policy("p", bucket("r", rate=0.01, burst=1)))),
        True,
        100,
    ),
    (Reason.RATE_LIMIT_EXCEEDED, lambda: empty(Edge(policy("p", bucket("r", rate=1, burst=1)))), True, 1),
    (
        Reason.RATE_LIMIT_EXCEEDED,
        lambda: Edge(policy("p", bucket("r", burst=5, cost_source="header:c"))).ask(headers={"c": "6"}),
        False,
        60,
    ),
    (
        Reason.RATE_LIMIT_EXCEEDED,
        lambda: Edge(policy("p", bucket("r", burst=500, cost_source="header:c"))).ask(headers={"c": "501"}),
        False,
        500,
    ),
    (
        Reason.BUDGET_EXHAUSTED,
        lambda: empty(Edge(policy("p", budget("b", amount=1, period="15m")))),
        False,
        900,
    ),
    (
        Reason.TPM_EXCEEDED,
        lambda: empty(Edge(policy("p", tokens("t", tpm=60, default_max_completion=60)))),
        True,
        60,
    ),
    (
        Reason.TPD_EXCEEDED,
        lambda: empty(Edge(policy("p", tokens("t", tpm=600, tokens_per_day=60, default_max_completion=60)))),
        False,
        86_400,
    ),
    (
        Reason.PROMPT_TOKENS_EXCEEDED,
        lambda: Edge(policy("p", tokens("t", max_prompt_tokens=10, default_prompt_tokens=11))).ask(),
        False,
        60,
    ),
    (
        Reason.MAX_TOKENS_PER_REQUEST_EXCEEDED,
        lambda: Edge(policy("p", tokens("t", max_tokens_per_request=10, default_prompt_tokens=11))).ask(),
        False,
        60,
    ),
    (Reason.LOOP_DETECTED, lambda: empty(Edge(policy("p", bucket("r"), **LOOP))), False, 100),
    (Reason.CIRCUIT_BREAKER_OPEN, lambda: empty(Edge(policy("p", bucket("r"), **breaker(0)))), False, 60),
    (Reason.CIRCUIT_BREAKER_OPEN, lambda: empty(Edge(policy("p", bucket("r"), **breaker(5)))), False, 300),
    (
        Reason.KILL_SWITCH_ACTIVE,
        lambda: Edge(kill_switches=[{"scope_key": "request:method", "scope_value": "GET"}]).ask(),
        False,
        3600,
    ),
    (
        Reason.DESCRIPTOR_MISSING,
        lambda: Edge(policy("p", bucket("r", "header:x-key", on_missing="reject"))).ask(),
        False,
        60,
    ),
    (
        Reason.AMBIGUOUS_REQUEST,
        lambda: Edge(policy("p", bucket("r", "header:x-key"))).ask(headers=[("x-key", "a"), ("x-key", "b")]),
        False,
        60,
    ),
    (Reason.INVALID_TOKEN, lambda: _with_token({"sub": "a", "exp": 0}), False, 60),
    (
        Reason.UNREADABLE_BODY,
        lambda: Edge(policy("p", tokens("t")), defaults={"unreadable_body": "reject"}).ask("POST", body=b"{"),
        False,
        60,
    ),
]


def _with_token(claims: Json) -> Reply:
    edge = Edge(policy("p", bucket("r", "jwt:sub", on_invalid_token="reject")))
    edge.identity = identity((HS_KEY,))
    return edge.ask(headers={"authorization": signed(claims, "HS256", kid="s1")})


@pytest.mark.parametrize(
    ("reason", "provoke", "helps", "wait_s"), REASONS, ids=[f"{row[0].value}-{row[3]}" for row in REASONS]
)
def test_every_reason_to_reject(
    reason: Reason, provoke: Callable[[], Reply], helps: bool, wait_s: int
) -> None:
    reply = provoke()
    assert (reply.status, reply.action, reply.reason) == (STATUSES.get(reason, 429), "reject", reason.value)
    assert reply.should_retry == helps
    assert reply.headers["Content-Type"] == "application/json"
    assert wait_s <= reply.retry_after <= wait_s + min(wait_s // 2, 60)
    if "RateLimit" in reply.headers:
        assert reply.retry_after >= reply.reset
    error = json.loads(reply.body)["error"]
    assert (error["code"], error["reason"], error["param"]) == (reason.value, reason.value, None)
    assert error["retry_after"] == reply.retry_after
    assert error["message"]
    assert "X-Fairvisor-Reservation" not in reply.headers
    assert ("X-Fairvisor-Loop-Count" in reply.headers) == (reason is Reason.LOOP_DETECTED)


GRPC_CODES = {400: "3", 401: "16", 403: "7", 413: "8", 429: "8", 451: "8", 503: "14"}


@pytest.mark.parametrize("reason", Reason)
def test_a_grpc_call_reads_the_message_of_every_reason_and_no_body(reason: Reason) -> None:
    fields, answer = grpc_fields(lambda limit: Unmet(limit, reason, "header:x%key", status=429))
    assert (answer.status, answer.body) == (429, b"")
    assert fields["Content-Type"] == "application/grpc"
    assert fields["X-Fairvisor-Reason"] == reason.value
    assert fields["grpc-message"] == MESSAGES[reason].format("header:x%25key"), "percent-encoded"


@pytest.mark.parametrize(("status", "code"), GRPC_CODES.items())
def test_a_grpc_call_reads_a_code_that_says_what_the_status_says(status: int, code: str) -> None:
    fields, answer = grpc_fields(lambda limit: Unmet(limit, Reason.INVALID_TOKEN, "jwt:sub", status=status))
    assert (answer.status, fields["grpc-status"]) == (status, code)


def grpc_fields(verdict: Callable[[Limit], Verdict]) -> tuple[dict[str, str], Answer]:
    """Return the header fields of the answer to a gRPC call, and the answer."""
    edge = Edge(policy("p", bucket("r")))
    limit = edge.bundle.routes.plan("POST", "", "/v1/x").policies[0].rules[0]
    headers = {"content-type": b"application/grpc+proto"}
    context = Context("POST", "", "/pkg.Service/Method", headers, "192.0.2.1", edge.identity, moment(0))
    answer = edge.renderer.answer(Decision(verdict(limit), ()), context, 200)
    return dict(line.split(": ", 1) for line in answer.head.splitlines()), answer


def test_there_is_a_case_for_every_reason() -> None:
    unavailable = {Reason.NO_BUNDLE_LOADED, Reason.ENGINE_ERROR, Reason.KEYS_UNAVAILABLE}
    assert {row[0] for row in REASONS} | unavailable == set(Reason)


@pytest.mark.parametrize("reason", [Reason.NO_BUNDLE_LOADED, Reason.ENGINE_ERROR])
def test_an_edge_that_cannot_decide_says_503(reason: Reason) -> None:
    answer = unavailable_answer(reason, "/v1/chat/completions")
    assert answer.status == 503
    assert f"X-Fairvisor-Reason: {reason.value}\r\n" in answer.head
    assert "Retry-After: 1\r\n" in answer.head
    assert json.loads(answer.body)["error"]["code"] == reason.value


@pytest.mark.parametrize(
    ("edge", "headers", "challenge"),
    [
        (Edge(policy("p", bucket("r", "jwt:sub", on_missing="reject", missing_status=401))), {}, "Bearer"),
        (
            Edge(policy("p", bucket("r", "header:x-key", on_missing="reject", missing_status=401))),
            {},
            "ApiKey",
        ),
    ],
)
def test_what_is_missing_is_a_401_that_names_it_where_the_rule_says_so(
    edge: Edge, headers: dict[str, str], challenge: str
) -> None:
    reply = edge.ask(headers=headers)
    assert (reply.status, reply.reason) == (401, "descriptor_missing")
    assert reply.headers["WWW-Authenticate"] == challenge
    (name,) = edge.bundle.routes.plan("GET", "", "/v1/x").policies[0].rules[0].scope.names
    assert f"lacks {name}" in json.loads(reply.body)["error"]["message"]
    carried = edge.ask(headers=headers, carrier=True)
    assert (carried.status, carried.headers["X-Fairvisor-Status"]) == (403, "401")


def test_a_token_that_does_not_verify_is_missing_or_a_401() -> None:
    edge = Edge(
        policy("p", bucket("r", "jwt:sub", on_invalid_token="reject"), path="/strict"),
        policy("q", bucket("r", "jwt:sub"), path="/lenient"),
        policy("s", bucket("r", "header:x-key", on_invalid_token="reject"), path="/other"),
    )
    edge.identity = identity((HS_KEY,))
    expired = {"authorization": signed({"sub": "a", "exp": 0}, "HS256", kid="s1")}
    reply = edge.ask(path="/strict", headers=expired)
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')
    assert edge.ask(path="/lenient", headers=expired).status == 204
    assert edge.ask(path="/other", headers=expired | {"x-key": "a"}).status == 204, "it reads no claim"
    assert edge.ask(path="/strict").status == 204, "no token is none that does not verify"


# Retry-After


def test_retry_after_is_the_same_for_one_client_and_spreads_others_out() -> None:
    edge = Edge(policy("p", bucket("r", rate=0.01, burst=1)))
    edge.ask()
    waits = {n: edge.ask(client=f"192.0.2.{n}").retry_after for n in range(200)}
    assert waits == {n: edge.ask(client=f"192.0.2.{n}").retry_after for n in range(200)}
    assert min(waits.values()) >= 100
    assert max(waits.values()) <= 150
    assert len(set(waits.values())) > 40


def test_what_is_added_is_at_most_a_minute() -> None:
    edge = Edge(policy("p", budget("b", amount=1, period="1d")))
    edge.ask()
    waits = {edge.ask(client=f"192.0.2.{n}").retry_after - 86_400 for n in range(200)}
    assert 0 <= min(waits) < 5
    assert 55 < max(waits) <= 60


def test_policy_rule_and_reason_spread_too() -> None:
    def waits(policy_id: str, rule: str) -> list[int]:
        edge = Edge(policy(policy_id, bucket(rule, rate=0.01, burst=1)))
        edge.ask()
        return [edge.ask(client=f"192.0.2.{n}").retry_after for n in range(20)]

    assert waits("p", "r") == waits("p", "r")
    assert waits("p", "r") != waits("q", "r")
    assert waits("p", "r") != waits("p", "s")


@pytest.mark.parametrize("verified", [True, False])
def test_the_subject_that_limits_count_by_is_the_client_wherever_it_comes_from(verified: bool) -> None:
    def waits(sub: object) -> list[int]:
        edge = Edge(
            policy("p", bucket("s", "jwt:sub", rate=100, burst=100), bucket("r", rate=0.001, burst=1))
        )
        token = (
            signed({"sub": sub}, "HS256", kid="s1") if verified else unsigned({"alg": "none"}, {"sub": sub})
        )
        if verified:
            edge.identity = identity((HS_KEY,))
        headers = {"authorization": token}
        edge.ask()
        return [edge.ask(client=f"192.0.2.{n}", headers=headers).retry_after for n in range(20)]

    assert len(set(waits("u1"))) == 1
    assert waits("u1") != waits("u2")
    assert len(set(waits(None))) > 1
    assert len({waits(f"u{number}")[0] for number in range(20)}) > 5, "clients behind one address spread out"


def test_a_token_that_no_limit_reads_is_not_looked_at_for_a_reject() -> None:
    """It may be an opaque key: reading it would cost time and count it as malformed."""
    edge = Edge(policy("p", bucket("r", rate=0.001, burst=1)))
    before = sum(edge.identity.refused_tokens.values())
    assert [edge.ask(headers={"authorization": "Bearer sk-opaque"}).status for _ in range(2)] == [204, 429]
    assert sum(edge.identity.refused_tokens.values()) == before


# Bodies


def test_bodies_take_the_shape_of_the_provider() -> None:
    edge = Edge(policy("p", bucket("r", rate=0.001, burst=1)))
    edge.ask()
    openai = json.loads(edge.ask("POST", "/v1/chat/completions").body)
    assert set(openai["error"]) == {"message", "type", "param", "code", "reason", "retry_after"}
    anthropic = json.loads(edge.ask("POST", "/v1//messages?beta=true").body)
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "rate_limit_error")
    assert anthropic["error"]["reason"] == "rate_limit_exceeded"


def test_bodies_are_one_line_of_ascii_and_tell_no_amounts() -> None:
    edge = Edge(policy("p", budget("b", amount=73_519, fixed_cost=73_519)))
    edge.ask()
    reply = edge.ask()
    body = reply.body.decode("ascii")
    assert "\n" not in body
    digits = "".join(char for char in body if char.isdigit())
    assert digits == str(reply.retry_after)


def test_where_a_deny_must_be_403_its_real_status_and_body_stand_in_headers() -> None:
    edge = Edge(policy("p", bucket("r", rate=0.001, burst=1)))
    assert edge.ask(carrier=True).status == 204
    reply = edge.ask(carrier=True)
    assert (reply.status, reply.headers["X-Fairvisor-Status"]) == (403, "429")
    assert reply.headers["X-Fairvisor-Body"].encode() == reply.body
    assert reply.reason == "rate_limit_exceeded"
    assert {"X-Fairvisor-Status", "X-Fairvisor-Body"}.isdisjoint(edge.ask().headers)


def test_errors_are_json_with_their_status() -> None:
    answer = error_answer(BodyTooLarge("64 KiB at most"))
    assert (answer.status, answer.head) == (413, "Content-Type: application/json\r\n")
    assert json.loads(answer.body)["error"]["message"] == "64 KiB at most"
    assert error_answer(RequestError("no")).status == 400
    assert json_answer(200, {"a": 1}).body == b'{"a":1}'


def test_a_form_that_is_none_is_a_mistake_of_the_program() -> None:
    with pytest.raises(AssertionError):
        Renderer("some")


def test_seconds_are_never_less_than_the_wait() -> None:
    for rate in (0.9, 0.7, 0.33, 0.013):
        edge = Edge(policy("p", bucket("r", rate=rate, burst=1)))
        edge.ask()
        reply = edge.ask()
        assert reply.decision.verdict is not None
        assert reply.reset == ceil(reply.decision.verdict.reset_ns / 1e9)
        assert edge.ask(at=reply.retry_after).status == 204
