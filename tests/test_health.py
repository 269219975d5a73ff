"""The pages beside the decisions, and answers that are made between others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import orjson
import pytest
from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from fairvisor.clock import Now
from fairvisor.counters.segment import Segment
from fairvisor.errors import RequestError, RequestTimeout, SettingsError
from fairvisor.follow import ActiveBundle
from fairvisor.http.health import Health
from fairvisor.http.hub import Hub, Limits
from fairvisor.http.listeners import Handed
from fairvisor.http.outbox import Outbox
from fairvisor.http.pages import Sliced
from fairvisor.http.request import Peer, Request
from fairvisor.master import check_side, serve
from fairvisor.memory import InstanceMemory
from fairvisor.notes import Notes
from fairvisor.response import Answer
from fairvisor.settings import Settings

NOW = Now(1, 1)


def health() -> Health:
    active = ActiveBundle(Notes(InstanceMemory.find("test-health", 0)))
    return Health(Segment.private(1 << 17), active, lambda address: address == "127.0.0.1")


def ask(
    service: Health, target: str, method: str = "GET", peer: str = "203.0.113.9"
) -> tuple[int, str, bytes]:
    answer = service.answer(Request(method, target, {}, service.peer(peer)), NOW)
    whole = answer if isinstance(answer, Answer) else answer.whole()
    return whole.status, whole.head, whole.body


def test_anybody_may_ask_for_the_metrics() -> None:
    status, head, body = ask(health(), "/metrics?from=anywhere")
    assert status == 200
    assert head == "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
    assert b"# TYPE fairvisor_decisions_total counter" in body


def test_a_page_takes_get_and_head_only() -> None:
    status, head, _ = ask(health(), "/metrics", "POST")
    assert (status, "Allow: GET, HEAD\r\n" in head) == (405, True)
    assert ask(health(), "/livez", "HEAD")[0] == 200


def test_what_it_cannot_answer_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    segment = Segment.private(1 << 17)
    service = Health(
        segment, ActiveBundle(Notes(InstanceMemory.find("test-health", 0))), lambda address: False
    )
    ask(service, "/v1/decision")
    ask(service, "/metrics", "POST")
    service.refusal(RequestTimeout("late"), Peer("", True), NOW)
    counted = {
        dict(labels)["reason"]: value
        for name, labels, value in segment.series_values()
        if name == "fairvisor_undecided_requests_total" and dict(labels)["endpoint"] == "health"
    }
    assert counted == {"not_found": 1, "method_not_allowed": 1, "timeout": 1}
    assert len(caplog.messages) == 3


def test_there_is_nothing_else() -> None:
    assert ask(health(), "/v1/decision")[0] == 404
    assert health().refusal(RequestError("no"), Peer("", True), NOW).status == 400
    assert health().body_rule("/metrics").limit_bytes == 0


def test_an_edge_without_a_bundle_is_alive_and_not_ready() -> None:
    assert ask(health(), "/livez")[0] == 200
    status, _, body = ask(health(), "/readyz")
    assert (status, orjson.loads(body)["reason"]) == (503, "no_bundle_loaded")


def test_why_an_edge_is_not_ready_is_for_trusted_peers_only() -> None:
    assert b"detail" not in ask(health(), "/readyz")[2]
    detail = orjson.loads(ask(health(), "/readyz", peer="127.0.0.1")[2])["detail"]
    assert detail == "no bundle was offered yet"


class Made:
    """Pieces of an answer, and how many were asked for; the piece None fails."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.taken = 0
        self.told: list[Exception] = []
        self._pieces = pieces
        self.answer = Sliced("Content-Type: text/plain\r\n", self._each(), self.told.append)

    def _each(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.taken += 1
            if piece is None:
                raise ZeroDivisionError("on purpose")
            yield piece


def test_an_answer_is_made_a_piece_at_a_time() -> None:
    made = Made(b"a", b"", b"b")
    assert [made.answer.advance() for _ in range(4)] == [False, False, False, True]
    assert made.answer.advance()
    assert (made.answer.whole().status, made.answer.whole().body, made.taken) == (200, b"ab", 3)


def test_who_cannot_wait_gets_it_whole() -> None:
    made = Made(b"a", b"b")
    answer = made.answer.whole()
    assert (answer.body, answer.status, answer.head) == (b"ab", 200, "Content-Type: text/plain\r\n")


def test_a_failure_on_the_way_is_a_500_that_is_told() -> None:
    made = Made(b"a", None)
    assert (made.answer.whole().status, made.answer.whole().body) == (500, b"")
    assert [type(error) for error in made.told] == [ZeroDivisionError]


class Loop:
    """Calls when it is told to, in order."""

    def __init__(self) -> None:
        self._calls: list[object] = []

    def call_later(self, delay_s: float, call: object, *_: object) -> None:
        assert delay_s == 0
        self._calls.append(call)

    def turn(self) -> bool:
        """One turn; was there anything to do?"""
        calls, self._calls = self._calls, []
        for call in calls:
            assert callable(call)
            call()
        return bool(calls)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def hub(loop: Loop) -> Hub:
    hub = Hub(health(), Limits(1000, 1000, 1), lambda: NOW)
    hub.loop = loop  # type: ignore[assignment]
    return hub


def test_one_piece_is_made_in_each_turn_and_one_answer_after_the_other(hub: Hub, loop: Loop) -> None:
    first, second = Made(b"a", b"b"), Made(b"c")
    done: list[str] = []
    hub.work(first.answer.advance, lambda: done.append("first"))
    hub.work(second.answer.advance, lambda: done.append("second"))
    seen = []
    while loop.turn():
        seen.append((first.taken, second.taken))
    assert seen == [(1, 0), (2, 0), (2, 0), (2, 1), (2, 1)]
    assert done == ["first", "second"]


def test_answers_stay_in_order_behind_one_that_is_being_made(hub: Hub, loop: Loop) -> None:
    written: list[bytes] = []
    outbox = Outbox(hub, lambda: written.append(outbox.take()))
    made = Made(b"a")
    outbox.put(b"before")
    outbox.make(made.answer.advance, lambda: b"made")
    outbox.put(b"after")
    assert outbox.take() == b"before"
    while loop.turn():
        pass
    assert written == [b"madeafter"]
    assert not outbox.queue


def test_an_answer_whose_client_is_gone_is_dropped(hub: Hub, loop: Loop) -> None:
    outbox = Outbox(hub, lambda: pytest.fail("nobody is there"))
    outbox.make(Made(b"a").answer.advance, lambda: pytest.fail("nobody is there"))
    outbox.drop()
    while loop.turn():
        pass
    assert not outbox.ready


def test_the_listener_needs_a_worker_class_with_threads() -> None:
    settings = Settings.load({"FAIRVISOR_HEALTH_BIND": "127.0.0.1:9090"}, {})
    green = replace(settings, worker_class="gevent")
    check_side(settings, ThreadWorker)
    check_side(replace(green, health_bind=None), Green)
    with pytest.raises(SettingsError, match="FAIRVISOR_WORKER_CLASS=gevent"):
        check_side(green, Green)
    with pytest.raises(SettingsError, match="fd://4 is wrong: not with FAIRVISOR_WORKER_CLASS=gevent"):
        check_side(replace(green, health_bind=None), Green, [Handed(3, False), Handed(4, True)])


def test_settings_that_exclude_each_other_are_refused_before_anything_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fairvisor.master.worker_class", lambda _: Green)
    monkeypatch.setattr("fairvisor.master.open_segment", lambda _: pytest.fail("the segment was opened"))
    settings = Settings.load({"FAIRVISOR_HEALTH_BIND": "127.0.0.1:9090"}, {})
    with pytest.raises(SettingsError, match="FAIRVISOR_HEALTH_BIND"):
        serve(lambda: replace(settings, worker_class="gevent"))


class Green(SyncWorker):
    """Stands for gunicorn's worker on gevent, which is not installed here."""

    __module__ = "gunicorn.workers.ggevent"
