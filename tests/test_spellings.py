"""Every file of `tests/requests/` has the same outcome by decision endpoint, WSGI and proxy, however it is spelled."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from request_script import Exchange, Script
from request_spellings import SPELLINGS, ProxyTransport, Respelling, outcome
from request_transports import TRANSPORTS, World
from test_requests import FOLDER, SCRIPTS, Run

WAYS: dict[str, Callable[[World], Any]] = {name: TRANSPORTS[name] for name in ("edge", "wsgi")}
WAYS["proxy"] = ProxyTransport


# What a transport does not have, by the file's name: nothing there can agree.
NOT_BY = {
    "edge": re.compile("endpoints/009|arrive-joined"),  # what is no request
    "wsgi": re.compile("endpoints/|budgets/024"),  # framing; a worker that cannot wait
    "proxy": re.compile(
        "request-ids/|endpoints/|gateways/|failures/006|clients/0(16|17|18|20)"  # who describes requests, and how
        "|loops/0(04|13|14)"  # a body that did not come, or not whole: the proxy has seen it
        "|lines-that-arrive-joined|tokens-that-arrive-joined"
        "|budgets/024|selectors/01[05]"  # places to wait in; `OPTIONS *` is about the root
        "|llm/03[45]"  # a gateway that says it has cut the body
    ),
}
TOO_LARGE = 431
SETTLES = "/v1/usage"  # the proxy hands out no reservations


def is_by(script: Script, way: str) -> bool:
    """Return whether a file says something of a transport."""
    name = script.path.relative_to(FOLDER).as_posix()
    if way == "proxy" and SETTLES in script.path.read_text():
        return False
    if way in TRANSPORTS and way not in script.transports:
        return False
    return way not in NOT_BY or not NOT_BY[way].search(name)


@cache
def plain_outcomes(index: int, place: Path) -> list[tuple[Any, ...]]:
    return outcomes(SCRIPTS[index], place, "edge")


def outcomes(script: Script, place: Path, way: str, spelling: str = "") -> list[tuple[Any, ...]]:
    """Return the outcome of every request of a file; the file's own expectations are not looked at."""
    world = World.of(script, place)
    transport = WAYS[way](world)
    if spelling:
        transport = Respelling(transport, SPELLINGS[spelling])
    return [outcome(received) for received in Run(script, world, transport).received]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the edges find their bundle: one folder for all, because its name is in messages."""
    return tmp_path_factory.mktemp("edge")


@pytest.mark.parametrize("spelling", ["", *SPELLINGS])
@pytest.mark.parametrize("way", WAYS)
def test_no_spelling_and_no_transport_changes_the_outcome(way: str, spelling: str, place: Path) -> None:
    different = []
    for index, script in enumerate(SCRIPTS):
        if not is_by(script, way):
            continue
        plain = plain_outcomes(index, place)
        found = outcomes(script, place, way, spelling)
        exchanges = [step for step in script.steps if isinstance(step, Exchange)]
        for step, one, other in zip(exchanges, plain, found, strict=True):
            if one != other and other[0] != TOO_LARGE:  # a spelling may be longer
                different.append(
                    f"{script.path.relative_to(FOLDER)}:{step.line} {step.lines[0]}\n  {one}\n  {other}"
                )
                break
    assert not different, "\n" + "\n".join(different)
