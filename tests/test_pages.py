"""What the pages of docs/ show is what the edge does: every example is run on its own clock, every policy validated.

An `http` block of a page is a story in the format of `requests/README.md`. The JSON blocks before it are its bundles:
it begins with the last one, and may load one whose block has a file name behind `json`. The page must name every
header of an answer, apart from those that `docs/index.md` says are left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from request_checks import Received
from request_script import Exchange, Script, read_script
from test_requests import run_in_process

from fairvisor.bundle.load import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# What docs/index.md says that examples leave out.
LEFT_OUT = frozenset({"cache-control", "connection", "content-length", "content-type", "date", "ratelimit-limit",
                      "ratelimit-policy", "ratelimit-remaining", "ratelimit-reset"})  # fmt: skip

# 2026-11-02T12:00:00Z: no bundle of the pages has expired by then.
WALL_NS = 1_793_620_800 * 10**9


@dataclass
class Block:
    """A fenced block of a page: its language, the file name behind it ("" where there is none), and its text."""

    page: Path
    line: int
    language: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(\w*)(?: ([\w.-]+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [
        Block(page, text.count("\n", 0, each.start()) + 1, each[1], each[2] or "", each[3]) for each in found
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]
JSON_BLOCKS = [block for block in BLOCKS if block.language == "json"]
EXAMPLES = [block for block in BLOCKS if block.language == "http"]


def bundles_before(example: Block) -> dict[str, str]:
    """The bundles that an example may use, by the names it knows them by."""
    return {
        block.name or "bundle.json": block.text
        for block in JSON_BLOCKS
        if block.page == example.page and block.line < example.line and '"bundle_version"' in block.text
    }


def written(example: Block, folder: Path) -> Script:
    """The example as files of a folder, read back."""
    for name, text in bundles_before(example).items():
        (folder / name).write_text(text)
    (folder / "example.http").write_text(example.text)
    return read_script(folder / "example.http")


@pytest.mark.parametrize("transport", ["service", "edge", "wsgi"])
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_shows_exactly_what_comes_out(example: Block, transport: str, tmp_path: Path) -> None:
    script = written(example, tmp_path)
    place = tmp_path / "edge"
    place.mkdir()
    run = run_in_process(script, transport, place)
    assert not run.problems, "\n" + "\n".join(run.problems)
    exchanges = [step for step in script.steps if isinstance(step, Exchange)]
    for exchange, received in zip(exchanges, run.received, strict=True):
        assert untold(exchange, received) == set(), f"{example}: line {exchange.line} of the example"


def untold(exchange: Exchange, received: Received) -> set[str]:
    """The headers of an answer that the page does not name; of repeated requests each has other amounts left."""
    repeated = {"ratelimit"} if exchange.times > 1 else set()
    return {name.lower() for name, _ in received.headers} - exchange.expected.named() - LEFT_OUT - repeated


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_is_dated_and_leaves_nothing_open(example: Block) -> None:
    assert re.search(r"^start 20\d\d-\d\d-\d\dT", example.text, re.MULTILINE)
    assert not re.search(r"^< \S+ ~ |^<~ |^< held any", example.text, re.MULTILINE)


@pytest.mark.parametrize("block", JSON_BLOCKS, ids=str)
def test_policies_of_the_pages_are_valid(block: Block) -> None:
    """Whole bundles as they stand; a rule on its own in a policy of its own."""
    document = json.loads(block.text)
    if "algorithm" in document:
        spec = {"selector": {"pathPrefix": "/"}, "rules": [document]}
        document = {"bundle_version": 1, "policies": [{"id": "p", "spec": spec}]}
    if "bundle_version" in document:
        secrets = dict.fromkeys(re.findall(r'"secret_env": "(\w+)"', block.text), "s" * 64)
        parse(json.dumps(document).encode(), wall_ns=WALL_NS, environ=secrets)


def test_the_pages_have_examples() -> None:
    """So that the tests above cannot pass by finding nothing."""
    assert len({example.page for example in EXAMPLES}) >= 10
