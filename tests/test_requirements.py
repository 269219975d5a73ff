"""The packages of the image and the tools of a release are pinned to files: every version with hashes, and within the
ranges that the package declares. `make pins` writes the lists."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_bill_of_materials import needed

ROOT = Path(__file__).parents[1]
LISTS = sorted((ROOT / "requirements").glob("*.txt"))


class Pin(NamedTuple):
    requirement: Requirement
    hashes: tuple[str, ...]


def pins(path: Path) -> list[Pin]:
    """Every entry of a list: the comments left out, continued lines joined."""
    text = re.sub(r"^ *#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    parts = [line.split("--hash=") for line in text.splitlines()]
    return [Pin(Requirement(first), tuple(each.strip() for each in rest)) for first, *rest in parts]


def declared_to_run() -> list[Requirement]:
    """What the image installs: the base of the package and the optional worker."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"] + config["options.extras_require"]["meinheld"]
    return [Requirement(line) for line in lines.splitlines() if line and not line.startswith("#")]


def declared_to_build() -> list[Requirement]:
    (names,) = re.findall(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return [Requirement(name) for name in re.findall(r'"([^"]+)"', names)]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_every_entry_is_one_version_with_its_hashes(path: Path) -> None:
    for pin in pins(path):
        assert [each.operator for each in pin.requirement.specifier] == ["=="], pin.requirement
        assert pin.hashes, pin.requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in pin.hashes), pin.requirement


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_a_list_names_no_index(path: Path) -> None:
    """The one who installs chooses it; the hashes hold wherever the files come from."""
    assert not re.search(r"^-|://", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "declared"), [("image.txt", declared_to_run()), ("build.txt", declared_to_build())]
)
def test_the_pins_are_in_the_declared_ranges(name: str, declared: list[Requirement]) -> None:
    listed: dict[str, list[Requirement]] = {}
    for pin in pins(ROOT / "requirements" / name):
        listed.setdefault(canonicalize_name(pin.requirement.name), []).append(pin.requirement)
    for wanted in declared:
        assert listed.get(canonicalize_name(wanted.name)), f"{wanted} is not listed: run `make pins`"
        for found in listed[canonicalize_name(wanted.name)]:
            (version,) = found.specifier
            assert wanted.specifier.contains(version.version), f"{found}: run `make pins`"


def test_the_image_lists_all_that_an_installation_here_needs() -> None:
    """Also what the declared packages need in turn, under their extras."""
    listed = {canonicalize_name(pin.requirement.name) for pin in pins(ROOT / "requirements" / "image.txt")}
    assert needed("fairvisor") - {"fairvisor"} - listed == set()
