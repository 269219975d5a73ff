"""The engine against a plain reference: random bundles, requests, steps of time, reloads and settlements."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from fractions import Fraction
from typing import Any
from urllib.parse import urlencode

from edge import START_S, Edge, Json, Reply, bundle, instant
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule
from reference import Outcome, Reference, Request

from fairvisor.bundle.compile import Options
from fairvisor.errors import Conflict, Gone
from fairvisor.llm.usage import Usage

KEYS = ["header:x-key", "query:q", "jwt:sub", "ip:address", "request:method", "request:path"]
PATHS = ["/", "/v1", "/v1/x", "/v1/y", "/v10"]
METHODS = ["GET", "POST"]
VALUES = ["a", "b"]
RATES = [
    0.125,
    0.5,
    1,
    2,
    10,
]  # the counters hold these exactly, and in a millisecond whole millionths come back
COSTS = ["1", "2.5", "0.125", "7e0", "1e2", "0", "junk", "1, 1"]
LATEST = 25 * 86_400  # expiry dates are written within March


def some(*options: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(options)


def maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """An object with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


def costs(source: str) -> st.SearchStrategy[Json]:
    return maybe(
        **{
            source: some("fixed", "header:x-cost", "query:cost"),
            "fixed_cost": some(0.5, 1, 2),
            "default_cost": some(0.25, 1, 3),
        }
    )


TOKEN_BUCKETS = st.builds(
    lambda rate, burst, more: {"tokens_per_second": rate, "burst": max(burst, rate), **more},
    some(*RATES),
    some(3, 4.5, 8, 20),
    costs("cost_source"),
)
STAGES = some(
    [{"threshold_percent": 50, "action": "warn"}],
    [
        {"threshold_percent": 0, "action": "throttle", "delay_ms": 5},
        {"threshold_percent": 75, "action": "warn"},
    ],
    [{"threshold_percent": 40, "action": "warn"}, {"threshold_percent": 80, "action": "reject"}],
    [
        {"threshold_percent": 25, "action": "throttle", "delay_ms": 250},
        {"threshold_percent": 100, "action": "reject"},
    ],
)
BUDGETS = st.builds(
    lambda amount, period, more, cost: {"budget": amount, "period": period, **more, **cost},
    some(2.5, 5, 10),
    some("1m", "5m", "1h", "12h", "1d", "7d", "30d", "1mo"),
    maybe(timezone=some("Asia/Tokyo", "Europe/Berlin"), staged_actions=STAGES),
    costs("cost_key"),
)
LLM = st.builds(
    lambda tpm, more: {"tokens_per_minute": tpm, "token_source": {"estimator": "header_hint"}, **more},
    some(30, 60, 600),
    maybe(
        tokens_per_day=some(100, 700, 2000),
        burst_tokens=some(600, 1200),
        max_tokens_per_request=some(50, 400),
        max_prompt_tokens=some(20, 100),
        max_completion_tokens=some(10, 30),
        default_max_completion=some(0, 5, 40),
        default_prompt_tokens=some(1, 7),
        weights=some(
            {"output": 2}, {"input": 0.5, "output": 4}, {"output": 0}, {"input": 0, "cached_input": 0.25}
        ),
    ),
)
CONFIGS = {"token_bucket": TOKEN_BUCKETS, "cost_based": BUDGETS, "token_bucket_llm": LLM}
MATCHES = some(
    {"header:x-key": ["a"]}, {"request:method": ["POST"]}, {"jwt:roles": ["admin", "x"]}, {"llm:model": ["m1"]},
    {"header:x-key": ["a", "b"], "request:path": ["/v1/x"]},
)  # fmt: skip


@st.composite
def rules(draw: st.DrawFn, name: str) -> Json:
    algorithm = draw(some(*CONFIGS))
    config = draw(CONFIGS[algorithm])
    keys = draw(st.lists(some(*KEYS), max_size=2, unique=True))
    more = draw(maybe(match=MATCHES, on_missing=some("skip", "reject", "shared")))
    return {"name": name, "limit_keys": keys, "algorithm": algorithm, "algorithm_config": config, **more}


def controls(auto_reset: float) -> st.SearchStrategy[Json]:
    loop = st.builds(
        lambda window, threshold, more: {
            "enabled": True, "window_seconds": window, "threshold_identical_requests": threshold, **more,
        },
        some(5, 60),
        some(2, 3),
        maybe(action=some("reject", "throttle", "warn"), body=some("require", "ignore")),
    )  # fmt: skip
    breaker = st.builds(
        lambda threshold, more: {
            "enabled": True, "spend_rate_threshold_per_minute": threshold,
            "auto_reset_after_minutes": auto_reset, **more,
        },
        some(2, 5, 60),
        maybe(scope=some("global", "policy", "key")),
    )  # fmt: skip
    return st.integers(0, 3).flatmap(
        lambda n: maybe(loop_detection=loop, circuit_breaker=breaker) if n == 0 else st.just({})
    )


