"""The bundles that `perf/` measures with, and the tokens and bodies that go with them. No limit refuses unless said."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt

HS_SECRET = "perf-only-secret-of-sufficient-length-0123456789"
GENEROUS = {"tokens_per_second": 1e9, "burst": 1e9}


def bucket(name: str, *keys: str, **config: float) -> dict[str, Any]:
    """A token bucket rule that never refuses, unless `config` says otherwise."""
    return {
        "name": name,
        "limit_keys": list(keys),
        "algorithm": "token_bucket",
        "algorithm_config": GENEROUS | config,
    }


def policy(policy_id: str, *rules: dict[str, Any], path: str = "/", **spec: Any) -> dict[str, Any]:
    """A policy for every path, or those that begin with `path`."""
    return {"id": policy_id, "spec": {"selector": {"pathPrefix": path}, "rules": list(rules)} | spec}


def one_limit() -> dict[str, Any]:
    """The smallest bundle: one bucket per API key."""
    return {"bundle_version": 1, "policies": [policy("orders", bucket("per-key", "header:x-api-key"))]}


def many(policies: int) -> dict[str, Any]:
    """Policies /svc0/, /svc1/ ... with one bucket each."""
    return {
        "bundle_version": 1,
        "policies": [
            policy(f"policy-{number:05}", bucket("per-key", "header:x-api-key"), path=f"/svc{number}/")
            for number in range(policies)
        ],
    }


def all_rejected() -> dict[str, Any]:
    """One bucket that is empty after its first request."""
    rule = bucket("per-key", "header:x-api-key", tokens_per_second=0.0001, burst=1)
    return {"bundle_version": 1, "policies": [policy("orders", rule)]}


def five_limits() -> dict[str, Any]:
    """Five limits over verified claims, header and address, with loop detection and a circuit breaker."""
    budget = {
        "name": "spend",
        "limit_keys": ["jwt:org_id"],
        "algorithm": "cost_based",
        "algorithm_config": {"budget": 9e12, "period": "1d"},
    }
    rules = [
        bucket("per-user", "jwt:sub"),
        bucket("per-org", "jwt:org_id"),
        bucket("per-plan", "jwt:plan", "header:x-api-key"),
        bucket("per-address", "ip:address"),
        budget,
    ]
    guards = {
        "loop_detection": {"enabled": True, "window_seconds": 1, "threshold_identical_requests": 1_000_000},
        "circuit_breaker": {"enabled": True, "spend_rate_threshold_per_minute": 9e11, "scope": "policy"},
    }
    return {
        "bundle_version": 1,
        "policies": [policy("orders", *rules, **guards)],
        "jwt_keys": [{"secret_env": "FAIRVISOR_PERF_SECRET", "algorithm": "HS256", "kid": "perf"}],
    }


def bearer() -> dict[str, str]:
    """The Authorization header of a token that outlives the run."""
    claims = {"sub": "user-17", "org_id": "org-4", "plan": "pro", "exp": int(time.time()) + 86_400}
    return {"Authorization": "Bearer " + jwt.encode(claims, HS_SECRET, "HS256", headers={"kid": "perf"})}


def llm_tokens() -> dict[str, Any]:
    """Tokens per minute and day by API key, reserved from the body of the request."""
    config = {"tokens_per_minute": 1e9, "tokens_per_day": 1e12, "burst_tokens": 1e9}
    rule = {"name": "tokens", "limit_keys": ["header:x-api-key"], "algorithm": "token_bucket_llm"}
    return {"bundle_version": 1, "policies": [policy("llm", rule | {"algorithm_config": config})]}


def chat() -> bytes:
    """The body of a chat completion request, of 2 KB."""
    words = "Summarise the following support conversation for the team that will take it over. " * 23
    return json.dumps(
        {"model": "gpt-4o", "max_tokens": 16, "messages": [{"role": "user", "content": words}]}
    ).encode()
