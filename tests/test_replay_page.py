"""docs/test-a-policy.md: what its example shows is what the command prints, and its other formats are read."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fairvisor.cli.main import run
from fairvisor.replay.fields import MAPPABLE, MAPPABLE_SOURCES
from fairvisor.replay.reading import NAMES
from fairvisor.replay.wrappings import WRAPPINGS

PAGE = (Path(__file__).parent.parent / "docs" / "test-a-policy.md").read_text()
BLOCKS = re.findall(r"^```(\S+)(?: \S+)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def block(language: str, number: int = 0) -> str:
    return [text for found, text in BLOCKS if found == language][number]


def test_the_example_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.json").write_text(block("json"))
    Path("access.log").write_text(block("text"))
    command, _, expected = block("console").partition("\n")
    assert run(shlex.split(command.removeprefix("$ fairvisor "))) == 0
    assert capsys.readouterr().out == expected


def test_the_plain_form_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policy.json").write_text(block("json"))
    Path("requests.json").write_text(block("text", 1))
    assert run(["test", "policy.json", "--requests", "requests.json"]) == 0
    shown = capsys.readouterr().out
    assert "1 request of requests.json (json)" in shown
    assert "lacks" not in shown


def test_every_format_and_every_meaning_is_described() -> None:
    for name in (*NAMES, *WRAPPINGS, *MAPPABLE, *(f"{source}:" for source in MAPPABLE_SOURCES)):
        assert f"`{name}" in PAGE, f"docs/test-a-policy.md does not say what {name} is"
