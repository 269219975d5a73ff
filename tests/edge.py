"""An edge in one process for tests of the core: a bundle goes in, requests are asked, on a clock that the test moves.

    edge = Edge(policy("p", bucket("r", "header:x-key", burst=2)))
    assert edge.ask(key="a").status == 204
    assert edge.ask(key="a", at=0.5).reason == "rate_limit_exceeded"

`at` is seconds since the start, a Monday's midnight in UTC on which a minute, hour, day and week begin. A bundle is
validated as the server does it, counters are the real ones in a private segment, and a reload keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fairvisor.bundle.compile import Options, compile_bundle
from fairvisor.bundle.load import parse
from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.counters import FULL, Counters
from fairvisor.counters.segment import Segment
from fairvisor.decision import Decision
from fairvisor.engine import decide
from fairvisor.identity import Identity
from fairvisor.llm.reservation import unseal
from fairvisor.llm.usage import Usage
from fairvisor.reading import read_fields
from fairvisor.response import Answer, Renderer
from fairvisor.rules.llm_tokens import Settled, claim, settle
from fairvisor.settings import Settings

Json = dict[str, Any]

START_S = 1_772_409_600  # 2026-03-02T00:00:00Z, a Monday
MONO_S = 600_000  # a whole number of minutes, so that a breaker's minutes begin with those of the wall clock
SEGMENT_BYTES = 1 << 18
DAY = 86_400
CLIENT = "192.0.2.1"


def bucket(name: str, *keys: str, rate: float = 1, burst: float = 5, **more: Any) -> Json:
    """A `token_bucket` rule; fields that are not the rule's own go into its configuration."""
    return _rule(name, keys, "token_bucket", {"tokens_per_second": rate, "burst": burst}, more)


def budget(name: str, *keys: str, amount: float = 10, period: str = "1h", **more: Any) -> Json:
    """A `cost_based` rule."""
    return _rule(name, keys, "cost_based", {"budget": amount, "period": period}, more)


def tokens(name: str, *keys: str, tpm: float = 1000, **more: Any) -> Json:
    """A `token_bucket_llm` rule."""
    return _rule(name, keys, "token_bucket_llm", {"tokens_per_minute": tpm}, more)


# Fields of a rule that are not its algorithm's.
OF_RULES = ("match", "on_missing", "missing_status", "on_ambiguous", "on_invalid_token")


def _rule(name: str, keys: tuple[str, ...], algorithm: str, config: Json, more: Json) -> Json:
    own = {field: more.pop(field) for field in OF_RULES if field in more}
    return {
        "name": name,
        "limit_keys": [*keys],
        "algorithm": algorithm,
        "algorithm_config": config | more,
        **own,
    }


def policy(policy_id: str, *rules: Json, path: str = "/", **spec: Any) -> Json:
    """A policy of these rules, for every path unless it is told another prefix or a selector."""
    return {"id": policy_id, "spec": {"selector": {"pathPrefix": path}, "rules": [*rules], **spec}}


def bundle(*policies: Json, **more: Any) -> Json:
    return {"bundle_version": 1, "policies": [*policies], **more}


def instant(at: float) -> str:
    """The moment `at` as a bundle writes it, to the second."""
    days, seconds = divmod(int(at), DAY)
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z"
    assert 0 <= days < 30, "within March"
    return f"2026-03-{2 + days:02}T{clock}"


def moment(at: float) -> Now:
    ns = round(at * NS_PER_S)
    return Now(MONO_S * NS_PER_S + ns, START_S * NS_PER_S + ns)


class Reply:
    """What was decided about what, and the answer that says so."""

    def __init__(self, decision: Decision, context: Context, answer: Answer) -> None:
        self.decision = decision
        self.context = context
        self.status = answer.status
        self.delay_ms = answer.delay_ms
        self.body = answer.body
        assert answer.head == "" or answer.head.endswith("\r\n"), "complete lines"
        pairs = [line.partition(": ")[::2] for line in answer.head.split("\r\n")[:-1]]
        self.headers: dict[str, str] = dict(pairs)
        assert len(pairs) == len(self.headers), "no header twice"

    @property
    def action(self) -> str:
        return self.decision.action.value

    @property
    def reason(self) -> str | None:
        assert self.headers.get("X-Fairvisor-Reason") == self.decision.reason
        return self.headers.get("X-Fairvisor-Reason")

    @property
    def rule(self) -> str | None:
        """Of the limit that rejected, or the tightest one; `policy/rule`."""
        verdict = self.decision.verdict
        return None if verdict is None else f"{verdict.limit.tally.policy_id}/{verdict.limit.tally.rule}"

    @property
    def remaining(self) -> int:
        return int(self.headers["RateLimit-Remaining"])

    @property
    def reset(self) -> int:
        return int(self.headers["RateLimit-Reset"])

    @property
    def retry_after(self) -> int:
        return int(self.headers["Retry-After"])

    @property
    def should_retry(self) -> bool:
        return self.headers.get("X-Should-Retry") != "false"

    @property
    def reservation(self) -> str:
        return self.headers["X-Fairvisor-Reservation"]

    @property
    def would_reject(self) -> list[str]:
        return [
            f"{refused.limit.tally.policy_id}/{refused.limit.tally.rule}"
            for refused in self.decision.would_reject
        ]


