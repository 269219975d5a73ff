"""Every file of `tests/requests/` runs through service, edge worker and WSGI application alike, and they agree."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from request_checks import TELLING, Received, problems
from request_script import (
    Directive,
    Exchange,
    Expectation,
    Script,
    ScriptError,
    expect,
    read_script,
    request_bytes,
)
from request_tokens import mint
from request_transports import TRANSPORTS, World

FOLDER = Path(__file__).parent / "requests"
FILES = sorted(FOLDER.glob("*/*.http"))
SCRIPTS = [read_script(path) for path in FILES]

# What may differ: what transports add, when and over which connection it was sent, and what holds random numbers.
VOLATILE = frozenset({"date", "connection", "content-length", "cache-control", "x-fairvisor-reservation", "set-cookie",
                      "x-fairvisor-debug-latency-us"})  # fmt: skip


class Run:
    """One file on one transport: `world` does what stands between the requests, `transport` asks."""

    def __init__(self, script: Script, world: Any, transport: Any) -> None:
        self.script = script
        self.world = world
        self.transport = transport
        self.peer = "127.0.0.1"
        self.names: dict[str, str] = {}
        self.received: list[Received] = []
        self.problems: list[str] = []
        for step in script.steps:
            if isinstance(step, Exchange):
                self.exchange(step)
            else:
                self.direct(step)

    def exchange(self, step: Exchange) -> None:
        raw = request_bytes(step.lines, self.names)
        for _ in range(step.times):
            received = self.transport.ask(raw, self.peer)
            wrong = problems(received, step.expected, self.names)
            if wrong:
                shown = "\n    ".join([f"line {step.line}: {step.lines[0]}", *wrong, str(received)])
                self.problems.append(shown)
                break
        self.received.append(received)

    def direct(self, step: Directive) -> None:
        if step.word == "peer":
            self.peer = "" if step.text == "unix" else step.text
        elif step.word == "token":
            name, key, algorithm, claims = step.text.split(" ", 3)
            self.names[name] = mint(key, algorithm, claims, self.script.start_ns)
        else:
            self.world.direct(step.word, step.text)


def run_in_process(script: Script, transport: str, place: Path) -> Run:
    """A file on one of the three ways in, without a socket."""
    world = World.of(script, place)
    return Run(script, world, TRANSPORTS[transport](world))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the edges find their bundle: one folder for all, because its name stands in messages."""
    return tmp_path_factory.mktemp("edge")


@cache
def run(index: int, transport: str, place: Path) -> Run:
    """What came of a file on a transport; worked out once."""
    return run_in_process(SCRIPTS[index], transport, place)


CASES = [
    pytest.param(index, transport, id=f"{script.path.relative_to(FOLDER)}-{transport}")
    for index, script in enumerate(SCRIPTS)
    for transport in TRANSPORTS
    if transport in script.transports
]


@pytest.mark.parametrize(("index", "transport"), CASES)
def test_requests(index: int, transport: str, place: Path) -> None:
    """Every answer is what the file says."""
    found = run(index, transport, place).problems
    assert not found, "\n" + "\n".join(found)


def shown(received: Received) -> tuple[int, dict[str, str], bytes, int]:
    kept = {name.lower(): value for name, value in received.headers if name.lower() not in VOLATILE}
    return received.status, kept, received.body, received.held_ms


ALIKE = [
    pytest.param(index, id=str(script.path.relative_to(FOLDER)))
    for index, script in enumerate(SCRIPTS)
    if len(script.transports) > 1 and not script.differs
]


@pytest.mark.parametrize("index", ALIKE)
def test_transports_agree(index: int, place: Path) -> None:
    """The three ways in give the same status, headers, body and delay."""
    first, *others = [run(index, name, place) for name in TRANSPORTS if name in SCRIPTS[index].transports]
    for other in others:
        assert [shown(each) for each in other.received] == [shown(each) for each in first.received]


@pytest.mark.parametrize("transport", ["edge", "wsgi"])
def test_no_cache_may_keep_an_answer(transport: str, place: Path) -> None:
    """Allows, rejects, errors and pages: a stored reject would outlive its reason, a stored allow counts nothing."""
    for index, script in enumerate(SCRIPTS):
        if transport in script.transports:
            for received in run(index, transport, place).received:
                assert received.header("cache-control") == "no-store", (script.path, received)


def found_wrong(
    expectation: str, *headers: tuple[str, str], status: int = 200, body: bytes = b""
) -> list[str]:
    """What is wrong with an answer, by an expectation as it stands in a file."""
    expected = Expectation()
    for line in expectation.splitlines():
        expect(expected, line)
    return problems(Received(status, list(headers), body), expected, {})


def test_a_wrong_answer_is_noticed() -> None:
    right = "< 200\n< A: x\n< B ~ [0-9]+\n< !C\n<. a.0 = 1\n<~ ^..a"
    headers, body = [("A", "x"), ("B", "12")], b'{"a":[1]}'
    assert not found_wrong(right, *headers, body=body)
    assert found_wrong(right, *headers, status=204, body=body)
    assert found_wrong(right, ("A", "y"), headers[1], body=body)
    assert found_wrong(right, headers[0], ("B", "12s"), body=body)
    assert found_wrong(right, *headers, ("C", ""), body=body)
    assert found_wrong(right, *headers, body=b'{"a":[2]}')
    assert found_wrong(right, *headers, body=b' {"a":[1]}')
    assert found_wrong("< 200\n<= x", body=b"x ")
    assert found_wrong("< 200\n< held 1s")


def test_what_nobody_expected_is_noticed() -> None:
    """A header that says something happened must be named in the file."""
    for name in TELLING:
        assert found_wrong("< 200", (name.title(), "1"))


def test_what_never_holds_is_noticed() -> None:
    reason = "< 429\n< X-Fairvisor-Reason: r"
    refusal = ("X-Fairvisor-Reason", "r")
    assert found_wrong(reason, refusal, status=429)
    assert found_wrong(reason + "\n< Retry-After: 0", refusal, ("Retry-After", "0"), status=429)
    late = [
        refusal,
        ("Retry-After", "1"),
        ("RateLimit-Limit", "1"),
        ("RateLimit-Remaining", "0"),
        ("RateLimit-Reset", "2"),
    ]
    assert found_wrong(reason + "\n< Retry-After: 1", *late, status=429)
    assert found_wrong("< 200", ("RateLimit", '"r";r=1;t=1'))
    assert found_wrong("< 200", ("RateLimit", '"r";r=2;t=1'), ("RateLimit-Policy", '"r";q=1;w=1'))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "> GET / HTTP/1.1",
        "< 200",
        "> GET / HTTP/1.1\n< 200\n< what",
        "go\n> G / H\n< 200",
        "@ soon\n> G / H\n< 200",
        "x 3\n@ 1s\n> G / H\n< 200",
    ],
)
def test_a_file_that_does_not_follow_the_format_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.http").write_text(text)
    with pytest.raises(ScriptError):
        read_script(tmp_path / "a.http")
