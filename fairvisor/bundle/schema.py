"""The JSON Schema of a bundle (draft 2020-12), for editors and pipelines; `fairvisor schema` prints it.

It is derived from the model, so the two cannot drift apart; what pydantic cannot express (conditions between fields)
is added here, beside the name of its class. The schema is as strict as `validate --strict`: unknown fields are
errors. It cannot express everything, such as `burst` against the rate; `validate` has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from fairvisor.bundle.model import MAX_ISSUERS, Bundle

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

_FREE: Final[Mapping[str, Any]] = {r"^\$(schema|comment)$": {}}
_OFF: Final = {"properties": {"enabled": {"const": False}}, "required": ["enabled"]}
_ON: Final = {"properties": {"enabled": {"const": True}}, "required": ["enabled"]}
_THROTTLE: Final = {"properties": {"action": {"const": "throttle"}}, "required": ["action"]}

_CONDITIONS: Final[Mapping[str, dict[str, Any]]] = {
    "Selector": {"anyOf": [{"required": ["pathExact"]}, {"required": ["pathPrefix"]}]},
    "StagedAction": {"if": _THROTTLE, "then": {"required": ["delay_ms"]}},
    "TokenBucket": {
        "oneOf": [{"required": ["tokens_per_second"]}, {"required": ["rps"]}],
        "required": ["burst"],
    },
    "LoopDetection": {
        "if": _OFF,
        "else": {"required": ["window_seconds", "threshold_identical_requests"]},
        "required": [],
    },
    "CircuitBreaker": {"if": _OFF, "else": {"required": ["spend_rate_threshold_per_minute"]}, "required": []},
    "Override": {"if": _ON, "then": {"required": ["reason", "expires_at"]}},
    "JwtKey": {"oneOf": [{"required": ["jwk"]}, {"required": ["secret_env"]}]},
}
_ADDRESS: Final = {"type": "string", "pattern": "^[0-9A-Fa-f:.]+(/[0-9.]+)?$"}  # an address or a network
_ADDRESSES: Final = {"anyOf": [_ADDRESS, {"type": "array", "items": _ADDRESS, "minItems": 1}]}
_RULES: Final = ("TokenBucketRule", "CostBasedRule", "LlmTokensRule")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a bundle."""
    schema = _simplified(Bundle.model_json_schema())
    parts = schema["$defs"]
    for name, condition in _CONDITIONS.items():
        parts[name].update(condition)
    parts["TokenBucket"]["properties"]["rps"] = parts["TokenBucket"]["properties"]["tokens_per_second"]
    for name in ("methods", "hosts"):
        parts["Selector"]["properties"][name]["minItems"] = 1
    schema["properties"]["jwt_issuers"]["maxItems"] = MAX_ISSUERS
    parts["JwtIssuer"]["properties"]["algorithms"]["minItems"] = 1
    for name in _RULES:  # the name may be left out of a fallback limit only
        parts[name]["required"].remove("name")
        match = parts[name]["properties"]["match"]
        match["properties"] = dict.fromkeys(("ip:address", "ip:addr"), _ADDRESSES)
    parts["Spec"]["properties"]["rules"]["items"]["required"] = ["name"]
    return {"$schema": DRAFT, "title": "Fairvisor policy bundle", **schema}


def _simplified(part: Any) -> Any:
    """Without what pydantic adds for itself: titles, nulls (absent fields are left out), decimals as strings."""
    if isinstance(part, list):
        return [_simplified(item) for item in part]
    if not isinstance(part, dict):
        return part
    if part.get("anyOf", [None])[-1] == {"type": "null"}:
        (kept,) = part["anyOf"][:-1]
        described = {name: value for name, value in part.items() if name == "description"}
        return _simplified({**kept, **described})
    part = {
        name: _simplified(value) for name, value in part.items() if name not in ("title", "discriminator")
    }
    if "default" in part:
        part["default"] = _plain_default(part["default"])
        if part["default"] in (None, {}):
            del part["default"]
    if isinstance(part.get("description"), str):
        part["description"] = re.sub(r"\s*\n\s*", " ", part["description"])
    if part.get("type") == "object":
        if "properties" in part or "patternProperties" in part:  # a JWK has neither: any member is fine
            part.setdefault("additionalProperties", False)
        part["patternProperties"] = {**part.get("patternProperties", {}), **_FREE}
    return part


def _plain_default(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain_default(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain_default(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value):
        number = Decimal(value)
        return int(number) if number == number.to_integral_value() else float(number)
    return value
