"""Random faults under load, from a fixed seed, and a checker that is shown to catch what it looks for.

`perf/chaos.py` does the same for longer, with any seed, more workers and a /dev/shm of its own that it fills.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import KEYS_AT_ONCE, QUOTA, Asking, Found, Ledger, admin_of, bundle, check
from edge_server import Edge, StartEdge, ask, wait_until
from faults import Faults

FAULTS = 12
WORKERS = 3


@pytest.fixture
def edge(start_edge: StartEdge, tmp_path: Path) -> Edge:
    return start_edge(
        bundle(1),
        workers=WORKERS,
        FAIRVISOR_ADMIN_BIND=f"unix:{tmp_path}/admin",
        FAIRVISOR_AUDIT_LOG=str(tmp_path / "audit.log"),
    )


def asked(ledger: Ledger, number: int) -> None:
    """Until clients asked so many more."""
    until = ledger.asked + number
    wait_until(lambda: ledger.asked >= until)


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_admit_nobody_too_many_and_lose_nothing_that_was_not_killed(edge: Edge, seed: int) -> None:
    faults, ledger = Faults(edge, seed), Ledger()
    with Asking(edge, ledger):
        asked(ledger, 100)
        faults.suffer(FAULTS)
        asked(ledger, 1000)
    found = check(edge, ledger, faults.killed)
    assert found.violations == []
    assert found.admitted > 0


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
    told = [text for text in check(edge, ledger, set()).violations if "was not killed" in text]
    assert len(told) == len(ledger.left_by) > 0


def test_without_plants_and_faults_there_is_nothing_to_catch(edge: Edge) -> None:
    assert undisturbed(edge).violations == []
