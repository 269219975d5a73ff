"""The commands, run in this process: what they print, where, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairvisor import __version__
from fairvisor.cli import exits
from fairvisor.cli.init import TEMPLATES
from fairvisor.cli.main import run

VALID = {
    "bundle_version": 7,
    "policies": [
        {
            "id": "api",
            "spec": {
                "selector": {"pathPrefix": "/api"},
                "rules": [
                    {
                        "name": "per-client",
                        "limit_keys": ["ip:address"],
                        "algorithm": "token_bucket",
                        "algorithm_config": {"tokens_per_second": 5, "burst": 10},
                    }
                ],
            },
        }
    ],
}
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_command_the_commands_are_listed(capsys: Captured) -> None:
    assert run([]) == 0
    listed = capsys.readouterr().out
    for name in ("explain", "help", "init", "schema", "serve", "validate", "version"):
        assert f"\n  {name} " in listed


def test_help_shows_the_options_of_one_command(capsys: Captured) -> None:
    assert run(["help", "validate"]) == 0
    assert "--strict" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["help", "nonsense"],
        ["validate"],
        ["validate", "--nonsense", "x"],
        ["init", "--template", "x"],
    ],
)
def test_a_wrong_command_line_exits_3_with_a_message_on_stderr(
    arguments: list[str], capsys: Captured
) -> None:
    assert run(arguments) == exits.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Usage: fairvisor")


def test_version_names_the_package_and_its_python(capsys: Captured) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"fairvisor {__version__} (Python 3.")
    assert run(["version", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == __version__


def test_schema_is_a_json_schema_of_a_bundle(capsys: Captured) -> None:
    assert run(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"bundle_version", "policies"} <= set(schema["properties"])


# init


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_init_writes_a_policy_that_is_valid_under_strict(
    template: str, folder: Path, capsys: Captured
) -> None:
    assert run(["init", "--template", template]) == 0
    assert "fairvisor serve --config-file policy.json" in capsys.readouterr().out
    assert run(["validate", "--strict", "policy.json"]) == 0


def test_init_writes_every_setting_into_the_example(folder: Path) -> None:
    assert run(["init"]) == 0
    lines = (folder / "edge.env.example").read_text().splitlines()
    assert "FAIRVISOR_CONFIG_FILE=policy.json" in lines
    assert "#FAIRVISOR_BIND=127.0.0.1:8080" in lines


@pytest.mark.parametrize("standing", ["policy.json", "edge.env.example"])
def test_init_overwrites_nothing_without_force(standing: str, folder: Path, capsys: Captured) -> None:
    (folder / standing).write_text("mine")
    assert run(["init"]) == exits.FAILED
    assert capsys.readouterr().err == f"Error: {standing} exists already; --force overwrites\n"
    assert [path.name for path in folder.iterdir()] == [standing]
    assert (folder / standing).read_text() == "mine"
    assert run(["init", "--force"]) == 0
    assert (folder / standing).read_text() != "mine"


def test_init_in_a_folder_that_cannot_be_written_says_so(folder: Path, capsys: Captured) -> None:
    (folder / "policy.json").symlink_to(folder / "missing" / "policy.json")
    assert run(["init"]) == exits.FAILED
    assert capsys.readouterr().err == "Error: policy.json: No such file or directory\n"


# validate


def test_a_valid_bundle_exits_0(folder: Path, capsys: Captured) -> None:
    (folder / "policy.json").write_text(json.dumps(VALID))
    assert run(["validate", "policy.json"]) == 0
    assert capsys.readouterr().out == "valid  policy.json: version 7, 1 policy\n"


def test_the_request_headers_that_a_bundle_reads_are_listed(folder: Path, capsys: Captured) -> None:
    keyed = {**VALID["policies"][0], "id": "keyed"}
    keyed["spec"] = {
        **keyed["spec"],
        "rules": [{**keyed["spec"]["rules"][0], "limit_keys": ["header:X-Key", "jwt:sub"]}],
    }
    (folder / "policy.json").write_text(json.dumps({**VALID, "policies": [keyed]}))
    assert run(["validate", "policy.json"]) == 0
    assert capsys.readouterr().out.endswith("reads  the request headers authorization, x-key\n")
    assert run(["validate", "--format", "json", "policy.json"]) == 0
    assert json.loads(capsys.readouterr().out)["headers_read"] == ["authorization", "x-key"]


def test_every_problem_is_printed_and_the_exit_code_is_1(folder: Path, capsys: Captured) -> None:
    (folder / "policy.json").write_text(json.dumps({"bundle_version": 0, "policies": [{"id": ""}]}))
    assert run(["validate", "policy.json"]) == exits.FAILED
    shown = capsys.readouterr()
    assert "error  bundle_version: " in shown.out
    assert "error  policies[0].id: " in shown.out
    assert shown.err.startswith("Error: policy.json is not a valid bundle: ")


def test_problems_are_json_for_programs(folder: Path, capsys: Captured) -> None:
    (folder / "policy.json").write_text(json.dumps({**VALID, "bundle_version": 0}))
    assert run(["validate", "--format", "json", "policy.json"]) == exits.FAILED
    report = json.loads(capsys.readouterr().out)
    assert report["valid"] is False
    assert [problem["path"] for problem in report["errors"]] == ["bundle_version"]


def test_an_unknown_field_warns_and_is_an_error_under_strict(folder: Path, capsys: Captured) -> None:
    (folder / "policy.json").write_text(json.dumps({**VALID, "polices": []}))
    assert run(["validate", "policy.json"]) == 0
    shown = capsys.readouterr().out
    assert "warning  polices: " in shown
    assert shown.endswith("valid  policy.json: version 7, 1 policy, 1 warning\n")
    assert run(["validate", "--strict", "policy.json"]) == exits.FAILED
    assert "error  polices: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.json", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "embedded null byte"),
        ("/proc/self/mem", "Input/output error"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_on_stderr(
    name: str, reason: str, folder: Path, capsys: Captured
) -> None:
    assert run(["validate", name]) == exits.FAILED
    shown = name.replace("\0", "\\x00")
    assert capsys.readouterr().err == f"Error: cannot read {shown}: {reason}\n"
