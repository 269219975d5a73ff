"""The master before it forks: names, limits, and that there is one for each instance."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from fairvisor import master
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.errors import SegmentError, SettingsError
from fairvisor.http.listeners import Listeners
from fairvisor.http.worker import FOR_THE_MASTER, STOPS, EdgeWorker
from fairvisor.lame_duck import LameDuck
from fairvisor.master import claim, start_time, worker_class
from fairvisor.master_signals import be_lame_before_stopping


@pytest.fixture
def segment() -> Segment:
    return Segment.private(1 << 20)


def test_worker_classes_by_name() -> None:
    assert worker_class("edge") is EdgeWorker
    assert worker_class("sync") is SyncWorker
    assert worker_class("gthread") is ThreadWorker


class Timer:
    """A loop that notes what it is to call."""

    def __init__(self) -> None:
        self.due: list[object] = []

    def call_later(self, _: float, call: object) -> None:
        self.due.append(call)


def test_a_sign_of_life_that_fails_is_not_the_last() -> None:
    """For want of memory, say: the worker would be taken for dead, and would not notice that its master is."""
    worker = EdgeWorker.__new__(EdgeWorker)
    worker.loop = Timer()  # and nothing else of it is there
    with pytest.raises(AttributeError):
        worker._beat()
    assert worker.loop.due == [worker._beat]


@pytest.mark.needs("meinheld")
def test_meinheld_is_a_worker_class() -> None:
    assert worker_class("meinheld").__module__ == "meinheld.gmeinheld"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nonsense", "nonsense"),
        ("no.such.Worker", "No module named 'no'"),
        ("json.JSONDecoder", "not a gunicorn"),
    ],
)
def test_another_worker_class_is_one_line(name: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        worker_class(name)
    message = str(caught.value)
    assert message.startswith(f"FAIRVISOR_WORKER_CLASS: {name!r} is wrong: allowed are edge, meinheld")
    assert why in message
    assert "\n" not in message


def forked(queued: Sequence[int] = (), **attributes: Any) -> Any:
    """A worker of two, just forked from a master that has these signals in its queue."""
    worker = SimpleNamespace(**{"age": 1, "sockets": [], "init_signals": None, **attributes})
    worker.app = SimpleNamespace(listeners=Listeners([], []), side_sockets=[])
    signals: SimpleQueue[int] = SimpleQueue()
    for number in queued:
        signals.put(number)
    master._post_fork(SimpleNamespace(cfg=SimpleNamespace(workers=2), SIG_QUEUE=signals), worker)
    return worker


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_a_worker_that_takes_the_place_of_another_one_and_cannot_boot_stops_nobody(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn ends the master over an error of a worker that is not booted, unless it exits by itself."""

    def boot() -> None:
        raise error

    monkeypatch.setattr(master, "_BOOT_AGAIN_S", 0)
    with pytest.raises(SystemExit) as left:
        forked(age=3, booted=False, init_process=boot).init_process()
    assert left.value.code == 1
    for age, booted in ((2, False), (3, True)):
        with pytest.raises(type(error)):
            forked(age=age, booted=booted, init_process=boot).init_process()


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Signals do to this process what they do by default, however it was started; afterwards that is as before."""
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (*STOPS, *FOR_THE_MASTER, signal.SIGALRM)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGTERM, True), (signal.SIGQUIT, True), (signal.SIGHUP, False)]
)
def test_a_stop_told_to_a_worker_before_it_takes_its_signals_is_heeded(number: int, leaves: bool) -> None:
    """gunicorn tells each worker once, and waits for it half a minute."""
    taken: list[bool] = []
    worker = forked(queued=[signal.SIGWINCH, number], init_signals=lambda: taken.append(True))
    with pytest.raises(SystemExit) if leaves else nullcontext():
        worker.init_signals()
    assert taken == [True]
    assert all((signal.getsignal(number) == signal.SIG_IGN) == leaves for number in STOPS), "told once more"


@pytest.mark.usefixtures("own_signals")
def test_a_worker_of_any_class_ignores_what_is_for_the_master() -> None:
    """gunicorn's own workers would end from HUP and USR2."""
    forked(init_signals=lambda: None).init_signals()
    assert {signal.getsignal(number) for number in FOR_THE_MASTER} == {signal.SIG_IGN}
    assert {signal.SIGHUP, signal.SIGUSR2} < set(FOR_THE_MASTER)


class Arbiter:
    """gunicorn's master, as far as stopping goes."""

    def __init__(self) -> None:
        self.stopped = 0
        self.queued: list[int] = []
        self.reexec_pid = 0
        self.master_pid = 0
        self.log = logging.getLogger(__name__)

    def handle_term(self) -> None:
        self.stopped += 1

    def signal(self, number: int, _: object) -> None:
        self.queued.append(number)


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """In how many seconds an alarm was asked for; none comes by itself."""
    asked: list[float] = []
    monkeypatch.setattr("signal.setitimer", lambda which, seconds: asked.append(seconds))
    return asked


@pytest.mark.usefixtures("own_signals")
def test_a_stop_comes_after_the_lame_duck(alarms: list[float]) -> None:
    arbiter, lame_duck = Arbiter(), LameDuck()
    be_lame_before_stopping(arbiter, lame_duck, 5)
    arbiter.handle_term()
    assert (lame_duck.has_begun, arbiter.stopped, alarms) == (True, 0, [5])
    signal.raise_signal(signal.SIGALRM)
    assert arbiter.queued == [signal.SIGTERM]
    arbiter.handle_term()
    assert arbiter.stopped == 1
    assert alarms == [5]


@pytest.mark.parametrize("other", ["reexec_pid", "master_pid"])
def test_while_another_master_has_the_same_sockets_a_stop_comes_at_once(
    alarms: list[float], other: str
) -> None:
    arbiter, lame_duck = Arbiter(), LameDuck()
    setattr(arbiter, other, 4711)
    be_lame_before_stopping(arbiter, lame_duck, 5)
    arbiter.handle_term()
    assert (lame_duck.has_begun, arbiter.stopped, alarms) == (False, 1, [])


def test_without_a_lame_duck_a_stop_comes_at_once(alarms: list[float]) -> None:
    arbiter, lame_duck = Arbiter(), LameDuck()
    be_lame_before_stopping(arbiter, lame_duck, 0)
    arbiter.handle_term()
    assert (lame_duck.has_begun, arbiter.stopped, alarms) == (False, 1, [])


def test_start_times_tell_processes_apart() -> None:
    assert start_time(os.getpid()) > start_time(1)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
        assert start_time(2**22 + 1) == 0


def test_a_living_master_refuses_another(segment: Segment) -> None:
    segment.table.word_set(Word.MASTER_PID, 1)
    segment.table.word_set(Word.MASTER_START, start_time(1))
    with pytest.raises(SegmentError, match="runs already"):
        claim(segment, replaces="")


def test_a_master_may_be_replaced_by_the_one_it_starts(segment: Segment) -> None:
    segment.table.word_set(Word.MASTER_PID, 1)
    segment.table.word_set(Word.MASTER_START, start_time(1))
    claim(segment, replaces="1")
    assert segment.table.word_get(Word.MASTER_PID) == os.getpid()


def test_a_dead_master_is_not_in_the_way(segment: Segment) -> None:
    """Its pid may have been given to another process since."""
    segment.table.word_set(Word.MASTER_PID, 1)
    segment.table.word_set(Word.MASTER_START, start_time(1) + 12345)
    claim(segment, replaces="")
    assert segment.table.word_get(Word.MASTER_START) == start_time(os.getpid())
