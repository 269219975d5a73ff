"""Every file of `tests/requests/` runs through the service, the edge worker and the WSGI application, and they agree."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from request_checks import Received, problems
from request_script import Directive, Exchange, Script, duration_ns, read_script, request_bytes
from request_tokens import mint
from request_transports import TRANSPORTS, World

FOLDER = Path(__file__).parent / "requests"
FILES = sorted(FOLDER.glob("*/*.http"))
SCRIPTS = [read_script(path) for path in FILES]

# What may differ: when and over which connection it was sent, and what holds random numbers.
VOLATILE = frozenset({"date", "connection", "content-length", "x-fairvisor-reservation", "set-cookie",
                      "x-fairvisor-debug-latency-us"})  # fmt: skip


class Run:
    """One file on one transport."""

    def __init__(self, script: Script, transport: str, place: Path) -> None:
        folder = script.path.parent
        shared = folder / "settings.json"
        environ = (json.loads(shared.read_text()) if shared.exists() else {}) | script.settings
        environ = {name: value.replace("{folder}", str(folder)) for name, value in environ.items()}
        self.script = script
        self.world = World(folder, place, environ, script.start_ns)
        if script.bundle:
            self.world.load(script.bundle)
        self.transport = TRANSPORTS[transport](self.world)
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
        if step.word == "@":
            later = step.text.startswith("+")
            moment_ns = duration_ns(step.text.removeprefix("+"))
            self.world.elapsed_ns = moment_ns + (self.world.elapsed_ns if later else 0)
        elif step.word == "peer":
            self.peer = "" if step.text == "unix" else step.text
        elif step.word == "load":
            self.world.load(step.text)
        elif step.word == "write":
            self.world.write(step.text)
        elif step.word == "token":
            name, key, algorithm, claims = step.text.split(" ", 3)
            self.names[name] = mint(key, algorithm, claims, self.script.start_ns)
        elif step.word == "fail":
            self.world.fail()


@lru_cache(maxsize=None)
def run(index: int, transport: str) -> Run:
    with TemporaryDirectory() as place:
        return Run(SCRIPTS[index], transport, Path(place))


CASES = [
    pytest.param(index, transport, id=f"{script.path.relative_to(FOLDER)}-{transport}")
    for index, script in enumerate(SCRIPTS)
    for transport in TRANSPORTS
    if transport in script.transports
]


@pytest.mark.parametrize(("index", "transport"), CASES)
def test_requests(index: int, transport: str) -> None:
    found = run(index, transport).problems
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
def test_transports_agree(index: int) -> None:
    first, *others = [run(index, name) for name in TRANSPORTS if name in SCRIPTS[index].transports]
    for other in others:
        assert [shown(each) for each in other.received] == [shown(each) for each in first.received]
