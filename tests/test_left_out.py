"""Tests that need a program: left out and listed where it is missing, failed where everything was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CASES = """
import pytest

@pytest.mark.needs("no-such-server")
def test_with_a_server_that_is_not_there():
    pass

@pytest.mark.needs("sh", "json", "typing-extensions")
def test_with_a_program_a_module_and_a_package_that_are_there():
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the real conftest and settings, and two tests that need something."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_cases.py").write_text(CASES)
    return tmp_path


def pytest_in(folder: Path, test_all: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_cases.py"],
        cwd=folder,
        env={**os.environ, "FAIRVISOR_TEST_ALL": test_all, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_a_test_whose_program_is_missing_is_left_out_and_listed(folder: Path) -> None:
    code, lines = pytest_in(folder, test_all="")
    assert code == 0
    assert any("left out: no-such-server not installed (1)" in line for line in lines)
    assert "test_cases.py::test_with_a_server_that_is_not_there" in lines
    assert "1 passed, 1 deselected" in lines[-1]


def test_with_everything_asked_for_it_fails(folder: Path) -> None:
    code, lines = pytest_in(folder, test_all="1")
    assert code == 1
    assert any("not installed: no-such-server" in line for line in lines)
    assert "1 passed, 1 error" in lines[-1]
