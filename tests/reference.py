"""The whole evaluation again, as slowly and plainly as it can be said: dictionaries, exact fractions, one process.

Written from the description of what a policy means, and sharing no code with the engine, so that the two can be asked
the same questions. A bundle is its JSON document, a request says what it carries (how that is spelled over HTTP is
tested elsewhere), time is in seconds since the start. Rates must be ones that the counters can hold exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from math import ceil, floor
from typing import Any
from zoneinfo import ZoneInfo

Json = dict[str, Any]
Key = tuple[Any, ...]

MILLIONTH = Fraction(1, 10**6)
DAY = 86_400
HOUR_OF_A_RESERVATION = 3600
FIXED_PERIODS = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "12h": 43_200, "30d": 30 * DAY}
WITHOUT_QUOTA = ("", 0, 0)


@dataclass(frozen=True)
class Request:
    """What a request carries; `claims` are those of a token that counts, `hint` the prompt's tokens."""

    method: str = "GET"
    path: str = "/"
    headers: Json = field(default_factory=dict)
    query: Json = field(default_factory=dict)
    claims: Json | None = None
    client: str = "192.0.2.1"
    body: Json | None = None
    hint: int | None = None
    request_id: str = ""


@dataclass
class Passed:
    """A limit that lets pass: how full it is, what it took, how to give that back."""

    rule: str
    quota: tuple[str, int, int]  # name, amount, window
    remaining: Fraction = Fraction(0)
    share: Fraction = Fraction(1)
    reset: Fraction = Fraction(0)
    cost: Fraction = Fraction(1)
    give: Callable[[], object] = lambda: None
    action: str = "allow"
    delay_ms: int = 0
    loop_count: int = 0
    takes: list[Json] = field(default_factory=list)


@dataclass
class Refused:
    """A limit that says no. `wait` is None where it never fits."""

    rule: str
    reason: str
    wait: Fraction | None = None
    quota: tuple[str, int, int] = WITHOUT_QUOTA
    remaining: Fraction = Fraction(0)
    loop_count: int = 0


@dataclass
class Outcome:
    """What is decided."""

    action: str
    rule: str | None = None
    reason: str | None = None
    would_reject: list[str] = field(default_factory=list)
    delay_ms: int = 0
    warnings: list[str] = field(default_factory=list)
    loop_count: int = 0
    headers: tuple[str, int, int, int, int] | None = None  # name, q, w, r, t
    wait: Fraction | None = None
    takes: list[Json] = field(default_factory=list)
    number: Any = None  # of the reservation: a question asked twice has one


def amount(text: str | None, default: Fraction) -> Fraction:
    """ASCII digits[.digits][e±digits], rounded up to a millionth, at most 9e12; else the default."""
    if text is None or not re.fullmatch(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text, re.ASCII):
        return default
    value = min(Fraction(text), Fraction(9 * 10**12))
    return ceil(value / MILLIONTH) * MILLIONTH or default


def fraction(number: float) -> Fraction:
    return Fraction(str(number))


