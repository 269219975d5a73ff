"""What a worker's reporter writes, and what it says when it cannot."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from edge import SEGMENT_BYTES, Edge, budget, moment, policy

from fairvisor import pending, reporter
from fairvisor.actor import edge
from fairvisor.counters.segment import Segment
from fairvisor.follow import ActiveBundle
from fairvisor.memory import InstanceMemory
from fairvisor.metrics import REMAINING, Tally
from fairvisor.notes import AUDIT_LOG, Notes
from fairvisor.pending import Pending
from fairvisor.reporter import Reporter, write_pending
from fairvisor.settings import Settings


class Instance:
    """A segment, an active bundle and the reporters of its workers, stepped on the test's clock."""

    def __init__(self, place: Path) -> None:
        self.log = place / "logs" / "audit"
        self.log.parent.mkdir()
        self.edge = Edge(policy("p", budget("b", "header:x-key", amount=0.5)))
        self.segment = self.edge.segment
        self.notes = Notes(InstanceMemory.make(f"test-{uuid.uuid4().hex}"))
        self.active = ActiveBundle(self.notes)
        self.pending = Pending(self.notes._directory)
        self.settings = Settings.load({"FAIRVISOR_AUDIT_LOG": str(self.log)}, {})

    def worker(self) -> Reporter:
        return Reporter(self.settings, self.segment, self.active, self.pending, lambda: moment(0))

    def reject(self, worker: Reporter, key: str = "a") -> None:
        reply = self.edge.ask(key=key)
        worker.audit.note(reply.decision, reply.context)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    instance = Instance(tmp_path)
    yield instance
    instance.notes._directory.remove_all()


def test_rejects_are_in_the_log_with_the_next_step(instance: Instance) -> None:
    worker = instance.worker()
    instance.reject(worker)
    worker.step(moment(0.1))
    assert [line["count"] for line in instance.lines()] == [1]


def test_what_waits_to_be_logged_is_written_by_one_worker_only_and_in_order(instance: Instance) -> None:
    workers = [instance.worker() for _ in range(3)]
    for number in range(3):
        instance.pending.record("start", edge("test"), moment(number), number=str(number))
    for worker in workers:
        worker.step(moment(4))
    assert [(line["action"], line["number"]) for line in instance.lines()] == [
        ("start", "0"), ("start", "1"), ("start", "2")
    ]  # fmt: skip


def test_what_waits_to_be_logged_goes_on_waiting_while_the_log_cannot_be_written(instance: Instance) -> None:
    worker = instance.worker()
    instance.log.parent.rmdir()
    instance.reject(worker)
    worker.step(moment(0.1))
    instance.pending.record("reload", edge("HUP"), moment(0.2))
    worker.step(moment(1.2))
    instance.log.parent.mkdir()
    other = instance.worker()  # the first one is killed
    other.step(moment(2.3))
    assert [line["action"] for line in instance.lines()] == ["reload"]


def test_a_log_that_broke_before_there_was_anything_to_write_heals(instance: Instance) -> None:
    instance.log.parent.rmdir()
    worker = instance.worker()
    worker._work()
    assert AUDIT_LOG in instance.notes.faults()
    instance.pending.record("start", edge("start"), moment(0))
    worker.step(moment(1.1))
    instance.log.parent.mkdir()
    worker.step(moment(2.2))
    worker.step(moment(2.3))
    assert instance.notes.faults() == {}
    assert [line["action"] for line in instance.lines()] == ["start"]


def test_a_worker_without_anything_to_write_takes_its_fault_back(instance: Instance) -> None:
    instance.log.parent.rmdir()
    worker = instance.worker()
    worker._work()
    instance.log.parent.mkdir()
    worker.step(moment(1.1))
    assert instance.notes.faults() == {}


def test_what_waits_when_the_workers_are_gone_is_written_at_the_end(instance: Instance) -> None:
    instance.pending.record("stop", edge("stop"), moment(0))
    write_pending(instance.settings, instance.segment, instance.pending, moment(0))
    assert [line["actor"] for line in instance.lines()] == [{"kind": "edge", "name": "stop"}]


