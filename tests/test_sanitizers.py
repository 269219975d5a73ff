"""The C code under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: not one complaint.

The table runs in threads of one program, because the sanitizers see threads and not processes; the extensions run as
Python loads them, with the tests of what they do. `make sanitize` does more of the first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("gcc")

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "fairvisor" / "counters"
EXTENSIONS = ("counters._table", "http._head", "llm._shape", "llm._simple_word", "proxy._heads")
OPERATIONS = int(os.environ.get("FAIRVISOR_SANITIZER_OPERATIONS", "100000"))  # of each of 4 threads
STRICT = {
    "ASAN_OPTIONS": "detect_leaks=0",  # Python itself lets go of nothing at its end
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "PYTHONMALLOC": "malloc",  # so that each object of Python has edges that can be crossed
}

# ThreadSanitizer takes no note of fences. All accesses are atomic; the fence is only about their order.
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-tsan"]


def run(*argv: str, cwd: Path = ROOT, **environ: str) -> str:
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_threads_on_one_table(sanitizer: str, tmp_path: Path) -> None:
    """Budgets that all threads charge are exact at the end, and no access is wrong or unordered."""
    program = str(tmp_path / "threads")
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-pthread", f"-I{TABLE}"]
    source = str(ROOT / "tests" / "sanitizers" / "threads.c")
    run("gcc", "-std=c11", "-O1", "-g", *WARNINGS, *flags, source, "-o", program)
    for seed in ("1", "2", "3"):
        assert f"{4 * OPERATIONS} operations" in run(program, str(OPERATIONS), seed, **STRICT)


def test_the_extensions_in_python(tmp_path: Path) -> None:
    """What tests the extensions finds nothing amiss in how they use memory."""
    built = tmp_path / "built"
    shutil.copytree(TABLE.parent, built / "fairvisor", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    build = ["setup.py", "-q", "build_ext", "--build-temp", str(tmp_path / "t"), "--build-lib", str(built)]
    run(sys.executable, *build, FAIRVISOR_SANITIZE="address,undefined", FAIRVISOR_COMPILE="")
    names = (
        "test_head.py",
        "test_llm_estimate.py",
        "test_llm_request.py",
        "test_llm_reservation.py",
        "test_proxy_heads.py",
        "test_table.py",
        "test_table_model.py",
    )
    tests = [str(ROOT / "tests" / name) for name in names]
    preloaded = run("gcc", "-print-file-name=libasan.so").strip()
    options = ["-q", "-p", "no:cacheprovider", "-o", f"pythonpath={built}", "-k", "not 120000"]
    environ = {"LD_PRELOAD": preloaded, "PYTHONPATH": str(built), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in EXTENSIONS:
        module = f"fairvisor.{name}"
        where = f"import {module} as module; print(module.__file__)"
        assert run(sys.executable, "-c", where, cwd=tmp_path, **STRICT, **environ).startswith(str(built))
    shown = run(sys.executable, "-m", "pytest", *options, *tests, cwd=tmp_path, **STRICT, **environ)
    assert " passed" in shown
