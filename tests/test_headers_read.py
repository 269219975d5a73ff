"""Which request headers a bundle reads, wherever it names them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fairvisor.bundle.headers_read import headers_read
from fairvisor.bundle.load import parse

BODIES = ["content-encoding", "content-type"]
BUCKET = {"algorithm": "token_bucket", "algorithm_config": {"tokens_per_second": 1, "burst": 1}}
TOKENS = {"algorithm": "token_bucket_llm", "algorithm_config": {"tokens_per_minute": 1}}
LOOP = {"window_seconds": 1, "threshold_identical_requests": 2}


def bundle(spec: dict[str, Any], **rest: Any) -> dict[str, Any]:
    whole = {"selector": {"pathPrefix": "/"}, "rules": [], **spec}
    return {"bundle_version": 1, "policies": [{"id": "a", "spec": whole}], **rest}


def ruled(**fields: Any) -> dict[str, Any]:
    return bundle({"rules": [{"name": "r", "limit_keys": [], **BUCKET, **fields}]})


def costing(algorithm: str, **config: Any) -> dict[str, Any]:
    return ruled(algorithm=algorithm, algorithm_config=config)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (bundle({}), []),
        (ruled(limit_keys=["header:X-API-Key"]), ["x-api-key"]),
        (ruled(limit_keys=["cookie:a", "cookie:b", "jwt:sub"]), ["authorization", "cookie"]),
        (ruled(limit_keys=["ip:address", "query:a", "request:path", "ip:country"]), []),
        (ruled(match={"ua:bot": "true", "header:X-Plan": "free"}), ["user-agent", "x-plan"]),
        (ruled(match={"ua:bot_category": "ai-crawler"}), ["user-agent"]),
        (ruled(match={"llm:model": "m"}), BODIES),
        (ruled(**TOKENS), BODIES),
        (costing("token_bucket", tokens_per_second=1, burst=1, cost_source="header:X-Cost"), ["x-cost"]),
        (costing("cost_based", budget=1, period="1d", cost_key="header:X-Cost"), ["x-cost"]),
        (costing("cost_based", budget=1, period="1d", cost_key="query:cost"), []),
        (bundle({"fallback_limit": {"limit_keys": ["header:x-team"], **BUCKET}}), ["x-team"]),
        (bundle({"loop_detection": LOOP}), BODIES),
        (bundle({}, defaults={"loop_detection": LOOP}), BODIES),
        (bundle({"loop_detection": {"enabled": False}}, defaults={"loop_detection": LOOP}), []),
        (bundle({}, kill_switches=[{"scope_key": "header:X-Team", "scope_value": "*"}]), ["x-team"]),
    ],
)
def test_what_is_read(document: dict[str, Any], expected: list[str]) -> None:
    assert headers_read(parse(orjson.dumps(document), wall_ns=0, environ={}).model) == expected
