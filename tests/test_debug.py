"""Debug sessions: who may open one, what becomes of guesses, and what a cookie is good for."""

from __future__ import annotations

import pytest
from edge import SEGMENT_BYTES, moment
from test_audit import Log

from fairvisor.audit import Audit, plain
from fairvisor.clock import Now
from fairvisor.counters.segment import Segment
from fairvisor.errors import Forbidden, TooManyGuesses
from fairvisor.http.debug import GUESSES_PER_S, LIFETIME_S, DebugSessions
from fairvisor.http.request import Peer, Request

SECRET = "open-sesame-open-sesame"


def sessions(segment: Segment, *secrets: str) -> DebugSessions:
    """Those of one worker."""
    return DebugSessions(secrets or (SECRET,), segment)


def request(secret: str = "", cookie: str = "", peer: str = "203.0.113.9") -> Request:
    headers = {"x-fairvisor-debug-secret": secret.encode(), "cookie": cookie.encode()}
    return Request("POST", "/v1/debug/session", headers, Peer(peer, trusted=False))


def cookie_of(worker: DebugSessions, now: Now) -> str:
    answer = worker.open(request(SECRET), now)
    return answer.head.removeprefix("Set-Cookie: ").partition(";")[0]


def is_good(worker: DebugSessions, cookie: str, now: Now) -> bool:
    return worker._is_open(cookie.partition("=")[2], now)


def test_a_session_is_known_to_every_worker_and_ended_on_all() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    one, other = sessions(segment), sessions(segment)
    cookie, second = cookie_of(one, moment(0)), cookie_of(other, moment(1))
    assert is_good(other, cookie, moment(2))
    one.close(request(cookie=second), moment(3))
    assert not is_good(other, cookie, moment(3))
    assert not is_good(one, second, moment(3))
    assert is_good(other, cookie_of(one, moment(3)), moment(3))


def test_who_opened_a_session_and_who_ended_them_is_in_the_audit_log() -> None:
    segment, log = Segment.private(SEGMENT_BYTES), Log()
    audit = Audit(segment, log, plain, 1, lambda: None)
    worker = DebugSessions((SECRET,), segment, audit)
    cookie = cookie_of(worker, moment(0))
    with pytest.raises(Forbidden):
        worker.open(request("wrong"), moment(1))
    worker.close(request(cookie="fv_dbg=none"), moment(1))
    worker.close(request(cookie=cookie, peer=""), moment(2))
    audit.flush(moment(3))
    who = {"kind": "secret", "name": "debug"}
    assert [(line["action"], line["actor"]) for line in log.lines] == [
        ("debug_open", {**who, "address": "203.0.113.9"}),
        ("debug_close", {**who, "address": ""}),
    ]


@pytest.mark.parametrize("cookie", ["", "fv_dbg=", "fv_dbg=AAAA", "fv_dbg=%00"])
def test_nobody_ends_sessions_without_one(cookie: str) -> None:
    worker = sessions(Segment.private(SEGMENT_BYTES))
    open_one = cookie_of(worker, moment(0))
    assert worker.close(request(cookie=cookie), moment(1)).status == 204
    assert is_good(worker, open_one, moment(1))


def test_a_session_that_is_over_ends_no_other() -> None:
    worker = sessions(Segment.private(SEGMENT_BYTES))
    old = cookie_of(worker, moment(0))
    new = cookie_of(worker, moment(LIFETIME_S))
    worker.close(request(cookie=old), moment(LIFETIME_S))
    assert is_good(worker, new, moment(LIFETIME_S))


def test_a_cookie_does_not_tell_whether_a_guess_of_the_secret_was_right() -> None:
    """The key is also the segment's: who knows the cookie and the secret still cannot check one with the other."""
    cookie = cookie_of(sessions(Segment.private(SEGMENT_BYTES)), moment(0))
    assert not is_good(sessions(Segment.private(SEGMENT_BYTES)), cookie, moment(0))


def test_another_secret_ends_the_sessions_of_the_one_before() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    cookie = cookie_of(sessions(segment), moment(0))
    assert not is_good(sessions(segment, SECRET + "!"), cookie, moment(0))


def test_while_a_secret_is_rotated_either_opens_a_session_and_no_session_ends() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    before, while_rotated, after = (
        sessions(segment, SECRET),
        sessions(segment, SECRET + "!", SECRET),
        sessions(segment, SECRET + "!"),
    )
    assert is_good(while_rotated, cookie_of(before, moment(0)), moment(0))
    assert is_good(after, cookie_of(while_rotated, moment(0)), moment(0)), "made with the first"
    assert while_rotated.open(request(SECRET + "!"), moment(0)).status == 204
    with pytest.raises(Forbidden):
        while_rotated.open(request("guess"), moment(0))


def test_guesses_are_limited_for_all_workers_together_and_counted() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    one, other = sessions(segment), sessions(segment)
    for number in range(GUESSES_PER_S):
        with pytest.raises(Forbidden):
            one.open(request(f"guess {number}", peer=f"203.0.113.{number}"), moment(0.01 * number))
    for guess in ("guess", SECRET):
        with pytest.raises(TooManyGuesses):
            other.open(request(guess), moment(0.9))
    assert other.open(request(SECRET), moment(1)).status == 204
    counted = {
        dict(labels).get("result"): value
        for name, labels, value in segment.series_values()
        if "debug" in name
    }
    assert counted == {"wrong_secret": 10, "throttled": 2, "opened": 1}
