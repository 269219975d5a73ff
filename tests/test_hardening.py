"""What setup.py asks of compiler and linker, looked up in the extensions as they are installed here."""

from __future__ import annotations

import ctypes
import importlib
import platform
import subprocess
from pathlib import Path

import pytest
from test_sanitizers import EXTENSIONS

pytestmark = pytest.mark.needs("readelf")

# The first instruction of a function that others may jump to: endbr64; bti c, or the paciasp that implies it.
LANDINGS = {"x86_64": {b"\xf3\x0f\x1e\xfa"}, "aarch64": {b"\x5f\x24\x03\xd5", b"\x3f\x23\x03\xd5"}}


def library(name: str) -> Path:
    file = importlib.import_module(f"fairvisor.{name}").__file__
    assert file is not None
    return Path(file)


def compiled_modules() -> list[Path]:
    """The one library of what mypyc compiled, where that was done; it is next to the package."""
    return sorted(library("counters._table").parents[2].glob("fairvisor__mypyc*.so"))


LIBRARIES = [*map(library, EXTENSIONS), *compiled_modules()]
BY_LIBRARY = pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name.partition(".")[0])


def readelf(option: str, path: Path) -> str:
    return subprocess.run(
        ["readelf", "--wide", option, str(path)], check=True, capture_output=True, text=True
    ).stdout


@BY_LIBRARY
def test_nothing_that_was_resolved_can_be_written_afterwards(path: Path) -> None:
    assert "BIND_NOW" in readelf("--dynamic", path)
    assert "GNU_RELRO" in readelf("--program-headers", path)


@BY_LIBRARY
def test_the_stack_cannot_be_executed(path: Path) -> None:
    (line,) = [line for line in readelf("--program-headers", path).splitlines() if "GNU_STACK" in line]
    assert " RW " in line


@BY_LIBRARY
def test_libraries_are_looked_up_in_no_folder_of_the_builder(path: Path) -> None:
    assert "PATH)" not in readelf("--dynamic", path)


def test_frames_with_buffers_are_checked() -> None:
    assert "__stack_chk_fail" in readelf("--dyn-syms", library("counters._table"))


@pytest.mark.parametrize("name", EXTENSIONS)
def test_jumps_land_where_they_may(name: str) -> None:
    marks = LANDINGS.get(platform.machine())
    if marks is None:
        pytest.skip("no such instruction on this machine")
    start = getattr(ctypes.CDLL(str(library(name))), f"PyInit_{name.rpartition('.')[2]}")
    address = ctypes.cast(start, ctypes.c_void_p).value
    assert address is not None
    assert ctypes.string_at(address, 4) in marks
