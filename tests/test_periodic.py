"""Threads beside the requests: no step that fails is the last one."""

from __future__ import annotations

import threading

import pytest

from fairvisor import periodic
from fairvisor.periodic import Periodic

PATIENCE_S = 30


class Work:
    """Steps that fail as often as they are told to, and what became of them."""

    def __init__(self, failing: int) -> None:
        self.failing = failing
        self.steps = 0
        self.failures = 0
        self.ends = 0
        self.succeeded = threading.Event()

    def step(self) -> None:
        self.steps += 1
        if self.steps <= self.failing:
            raise PermissionError(1, "Operation not permitted", "/dev/shm/fairvisor-0-a/note-audit_log")
        self.succeeded.set()

    def failed(self) -> None:
        self.failures += 1

    def end(self) -> None:
        self.ends += 1


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "RETRY_S", 0)


def test_steps_go_on_after_errors_which_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(failing=3)
    thread = Periodic("worker", 0.001, work.step, work.failed, end=work.end)
    thread.start()
    assert work.succeeded.wait(PATIENCE_S)
    thread.stop(PATIENCE_S)
    assert (work.failures, work.ends) == (3, 1)
    assert [record.message for record in caplog.records] == ["worker failed; it is tried again"] * 3
    assert "Operation not permitted" in caplog.text


def test_an_end_that_fails_is_counted_too() -> None:
    work = Work(failing=1)
    thread = Periodic("worker", 0, lambda: None, work.failed, end=work.step)
    thread.stop()
    thread.run()
    assert (work.steps, work.failures) == (1, 1)


def test_a_stop_before_the_start_is_heeded() -> None:
    work = Work(failing=0)
    thread = Periodic("worker", PATIENCE_S, work.step, work.failed, end=work.end)
    thread.stop()
    thread.start()
    thread.stop(PATIENCE_S)
    assert (work.steps, work.ends) == (0, 1)