@st.composite
def policies(draw: st.DrawFn, policy_id: str, auto_reset: float) -> Json:
    names = draw(some((), ("r",), ("r",), ("r", "s"), ("s", "r")))
    spec: Json = {
        "selector": draw(some({"pathPrefix": "/"}, {"pathPrefix": "/v1"}, {"pathPrefix": "/v1/"},
                              {"pathExact": "/v1/x"},
                              {"pathExact": "/v1/y", "pathPrefix": "/v1/x", "methods": ["GET"]})),
        "rules": [draw(rules(name)) for name in names],
        **draw(maybe(mode=some("enforce", "shadow"))),
        **draw(controls(auto_reset)),
    }  # fmt: skip
    if draw(st.integers(0, 3)) == 0:
        spec["fallback_limit"] = draw(rules("rest"))
    return {"id": policy_id, "spec": spec}


@st.composite
def documents(draw: st.DrawFn, auto_reset: float, at: float) -> Json:
    """A bundle; `expires_s` stands for `expires_at`, as `written` writes it."""
    ids = draw(some(("p",), ("q", "p"), ("p", "q", "r")))
    more: Json = {}
    if draw(st.integers(0, 4)) == 0:
        switch = draw(maybe(route=some("/v1*", "/v1/x"), expires_s=some(int(at) + 5, int(at) + 7000)))
        key, value = draw(some(("header:x-key", "b"), ("jwt:sub", "*"), ("request:method", "POST")))
        more["kill_switches"] = [{"scope_key": key, "scope_value": value, **switch}]
    for name in ("global_shadow", "kill_switch_override"):
        if draw(st.integers(0, 5)) == 0:
            more[name] = {
                "enabled": draw(st.booleans()),
                "reason": "x",
                "expires_s": int(at) + draw(some(1, 60, 9000)),
            }
    more["defaults"] = draw(maybe(on_missing=some("skip", "reject", "shared")))
    return bundle(*[draw(policies(policy_id, auto_reset)) for policy_id in ids], **more)


def written(document: Json) -> Json:
    """The bundle as it is offered to the edge."""
    copy = json.loads(json.dumps(document))
    for timed in (
        *copy.get("kill_switches", []),
        copy.get("global_shadow", {}),
        copy.get("kill_switch_override", {}),
    ):
        if "expires_s" in timed:
            timed["expires_at"] = instant(timed.pop("expires_s"))
    return copy  # type: ignore[no-any-return]


REQUESTS = st.builds(
    Request,
    method=some(*METHODS),
    path=some("/v1/x", "/v1/x", *PATHS),
    headers=maybe(**{"x-key": some("a", "a", "b", ""), "x-cost": some(*COSTS)}),
    query=maybe(q=some(*VALUES), cost=some("2", "0.5", "no")),
    claims=st.none() | maybe(sub=some(*VALUES), roles=some(["admin"], ["x", "y"], [])),
    client=some(
        "192.0.2.1", "192.0.2.1", "2001:db8:0:1:0:0:0:1", "2001:db8:0:1:0:0:0:2", "2001:db8:0:2:0:0:0:1"
    ),
    body=st.none() | maybe(model=some("m1", "m2"), max_tokens=some(1, 10, 25), n=some(1, 3)),
    hint=st.none() | some(1, 5, 30, 150),
    request_id=some("", "", "", "id"),
)
STEPS = [
    0,
    0,
    0,
    Fraction(1, 1000),
    Fraction(1, 4),
    1,
    3,
    Fraction(15, 2),
    30,
    45,
    60,
    100,
    700,
    3599,
    3600,
    40_000,
    86_400,
]


def sent(edge: Edge, request: Request) -> Reply:
    """The request over HTTP."""
    headers = {name: str(value) for name, value in request.headers.items()}
    if request.hint is not None:
        headers["x-token-estimate"] = str(request.hint)
    if request.claims is not None:
        parts = [{"alg": "none"}, request.claims]
        token = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
        headers["authorization"] = f"Bearer {token.decode()}.x"
    path = request.path + ("?" + urlencode(request.query) if request.query else "")
    return edge.ask(
        request.method, path, headers, client=request.client, body=request.body, request_id=request.request_id
    )


