"""The format of `tests/requests/`: text files that hold requests, the time between them, and what must come back.

`read_script` turns a file into steps; `requests/README.md` describes the format for people. This module knows the
format only: how a request is sent is in `request_transports.py`, what must hold for an answer in `request_checks.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

TRANSPORTS = ("service", "edge", "wsgi")
DEFAULT_START = "2026-11-02T12:00:00Z"  # a Monday
DIRECTIVES = ("@", "x", "peer", "token", "load", "fail")  # those that act where they stand
UNITS_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(: ?| ~ | => )(.*)", re.DOTALL)
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_REPEATED = re.compile(r"\{\{(.+?)\*([0-9]+)\}\}")
_NAMED = re.compile(r"\{\{([A-Za-z][A-Za-z0-9-]*)\}\}")


class ScriptError(Exception):
    """A file that does not follow the format."""


@dataclass
class Expectation:
    """What must come back: the status, headers (exact, by pattern, absent or kept under a name), parts of the body."""

    status: int = 0
    exact: list[tuple[str, str]] = field(default_factory=list)
    patterns: list[tuple[str, str]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    held_ms: int | None = 0  # None: however long
    body_exact: str | None = None
    body_patterns: list[str] = field(default_factory=list)
    body_members: list[tuple[str, Any]] = field(default_factory=list)

    def named(self) -> set[str]:
        """The lower-case names of the headers it says anything about."""
        pairs = (*self.exact, *self.patterns, *self.kept)
        return {name.lower() for name in (*(name for name, _ in pairs), *self.absent)}


@dataclass
class Exchange:
    """One request, sent `times` times, and what must come back each time."""

    line: int
    lines: list[str] = field(default_factory=list)
    expected: Expectation = field(default_factory=Expectation)
    times: int = 1


@dataclass
class Directive:
    """Anything between requests: a word and what follows it."""

    line: int
    word: str
    text: str


@dataclass
class Script:
    """One file."""

    path: Path
    start_ns: int = 0
    bundle: str = "bundle.json"
    settings: dict[str, str] = field(default_factory=dict)
    transports: tuple[str, ...] = TRANSPORTS
    differs: str = ""
    steps: list[Exchange | Directive] = field(default_factory=list)


def duration_ns(text: str) -> int:
    """`12.5s`, `250ms`, `1h`, `2d` in nanoseconds; parts may follow one another: `1h 30m`."""
    total = 0
    for part in text.split():
        found = _DURATION.fullmatch(part)
        if found is None:
            raise ScriptError(f"{text!r} is not a time such as 12.5s, 250ms or 1h 30m")
        total += round(float(found[1]) * UNITS_NS[found[2]])
    return total


def instant_ns(text: str) -> int:
    """An ISO 8601 instant in UTC in nanoseconds since the epoch."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)
    return int(moment.timestamp()) * UNITS_NS["s"] + moment.microsecond * 1000


def request_bytes(lines: list[str], names: dict[str, str]) -> bytes:
    r"""The bytes of a request: names, repeats and `\xNN` filled in, Host and Content-Length added where absent."""
    text = filled_in("\n".join(lines), names)
    data = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text.encode().decode("latin-1")).encode(
        "latin-1"
    )
    head, blank, body = data.partition(b"\n\n")
    head = head.rstrip(b"\n")
    sent = {line.partition(b":")[0].lower() for line in head.split(b"\n")[1:]}
    if b"host" not in sent and head.partition(b"\n")[0].endswith(b"HTTP/1.1"):
        head += b"\nHost: edge"
    if blank and body and not sent & {b"content-length", b"transfer-encoding"}:
        head += b"\nContent-Length: %d" % len(body)
    return head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body


def filled_in(text: str, names: dict[str, str]) -> str:
    """`{{text*n}}` is the text n times, `{{name}}` what was kept under that name."""
    text = _REPEATED.sub(lambda found: found[1] * int(found[2]), text)
    return _NAMED.sub(lambda found: names[found[1]], text)


def read_script(path: Path) -> Script:
    """Read one file. Raises ScriptError with its name and line."""
    script = Script(path, instant_ns(DEFAULT_START))
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            _read_line(script, number, line)
        except (ScriptError, ValueError) as error:
            raise ScriptError(f"{path}:{number}: {error}") from None
    if not any(isinstance(step, Exchange) for step in script.steps):
        raise ScriptError(f"{path}: holds no request")
    for step in script.steps:
        if isinstance(step, Exchange) and not step.expected.status:
            raise ScriptError(f"{path}:{step.line}: this request has no expectation")
        if isinstance(step, Directive) and step.word == "x":
            raise ScriptError(f"{path}:{step.line}: no request follows this number")
    return script


def _read_line(script: Script, number: int, line: str) -> None:
    if not line.strip() or line.startswith("#"):
        return
    if line.startswith(">"):
        _asked(script, number).lines.append(line[1:].removeprefix(" "))
    elif line.startswith("<"):
        last = script.steps[-1] if script.steps else None
        if not isinstance(last, Exchange):
            raise ScriptError("an expectation without a request")
        expect(last.expected, line)
    else:
        word, _, text = line.partition(" ")
        _direct(script, number, word, text.strip())


def _asked(script: Script, number: int) -> Exchange:
    """The exchange that a `>` line belongs to; the first one after an expectation begins the next."""
    last = script.steps[-1] if script.steps else None
    if isinstance(last, Exchange) and not last.expected.status:
        return last
    times = 1
    if isinstance(last, Directive) and last.word == "x":
        times = int(last.text)
        script.steps.pop()
    fresh = Exchange(number, times=times)
    script.steps.append(fresh)
    return fresh


def _direct(script: Script, number: int, word: str, text: str) -> None:
    if word == "start":
        script.start_ns = instant_ns(text)
    elif word == "set":
        name, mark, value = text.partition("=")
        if not mark:
            raise ScriptError("set NAME=value")
        script.settings[name] = value
    elif word == "bundle":
        script.bundle = "" if text == "none" else text
    elif word == "only":
        script.transports = tuple(text.split())
        if not set(script.transports) <= set(TRANSPORTS):
            raise ScriptError(f"only one of {', '.join(TRANSPORTS)}")
    elif word == "differs":
        script.differs = text
    elif word in DIRECTIVES:
        if word == "@":
            duration_ns(text.removeprefix("+"))
        script.steps.append(Directive(number, word, text))
    else:
        raise ScriptError(f"unknown directive {word!r}")


def expect(expected: Expectation, line: str) -> None:
    """Add a line that begins with `<` to an expectation."""
    kind, text = line[1:2], line[2:].removeprefix(" ")
    if kind == "=":
        expected.body_exact = text
    elif kind == "~":
        re.compile(text)
        expected.body_patterns.append(text)
    elif kind == ".":
        name, mark, value = text.partition(" = ")
        if not mark:
            raise ScriptError("<. path = JSON value")
        expected.body_members.append((name, json.loads(value)))
    else:
        _expect_head(expected, line[1:].strip())


def _expect_head(expected: Expectation, text: str) -> None:
    if text.isdigit() and not expected.status:
        expected.status = int(text)
    elif text.startswith("held "):
        expected.held_ms = None if text == "held any" else duration_ns(text[5:]) // UNITS_NS["ms"]
    elif text.startswith("!"):
        expected.absent.append(text[1:])
    else:
        found = _HEADER.fullmatch(text)
        if found is None:
            raise ScriptError(f"{text!r} is no status, header or pattern")
        name, mark, value = found.groups()
        {":": expected.exact, "~": expected.patterns, "=>": expected.kept}[mark.strip()].append((name, value))
