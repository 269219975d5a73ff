"""The published JSON Schema: it accepts what `validate --strict` accepts in the corpus, comments included, and refuses
the mistakes that a schema can see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fairvisor.bundle.load import parse
from fairvisor.bundle.schema import json_schema
from fairvisor.clock import NS_PER_S
from fairvisor.errors import BundleInvalid

ROOT = Path(__file__).parent.parent
VALID = sorted((ROOT / "tests/bundles/valid").glob("*.json"))
INVALID = sorted((ROOT / "tests/bundles/invalid").glob("*.json"))
TEMPLATES = sorted((ROOT / "fairvisor/cli/templates").glob("*.json"))
WALL_NS = 1_800_000_000 * NS_PER_S

# What needs more than one value, a reading of the text, the environment or a date to be seen.
BEYOND_A_SCHEMA = {
    "cost_based_stages_equal",
    "cost_based_stages_not_ascending",
    "cost_based_timezone_folder",
    "cost_based_timezone_of_the_machine",
    "cost_based_timezone_offset",
    "cost_based_timezone_path",
    "cost_based_timezone_unknown",
    "expires_at_before_issued_at",
    "expires_at_no_such_day",
    "expires_at_no_such_hour",
    "fallback_limit_burst",
    "jwt_issuer_password",
    "jwt_issuer_port",
    "jwt_issuer_twice",
    "jwt_key_algorithm_none",
    "jwt_key_algorithm_of_another_type",
    "jwt_key_broken_point",
    "jwt_key_for_encryption",
    "jwt_key_jwk_with_algorithm",
    "jwt_key_private",
    "jwt_key_rsa_too_short",
    "jwt_key_secret_in_bundle",
    "jwt_key_secret_too_short",
    "jwt_key_unknown_type",
    "jwt_key_variable_missing",
    "kill_switch_host_bits",
    "kill_switch_not_an_address",
    "kill_switch_prefix_too_long",
    "kill_switch_route_star_inside",
    "llm_burst_below_tpm",
    "llm_burst_fills_too_slowly",
    "name_twice_in_bundle",
    "name_twice_in_comment",
    "name_twice_in_rule",
    "policy_ids_not_unique",
    "rule_descriptor_claim_control_character",
    "rule_match_descriptor_twice",
    "rule_match_host_bits",
    "rule_match_ipv6_host_bits",
    "rule_match_prefix_too_long",
    "rule_name_of_fallback_taken",
    "rule_names_not_unique",
    "selector_host_broken_ipv6",
    "selector_host_not_a_label",
    "selector_host_too_long",
    "selector_host_url",
    "selector_host_wildcard_inside",
    "selector_path_above_root",
    "selector_path_control_character",
    "token_bucket_burst_below_default_cost",
    "token_bucket_burst_below_fixed_cost",
    "token_bucket_burst_below_one",
    "token_bucket_burst_below_rate",
    "token_bucket_burst_fills_too_slowly",
}


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def valid_under_strict(data: bytes) -> bool:
    try:
        parse(data, wall_ns=WALL_NS, environ={"LONG": "s" * 64}, strict=True)
    except BundleInvalid:
        return False
    return True


@pytest.mark.parametrize("path", VALID + TEMPLATES, ids=name_of)
def test_the_schema_and_strict_validation_agree_on_valid_bundles(
    path: Path, validator: jsonschema.Draft202012Validator
) -> None:
    data = path.read_bytes()
    assert validator.is_valid(json.loads(data)) == valid_under_strict(data)


def test_the_schema_refuses_all_but_what_is_beyond_a_schema(
    validator: jsonschema.Draft202012Validator,
) -> None:
    documents = {path.stem: path.read_bytes() for path in INVALID if not path.stem.startswith("document_")}
    accepted = {name for name, data in documents.items() if validator.is_valid(json.loads(data))}
    assert accepted == BEYOND_A_SCHEMA


def objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from objects_in(part)


def test_every_object_may_hold_comments() -> None:
    found = [*objects_in(json_schema())]
    assert len(found) > 20
    assert [part for part in found if r"^\$(schema|comment)$" not in part["patternProperties"]] == []


def test_nothing_may_be_null_and_no_default_is_text_for_a_number() -> None:
    text = json.dumps(json_schema())
    assert '"null"' not in text
    assert ": null" not in text
    assert '"default": "1' not in text


def test_every_part_and_every_field_says_what_it_means() -> None:
    schema = json_schema()
    parts = {"": schema, **schema["$defs"]}
    fields = {f"{name}.{field}": part for name in parts for field, part in parts[name]["properties"].items()}
    assert [name for name, part in (parts | fields).items() if not part.get("description")] == []
