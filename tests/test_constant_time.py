"""Secrets are compared in a time that tells nothing about them: by `hmac.compare_digest`, everywhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fairvisor"
SECRET = re.compile(r"(^|_)(secret|token|signature|mac|seal|password|signing_key)$")


def names(node: ast.expr) -> Iterator[str]:
    """What an operand is called, at its end: `self._token` is `_token`. What `hmac` makes is a mac."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Call):
        yield "mac" if ast.unparse(node.func).startswith("hmac.") else ""
        yield from names(node.func)


def plain_comparisons(source: str) -> list[str]:
    """Comparisons of a secret with something that is not written in the source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            operands = [node.left, *node.comparators]
            if any(isinstance(operand, ast.Constant) for operand in operands):
                continue
            if any(SECRET.search(name) for operand in operands for name in names(operand)):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_no_secret_is_compared_with_an_operator() -> None:
    found = {
        str(path.relative_to(PACKAGE)): comparisons
        for path in sorted(PACKAGE.rglob("*.py"))
        if (comparisons := plain_comparisons(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "given == self._token",
        "hmac.digest(key, data, name) != given",
        "_mac(key, data) != given",
        "own.secret == other",
    ],
)
def test_a_comparison_that_leaks_is_noticed(source: str) -> None:
    assert plain_comparisons(source)


def test_secrets_are_compared_where_they_are_asked_for() -> None:
    """The decision token, the admin token, the debug secret and its cookie, reservations, the bundle's signature, and
    where the chain of the audit log has got to; and a signing key that was read again with the one before."""
    users = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"\bis_one_of\(", path.read_text())}
    assert users == {
        "service.py",
        "admin_tokens.py",
        "debug.py",
        "load.py",
        "secret_values.py",
        "chain.py",
        "reload.py",
    }
    digests = {path.name for path in PACKAGE.rglob("*.py") if "hmac.compare_digest(" in path.read_text()}
    assert digests == {"reservation.py", "secret_values.py"}