class Reference:
    """An edge's whole state: levels of buckets, totals of windows, counts, and what was asked before."""

    def __init__(self, start_s: int) -> None:
        self._start_s = start_s
        self._bundle: Json = {}
        self._full_at: dict[Key, Fraction] = {}  # when a bucket will be full again
        self._totals: dict[Key, Fraction] = {}
        self._counts: dict[Key, tuple[Fraction, int]] = {}  # when the window ends, how many
        self._opened: dict[Key, Fraction] = {}
        self._allowed: dict[Key, Fraction] = {}
        self._settled: set[Any] = set()
        self._number = 0
        self.now = Fraction(0)
        self._charging = True

    def load(self, bundle: Json) -> None:
        self._bundle = bundle

    # The order of evaluation

    def decide(self, request: Request) -> Outcome:
        key = (
            request.request_id,
            request.method,
            request.path,
            str(request.query),
            request.client,
            str(request.claims),
        )
        self._charging = not (request.request_id and self.now < self._allowed.get(key, Fraction(-99)) + 10)
        outcome = self._decide(request)
        self._number += 1
        outcome.number = key if request.request_id else self._number
        if request.request_id and self._charging and outcome.action != "reject":
            self._allowed[key] = self.now
        return outcome

    def _decide(self, request: Request) -> Outcome:
        if not self._active(self._bundle.get("kill_switch_override")):
            for switch in self._bundle.get("kill_switches", []):
                if self._hits(switch, request):
                    ends = switch.get("expires_s")
                    wait = Fraction(3600) if ends is None else min(Fraction(3600), ends - self.now)
                    return self._rejected(Refused("/kill_switch", "kill_switch_active", wait), [])
        everything_in_shadow = self._active(self._bundle.get("global_shadow"))
        real: list[Passed] = []
        shadow: list[Passed] = []
        would_reject: list[str] = []
        spends: list[tuple[Key, Json, Passed | None]] = []
        policies = [
            policy
            for policy in self._bundle["policies"]
            if self._selects(policy["spec"]["selector"], request)
        ]
        for policy in sorted(policies, key=lambda policy: policy["id"]):
            spec = policy["spec"]
            mode = "shadow" if everything_in_shadow else spec.get("mode", "enforce")
            passed: list[Passed] = []
            refusal = self._policy(policy["id"], spec, mode, request, passed, spends)
            if refusal is None:
                (shadow if mode == "shadow" else real).extend(passed)
                continue
            for verdict in reversed(passed):
                verdict.give()
            if mode == "shadow":
                would_reject.append(refusal.rule)
                continue
            for verdict in reversed(real + shadow):
                verdict.give()
            return self._rejected(refusal, would_reject)
        for key, control, first in spends:
            self._spend(key, control, first)
        return self._passed(real, shadow, would_reject)

    def _policy(
        self,
        policy_id: str,
        spec: Json,
        mode: str,
        request: Request,
        passed: list[Passed],
        spends: list[tuple[Key, Json, Passed | None]],
    ) -> Refused | None:
        """What passes is added to `passed`, what is to be spent to `spends`; the first refusal ends it."""
        rules = [*spec["rules"], *([spec["fallback_limit"]] if "fallback_limit" in spec else [])]
        guards: list[Passed | Refused | None] = []
        if "loop_detection" in spec:
            guards.append(self._loop(policy_id, spec["loop_detection"], rules, mode, request))
        control = spec.get("circuit_breaker")
        breaker = self._breaker_key(policy_id, control, rules, mode, request) if control else ()
        if control and not any(isinstance(guard, Refused) for guard in guards):
            guards.append(self._breaker(policy_id, breaker, control))
        for guard in guards:
            if isinstance(guard, Refused):
                return guard
            if guard is not None:
                passed.append(guard)
        ran: list[Passed] = []
        for rule in spec["rules"]:
            verdict = self._rule(policy_id, rule, mode, request)
            if isinstance(verdict, Refused):
                passed.extend(ran)
                return verdict
            if verdict is not None:
                ran.append(verdict)
        if not ran and "fallback_limit" in spec:
            verdict = self._rule(policy_id, spec["fallback_limit"], mode, request)
            if isinstance(verdict, Refused):
                return verdict
            if verdict is not None:
                ran.append(verdict)
        passed.extend(ran)
        if control:
            spends.append((breaker, control, ran[0] if ran else None))
        return None

    def _rejected(self, refusal: Refused, would_reject: list[str]) -> Outcome:
        outcome = Outcome("reject", refusal.rule, refusal.reason, would_reject, loop_count=refusal.loop_count)
        outcome.wait = refusal.wait
        if refusal.quota != WITHOUT_QUOTA:
            name, q, w = refusal.quota
            t = w if refusal.wait is None else ceil(refusal.wait)
            outcome.headers = (name, q, w, floor(refusal.remaining), t)
        return outcome

    def _passed(self, real: list[Passed], shadow: list[Passed], would_reject: list[str]) -> Outcome:
        limits = [verdict for verdict in real if verdict.quota != WITHOUT_QUOTA]
        tightest = min(limits, key=lambda verdict: verdict.share, default=None)  # the first of equals
        marked = [verdict for verdict in real if verdict.action != "allow"]
        outcome = Outcome("allow", tightest.rule if tightest else None, would_reject=would_reject)
        if tightest is not None:
            outcome.headers = (*tightest.quota, floor(tightest.remaining), ceil(tightest.reset))
        if marked:
            slowest = max(marked, key=lambda verdict: verdict.delay_ms)
            outcome.action, outcome.delay_ms = slowest.action, slowest.delay_ms
            for verdict in marked:
                warning = f"{'loop' if verdict.loop_count else 'budget'}_{verdict.action}"
                if warning not in outcome.warnings:
                    outcome.warnings.append(warning)
            outcome.loop_count = max(verdict.loop_count for verdict in marked)
        outcome.takes = [take for verdict in real + shadow for take in verdict.takes]
        return outcome

    # Where and for whom

    def _active(self, override: Json | None) -> bool:
        return override is not None and override["enabled"] and self.now < override["expires_s"]

    def _hits(self, switch: Json, request: Request) -> bool:
        value = self._value(switch["scope_key"], request)
        if not value or switch["scope_value"] not in ("*", value):
            return False
        if "expires_s" in switch and self.now >= switch["expires_s"]:
            return False
        route = switch.get("route", "/*")
        return request.path.startswith(route[:-1]) if route.endswith("*") else request.path == route

    @staticmethod
    def _selects(selector: Json, request: Request) -> bool:
        if "methods" in selector and request.method not in selector["methods"]:
            return False
        prefix = selector.get("pathPrefix")
        if prefix is not None:
            inside = request.path.startswith(prefix if prefix.endswith("/") else prefix + "/")
            if inside or request.path == prefix:
                return True
        return bool(selector.get("pathExact") == request.path)

    @staticmethod
    def _value(descriptor: str, request: Request) -> str:
        """The text of a descriptor, "" when it is missing."""
        source, _, name = descriptor.partition(":")
        if source in ("header", "query"):
            return str((request.headers if source == "header" else request.query).get(name, ""))
        if source == "jwt":
            value = (request.claims or {}).get(name, "")
            return "" if isinstance(value, list) else str(value)
        if descriptor == "llm:model":
            return str((request.body or {}).get("model", "")).lower()
        if descriptor == "ip:address":
            network = ":".join(request.client.split(":")[:4])
            return request.client if ":" not in request.client else f"{network}::/64"
        return {"request:method": request.method, "request:path": request.path}[descriptor]

    def _matches(self, rule: Json, request: Request) -> bool:
        for descriptor, accepted in rule.get("match", {}).items():
            values = [self._value(descriptor, request)]
            if descriptor.startswith("jwt:") and isinstance((request.claims or {}).get(descriptor[4:]), list):
                values = (request.claims or {})[descriptor[4:]]
            if not set(values) & set(accepted):
                return False
        return True

    # Rules

    def _rule(self, policy_id: str, rule: Json, mode: str, request: Request) -> Passed | Refused | None:
        name = f"{policy_id}/{rule.get('name', 'fallback_limit')}"
        if not self._matches(rule, request):
            return None
        values = [self._value(key, request) or None for key in rule["limit_keys"]]
        on_missing = rule.get("on_missing", self._bundle.get("defaults", {}).get("on_missing", "skip"))
        if None in values and on_missing == "skip":
            return None
        if None in values and on_missing == "reject":
            return Refused(name, "descriptor_missing", Fraction(60))
        counter = (name, tuple(rule["limit_keys"]), tuple(values), mode)
        config = rule["algorithm_config"]
        if rule["algorithm"] == "token_bucket":
            return self._token_bucket(name, counter, config, request)
        if rule["algorithm"] == "cost_based":
            return self._budget(name, counter, config, request)
        return self._tokens(name, counter, config, request)

    @staticmethod
    def _cost(source: str, config: Json, request: Request) -> Fraction:
        if source == "fixed":
            return fraction(config.get("fixed_cost", 1))
        kind, _, name = source.partition(":")
        default = fraction(config.get("default_cost", 1))
        return amount((request.headers if kind == "header" else request.query).get(name), default)

    def _take(
        self, key: Key, cost: Fraction, burst: Fraction, rate: Fraction
    ) -> tuple[bool, Fraction, Fraction | None]:
        """(whether it was taken, what is left, seconds until full or until it would fit)."""
        debt = min(max(self._full_at.get(key, self.now) - self.now, Fraction(0)), burst / rate)
        if not self._charging:
            return True, burst - debt * rate, debt
        self._full_at[key] = self.now + debt  # capped when the burst was lowered
        if cost > burst:
            return False, burst - debt * rate, None
        if debt + cost / rate > burst / rate:
            return False, burst - debt * rate, debt + cost / rate - burst / rate
        self._full_at[key] = self.now + debt + cost / rate
        return True, burst - debt * rate - cost, debt + cost / rate

    def _put_back(self, key: Key, cost: Fraction, rate: Fraction) -> None:
        if self._charging and key in self._full_at:
            self._full_at[key] = max(self.now, self._full_at[key] - cost / rate)

    def _add(self, key: Key, cost: Fraction, limit: Fraction) -> tuple[bool, Fraction]:
        total = self._totals.get(key, Fraction(0))
        if not self._charging:
            return True, total
        if total + cost > limit:
            return False, total
        self._totals[key] = total + cost
        return True, total + cost

    def _subtract(self, key: Key, cost: Fraction) -> None:
        if self._charging and key in self._totals:
            self._totals[key] = max(Fraction(0), self._totals[key] - cost)

    def _token_bucket(self, name: str, counter: Key, config: Json, request: Request) -> Passed | Refused:
        burst, rate = fraction(config["burst"]), fraction(config["tokens_per_second"])
        cost = self._cost(config.get("cost_source", "fixed"), config, request)
        quota = (name.split("/")[1], floor(burst), ceil(burst / rate))
        key = ("bucket", counter)
        taken, left, wait = self._take(key, cost, burst, rate)
        if not taken:
            return Refused(name, "rate_limit_exceeded", wait, quota, left)
        assert wait is not None
        return Passed(name, quota, left, left / burst, wait, cost, lambda: self._put_back(key, cost, rate))

    def _budget(self, name: str, counter: Key, config: Json, request: Request) -> Passed | Refused:
        start, end = self._window(config["period"], config.get("timezone", "UTC"))
        stages = config.get("staged_actions", [])
        shares = [
            fraction(config["budget"]) * fraction(stage["threshold_percent"]) / 100
            for stage in stages
            if stage["action"] == "reject"
        ]
        limit = min(shares, default=fraction(config["budget"]))
        quota = (name.split("/")[1], floor(limit), end - start)
        cost = self._cost(config.get("cost_key", "fixed"), config, request)
        key = ("budget", config["period"], config.get("timezone", "UTC"), start, counter)
        left = end - self._start_s - self.now
        taken, total = self._add(key, cost, limit)
        if not taken:
            return Refused(name, "budget_exhausted", left, quota, max(Fraction(0), limit - total))
        rest = max(Fraction(0), limit - total)
        passed = Passed(name, quota, rest, rest / limit, left, cost, lambda: self._subtract(key, cost))
        for stage in stages:  # ascending: the last one reached wins
            reached = total >= fraction(config["budget"]) * fraction(stage["threshold_percent"]) / 100
            if reached and stage["action"] != "reject":
                passed.action, passed.delay_ms = stage["action"], stage.get("delay_ms", 0)
        return passed

    def _window(self, period: str, zone: str) -> tuple[int, int]:
        """Start and end in seconds since the epoch of the window that holds this moment."""
        wall = self._start_s + floor(self.now)
        if period in FIXED_PERIODS:
            start = wall // FIXED_PERIODS[period] * FIXED_PERIODS[period]
            return start, start + FIXED_PERIODS[period]
        local = datetime.fromtimestamp(wall, timezone.utc).astimezone(ZoneInfo(zone))
        first = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        if period == "1mo":
            first = first.replace(day=1)
            after = (first + timedelta(days=31)).replace(day=1)
        else:
            first -= timedelta(days=first.weekday() if period == "7d" else 0)
            after = first + timedelta(days=7 if period == "7d" else 1)
        start_s, end_s = (int(day.replace(tzinfo=ZoneInfo(zone)).timestamp()) for day in (first, after))
        return start_s, end_s

    # Tokens

    def _tokens(self, name: str, counter: Key, config: Json, request: Request) -> Passed | Refused:
        tpm = fraction(config["tokens_per_minute"])
        burst, rate = fraction(config.get("burst_tokens", config["tokens_per_minute"])), tpm / 60
        day = fraction(config["tokens_per_day"]) if "tokens_per_day" in config else None
        cost = self._price(name, config, request, burst if day is None else min(burst, day))
        if isinstance(cost, Refused):
            return cost
        quota = (name.split("/")[1], floor(burst), ceil(burst / rate))
        key = ("llm", counter)
        taken, left, wait = self._take(key, cost, burst, rate)
        if not taken:
            return Refused(name, "tpm_exceeded", wait, quota, left)
        assert wait is not None
        weights = config.get("weights", {})
        passed = Passed(name, quota, left, left / burst, wait, cost, lambda: self._put_back(key, cost, rate))
        passed.takes.append({"key": key, "cost": cost, "burst": burst, "rate": rate, "weights": weights})
        if day is None:
            return passed
        today, into = divmod(self._start_s + self.now, DAY)
        day_key, day_quota = ("llm day", today, counter), (quota[0], floor(day), DAY)
        added, total = self._add(day_key, cost, day)
        if not added:
            passed.give()
            return Refused(name, "tpd_exceeded", DAY - into, day_quota, max(Fraction(0), day - total))
        passed.takes.append(
            {"key": day_key, "cost": cost, "until": self.now + DAY - into, "weights": weights}
        )
        passed.give = lambda: (self._put_back(key, cost, rate), self._subtract(day_key, cost))
        if (day - total) / day < passed.share:
            passed.quota, passed.remaining, passed.reset = day_quota, day - total, DAY - into
            passed.share = (day - total) / day
        return passed

    def _price(self, name: str, config: Json, request: Request, most: Fraction) -> Fraction | Refused:
        prompt = request.hint if request.hint is not None else config.get("default_prompt_tokens", 0)
        if prompt > config.get("max_prompt_tokens", prompt):
            return Refused(name, "prompt_tokens_exceeded", Fraction(60))
        weights = config.get("weights", {})
        of_input, of_output = fraction(weights.get("input", 1)), fraction(weights.get("output", 1))
        body = request.body or {}
        asked = body.get("max_tokens")
        clamp = config.get("max_completion_tokens")
        if asked is not None:
            completion = (asked if clamp is None else min(asked, clamp)) * body.get("n", 1)
        else:
            room = [config.get("default_max_completion", 1000)]
            room += [] if clamp is None else [clamp]
            if "max_tokens_per_request" in config:
                room.append(config["max_tokens_per_request"] - prompt)
            if of_output:
                room.append(floor((most - prompt * of_input) / of_output))
            completion = max(0, min(room))
        cost = max(MILLIONTH, prompt * of_input + completion * of_output)
        if prompt + completion > config.get("max_tokens_per_request", prompt + completion) or cost > most:
            return Refused(name, "max_tokens_per_request_exceeded", Fraction(60))
        return cost

    def settle(self, number: Any, taken_at: Fraction, takes: list[Json], used: Json | None) -> str:
        """Replace what was reserved by what was used (kind -> tokens; None: failed): "ok", "gone" or "again"."""
        if self.now - taken_at >= HOUR_OF_A_RESERVATION:
            return "gone"
        if number in self._settled:
            return "again"
        self._settled.add(number)
        self._charging = True
        for take in takes:
            real = sum(
                (fraction(take["weights"].get(kind, 1)) * count for kind, count in (used or {}).items()),
                Fraction(0),
            )
            more, key = real - take["cost"], take["key"]
            if "until" not in take and more <= 0:
                self._put_back(key, -more, take["rate"])
            elif "until" not in take:
                most = take["burst"] / take["rate"]
                debt = min(max(self._full_at.get(key, self.now) - self.now, Fraction(0)), most)
                self._full_at[key] = self.now + min(debt + more / take["rate"], most)
            elif self.now < take["until"] and key in self._totals:
                self._totals[key] = max(Fraction(0), self._totals[key] + more)
        return "ok"

    # Guards

    def _loop(
        self, policy_id: str, control: Json, rules: list[Json], mode: str, request: Request
    ) -> Passed | Refused | None:
        by_body = control.get("body", "require") == "require"
        if by_body and request.body is None and request.method in ("POST", "PUT", "PATCH"):
            return None
        if not self._charging:
            return None
        names = tuple(dict.fromkeys(key for rule in rules for key in rule["limit_keys"]))
        key = (
            "loop", policy_id, mode, request.method, request.path, tuple(sorted(request.query.items())),
            str(request.body) if by_body else "", names, tuple(self._value(name, request) for name in names),
        )  # fmt: skip
        ends, count = self._counts.get(key, (self.now, 0))
        if ends <= self.now:
            ends, count = self.now + fraction(control["window_seconds"]), 0
        count += 1
        self._counts[key] = ends, count
        if count < control["threshold_identical_requests"]:
            return None
        name, action = f"{policy_id}/loop_detection", control.get("action", "reject")
        if action == "reject":
            return Refused(name, "loop_detected", fraction(control["window_seconds"]), loop_count=count)
        delay_ms = min(100 * count, 30_000) if action == "throttle" else 0
        return Passed(name, WITHOUT_QUOTA, action=action, delay_ms=delay_ms, loop_count=count)

    def _breaker_key(
        self, policy_id: str, control: Json, rules: list[Json], mode: str, request: Request
    ) -> Key:
        scope = control.get("scope", "key")
        if scope == "global":
            return ("breaker", scope, mode)
        first = next((rule["limit_keys"][0] for rule in rules if rule["limit_keys"]), None)
        if scope == "policy" or first is None:
            return ("breaker", scope, policy_id, mode)
        return ("breaker", scope, policy_id, mode, first, self._value(first, request))

    def _breaker(self, policy_id: str, key: Key, control: Json) -> Refused | None:
        opened = self._opened.get(key)
        closes = fraction(control.get("auto_reset_after_minutes", 0)) * 60
        if opened is None or not self._charging or (closes and self.now >= opened + closes):
            return None
        wait = opened + closes - self.now if closes else None
        return Refused(f"{policy_id}/circuit_breaker", "circuit_breaker_open", wait)

    def _spend(self, key: Key, control: Json, first: Passed | None) -> None:
        if not self._charging:
            return
        minute, into = divmod(self.now, 60)
        now_key, before_key = ("spent", minute, key), ("spent", minute - 1, key)
        cost = first.cost if first is not None else Fraction(1)
        self._totals[now_key] = self._totals.get(now_key, Fraction(0)) + cost
        if first is not None and first.takes:
            weights = first.takes[0]["weights"]
            first.takes.append({"key": now_key, "cost": cost, "until": self.now + 120, "weights": weights})
        rate = self._totals[now_key] + self._totals.get(before_key, Fraction(0)) * (60 - into) / 60
        if rate >= fraction(control["spend_rate_threshold_per_minute"]):
            self._opened[key] = self.now
            self._totals.pop(now_key)
            self._totals.pop(before_key, None)
