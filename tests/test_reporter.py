"""What a worker's reporter writes, and what it says when it cannot."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge import SEGMENT_BYTES, START_S, Edge, budget, bundle, moment, policy

from fairvisor.bundle.load import parse
from fairvisor.bundle.offer import describe
from fairvisor.counters.segment import Segment
from fairvisor.follow import ActiveBundle, Current
from fairvisor.memory import InstanceMemory
from fairvisor.metrics import REMAINING, Tally
from fairvisor.notes import AUDIT_LOG, Notes
from fairvisor.reporter import Reporter
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
        self.settings = Settings.load({"FAIRVISOR_AUDIT_LOG": str(self.log)}, {})

    def worker(self) -> Reporter:
        return Reporter(self.settings, self.segment, self.active, lambda: moment(0))

    def reject(self, worker: Reporter, key: str = "a") -> None:
        reply = self.edge.ask(key=key)
        worker.audit.note(reply.decision, reply.context)

    def switch(self, version: int) -> None:
        data = json.dumps(bundle(policy("p", budget("b")), bundle_version=version)).encode()
        parsed = parse(data, wall_ns=START_S * 10**9, environ={})
        about = describe(parsed, "admin", 0)
        self.active.current = Current(self.edge.bundle, self.edge.identity, about, version)

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


def test_a_new_bundle_is_logged_by_one_worker_only(instance: Instance) -> None:
    workers = [instance.worker() for _ in range(3)]
    for version in (1, 1, 2):
        instance.switch(version)
        for worker in workers:
            worker.step(moment(version))
    assert [(line["action"], line["version"], line["source"]) for line in instance.lines()] == [
        ("bundle", 1, "admin"),
        ("bundle", 2, "admin"),
    ]


def test_what_is_left_is_written_once_a_second() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    settings = Settings.load({"FAIRVISOR_AUDIT_LOG": "/dev/null"}, {})
    told: list[int] = []
    worker = Reporter(
        settings,
        segment,
        ActiveBundle(Notes(InstanceMemory.find("test-none", 0))),
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
