"""A sample of `tests/requests/` on real edge workers gives what the files expect.

All of them run in simulated time, on the same protocol without a socket; what needs that time is not in the sample.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from edge_server import ROOT, Edge
from gateway_servers import exchange
from request_checks import problems
from request_script import Exchange, Script, read_script, request_bytes
from request_tokens import mint

from fairvisor.clock import NS_PER_S, read_now

FOLDER = ROOT / "tests" / "requests"
SAMPLE = (
    "answers/001-ratelimit-headers-both",
    "answers/013-head-gets-no-body",
    "gateways/003-decision-never-mixes-the-families",
    "gateways/008-envoy-tells-by-the-request-line",
    "gateways/010-our-own-query-controls-nothing",
    "request-ids/001-a-repeated-question-is-charged-once",
    "clients/007-ports-and-brackets",
    "llm/019-hostile-requests",
    "clients/006-repeated-lines-are-one-list",
    "selectors/012-both-readings-of-an-encoded-slash",
    "tokens-verified/001-each-algorithm-is-verified",
    "debug-sessions/001-a-session-explains-decisions",
)
ONE = {"FAIRVISOR_WORKER_PROCESSES": "1"}


def environ_of(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    shared = folder / "settings.json"
    environ = (json.loads(shared.read_text()) if shared.exists() else {}) | settings
    return {name: value.replace("{folder}", str(folder)) for name, value in environ.items()}


@pytest.mark.parametrize("name", SAMPLE)
def test_requests_on_real_servers(name: str, start_edge: Callable[..., Edge]) -> None:
    """Buckets refill on the real clock; where a machine took a second for a file, it is asked again."""
    script = read_script(FOLDER / f"{name}.http")
    environ = environ_of(script.path.parent, script.settings)
    for _ in range(10):
        edge = start_edge(script.path.parent / script.bundle, **environ | ONE)
        began_ns = read_now().mono_ns
        found = wrong_answers(script, edge)
        took_ns = read_now().mono_ns - began_ns
        edge.process.terminate()
        if not found or took_ns < NS_PER_S:
            break
    assert not found, "\n" + "\n".join(found)


def wrong_answers(script: Script, edge: Edge) -> list[str]:
    names: dict[str, str] = {}
    found = []
    for step in script.steps:
        if isinstance(step, Exchange):
            raw = request_bytes(step.lines, names)
            for _ in range(step.times):
                received = exchange(edge.bind, raw)
                wrong = problems(received, step.expected, names)
                found += [f"line {step.line}: {step.lines[0]}: {wrong} {received}"] if wrong else []
        else:
            assert step.word == "token", f"{step.word} needs simulated time"
            kept_as, key, algorithm, claims = step.text.split(" ", 3)
            names[kept_as] = mint(key, algorithm, claims, read_now().wall_ns)
    return found
