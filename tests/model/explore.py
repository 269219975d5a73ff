"""Walks through every interleaving of a configuration.

Each process may move, stall, or be killed before any step, and the clock may tick at any moment.

Depth first, so that a cycle is met as one: every script is finite, hence a cycle in which nothing ends is a livelock.
States are remembered by their 64-bit hashes, and processes with the same script count as interchangeable. Knows
states and steps; what they mean is in `protocol.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from model.protocol import DEAD, Protocol, State, Violation

Moves = Iterator[tuple[str, State]]


class Explored(NamedTuple):
    """What came of it: an empty `wrong` means that nothing was. `trace` leads to what is wrong."""

    states: int
    moves: int
    depth: int
    wrong: str
    trace: list[str]


def explore(protocol: Protocol, tell: Callable[[int], None] = lambda _: None) -> Explored:
    """Everything that can happen. `tell` is called with the number of states now and then."""
    alike = _interchangeable(protocol)
    start = protocol.initial()
    open_, closed = {hash(start)}, set[int]()
    stack: list[tuple[str, int, Moves]] = [("", hash(start), _moves(protocol, start))]
    moves = depth = 0
    while stack:
        try:
            for label, after in stack[-1][2]:
                moves += 1
                mark = hash(_sorted(after, alike))
                if mark in open_:
                    return Explored(len(closed), moves, depth, "nothing ever ends", _trace(stack, label))
                if mark not in closed:
                    open_.add(mark)
                    stack.append((label, mark, _moves(protocol, _sorted(after, alike))))
                    break
            else:
                _, mark, _ = stack.pop()
                open_.discard(mark)
                closed.add(mark)
                if not len(closed) & 0x3FFF:
                    tell(len(closed))
        except Violation as violation:
            return Explored(len(closed), moves, depth, str(violation), _trace(stack, "then"))
        depth = max(depth, len(stack))
    return Explored(len(closed), moves, depth, "", [])


def _moves(protocol: Protocol, state: State) -> Moves:
    configuration = protocol.configuration
    if state.time < configuration.ticks:
        yield "the clock ticks", state._replace(time=state.time + 1)
    for number, process in enumerate(state.processes):
        if process.at in ("done", "dead"):
            continue
        if state.kills < configuration.kills and process.at != "start":
            processes = (*state.processes[:number], DEAD, *state.processes[number + 1 :])
            yield (
                f"{number} is killed before: {process.at}",
                state._replace(kills=state.kills + 1, processes=processes),
            )
        for after in protocol.steps(state, number):
            yield f"{number}: {process.at}", after


def _interchangeable(protocol: Protocol) -> list[list[int]]:
    """Groups of processes that have the same script."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, script in enumerate(protocol.configuration.scripts):
        groups.setdefault(script, []).append(number)
    return [numbers for numbers in groups.values() if len(numbers) > 1]


def _sorted(state: State, groups: list[list[int]]) -> State:
    """The one of all states that differ only in which of them is which."""
    if not groups:
        return state
    processes = list(state.processes)
    for numbers in groups:
        ordered = sorted(processes[number] for number in numbers)
        for number, process in zip(numbers, ordered, strict=True):
            processes[number] = process
    return state._replace(processes=tuple(processes))


def _trace(stack: list[tuple[str, int, Moves]], last: str) -> list[str]:
    return [label for label, _, _ in stack if label] + [last]
