"""A replay decides as the WSGI application does when it is asked the same requests under the log's clock."""

from __future__ import annotations

import json
import random
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from edge import bucket, budget, bundle, policy
from request_transports import World

from fairvisor.bundle.load import parse
from fairvisor.decision import Decision
from fairvisor.http.wsgi import Application
from fairvisor.replay.clock import LogClock, in_order
from fairvisor.replay.fields import Logged, Maker
from fairvisor.replay.reading import RequestLog
from fairvisor.replay.run import Replay
from fairvisor.settings import Settings

SAMPLE = 1000
START_S = 1_772_409_530  # ten seconds before a minute, hour, day and week end
LOG_FORMAT = (
    '$remote_addr - $remote_user [$time_local] "$request" $status "$http_x_api_key" "$http_user_agent" '
    '"$http_x_cost" "$http_x_forwarded_for" "$cookie_plan"'
)
TARGETS = (
    "/v1/orders",
    "/v1/orders?page=2",
    "/v1//orders/../orders",
    "/v1/%2e%2e/v1/x",
    "/other",
    "/v1/a%00b",
    "*",
)
AGENTS = (
    "curl/8.5.0",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "-",
    "caf\\xC3\\xA9",
)

POLICIES = [
    policy(
        "a-keys",
        bucket("per-key", "header:x-api-key", rate=0.5, burst=4),
        budget("per-client", "ip:address", amount=40, period="1m", cost_key="header:x-cost"),
        path="/v1",
        loop_detection={
            "enabled": True,
            "window_seconds": 20,
            "threshold_identical_requests": 3,
            "body": "ignore",
        },
    ),
    policy(
        "b-bots",
        bucket("bots", "ip:address", rate=0.1, burst=1, match={"ua:bot": "true"}),
        budget(
            "plans",
            "cookie:plan",
            amount=100,
            period="1d",
            on_missing="shared",
            staged_actions=[
                {"threshold_percent": 20, "action": "warn"},
                {"threshold_percent": 40, "action": "throttle", "delay_ms": 100},
                {"threshold_percent": 100, "action": "reject"},
            ],
        ),
        circuit_breaker={
            "enabled": True,
            "spend_rate_threshold_per_minute": 6,
            "action": "reject",
            "auto_reset_after_minutes": 1,
        },
    ),
    policy("c-shadow", bucket("all", rate=2, burst=3), mode="shadow"),
]


def lines() -> list[str]:
    """A log of SAMPLE lines, some seconds of it busier than others."""
    chance = random.Random(20)
    at_s, found = START_S, []
    for _ in range(SAMPLE):
        at_s += chance.choice((0, 0, 0, 0, 1, 1, 7))
        time = datetime.fromtimestamp(at_s, timezone.utc).strftime("%d/%b/%Y:%H:%M:%S +0000")
        client, hop = f"198.51.100.{chance.randrange(6)}", chance.choice(("-", "203.0.113.9"))
        key, cost = chance.choice(("k1", "k2", "k3", "-")), chance.choice(("-", "2.5", "nonsense"))
        plan = chance.choice(("-", "free", "pro"))
        request = f"{chance.choice(('GET', 'POST', 'get'))} {chance.choice(TARGETS)} HTTP/1.1"
        found.append(
            f'{client} - - [{time}] "{request}" 200 "{key}" "{chance.choice(AGENTS)}" "{cost}" "{hop}" "{plan}"'
        )
    return found


def as_answered(decision: Decision | None) -> dict[str, Any]:
    """What an answer shows of a decision."""
    if decision is None:
        return {"status": 400}
    reason = decision.reason
    shown: dict[str, Any] = {"status": 204 if reason is None else 429, "delay_ms": decision.delay_ms}
    if reason is not None:
        shown["reason"] = reason.value
    verdict = decision.verdict
    if verdict is not None and verdict.quota is not None:
        shown["rule"] = verdict.quota.name
        shown["remaining"] = str(verdict.remaining_u // 1_000_000)
    return shown


def ask(application: Application, logged: Logged) -> dict[str, Any]:
    """What the application answers to the request as a gateway on a unix socket would describe it."""
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "RAW_URI": "/v1/decision", "REMOTE_ADDR": logged.peer}
    headers = {
        **logged.headers,
        "x-original-method": logged.method.encode(),
        "x-original-uri": logged.target.encode("latin-1"),
    }
    for name, value in headers.items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value.decode("latin-1")
    answered: dict[str, Any] = {}

    def start_response(status: str, pairs: list[tuple[str, str]]) -> None:
        told = dict(pairs)
        answered["status"] = int(status[:3])
        if answered["status"] == 400:
            return
        answered["delay_ms"] = int(told.get("X-Fairvisor-Throttle-Ms", "0"))
        if "X-Fairvisor-Reason" in told:
            answered["reason"] = told["X-Fairvisor-Reason"]
        if "RateLimit" in told:
            answered["rule"] = told["RateLimit"].split('"')[1]
            answered["remaining"] = told["RateLimit-Remaining"]

    list(application(environ, start_response))
    return answered


@pytest.mark.parametrize("proxies", ["none", "198.51.100.0/24"])
def test_a_thousand_requests_are_decided_as_the_application_decides_them(
    tmp_path: Path, proxies: str
) -> None:
    log_file, bundle_file = tmp_path / "access.log", tmp_path / "policy.json"
    log_file.write_text("\n".join(lines()))
    bundle_file.write_text(json.dumps(bundle(*POLICIES)))
    environ = {"FAIRVISOR_TRUSTED_PROXIES": proxies}
    settings = Settings.load(environ, {})
    maker = Maker(settings.client_ip_header)
    with RequestLog(str(log_file), LOG_FORMAT, {}, maker) as log:
        logged = list(in_order(log.requests()))
    assert len(logged) == SAMPLE

    world = World(tmp_path, tmp_path / "nowhere", environ, START_S * 10**9)
    world.load(bundle_file.name)
    clock = LogClock()
    moments = iter([clock.at(each.wall_ns) for each in logged])
    application = Application(world.service, lambda: next(moments))
    answered = [ask(application, each) for each in logged]

    parsed = parse(bundle_file.read_bytes(), wall_ns=START_S * 10**9, environ={})
    replay = Replay(parsed, settings, environ)
    replayed = [as_answered(replay.decide(each)) for each in logged]

    assert replayed == answered
    seen = {(each["status"], each.get("reason"), each.get("delay_ms", 0) > 0) for each in answered}
    assert {
        (400, None, False),
        (204, None, False),
        (204, None, True),
        (429, "rate_limit_exceeded", False),
        (429, "budget_exhausted", False),
        (429, "loop_detected", False),
        (429, "circuit_breaker_open", False),
    } <= seen, "the sample exercises every kind of answer"
