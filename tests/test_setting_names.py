"""Variables that look like settings: a misspelt one stops the start, what others set does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fairvisor.errors import SettingsError
from fairvisor.setting_names import BUILD_AND_TESTS, check_names, secrets_named_in
from fairvisor.settings import declared

ROOT = Path(__file__).parents[1]
SECRET = "FAIRVISOR_ORG_SECRET"


def check(*names: str) -> None:
    check_names(dict.fromkeys(names, "x"), declared(), {SECRET})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FAIRVISOR_DECISION_TOKN", "did you mean FAIRVISOR_DECISION_TOKEN"),
        ("FAIRVISOR_DECISION_TOKEN_FIL", "did you mean FAIRVISOR_DECISION_TOKEN"),
        ("FAIRVISOR_DECISIONTOKEN_FILE", "did you mean FAIRVISOR_DECISION_TOKEN_FILE"),
        ("FAIRVISOR_SHARED_DICTSIZE", "did you mean FAIRVISOR_SHARED_DICT_SIZE"),
        ("FAIRVISOR_WORKERS", "FAIRVISOR_WORKER_PROCESSES"),
        ("FAIRVISOR_bind", "did you mean FAIRVISOR_BIND"),
        ("FAIRVISOR_", "fairvisor serve --help"),
        ("FAIRVISOR_XYZZY", "fairvisor serve --help"),
        ("FAIRVISOR_CONFIG_FILE_FILE", "did you mean"),
        ("FAIRVISOR_CONFIG", "did you mean FAIRVISOR_CONFIG_FILE?"),
        ("FAIRVISOR_SERVICE_HOSTS", "is not a setting"),
        ("FAIRVISOR_PORT_TCP", "is not a setting"),
    ],
)
def test_a_variable_that_is_no_setting_names_itself_the_nearest_one_and_the_remedy(
    name: str, meant: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: is not a setting") as caught:
        check(name)
    assert meant in str(caught.value)
    assert re.search("rename or unset it$", str(caught.value), re.IGNORECASE)


def test_every_variable_that_is_no_setting_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        check("FAIRVISOR_TOKN", "FAIRVISOR_BIND", "FAIRVISOR_MOD", "PATH")
    assert [line.partition(":")[0] for line in caught.value.lines] == ["FAIRVISOR_MOD", "FAIRVISOR_TOKN"]


def test_an_empty_variable_counts_as_unset() -> None:
    check_names({"FAIRVISOR_SAAS_URL": "", "FAIRVISOR_TOKN": ""}, declared(), ())


def test_what_others_set_is_left_alone() -> None:
    check(
        "FAIRVISOR_SERVICE_HOST",
        "FAIRVISOR_SERVICE_PORT",
        "FAIRVISOR_SERVICE_PORT_HTTP",
        "FAIRVISOR_PORT",
        "FAIRVISOR_PORT_8080_TCP",
        "FAIRVISOR_PORT_8080_TCP_ADDR",
        "FAIRVISOR_EDGE_SERVICE_HOST",
        "FAIRVISOR_EDGE_PORT",
        "FAIRVISOR_EDGE_PORT_80_TCP_PROTO",
        "FAIRVISOR_CONTROL_URL",
        SECRET,
        *BUILD_AND_TESTS,
        *(variable for each in declared() for variable in each.variables),
    )


def test_every_name_of_the_build_and_the_tests_is_declared() -> None:
    files = [ROOT / "Makefile", ROOT / "setup.py", ROOT / ".ci" / "run", *(ROOT / "perf").rglob("*.py")]
    files += [*(ROOT / "tests" / "processes").rglob("*.py"), *(ROOT / "tests").glob("conftest.py")]
    read = re.compile(r"(?:environ(?:\.get\(|\[)|\$\(?\{?)[\"']?(FAIRVISOR_[A-Z_]+)")
    known = {variable for each in declared() for variable in each.variables} | BUILD_AND_TESTS
    found = {name for file in files for name in read.findall(file.read_text())}
    assert "FAIRVISOR_COMPILE" in found
    assert found <= known


@pytest.mark.parametrize(
    ("bundle", "names"),
    [
        (b"", set()),
        (b"no bundle {", set()),
        (b"[1]", set()),
        (b'{"jwt_keys": 1}', set()),
        (b'{"jwt_keys": [1, {"secret_env": 2}, {"jwk": {}}]}', set()),
        (json.dumps({"jwt_keys": [{"secret_env": "A"}, {"secret_env": "B"}]}).encode(), {"A", "B"}),
        (b"T57vNVJoUCHnWYprRSOKdW5pu/AQHSXUSij8W/x76uE=\n" + b'{"jwt_keys": [{"secret_env": "A"}]}', {"A"}),
    ],
)
def test_the_secrets_that_a_bundle_names_are_read_from_any_bytes(bundle: bytes, names: set[str]) -> None:
    assert secrets_named_in(bundle) == names