def seen(reply: Reply) -> Outcome:
    """What was decided, as the answer tells it."""
    headers = reply.headers
    outcome = Outcome(reply.action, reply.rule, reply.reason, reply.would_reject, reply.delay_ms)
    if "X-Fairvisor-Warning" in headers:
        outcome.warnings = headers["X-Fairvisor-Warning"].split(", ")
    outcome.loop_count = int(headers.get("X-Fairvisor-Loop-Count", 0))
    if "RateLimit" in headers:
        name, r, t = headers["RateLimit"].split(";")
        same_name, q, w = headers["RateLimit-Policy"].split(";")
        assert name == same_name
        numbers = [int(part.partition("=")[2]) for part in (q, w, r, t)]
        outcome.headers = (name.strip('"'), numbers[0], numbers[1], numbers[2], numbers[3])
        assert [headers[f"RateLimit-{part}"] for part in ("Limit", "Remaining", "Reset")] == [
            str(numbers[0]), str(numbers[2]), str(numbers[3]),
        ]  # fmt: skip
    return outcome


class EngineAgainstReference(RuleBasedStateMachine):
    """Both are asked the same; every decision must agree, and every number in its headers."""

    reservations: Bundle[Any] = Bundle("reservations")

    @initialize(data=st.data(), auto_reset=some(0, 0.5, 2))
    def start(self, data: st.DataObject, auto_reset: float) -> None:
        self.auto_reset = auto_reset
        self.edge = Edge(options=Options(trust_token_hint=True))
        self.reference = Reference(START_S)
        self.at = Fraction(0)
        self.reload(data)

    @rule(data=st.data())
    def reload(self, data: st.DataObject) -> None:
        self.document = data.draw(documents(self.auto_reset, float(self.at)), label="bundle")
        self._load()

    @rule(data=st.data())
    def retune(self, data: st.DataObject) -> None:
        """Change how much is allowed and not what is counted: counters are kept."""
        self.document = json.loads(json.dumps(self.document))
        for policy in self.document["policies"]:
            for limit in (*policy["spec"]["rules"], policy["spec"].get("fallback_limit")):
                if limit is not None:
                    limit["algorithm_config"] = data.draw(CONFIGS[limit["algorithm"]], label=limit["name"])
        self._load()

    def _load(self) -> None:
        self.edge.load(written(self.document))
        self.reference.load(self.document)

    @rule(step=some(*STEPS))
    def wait(self, step: Fraction) -> None:
        self._wait(step)

    def _wait(self, step: Fraction) -> None:
        if self.at + step < LATEST:
            self.at += step
            self.edge.at = float(self.at)
            self.reference.now = self.at

    @rule(request=REQUESTS, times=st.integers(1, 6), step=some(*STEPS[:8]), target=reservations)
    def ask(self, request: Request, times: int, step: Fraction) -> Any:
        found = []
        for _ in range(times):
            reply, expected = sent(self.edge, request), self.reference.decide(request)
            self.agree(reply, expected)
            if expected.takes:
                found.append((reply.reservation, self.at, expected))
            self._wait(step)
        return multiple(*found)

    def agree(self, reply: Reply, expected: Outcome) -> None:
        assert seen(reply) == replace(expected, takes=[], wait=None, number=None)
        assert ("X-Fairvisor-Reservation" in reply.headers) == bool(expected.takes)
        if expected.action == "reject":
            wait_s = 60 if expected.wait is None else max(1, -(-expected.wait // 1))
            if expected.wait is None and expected.headers is not None:
                wait_s = max(wait_s, expected.headers[2])
            assert reply.status == 429
            assert wait_s <= reply.retry_after <= wait_s + min(wait_s // 2, 60)
            hopeful = expected.reason in ("rate_limit_exceeded", "tpm_exceeded") and expected.wait is not None
            assert reply.should_retry == hopeful
        else:
            assert reply.status == 204

    @rule(
        reservation=reservations,
        kinds=st.none() | maybe(input=some(0, 3, 50), output=some(1, 20), cached_input=some(4)),
    )
    def settle(self, reservation: tuple[str, Fraction, Outcome], kinds: Json | None) -> None:
        token, taken_at, asked = reservation
        try:
            self.edge.settle(token, None if kinds is None else Usage(**kinds))
            outcome = "ok"
        except Conflict:
            outcome = "again"
        except Gone:
            outcome = "gone"
        assert outcome == self.reference.settle(asked.number, taken_at, asked.takes, kinds)


TestEngineAgainstReference = EngineAgainstReference.TestCase
TestEngineAgainstReference.settings = settings(
    max_examples=int(os.environ.get("FAIRVISOR_TEST_EXAMPLES", "80")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
