"""Loop detection in simulated time: what is identical, which arrival triggers, what happens then."""

from __future__ import annotations

from typing import Any

import pytest
from edge import Edge, bucket, policy


def looping(threshold: int = 3, window: float = 10, key: str = "header:x-key", **more: Any) -> Edge:
    detection = {"enabled": True, "window_seconds": window, "threshold_identical_requests": threshold, **more}
    return Edge(policy("p", bucket("r", key, burst=1000), loop_detection=detection))


def test_the_nth_identical_arrival_triggers() -> None:
    edge = looping(threshold=3)
    assert [edge.ask(key="a").status for _ in range(2)] == [204, 204]
    reply = edge.ask(key="a")
    assert (reply.status, reply.reason, reply.should_retry) == (429, "loop_detected", False)
    assert reply.headers["X-Fairvisor-Loop-Count"] == "3"
    assert "RateLimit" not in reply.headers
    assert edge.ask(key="a").headers["X-Fairvisor-Loop-Count"] == "4"
    assert edge.metric("loop_detected_total", policy="p", action="reject") == 2


def test_a_refused_loop_charges_no_rule_but_counts_arrivals() -> None:
    edge = looping(threshold=2)
    assert edge.ask(key="a", path="/x").remaining == 999
    assert edge.ask(key="a", path="/x").status == 429
    assert edge.ask(key="a", path="/y").remaining == 998


def test_a_window_starts_with_its_first_arrival_and_ends_whatever_arrives_meanwhile() -> None:
    edge = looping(threshold=3, window=10)
    assert [edge.ask(key="a", at=at).status for at in (0, 9, 9.9, 10, 11, 12)] == [
        204,
        204,
        429,
        204,
        204,
        429,
    ]


def test_retry_after_is_the_window() -> None:
    edge = looping(threshold=2, window=40)
    edge.ask(key="a")
    assert 40 <= edge.ask(key="a").retry_after <= 60


@pytest.mark.parametrize(
    "other",
    [
        {"method": "PUT"},
        {"path": "/v1/y?a=1&b=2"},
        {"path": "/v1/x?a=1&b=3"},
        {"path": "/v1/x?a=1&b=2&b=2"},
        {"path": "/v1/x"},
        {"body": b"other"},
        {"key": "b"},
    ],
)
def test_method_path_query_body_and_descriptors_make_the_fingerprint(other: dict[str, Any]) -> None:
    edge = looping(threshold=2)
    asked: dict[str, Any] = {"method": "POST", "path": "/v1/x?a=1&b=2", "body": b"body", "key": "a"}
    assert edge.ask(**asked).status == 204
    assert edge.ask(**(asked | other)).status == 204
    assert edge.ask(**asked).status == 429


@pytest.mark.parametrize(
    "path", ["/v1/x?b=2&a=1", "/v1//%78?a=1&b=2", "/v1/x?a=1&b=2#fragment", "http://example.com/v1/x?a=1&b=2"]
)
def test_another_spelling_or_order_is_the_same_request(path: str) -> None:
    edge = looping(threshold=2)
    assert edge.ask(path="/v1/x?a=1&b=2", key="a").status == 204
    assert edge.ask(path=path, key="a", headers={"x-unrelated": "z"}, client="198.51.100.9").status == 429


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "QUERY", "REPORT", "SEARCH", "PROPFIND", "BREW"])
def test_without_its_body_a_request_that_has_one_is_not_counted(method: str) -> None:
    edge = looping(threshold=2)
    assert edge.admits(method, key="a", most=5) == 5
    assert edge.metric("loop_skipped_total", policy="p") == 5
    assert edge.admits(method, key="a", body=b"body", most=5) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_methods_without_a_body_are_counted(method: str) -> None:
    assert looping(threshold=2).admits(method, key="a") == 1


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [{"content-type": "application/json"}, {"content-length": "9"}, {"transfer-encoding": "chunked"}],
)
def test_a_request_with_the_fields_of_a_body_may_have_one(method: str, headers: dict[str, str]) -> None:
    """Elasticsearch is asked with a GET that has a body, which most gateways do not send along."""
    edge = looping(threshold=2)
    assert edge.admits(method, key="a", headers=headers, most=5) == 5
    assert edge.admits(method, key="a", headers={"content-length": "0"}, most=5) == 1


def test_a_request_that_is_known_to_have_no_body_is_counted() -> None:
    """The proxy sees the whole request."""
    assert looping(threshold=2).admits("QUERY", key="a", body=b"") == 1


def test_the_body_can_be_ignored() -> None:
    edge = looping(threshold=3, body="ignore")
    assert edge.ask("POST", key="a").status == 204
    assert edge.ask("POST", key="a", body=b"one").status == 204
    assert edge.ask("POST", key="a", body=b"two").status == 429
    assert edge.metric("loop_skipped_total") == 0


def test_a_warning_lets_pass() -> None:
    edge = looping(threshold=2, action="warn")
    edge.ask(key="a")
    reply = edge.ask(key="a")
    assert (reply.status, reply.action, reply.delay_ms) == (204, "warn", 0)
    assert reply.headers["X-Fairvisor-Warning"] == "loop_warn"
    assert reply.headers["X-Fairvisor-Loop-Count"] == "2"
    assert reply.remaining == 998
    assert edge.metric("loop_detected_total", action="warn") == 1


def test_a_throttle_grows_with_the_count_up_to_thirty_seconds() -> None:
    edge = looping(threshold=2, action="throttle")
    replies = [edge.ask(key="a") for _ in range(310)]
    assert [reply.delay_ms for reply in replies[:4]] == [0, 200, 300, 400]
    assert replies[-1].delay_ms == 30_000
    assert replies[1].headers["X-Fairvisor-Warning"] == "loop_throttle"


def test_policies_count_apart_and_a_reload_keeps_the_count() -> None:
    detection = {"enabled": True, "window_seconds": 10, "threshold_identical_requests": 3}
    document = [
        policy(name, bucket("r", "header:x-key"), path=f"/{name}", loop_detection=detection) for name in "pq"
    ]
    edge = Edge(*document)
    assert edge.admits(path="/p", key="a") == 2
    assert edge.admits(path="/q", key="a") == 2
    edge.reload(*document, bundle_version=2)
    assert edge.admits(path="/p", key="a") == 0


def test_switched_off_it_counts_nothing() -> None:
    assert Edge(policy("p", bucket("r"), loop_detection={"enabled": False})).ask().status == 204
    detection = {"enabled": False, "window_seconds": 10, "threshold_identical_requests": 2}
    assert Edge(policy("p", bucket("r", burst=9), loop_detection=detection)).admits() == 9


def test_a_full_table_is_counted_and_lets_pass() -> None:
    detection = {"enabled": True, "window_seconds": 10, "threshold_identical_requests": 2}
    edge = Edge(policy("p", loop_detection=detection), full=True)
    assert edge.admits(most=5) == 5
    assert edge.metric("table_full_total", policy="p", rule="loop_detection") == 5
