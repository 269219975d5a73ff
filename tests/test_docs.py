"""The documentation agrees with the code: made pages are in step, links lead somewhere, the version is one, and every
setting, reason, header, field, descriptor and metric is described. What the examples show is run in test_pages.py."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from test_requests import SCRIPTS, run_in_process

from fairvisor import __version__
from fairvisor.bundle.fields import FIXED_DESCRIPTORS, NAMED_DESCRIPTORS
from fairvisor.bundle.schema import json_schema
from fairvisor.counters.layout import plan
from fairvisor.decision import HOPELESS, STATUSES, Reason
from fairvisor.errors import RequestError
from fairvisor.llm.dialect import Dialect, error_body
from fairvisor.metrics.families import FAMILIES
from fairvisor.setting_names import check_names
from fairvisor.settings import declared

ROOT = Path(__file__).parent.parent
UNDECIDED = {Reason.NO_BUNDLE_LOADED, Reason.ENGINE_ERROR}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def script(path: str) -> ModuleType:
    """A module that is no part of the package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_pages() -> dict[str, str]:
    pages: dict[str, str] = script("docs/generate.py").pages()
    return pages


@pytest.mark.parametrize("name", ["cli.md", "metrics.md", "policy.md", "settings.md"])
def test_a_page_made_from_the_code_is_in_step(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == made_pages()[name], "run `make docs`"


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_the_numbers_of_a_page_are_those_that_were_recorded_last(page: str) -> None:
    """In the tables between the comments that `perf/run` writes between."""
    text = (ROOT / page).read_text()
    assert "<!-- perf: " in text
    assert text == script("perf/report.py").filled(text), "run `perf/run --render`"


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", page.read_text()):
        target, _, fragment = "".join(link).partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name} links to {target}, which is not there"
        if fragment and there.suffix == ".md":
            assert fragment in anchors(there), f"{page.name} links to {target}#{fragment}"


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {name for name in pages if f"({name})" not in index} == set()


