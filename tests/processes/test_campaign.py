"""Every fault under load, in the order of a fixed seed, and a checker that is shown to catch what it looks for.

`perf/chaos.py` does the same for longer, with any seed, more workers and a /dev/shm of its own that it fills.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from campaign import KEYS_AT_ONCE, QUOTA, Asking, Found, Ledger, admin_of, bundle, check, start_edge_on
from edge_server import Edge, ask, wait_until
from fake_machine import NS_PER_S, Machine
from faults import Faults

WORKERS = 3
HANGS_NS = 600 * NS_PER_S


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def edge(machine: Machine, tmp_path: Path) -> Iterator[Edge]:
    edge = start_edge_on(tmp_path / "machine", tmp_path, WORKERS)
    try:
        edge.wait_ready()
        wait_until(lambda: len(edge.workers()) >= WORKERS)
        yield edge
    finally:
        edge.clean_up()


def asked(ledger: Ledger, number: int) -> None:
    """Until clients asked so many more."""
    until = ledger.asked + number
    wait_until(lambda: ledger.asked >= until)


def test_every_fault_admits_nobody_too_many_and_loses_nothing_that_was_not_hurt(
    edge: Edge, machine: Machine
) -> None:
    faults, ledger = Faults(edge, machine, seed=1), Ledger()
    with Asking(edge, ledger):
        asked(ledger, 100)
        faults.suffer_each()
        asked(ledger, 1000)
    found = check(edge, ledger, faults.hurt, faults.exempt(ledger.admitted), faults.counted_before)
    assert found.violations + faults.wrong == []
    assert found.admitted > 0
    assert "its header is damaged: it is replaced" in edge.log.read_text()


def test_bits_that_flip_in_slots_change_the_counters_there_and_no_other(edge: Edge, machine: Machine) -> None:
    faults, ledger = Faults(edge, machine, seed=1), Ledger()
    with Asking(edge, ledger):
        for _ in range(5):
            asked(ledger, 500)
            faults.flip_slots()
        asked(ledger, 1000)
    exempt = faults.exempt(ledger.admitted)
    assert check(edge, ledger, set(), exempt).violations == []
    told = {text.partition(":")[0] for text in check(edge, ledger, set()).violations}
    assert told <= exempt
    assert told, "some bits that matter were hit"


def test_no_decision_waits_for_a_disk(edge: Edge, machine: Machine, tmp_path: Path) -> None:
    """A write hangs for longer than any test lasts."""

    def unfinished() -> list[Path]:
        return list((tmp_path / "state").glob("*.new"))

    machine.slow_disks(HANGS_NS)
    edge.write(bundle(2))
    wait_until(lambda: unfinished() != [])
    assert undisturbed(edge).violations == []
    assert unfinished() != []
    machine.slow_disks(0)


def undisturbed(edge: Edge, meanwhile: Callable[[], object] = lambda: None) -> Found:
    """A campaign without faults, in which something else happens that no edge would do."""
    ledger = Ledger()
    with Asking(edge, ledger):
        asked(ledger, QUOTA * KEYS_AT_ONCE * 2)  # the first keys have nothing left, and are still asked for
        meanwhile()
        asked(ledger, 1000)
    return check(edge, ledger, set())


def test_a_planted_over_admission_is_caught(edge: Edge) -> None:
    """A counter that was forgotten lets its key begin anew."""
    where = [("policy", "all"), ("rule", "quota"), ("key", "header:x-key=key-1")]
    found = undisturbed(edge, lambda: admin_of(edge).ask("DELETE", "limits", where))
    assert [text for text in found.violations if text.startswith("key-1: ") and "were admitted of" in text]


def test_a_planted_leak_is_caught(edge: Edge) -> None:
    """A charge that no client was answered for."""
    assert edge.status(ask("/", "GET", "X-Key: key-1")) == 204
    assert f"key-1: {QUOTA} charged, {QUOTA - 1} admitted, 0 unanswered" in undisturbed(edge).violations


def test_a_planted_loss_is_caught(edge: Edge) -> None:
    """A worker that was killed, and is not known to have been."""
    ledger = Ledger()
    with Asking(edge, ledger):
        asked(ledger, 100)
        killed = edge.workers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        asked(ledger, 1000)
    assert ledger.left_by.keys() <= set(killed)
    told = [text for text in check(edge, ledger, set()).violations if "was not hurt" in text]
    assert len(told) == len(ledger.left_by) > 0


def test_without_plants_and_faults_there_is_nothing_to_catch(edge: Edge) -> None:
    assert undisturbed(edge).violations == []
