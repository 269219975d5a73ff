"""The slot protocol, every interleaving of it: nothing goes wrong, and what would go wrong in a lesser one is noticed.

The small configurations run here, the large ones by `make model`. The model is held to the C source by the labels of
its steps, and to what they compute by `test_table_model.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from model.configurations import RUNS_OUT, SMALL
from model.explore import explore
from model.protocol import (
    CLAIM,
    NOWHERE,
    STEPS,
    WITHIN,
    Configuration,
    Place,
    Process,
    Protocol,
    Record,
    Sight,
    State,
)

COUNTERS = Path(__file__).parents[1] / "fairvisor" / "counters"
SOURCE, TYPE = ((COUNTERS / name).read_text() for name in ("_slots.h", "_table.c"))
LABEL = re.compile(r"/\* step: ([a-z ]+) \*/")
TOUCHES_A_RECORD = re.compile(r"\bcas\(|\bload\(|\bload_record\(|->rec\b.*=[^=]|thread_fence|WORD_NONCE\]")


@pytest.mark.parametrize("configuration", SMALL, ids=lambda configuration: configuration.name)
def test_nothing_goes_wrong(configuration: Configuration) -> None:
    """Exact counts, one record for each key, no total evicted, no livelock; with a kill before any step."""
    explored = explore(Protocol(configuration))
    assert not explored.wrong, "\n".join([explored.wrong, *explored.trace])
    assert explored.states > 100


def test_the_model_has_the_steps_of_the_source() -> None:
    assert set(LABEL.findall(SOURCE + TYPE)) == {*STEPS.values(), *WITHIN}


def test_every_access_to_a_record_is_a_step() -> None:
    _, mark, protocol = SOURCE.partition("/* ---- the protocol ----")
    assert mark
    lines = (protocol + TYPE).splitlines()
    assert [line for line in lines if TOUCHES_A_RECORD.search(line) and not LABEL.search(line)] == []


class ConvertsWithoutLookingAgain(Protocol):
    def reserved(self, state: State, process: Process, place: Place, key: int) -> tuple[State, Process]:
        return state, process._replace(at="convert", held=place, seen=place, mine=True)


class HasNoGeneration(Protocol):
    def nonce(self, state: State) -> int:
        return 1


class PublishesTooEarly(Protocol):
    def reserved(self, state: State, process: Process, place: Place, key: int) -> tuple[State, Process]:
        return self.charge(state, process, place[0], key), process._replace(at="end", took=True)


class RefusesOnWhatItRead(Protocol):
    def refuses_unchecked(self) -> bool:
        return True


class EvictsReservations(Protocol):
    def may_evict(self, kind: int) -> bool:
        return True


class KeepsTheLaterReservation(Protocol):
    def drops(self, sight: Sight) -> bool:
        return False


class TrustsAReservationItJustMet(Protocol):
    def stood(self, process: Process) -> bool:
        return True


class EvictsClaimsWithoutANote(Protocol):
    def notes(self, victim: Record, now: int) -> bool:
        return False


class NotesWhatItHasEvicted(Protocol):
    def notes(self, victim: Record, now: int) -> bool:
        return False

    def _reserve(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        victim = process.held
        outcomes = super()._reserve(state, process, word, key)
        if victim[1][1] != CLAIM or not outcomes[0][1].mine:
            return outcomes
        return [(after, moved._replace(at="note", held=victim)) for after, moved in outcomes]

    def _note(self, state: State, process: Process, word: str, key: int) -> list[tuple[State, Process]]:
        return [
            (after, moved._replace(at="scan a", held=NOWHERE))
            for after, moved in super()._note(state, process, word, key)
        ]


TWO = Configuration("two", (("take 1",), ("take 1",)), 2, 2, before=(RUNS_OUT,))
THREE = Configuration("three", (("take 1",),) * 3, 2, 1, kills=0)
TORN = Configuration("torn", (("take 1", "give 1"), ("take 1",)), 2, 1)
TOTALS = Configuration("two keys, one slot", (("take 1",), ("take 2",)), 1, 2)
CLAIMS = next(configuration for configuration in SMALL if configuration.kind == CLAIM)


@pytest.mark.parametrize(
    ("mistaken", "configuration", "wrong"),
    [
        (ConvertsWithoutLookingAgain, TWO, "two live records"),
        (HasNoGeneration, THREE, "two live records"),
        (PublishesTooEarly, TWO, "two live records"),
        (RefusesOnWhatItRead, TORN, "was refused at 0 of 1"),
        (EvictsReservations, TOTALS, "nothing ever ends"),
        (KeepsTheLaterReservation, TWO, "two live records"),
        (TrustsAReservationItJustMet, THREE, "two live records"),
        (EvictsClaimsWithoutANote, CLAIMS, "gave back twice"),
        (NotesWhatItHasEvicted, CLAIMS, "gave back twice"),
    ],
)
def test_a_planted_mistake_is_found(
    mistaken: type[Protocol], configuration: Configuration, wrong: str
) -> None:
    explored = explore(mistaken(configuration))
    assert wrong in explored.wrong
    assert explored.trace
