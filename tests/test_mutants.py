"""The table of promises that `make mutants` breaks in turn: complete, and its edits apply to the source as it is."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fairvisor.bundle import model, model_keys, model_limits
from fairvisor.bundle.fields import FIXED_DESCRIPTORS, NAMED_DESCRIPTORS
from fairvisor.decision import Reason

ROOT = Path(__file__).parents[1]


def _table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants_table", ROOT / "tests/mutants/table.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ROWS = _table().read_table()

# How the table calls the parts of a bundle.
PARTS: dict[str, Any] = {
    "": model.Bundle,
    "defaults": model.Defaults,
    "jwt_keys": model_keys.JwtKey,
    "jwt_issuers": model_keys.JwtIssuer,
    "policy": model.Policy,
    "spec": model.Spec,
    "selector": model.Selector,
    "rule": model_limits.TokenBucketRule,
    "token_bucket": model_limits.TokenBucket,
    "cost_based": model_limits.CostBased,
    "staged_actions": model_limits.StagedAction,
    "token_bucket_llm": model_limits.LlmTokens,
    "weights": model_limits.Weights,
    "token_source": model_limits.TokenSource,
    "streaming": model_limits.Streaming,
    "loop_detection": model_limits.LoopDetection,
    "circuit_breaker": model_limits.CircuitBreaker,
    "kill_switches": model.KillSwitch,
    "override": model.Override,
}


def rows_of(kind: str) -> set[str]:
    return {row.name for row in ROWS if row.kind == kind}


def test_every_row_has_its_own_name() -> None:
    assert [name for name, times in Counter((row.kind, row.name) for row in ROWS).items() if times > 1] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind} {row.name}")
def test_the_edit_applies_to_one_place(row: Any) -> None:
    assert (ROOT / row.file).read_text().count(row.old) == 1
    assert row.old != row.new


def test_the_tests_that_must_notice_exist() -> None:
    for name in {name for row in ROWS for name in row.tests}:
        file, _, folder = name.partition("/")
        assert (ROOT / f"tests/test_{file}.py").is_file()
        assert not folder or (ROOT / "tests" / file / folder).is_dir()


def test_every_field_of_a_bundle_has_a_row() -> None:
    fields = {
        f"{part}.{field.alias or name}".lstrip(".")
        for part, owner in PARTS.items()
        for name, field in owner.model_fields.items()
    }
    assert fields == rows_of("field")


def test_every_descriptor_has_a_row() -> None:
    sources = {f"{source}:" for source in NAMED_DESCRIPTORS}
    assert {*FIXED_DESCRIPTORS, *sources, "ip:addr"} == rows_of("descriptor")


def test_every_algorithm_has_a_row() -> None:
    assert set(model_limits.Algorithm.__args__) == rows_of("algorithm")  # type: ignore[attr-defined]


def test_every_reason_has_a_row() -> None:
    assert {reason.value for reason in Reason} <= rows_of("reason")


def test_every_answer_header_has_a_row() -> None:
    spelled = "".join((ROOT / "fairvisor" / file).read_text() for file in ("response.py", "http/wsgi.py"))
    headers = set(re.findall(r"\b((?:X-Fairvisor|X-Should|RateLimit|Retry)-[A-Za-z-]+[a-z])", spelled))
    assert headers - {"X-Fairvisor-Debug"} <= rows_of("header")
    assert "Retry-After" in headers
