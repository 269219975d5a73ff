"""The shape of the package, read from its source: the map agrees with the tree, imports point one way, the core does
no I/O and reads no clock."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fairvisor

PACKAGE = Path(fairvisor.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {source.relative_to(PACKAGE).as_posix(): ast.parse(source.read_text()) for source in SOURCES}

# Lowest first: a module may import its own stage and those before it. `bundle` stands after the engine because it
# builds what the engine reads.
STAGES = [
    {
        "bounded_cache",
        "clock",
        "codings",
        "cpu_quota",
        "errors",
        "lame_duck",
        "chain",
        "linefile",
        "memory",
        "outlet",
        "periodic",
        "processes",
        "reading",
        "secret_values",
        "state",
        "visible",
    },
    {"decision", "counters", "setting_names", "setting_reading", "setting_values", "settings"},
    {"applog", "llm", "identity", "metrics", "notes"},
    {"context"},
    {"descriptors", "route"},
    {"rules"},
    {"engine", "response"},
    {"bundle"},
    {
        "actor",
        "audit",
        "beside",
        "bundle_file",
        "exposition",
        "follow",
        "key_sets",
        "leader",
        "lookup",
        "offered",
        "pending",
        "reload",
        "reporter",
        "reset",
        "snapshots",
        "status",
        "top_keys",
    },
    {"http", "proxy"},
    {"control", "master", "master_signals", "replay"},
    {"cli"},
]
RANK = {name: rank for rank, stage in enumerate(STAGES) for name in stage}

CORE = ("context.py", "descriptors.py", "route.py", "engine.py", "rules/", "decision.py", "response.py")
OUTSIDE_THE_CORE = {
    "asyncio",
    "io",
    "logging",
    "mmap",
    "os",
    "pathlib",
    "random",
    "socket",
    "threading",
    "time",
}


def stage_of(path: str) -> str:
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a module imports when it runs (not those for type checkers only)."""
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_map_in_the_package_docstring_names_exactly_what_is_there() -> None:
    mapped = set(re.findall(r"^ {4}(\w+(?:/|\.py)) ", fairvisor.__doc__ or "", re.MULTILINE))
    there = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert mapped == there


def test_the_package_itself_holds_the_map_and_the_version_only() -> None:
    assert [type(node).__name__ for node in TREES["__init__.py"].body] == ["Expr", "Assign"]


@pytest.mark.parametrize("path", [path for path in TREES if path != "__init__.py"])
def test_imports_point_one_way(path: str) -> None:
    assert stage_of(path) in RANK, f"give {stage_of(path)} its place in STAGES"
    own = RANK[stage_of(path)]
    inside = [name.split(".")[1] for name in imported(TREES[path]) if name.startswith("fairvisor.")]
    later = {name for name in inside if RANK.get(name, -1) > own}
    assert not later, f"{path} may not import {sorted(later)}"


@pytest.mark.parametrize("path", [path for path in TREES if path.startswith(CORE)])
def test_the_core_does_no_input_output(path: str) -> None:
    used = {name.split(".")[0] for name in imported(TREES[path])} & OUTSIDE_THE_CORE
    assert not used, f"{path} imports {sorted(used)}"


def test_only_one_module_reads_a_clock() -> None:
    assert [path for path in TREES if "time" in imported(TREES[path])] == ["clock.py"]
    calls = re.compile(r"\bdatetime\.(now|utcnow|today)\(|\bdate\.today\(")
    assert [source.name for source in SOURCES if calls.search(source.read_text())] == []


def test_only_the_settings_read_the_environment() -> None:
    pattern = re.compile(r"os\.(environ|getenv|putenv)|from os import .*environ")
    found = [path for path in TREES if pattern.search((PACKAGE / path).read_text())]
    assert found == ["settings.py"]


@pytest.mark.parametrize("path", list(TREES))
def test_no_import_stands_inside_a_function(path: str) -> None:
    inside = [
        f"line {node.lineno}"
        for function in ast.walk(TREES[path])
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert inside == []


@pytest.mark.parametrize("path", list(TREES))
def test_every_module_opens_with_prose(path: str) -> None:
    prose = ast.get_docstring(TREES[path]) or ""
    assert len(prose) >= 40, f"{path} does not say what it owns"


def test_a_compiled_class_has_compiled_subclasses_only() -> None:
    """An interpreted class cannot inherit from one that mypyc compiled: it would fail in wheels and nowhere else."""
    setup = (PACKAGE.parent / "setup.py").read_text()
    compiled = set(re.findall(r'^    "fairvisor/([^"]+\.py)",', setup, re.MULTILINE))
    classes = {
        path: [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for path, tree in TREES.items()
    }
    # exceptions and protocols are not compiled into native classes
    native = {each.name for path in compiled for each in classes[path] if not each.name.startswith("_")}
    interpreted = {
        f"{path}: {each.name}"
        for path in classes.keys() - compiled
        for each in classes[path]
        for base in each.bases
        if isinstance(base, ast.Name) and base.id in native
    }
    assert compiled
    assert interpreted == set()
