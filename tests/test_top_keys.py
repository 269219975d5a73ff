"""Who is rejected most: counted by each worker, told on its slate, merged over all."""

from __future__ import annotations

import struct

from edge import Edge, bucket, moment, policy
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.context import Context
from fairvisor.counters.layout import MIN_BYTES
from fairvisor.counters.segment import Segment
from fairvisor.counters.sketch import Frequent
from fairvisor.counters.slates import HEAD, MAX_TEXT_BYTES
from fairvisor.top_keys import MAX_VALUE, WINDOW_NS, Rejected, TopKeys, read_top_keys

SEGMENT_BYTES = 4 << 20  # four slates
WINDOW_S = WINDOW_NS // 10**9


def edge() -> Edge:
    return Edge(policy("api", bucket("per-key", "header:x-key", rate=0.001, burst=1)))


def reject(world: Edge, top_keys: TopKeys, key: str, times: int, at: float = 0) -> None:
    """Ask with this key until it was rejected so often, every decision noted."""
    world.admits(key=key, at=at)
    for _ in range(times):
        reply = world.ask(key=key, at=at)
        context = Context(
            "GET", "", "/v1/x", {"x-key": key.encode()}, "192.0.2.1", world.identity, moment(at), None
        )
        top_keys.note(reply.decision, context)


def rejected(key: str | None) -> Rejected:
    return Rejected("api", "per-key", "rate_limit_exceeded", (("header:x-key", key),))


def test_the_keys_of_all_workers_are_told_most_rejected_first() -> None:
    segment, world = Segment.private(SEGMENT_BYTES), edge()
    workers = [TopKeys(segment.slates, entry) for entry in range(2)]
    reject(world, workers[0], "a", 3)
    reject(world, workers[1], "a", 2)
    reject(world, workers[1], "b", 7)
    for worker in workers:
        worker.write(moment(1))
    since_ns, top = read_top_keys(segment.slates, moment(2))
    assert since_ns == moment(-WINDOW_S).wall_ns
    assert top == [Frequent(rejected("b"), 7, 0), Frequent(rejected("a"), 5, 0)]


def test_an_allowed_request_is_not_counted() -> None:
    segment, world = Segment.private(SEGMENT_BYTES), edge()
    worker = TopKeys(segment.slates, 0)
    context = Context("GET", "", "/v1/x", {"x-key": b"a"}, "192.0.2.1", world.identity, moment(0), None)
    worker.note(world.ask(key="a").decision, context)
    worker.write(moment(0))
    assert read_top_keys(segment.slates, moment(0))[1] == []


def test_what_is_older_than_two_windows_is_forgotten() -> None:
    segment, world = Segment.private(SEGMENT_BYTES), edge()
    worker = TopKeys(segment.slates, 0)
    worker.write(moment(0))
    reject(world, worker, "a", 3)
    worker.write(moment(1))
    reject(world, worker, "b", 1, at=2)
    for at, expected in ((WINDOW_S, {"a", "b"}), (2 * WINDOW_S, set())):
        worker.write(moment(at))
        top = read_top_keys(segment.slates, moment(at))[1]
        assert {each.key.keys[0][1] for each in top} == expected


def test_a_dead_workers_keys_are_told_until_they_are_too_old() -> None:
    segment, world = Segment.private(SEGMENT_BYTES), edge()
    worker = TopKeys(segment.slates, 0)
    worker.write(moment(0))
    reject(world, worker, "a", 1)
    worker.write(moment(0))
    assert len(read_top_keys(segment.slates, moment(WINDOW_S))[1]) == 1
    assert read_top_keys(segment.slates, moment(2 * WINDOW_S))[1] == []


def test_a_new_worker_wipes_what_the_last_one_of_its_entry_left() -> None:
    segment, world = Segment.private(SEGMENT_BYTES), edge()
    worker = TopKeys(segment.slates, 0)
    reject(world, worker, "a", 1)
    worker.write(moment(0))
    TopKeys(segment.slates, 0).write(moment(0))
    assert read_top_keys(segment.slates, moment(0))[1] == []


def test_a_worker_without_a_slate_tells_nobody_and_goes_on() -> None:
    segment, world = Segment.private(MIN_BYTES), edge()
    for entry in (None, 0, 511):
        worker = TopKeys(segment.slates, entry)
        reject(world, worker, "a", 1)
        worker.write(moment(0))
    assert read_top_keys(segment.slates, moment(0))[1] == []


def test_long_keys_are_cut_and_the_least_rejected_left_out() -> None:
    segment, world = Segment.private(SEGMENT_BYTES), edge()
    worker = TopKeys(segment.slates, 0)
    for number in range(64):
        reject(world, worker, f"{number:02}" + "x" * 500, 1 + number)
    worker.write(moment(0))
    top = read_top_keys(segment.slates, moment(0))[1]
    assert 30 < len(top) < 64
    assert [each.hits for each in top] == [*range(64, 64 - len(top), -1)]
    assert top[0].key == rejected("63" + "x" * 254)


# slates


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=200))))
def test_a_slate_holds_what_was_written_last(writes: list[tuple[int, bytes]]) -> None:
    slates = Segment.private(SEGMENT_BYTES).slates
    expected: dict[int, bytes] = {}
    for entry, text in writes:
        assert slates.write(entry, text)
        expected[entry] = text
    assert [slates.read(entry) for entry in range(4)] == [expected.get(entry, b"") for entry in range(4)]
    assert list(slates.texts()) == [text for _, text in sorted(expected.items()) if text]


def test_a_slate_that_is_half_written_reads_as_empty() -> None:
    segment = Segment.private(SEGMENT_BYTES)
    slates = segment.slates
    slates.write(0, b"x" * MAX_TEXT_BYTES)
    at = segment.geometry.slates_at
    segment._memory[at + HEAD.size] = ord("y")
    assert slates.read(0) == b""
    struct.pack_into("<Q", segment._memory, at, 1 << 60)
    assert slates.read(0) == b""


def test_a_long_key_is_cut_where_it_is_remembered() -> None:
    segment, world = Segment.private(SEGMENT_BYTES), edge()
    worker = TopKeys(segment.slates, 0)
    reject(world, worker, "x" * 10_000, 1)
    (kept,) = worker._named.values()
    assert [len(value or "") for _, value in kept.keys] == [MAX_VALUE]
