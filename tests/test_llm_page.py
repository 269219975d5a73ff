"""The example in docs/llm.md is what the edge does: the text of the page is run, on its own clock."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from request_script import read_script
from test_requests import Run

PAGE = (Path(__file__).parent.parent / "docs" / "llm.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the page has no {language} block"
    return found[1]


@pytest.mark.parametrize("transport", ["service", "edge", "wsgi"])
def test_the_worked_example_of_the_page_is_true(transport: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(block("json"))
    (tmp_path / "example.http").write_text(block("http"))
    place = tmp_path / "edge"
    place.mkdir()
    problems = Run(read_script(tmp_path / "example.http"), transport, place).problems
    assert not problems, "\n" + "\n".join(problems)