def test_the_changelog_knows_the_version() -> None:
    assert re.search(
        rf"^## \[{re.escape(__version__)}\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows(text: str) -> dict[str, list[str]]:
    """The rows of all tables in a text by their first cell, without its code marks."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in cells}


def test_every_setting_has_its_row() -> None:
    assert set(rows(page("settings.md"))) == {each.variable for each in declared()}


def test_every_field_of_the_bundle_has_its_row() -> None:
    schema = json_schema()
    parts = [schema, *schema["$defs"].values()]
    fields = {field for part in parts for field in part["properties"]}
    assert fields - set(rows(page("policy.md"))) == {"rps"}, "rps is told with tokens_per_second"


def test_every_descriptor_has_its_row() -> None:
    named = {f"{source}:<name>" for source in NAMED_DESCRIPTORS if source != "jwt"} | {"jwt:<claim>"}
    descriptors = page("matching.md").partition("## Descriptors")[2].partition("###")[0]
    assert {name.partition("`")[0] for name in rows(descriptors)} == {*FIXED_DESCRIPTORS, *named}


def test_every_reason_has_its_row_with_what_the_answer_says() -> None:
    expected = {
        reason.value: [
            str(STATUSES.get(reason, 429)),
            "no" if reason in HOPELESS else "yes",
            "`" + json.loads(error_body(Dialect.OPENAI, reason, 1))["error"]["type"] + "`",
        ]
        for reason in Reason
    }
    table = page("reasons.md").partition("## For who")[0]
    assert {name: [cells[0], cells[1], cells[3]] for name, cells in rows(table).items()} == expected


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_says_what_to_do(reason: Reason) -> None:
    section = (
        page("reasons.md")
        .partition(f"### `{reason.value}`\n")[2]
        .partition("\n## ")[0]
        .partition("\n### ")[0]
    )
    assert "- *Client:* " in section
    assert "- *Operator:* " in section


def statuses(of: type[RequestError]) -> set[int]:
    return {of.status}.union(*(statuses(each) for each in of.__subclasses__()))


def test_every_status_of_an_error_is_explained() -> None:
    table = page("reasons.md").partition("## Answers that are not refusals")[2]
    assert {int(status) for status in re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE)} == statuses(
        RequestError
    )


def test_every_header_of_an_answer_is_described(tmp_path: Path) -> None:
    """Of every answer to the request files, which have a case for each; those of WSGI workers are the transport's."""
    sent = {"X-Fairvisor-Throttle-Ms"}
    for script in SCRIPTS:
        if "service" in script.transports:
            received = run_in_process(script, "service", tmp_path).received
            sent |= {name for answer in received for name, _ in answer.headers}
    assert len(sent) > 20
    described = page("headers.md").replace("-<n>-", "-1-")
    numbered = {re.sub(r"-Descriptor-\d+-", "-Descriptor-1-", name) for name in sent}
    assert {name for name in numbered if f"`{name}`" not in described} == set()


def test_every_metric_family_has_its_row() -> None:
    assert {family.name for family in FAMILIES} - set(rows(page("metrics.md"))) == set()


def test_every_metric_that_a_page_names_exists() -> None:
    """Alone, or with one of the suffixes of a histogram."""
    known = {f"{family.name}{suffix}" for family in FAMILIES for suffix in ("", "_bucket", "_sum", "_count")}
    named = {name for each in PAGES for name in re.findall(r"`(fairvisor_[a-z_]+)", each.read_text())}
    assert named - known == set()


def test_every_setting_that_a_page_names_exists() -> None:
    """Or it is one of those that a start leaves alone: of the build, of the tests, of Kubernetes."""
    named = {name for each in PAGES for name in re.findall(r"FAIRVISOR_[A-Z0-9_]+", each.read_text())}
    check_names(dict.fromkeys(named, "x"), declared(), ())


def test_every_promise_names_tests_and_measurements_that_exist() -> None:
    """A file, or a test function in it; and the checker of the fault campaign is among them."""
    text = page("guarantees.md")
    tables = re.findall(r"\| promise \|.*\n\| --- .*\n((?:\|.*\n)+)", text)
    assert len(tables) == len(re.findall(r"^## (?!What)", text, re.MULTILINE)) == 4
    for row in "".join(tables).splitlines():
        named = re.findall(r"`((?:tests|perf)/[^`]+)`", row)
        assert named, f"a promise that nothing would break: {row}"
        for name in named:
            path, _, function = name.partition("::")
            assert (ROOT / path).is_file(), name
            assert not function or f"def {function}(" in (ROOT / path).read_text(), name


def test_the_sizes_of_segments_are_right() -> None:
    """To the two per cent that the page leaves out."""
    sizes = rows(page("counters.md").partition("## How large")[2].partition("A *key*")[0])
    assert len(sizes) == 5
    for size, (slots, keys, series) in sizes.items():
        number, unit = int(size.partition("`")[0][:-1]), {"m": 20, "g": 30}[size.partition("`")[0][-1]]
        made = plan(number << unit)
        real = made.slots
        assert int(series.replace(",", "")) == made.series - 1, size
        assert abs(int(slots.replace(",", "")) - real) < 0.02 * real, size
        assert abs(int(keys.replace(",", "")) - real / 2) < 0.02 * real / 2, size


def test_the_tests_of_the_security_model_exist() -> None:
    """Every threat names at least one, and each is there."""
    text = page("security-model.md")
    threats = text.partition("## Threats")[2].partition("## Measured")[0].splitlines()
    assert [line for line in threats if line.startswith("| ") and "::" not in line] == [
        "| threat | defence | tests |",
        "| --- | --- | --- |",
    ]
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


GATEWAY_PAGES = sorted(
    {path.name for path in (ROOT / "docs" / "gateways").glob("*.md")} - {"index.md", "transports.md"}
)


@pytest.mark.parametrize("name", GATEWAY_PAGES)
def test_the_page_of_a_gateway_says_what_one_asks_first(name: str) -> None:
    """The way of a request, the configuration, what fails how, what the client sees, what to do when it is wrong."""
    text = page(f"gateways/{name}")
    assert "```text" in text.partition("\n## ")[0]
    assert "conf/gateways/" in text
    for heading in ("Fail closed, fail open", "What the client sees", "When something is wrong"):
        assert f"\n## {heading}\n" in text


DECISIONS = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))


def test_decisions_are_numbered_and_listed_with_their_status() -> None:
    assert [int(name[:2]) for name in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    listed = re.findall(
        r"^\| (\d+) \| \[(.*)\]\((.*)\) \| (.*) \|$", page("decisions/index.md"), re.MULTILINE
    )
    for name, (number, title, link, status) in zip(DECISIONS, listed, strict=True):
        assert link == name
        assert page(f"decisions/{name}").startswith(f"# {number}. {title}\n\nStatus: {status}\n")


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_says_why_what_and_what_follows(name: str) -> None:
    headings = re.findall(r"^## (.*)$", page(f"decisions/{name}"), re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences"]
    assert re.search(r"^Status: (in force|planned)$", page(f"decisions/{name}"), re.MULTILINE)
