"""Any number of workers, one limit: exactly that many pass. Real workers, real connections, one shared segment."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
from crowd import answers, statuses
from edge_server import Client, Edge, StartEdge, ask, bundle_of, token_bucket

WORKERS = 4
CONNECTIONS = 64


def policy(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"id": "exact", "spec": {"selector": {"pathPrefix": "/"}, "rules": list(rules)}}


def rule(name: str, algorithm: str, config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {"name": name, "limit_keys": list(keys), "algorithm": algorithm, "algorithm_config": config}


@pytest.fixture
def edge(start_edge: StartEdge) -> Callable[[dict[str, Any]], Edge]:
    return lambda bundle: start_edge(bundle, workers=WORKERS)


def test_four_workers_admit_exactly_the_burst_ten_times_in_a_row(edge: Callable[..., Edge]) -> None:
    server = edge(token_bucket(5000, 0.001, limit_keys=["header:x-run"]))
    for run in range(10):
        requests = repeat(ask("/", "GET", f"X-Run: {run}"), 30_000)
        assert statuses(server.bind, requests, CONNECTIONS) == {204: 5000, 429: 25_000}


def test_a_budget_of_fractional_costs_is_spent_to_the_last_millionth(edge: Callable[..., Edge]) -> None:
    config = {"budget": 100, "period": "30d", "cost_key": "header:x-cost"}
    server = edge(bundle_of(policy(rule("spend", "cost_based", config))))
    requests = repeat(ask("/", "GET", "X-Cost: 0.03125"), 10_000)  # 3,200 of them are 100
    assert statuses(server.bind, requests, CONNECTIONS) == {204: 3200, 429: 6800}


def test_what_a_later_rule_refuses_is_given_back_by_the_earlier_one(edge: Callable[..., Edge]) -> None:
    """The wide bucket has room for all of the first crowd; the narrow one refuses most of it. What the wide one has
    left afterwards is what the narrow one admitted, to the token."""
    wide = rule("wide", "token_bucket", {"tokens_per_second": 0.003, "burst": 20_000})
    narrow = rule("narrow", "token_bucket", {"tokens_per_second": 0.001, "burst": 1000}, "header:x-run")
    server = edge(bundle_of(policy(wide, narrow)))
    first = repeat(ask("/", "GET", "X-Run: 1"), 10_000)
    assert statuses(server.bind, first, CONNECTIONS) == {204: 1000, 429: 9000}
    client = server.connect()
    client.send(ask("/", "GET", "X-Run: 2"))
    _, headers, _ = client.answer()
    assert headers["ratelimit-remaining"] == "18999"  # the wide one is the tighter
    rest = (ask("/", "GET", f"X-Run: {run % 30 + 100}") for run in range(25_000))
    assert statuses(server.bind, rest, CONNECTIONS) == {204: 20_000 - 1001, 429: 25_000 - 18_999}


def llm_request(run: int) -> bytes:
    body = json.dumps(
        {"model": "gpt-x", "max_tokens": 97, "messages": [{"role": "user", "content": "hi"}]}
    ).encode()
    head = f"POST /v1/decision HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(body)}\r\n"
    lines = "X-Original-Method: POST\r\nX-Original-URI: /v1/chat/completions\r\nX-Original-Host: h\r\n"
    return f"{head}{lines}\r\n".encode() + body


def settle(client: Client, reservation: str, tokens: int) -> int:
    body = json.dumps({"reservation": reservation, "usage": {"total_tokens": tokens}}).encode()
    client.send(b"POST /v1/usage HTTP/1.1\r\nHost: edge\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return client.answer()[0]


def test_concurrent_llm_requests_reserve_what_tpm_and_tpd_allow_and_settle_to_the_token(
    edge: Callable[..., Edge],
) -> None:
    config = {"tokens_per_minute": 60, "burst_tokens": 100_000, "tokens_per_day": 60_000}
    server = edge(bundle_of(policy(rule("tokens", "token_bucket_llm", config))))
    given = list(answers(server.bind, map(llm_request, range(1000)), CONNECTIONS))
    passed = [headers["x-fairvisor-reservation"] for status, headers in given if status == 204]
    client = server.connect()
    client.send(llm_request(0))
    refused = client.answer()
    assert refused[1]["x-fairvisor-reason"] == "tpd_exceeded"
    reserved = 60_000 - int(refused[1]["ratelimit-remaining"])
    assert reserved <= 60_000
    assert reserved % len(passed) == 0, "every request reserves the same"
    assert reserved // len(passed) * (len(passed) + 1) > 60_000, "nothing that fits is refused"
    assert {settle(client, token, 40) for token in passed} == {204}
    client.send(llm_request(0))
    _, headers, _ = client.answer()
    used = 40 * len(passed)
    assert int(headers["ratelimit-remaining"]) == 60_000 - used - reserved // len(passed)