@cache
def identity_of(environ: tuple[tuple[str, str], ...]) -> Identity:
    """Shared, because its list of bots takes longer to read than a test takes to run."""
    return Identity.from_settings(Settings.load(dict(environ), {}))


class Full:
    """A table that has no room for anything new."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._counters, name)

    def take(self, *arguments: int) -> tuple[int, int, int]:
        return FULL, 0, 0

    def add(self, *arguments: int) -> tuple[int, int]:
        return FULL, 0

    def count(self, *arguments: int) -> int:
        return 0

    def once(self, *arguments: int) -> tuple[int, int]:
        return FULL, 0


class Edge:
    """One segment, one bundle, one clock. `environ` holds settings, `full` leaves no room in the table."""

    def __init__(
        self,
        *policies: Json,
        options: Options | None = None,
        form: str = "both",
        llm_headers: bool = False,
        environ: Mapping[str, str] | None = None,
        full: bool = False,
        **more: Any,
    ) -> None:
        self.segment = Segment.private(SEGMENT_BYTES)
        self.counters: Counters = Full(self.segment.table) if full else self.segment.table
        self.identity = identity_of(tuple((environ or {}).items()))
        self.options = options or Options()
        self.renderer = Renderer(form, llm_headers)
        self.at: float = 0
        self.load(bundle(*policies, **more))

    def load(self, document: Json) -> None:
        """Switch to another bundle; counters stay."""
        parsed = parse(json.dumps(document).encode(), wall_ns=moment(self.at).wall_ns, environ={})
        self.bundle = compile_bundle(parsed.model, parsed.sha256, self.segment, self.options)

    def reload(self, *policies: Json, **more: Any) -> None:
        self.load(bundle(*policies, **more))

    def ask(
        self,
        method: str = "GET",
        path: str = "/v1/x",
        headers: Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]] | None = None,
        *,
        key: str | None = None,
        at: float | None = None,
        host: str = "",
        client: str = CLIENT,
        body: bytes | Json | None = None,
        request_id: str = "",
        cut_bytes: int = 0,
        carrier: bool = False,
    ) -> Reply:
        """Ask for one request; `key` is its X-Key header, `headers` may be pairs of which names come again."""
        self.at = self.at if at is None else at
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        raw, repeated = read_fields(
            [(name.lower(), value if isinstance(value, bytes) else value.encode()) for name, value in pairs]
        )
        if key is not None:
            raw["x-key"] = key.encode()
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        now = moment(self.at)
        context = Context(
            method, host, path, raw, client, self.identity, now, data, request_id, cut_bytes, repeated
        )
        decision = decide(self.bundle, self.counters, context, now)
        return Reply(decision, context, self.renderer.answer(decision, context, 204, carrier))

    def admits(self, *arguments: Any, most: int = 1000, **more: Any) -> int:
        """How many of the same request pass in a row."""
        for passed in range(most):
            if self.ask(*arguments, **more).status != 204:
                return passed
        return most

    def settle(self, token: str, usage: Usage | None, *, at: float | None = None) -> tuple[Settled, ...]:
        self.at = self.at if at is None else at
        now = moment(self.at)
        reservation = unseal(self.segment.reservation_key, token, now.wall_ns)
        gives_back = claim(self.counters, reservation, now)
        return settle(self.counters, reservation, usage, now, gives_back=gives_back)

    def metric(self, name: str, **labels: str) -> int:
        """The sum of the series of a family whose labels have these values."""
        return sum(
            value
            for series, pairs, value in self.segment.series_values()
            if series == f"fairvisor_{name}" and labels.items() <= dict(pairs).items()
        )
