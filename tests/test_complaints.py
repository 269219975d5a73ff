"""What goes wrong on requests is counted and logged, and no flood of it floods the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from edge import START_S, moment

from fairvisor import errors
from fairvisor.counters.segment import Segment
from fairvisor.errors import BodyTooLarge, Conflict, NotFound, RequestError, WrongSecret
from fairvisor.http.complaints import Complaints
from fairvisor.http.gateways import decision_endpoints
from fairvisor.metrics.families import UNDECIDED, UNDECIDED_LAST

ENDPOINTS, REASONS = UNDECIDED.each_known


@pytest.fixture
def segment() -> Segment:
    return Segment.private(1 << 18)


def counted(segment: Segment, family: str = UNDECIDED.name) -> dict[tuple[str, ...], int]:
    return {
        tuple(value for _, value in labels): value
        for name, labels, value in segment.series_values()
        if name == family
    }


def of_requests(kind: type[RequestError] = RequestError) -> Iterator[type[RequestError]]:
    """A class of errors and those below it."""
    yield kind
    for each in kind.__subclasses__():
        yield from of_requests(each)


def test_every_error_has_a_reason_that_the_metric_knows_and_every_path_that_decides_is_an_endpoint() -> None:
    for kind in of_requests():
        if kind.__module__ == errors.__name__:
            assert kind.reason in ("", *REASONS), kind
    assert set(decision_endpoints(True)) <= set(ENDPOINTS)


def test_what_is_counted_elsewhere_is_neither_counted_nor_logged(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    Complaints(segment).undecided("/v1/usage", Conflict("settled already"), "", moment(0))
    assert (counted(segment), caplog.messages) == ({}, [])


def test_requests_are_counted_by_endpoint_and_reason_with_the_time_of_the_last(segment: Segment) -> None:
    complaints = [Complaints(segment) for _ in range(2)]
    for second, each in enumerate(complaints):
        each.undecided("/v1/decision", WrongSecret("no"), "192.0.2.1", moment(second))
    complaints[0].undecided("other", NotFound("no"), "192.0.2.1", moment(7))
    assert counted(segment) == {("/v1/decision", "wrong_secret"): 2, ("other", "not_found"): 1}
    assert counted(segment, UNDECIDED_LAST.name) == {
        ("/v1/decision", "wrong_secret"): START_S + 1,
        ("other", "not_found"): START_S + 7,
    }


def test_a_flood_makes_one_line_a_minute_for_each_endpoint_and_reason(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    complaints = Complaints(segment)
    for number in range(600):
        for endpoint in ENDPOINTS:
            for error in (RequestError("no"), BodyTooLarge("too large")):
                complaints.undecided(endpoint, error, f"2001:db8::{number:x}", moment(number / 10))
    assert len(caplog.messages) == 2 * len(ENDPOINTS)
    complaints.undecided("admin", BodyTooLarge("too large"), "", moment(60))
    assert caplog.messages[-1] == (
        "admin answered 413 without a decision: body_too_large (too large), from a unix socket "
        "(600 times since the last such line, by any peer)"
    )
    assert counted(segment)["admin", "body_too_large"] == 601


@pytest.mark.parametrize("kind", [RequestError, NotFound])
def test_no_line_quotes_what_a_client_sent(
    kind: type[RequestError], segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    Complaints(segment).undecided("other", kind("there is nothing at /a-token"), "192.0.2.1", moment(0))
    assert caplog.messages == [
        f"other answered {kind.status} without a decision: {kind.reason}, from 192.0.2.1 "
        "(1 times since the last such line, by any peer)"
    ]


def test_failures_at_more_places_than_there_are_share_a_line(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    complaints = Complaints(segment)
    for number in range(300):
        with pytest.raises(ZeroDivisionError) as failed:
            exec(compile("1 / 0", f"place-{number}.py", "exec"))
        complaints.failure(failed.value, moment(number / 100))
    assert len(caplog.messages) == 257
