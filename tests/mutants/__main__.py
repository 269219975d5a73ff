"""Break every promise of the table in turn, in a copy of the tree, and see which test notices.

    python tests/mutants [WORD ...]      only rows with one of these words in their kind or name

Prints one line per row: the promise, and the test that failed. Ends with 1 when a row's edit no longer applies, when
the tests fail without it, or when no test notices: then the promise is untested. Children are forked from a process
that has imported what takes long, one at a time in each of as many copies as there are processors.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from table import Row, read_table

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = (
    ".git",
    ".venv*",
    "build",
    "dist",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "node_modules",
    "perf",
)
SLOW_IMPORTS = (
    "hypothesis.stateful", "pydantic", "orjson", "xxhash", "jwt", "cryptography.hazmat.primitives.asymmetric",
    "crawleruseragents", "httptools", "uvloop", "posix_ipc", "click", "rich.console", "zoneinfo",
)  # fmt: skip
OPTIONS = ("-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-profile=mutants")
TIME_LIMIT_S = 120  # of one row; a test that hangs has not noticed

NO_TEST, BROKEN, HUNG, NOT_APPLICABLE = "", "(does not import)", "(hangs)", "(the edit does not apply)"


class FirstFailure:
    """Remembers the first test that failed, and whether the tests could be collected at all."""

    def __init__(self) -> None:
        self.test = NO_TEST

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.test = BROKEN


def first_failure(copy: Path, tests: list[str]) -> str:
    """Run tests of a copy of the tree in a child: the first that fails, "" when none does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(TIME_LIMIT_S)
        try:
            os.write(writing, json.dumps(_run(copy, tests)).encode())
        except BaseException:
            os.write(writing, json.dumps(traceback.format_exc()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return str(json.loads(answer)) if answer else HUNG


def _run(copy: Path, tests: list[str]) -> str:
    os.chdir(copy)
    sys.path[:0] = [str(copy), str(copy / "tests")]
    quiet = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(quiet, descriptor)
    recorder = FirstFailure()
    options = [*OPTIONS, "--rootdir", str(copy), "-c", str(copy / "pyproject.toml")]
    for name in tests:
        file, _, keyword = name.partition("/")
        chosen = ["-k", f"{keyword}/"] if keyword else []
        pytest.main([*options, f"tests/test_{file}.py", *chosen], plugins=[recorder])
        if recorder.test:
            break
    package = importlib.import_module("fairvisor").__file__ or ""
    assert Path(package).is_relative_to(copy), "the copy is what was tested"
    return recorder.test


@contextmanager
def edited(copy: Path, row: Row) -> Iterator[bool]:
    """The tree with one row's edit; False when it does not apply."""
    file = copy / row.file
    text = file.read_text()
    stamp = file.stat()
    if text.count(row.old) != 1:
        yield False
        return
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        compiled.rename(compiled.with_suffix(".kept"))
    file.write_text(text.replace(row.old, row.new))
    try:
        yield True
    finally:
        file.write_text(text)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        for kept in (file.parent / "__pycache__").glob(f"{file.stem}.*.kept"):
            kept.rename(kept.with_suffix(".pyc"))


COPY: list[Path] = []  # of this worker


def prepare(place: str) -> None:
    """Make this worker's copy; what it compiles while the tests are run unbroken is kept for all rows."""
    copy = Path(tempfile.mkdtemp(dir=place)) / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    for compiled in copy.rglob("*.so"):
        if compiled.with_name(f"{compiled.name.partition('.')[0]}.py").exists():
            compiled.unlink()  # the edited source is to run
    COPY.append(copy)


def unbroken(names: list[str]) -> str:
    return first_failure(COPY[0], names)


def break_one(row: Row) -> tuple[Row, str]:
    sys.dont_write_bytecode = True
    with edited(COPY[0], row) as applies:
        return row, first_failure(COPY[0], [*row.tests]) if applies else NOT_APPLICABLE


def main(words: list[str]) -> int:
    rows = [
        row for row in read_table() if not words or any(word in f"{row.kind} {row.name}" for word in words)
    ]
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    limit_shrinking()
    names = sorted({name for row in rows for name in row.tests})
    missed = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        context: Any = multiprocessing.get_context("fork")
        processors = len(os.sched_getaffinity(0))
        with context.Pool(processors, prepare, (place,)) as pool:
            for failed in pool.imap(unbroken, [names[part::processors] for part in range(processors)], 1):
                if failed:
                    print(f"The tests fail before anything is broken: {failed}")
                    return 1
            for row, test in pool.imap(break_one, rows, 1):
                noticed = test not in (NO_TEST, BROKEN, HUNG, NOT_APPLICABLE)
                missed += not noticed
                print(
                    f"{row.kind:10} {row.name:54} {test.removeprefix('tests/') or '(no test notices)'}",
                    flush=True,
                )
    print(f"{len(rows) - missed} of {len(rows)} are noticed when they are broken")
    return 1 if missed else 0


def limit_shrinking() -> None:
    """A failure is enough: hypothesis need not look for the smallest one."""
    hypothesis: Any = importlib.import_module("hypothesis")
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, deadline=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