def test_a_log_that_nothing_reads_does_not_keep_the_process_from_ending(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(instance.log)
    unread = os.open(instance.log, os.O_RDWR | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while os.write(unread, b"x" * 4096):
            pass
    monkeypatch.setattr(reporter, "STOPPED_WITHIN_S", 0.05)
    instance.pending.record("stop", edge("stop"), moment(0))
    write_pending(instance.settings, instance.segment, instance.pending, moment(0))
    os.set_blocking(unread, True)
    while b'"action":"stop"' not in os.read(unread, 1 << 16):
        pass  # lets the thread end
    os.close(unread)


def test_records_beyond_what_may_wait_are_named_on_stderr(
    instance: Instance, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "MAX_WAITING", 1)
    for _ in range(2):
        instance.pending.record("reload", edge("HUP"), moment(0))
    assert "the audit log will lack reload" in caplog.text
    assert len([*instance.pending.take()]) == 1


def test_what_is_left_is_written_once_a_second() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    settings = Settings.load({"FAIRVISOR_AUDIT_LOG": "/dev/null"}, {})
    told: list[int] = []
    worker = Reporter(
        settings,
        segment,
        ActiveBundle(Notes(InstanceMemory.find("test-none", 0))),
        Pending(InstanceMemory.find("test-none", 0)),
        also=(lambda now: told.append(now.mono_ns),),
    )
    tally = Tally(segment, "p", "r", "enforce", REMAINING)
    for tenth in range(21):
        tally.lower(1_000_000)
        worker.step(moment(tenth / 10))
        assert bool(segment.postponed) == bool(tenth % 10)
    assert len(told) == 3


def test_a_fault_is_noted_and_logged_once_and_tried_again_every_second(
    instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    worker = instance.worker()
    instance.log.parent.rmdir()
    instance.reject(worker)
    with caplog.at_level(logging.INFO):
        for tenth in range(15):
            worker.step(moment(tenth / 10))
    assert "No such file" in instance.notes.faults()[AUDIT_LOG].text
    assert len(caplog.records) == 1
    instance.log.parent.mkdir()
    worker.step(moment(1.6))
    assert not instance.log.exists()
    with caplog.at_level(logging.INFO):
        worker.step(moment(2.1))
    assert instance.notes.faults() == {}
    assert "again" in caplog.records[-1].getMessage()
    assert [(line["count"], "key" in line) for line in instance.lines()] == [(1, False)]


def test_another_worker_that_can_write_takes_the_note_of_a_killed_one_away(instance: Instance) -> None:
    instance.notes.put(AUDIT_LOG, "No space left on device", moment(0))
    worker = instance.worker()
    worker.step(moment(0))
    assert AUDIT_LOG in instance.notes.faults()
    instance.reject(worker)
    worker.step(moment(0.2))
    assert instance.notes.faults() == {}


def test_a_worker_without_anything_to_write_finds_that_the_log_can_be_written_again(
    instance: Instance, caplog: pytest.LogCaptureFixture
) -> None:
    """Two workers found a directory that was not there; it comes, and only one of them has an event."""
    instance.log.parent.rmdir()
    workers = [instance.worker() for _ in range(2)]
    for worker in workers:
        worker.audit.probe()
        worker.step(moment(0))
    assert AUDIT_LOG in instance.notes.faults()
    instance.log.parent.mkdir()
    instance.reject(workers[0])
    with caplog.at_level(logging.INFO):
        for worker in workers:
            worker.step(moment(1.1))
    assert instance.notes.faults() == {}
    for worker in workers:
        worker.step(moment(2.2))
    assert instance.notes.faults() == {}
    assert sum("again" in record.getMessage() for record in caplog.records) == 1


def test_a_log_that_no_worker_has_anything_to_write_to_is_no_fault_once_it_can_be_written(
    instance: Instance,
) -> None:
    instance.log.parent.rmdir()
    worker = instance.worker()
    worker.audit.probe()
    worker.step(moment(0))
    instance.log.parent.mkdir()
    worker.step(moment(1.1))
    assert instance.notes.faults() == {}


def test_a_stop_writes_what_is_left(instance: Instance) -> None:
    worker = instance.worker()
    worker.start()
    for key in "abc":
        instance.reject(worker, key)
    worker.stop()
    assert sorted(line["key"]["header:x-key"].partition(":")[0] for line in instance.lines()) == ["h"] * 3


def test_keys_are_plain_if_the_settings_say_so(instance: Instance) -> None:
    instance.settings = Settings.load(
        {"FAIRVISOR_AUDIT_LOG": str(instance.log), "FAIRVISOR_AUDIT_KEYS": "plain"}, {}
    )
    worker = instance.worker()
    instance.reject(worker, "alice")
    worker.step(moment(0.1))
    assert [line["key"] for line in instance.lines()] == [{"header:x-key": "alice"}]
