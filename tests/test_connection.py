"""One connection: framing, order, waiting, limits and closing, against a transport and a loop that only take notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.clock import Now
from fairvisor.errors import RequestError
from fairvisor.http.channel import MAX_QUEUED
from fairvisor.http.connection import BODY_WAIT_S, MAX_AT_ONCE, Connection
from fairvisor.http.hub import HIGH_WATER_BYTES, LINGER_S, BodyRule, Hub, Limits
from fairvisor.http.pages import Sliced
from fairvisor.http.pieces import Pieces
from fairvisor.http.request import Peer, Request
from fairvisor.response import Answer, error_answer

HEADER_TIMEOUT_MS = 10_000
IDLE_TIMEOUT_MS = 60_000
BODY_LIMIT = 100
MAX_HEAD_BYTES = Limits(1, 1, 1).max_head_bytes

ASK = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"


class Timer:
    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Timers that ring when the test says so; the clock of the hub is the same."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        timer = Timer(self.seconds + delay, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        for timer in sorted(self.timers, key=lambda timer: timer.at):
            if timer.at <= self.seconds and not timer.cancelled:
                timer.cancelled = True
                timer.callback()

    def now(self) -> Now:
        return Now(int(self.seconds * 1e9), 1_700_000_000_000_000_000 + int(self.seconds * 1e9))


class Transport:
    def __init__(self, peername: object = ("192.0.2.1", 4711)) -> None:
        self.peername = peername
        self.high_water = 1 << 40  # unread bytes from which on the protocol is told to pause
        self.protocol: Connection | None = None
        self.pieces: asyncio.BufferedProtocol | None = None
        self.unread = 0
        self.write_paused = False
        self.writes: list[bytes] = []
        self.closed = self.aborted = self.half_closed = self.paused = False

    def get_extra_info(self, name: str) -> object:
        return self.peername

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_protocol(self) -> asyncio.BaseProtocol | None:
        return self.protocol if self.pieces is None else self.pieces

    def set_protocol(self, protocol: asyncio.BufferedProtocol) -> None:
        assert self.paused, "the loop may be reading in the old way"
        self.pieces = protocol

    def write(self, data: bytes) -> None:
        assert not self.closed, "nothing is written after the end"
        self.writes.append(data)
        self.unread += len(data)
        if self.unread > self.high_water and not self.write_paused and self.protocol is not None:
            self.write_paused = True
            self.protocol.pause_writing()

    def read_all(self) -> None:
        """The client reads what there is."""
        self.unread = 0
        if self.write_paused and self.protocol is not None:
            self.write_paused = False
            self.protocol.resume_writing()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    @property
    def text(self) -> bytes:
        return b"".join(self.writes)


class Service:
    """Answers with the target; `/wait/<ms>` waits, `/reject` has a body, `/page` is made later and is large, `/strict`
    and `/none` set the body rule."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refused: list[tuple[str, str, str]] = []  # reason, peer, target
        self.pages_begun = 0

    def _page(self) -> Iterator[bytes]:
        self.pages_begun += 1
        yield b"x" * 70_000

    def answer(self, request: Request, now: Now) -> Answer | Sliced:
        self.requests.append(request)
        if request.target == "/page":
            return Sliced("", self._page(), lambda error: None)
        head = f"X-Target: {request.target}\r\n"
        if request.target.startswith("/wait/"):
            return Answer(204, head, b"", int(request.target.rpartition("/")[2]))
        if request.target.startswith("/reject"):
            return Answer(429, head, b"no")
        return Answer(204, head)

    def refusal(self, error: RequestError, peer: Peer, now: Now, target: str) -> Answer:
        self.refused.append((error.reason, peer.address, target))
        return error_answer(error)

    def peer(self, address: str) -> Peer:
        return Peer(address, True)

    def body_rule(self, target: str) -> BodyRule:
        if target == "/none":
            return BodyRule(0)
        return BodyRule(BODY_LIMIT, strict=target == "/strict")


class Setup:
    """A worker with one client."""

    def __init__(self, max_waiting: int = 100, limits: Limits | None = None) -> None:
        self.loop = Loop()
        self.service = Service()
        limits = limits or Limits(HEADER_TIMEOUT_MS, IDLE_TIMEOUT_MS, max_waiting)
        self.hub = Hub(self.service, limits, self.loop.now)
        self.hub.loop = self.loop  # type: ignore[assignment]
        self.connection, self.transport = self.connect()

    def connect(self, peername: object = ("192.0.2.1", 4711)) -> tuple[Connection, Transport]:
        connection, transport = Connection(self.hub), Transport(peername)
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    def send(self, data: bytes) -> bytes:
        """What the client gets for it."""
        before = len(self.transport.text)
        self.connection.data_received(data)
        self.turns()
        return self.transport.text[before:]

    def turns(self) -> None:
        """The loop does what it has to do at once."""
        while any(timer.at <= self.loop.seconds and not timer.cancelled for timer in self.loop.timers):
            self.loop.advance(0)

    def later(self, seconds: float) -> bytes:
        before = len(self.transport.text)
        self.loop.advance(seconds)
        self.turns()
        self.hub.tick()
        return self.transport.text[before:]

    @property
    def targets(self) -> list[str]:
        return answered(self.transport.text)


def answered(text: bytes) -> list[str]:
    lines = text.decode("latin-1").split("\r\n")
    return [line.removeprefix("X-Target: ") for line in lines if line.startswith("X-Target: ")]


@pytest.fixture
def client() -> Setup:
    return Setup()


def test_a_request_is_answered_with_one_write(client: Setup) -> None:
    answer = client.send(ASK % 1)
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\nDate: ")
    assert b"\r\nCache-Control: no-store\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length" not in answer
    assert len(client.transport.writes) == 1
    assert not client.transport.closed


def test_pipelined_requests_are_answered_in_order_with_one_write(client: Setup) -> None:
    client.send(b"".join(ASK % number for number in range(5)))
    assert client.targets == ["/0", "/1", "/2", "/3", "/4"]
    assert len(client.transport.writes) == 1


def test_headers_are_lower_case_trimmed_and_joined_in_order(client: Setup) -> None:
    client.send(b"GET / HTTP/1.1\r\nX-Key:  one \t\r\nx-key: two\r\nOTHER: \xff\r\n\r\n")
    assert client.service.requests[0].headers == {"x-key": b"one, two", "other": b"\xff"}


def test_the_peer_is_the_address_of_the_connection() -> None:
    setup = Setup()
    unix, _ = setup.connect("")
    unix.data_received(ASK % 1)
    setup.send(ASK % 2)
    assert [request.peer.address for request in setup.service.requests] == ["", "192.0.2.1"]


STREAM = (
    ASK % 1
    + b"POST /body HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    + b"POST /chunked HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    + b"HEAD /reject HTTP/1.1\r\nX-Key: a\r\nX-Key: b\r\n\r\n"
    + b"GET /last?q=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
)


def fed(stream: bytes, cuts: list[int]) -> Setup:
    setup = Setup()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in pairwise(edges):
        if start != end:
            setup.connection.data_received(stream[start:end])
    return setup


@given(st.lists(st.integers(min_value=0), max_size=12))
def test_where_the_bytes_are_cut_makes_no_difference(cuts: list[int]) -> None:
    whole, cut = fed(STREAM, []), fed(STREAM, cuts)
    assert cut.transport.text == whole.transport.text
    assert [(r.method, r.target, r.headers, r.body) for r in cut.service.requests] == [
        (r.method, r.target, r.headers, r.body) for r in whole.service.requests
    ]
    assert cut.targets == ["/1", "/body", "/chunked", "/reject", "/last?q=1"]
    assert cut.transport.closed


def test_byte_by_byte(client: Setup) -> None:
    for position in range(len(STREAM)):
        client.connection.data_received(STREAM[position : position + 1])
    assert client.transport.text == fed(STREAM, []).transport.text


def test_bodies_reach_the_service() -> None:
    bodies = [request.body for request in fed(STREAM, []).service.requests]
    assert bodies == [None, b"hello", b"abcde", None, None]


MALFORMED = [
    b"\x00\x01\x02\x03\r\n\r\n",
    b"hello\r\n\r\n",
    b"GET\r\n\r\n",
    b"get / HTTP/1.1\r\n\r\n",
    b"FOO / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9\r\n\r\n",
    b"GET / HTTX/1.1\r\n\r\n",
    b"GET /a b HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\nHost: a\n\n",
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
    b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("stream", MALFORMED)
def test_malformed_input_gets_400_after_what_was_asked_before_and_the_connection_ends(stream: bytes) -> None:
    setup = fed(ASK % 1 + stream, [])
    assert setup.targets == ["/1"]
    assert b"HTTP/1.1 400 Bad Request\r\n" in setup.transport.text
    assert b"Connection: close\r\n" in setup.transport.text
    assert b'"message":"malformed HTTP' in setup.transport.text
    assert setup.transport.half_closed
    setup.later(LINGER_S)
    assert setup.transport.closed


@given(st.sampled_from(MALFORMED), st.lists(st.integers(min_value=0), max_size=8))
def test_malformed_input_in_pieces(stream: bytes, cuts: list[int]) -> None:
    setup = fed(ASK % 1 + stream, cuts)
    assert setup.targets == ["/1"]
    assert setup.transport.text.count(b"HTTP/1.1 400") == 1


@given(st.binary(max_size=200), st.lists(st.integers(min_value=0), max_size=4))
def test_no_bytes_raise(stream: bytes, cuts: list[int]) -> None:
    setup = fed(stream, cuts)
    setup.later(HEADER_TIMEOUT_MS / 1000 + 1)
    setup.connection.connection_lost(None)
    assert setup.hub.connections == set()
    assert setup.hub.waiting == 0


def test_the_service_learns_who_sent_what_could_not_be_read_and_for_what(client: Setup) -> None:
    others = [client.connect()[0] for _ in range(3)]
    client.send(b"bad\r\n\r\n")
    others[0].data_received(b"GET /" + b"a" * MAX_HEAD_BYTES)
    others[1].data_received(post("/strict", "Content-Length: 10", body=b"abc"))
    client.later(BODY_WAIT_S)
    others[2].data_received(b"GET / HTTP/1.1\r\n")
    client.later(HEADER_TIMEOUT_MS / 1000 + 1)
    assert client.service.refused == [
        ("malformed", "192.0.2.1", ""),
        ("head_too_large", "192.0.2.1", ""),
        ("timeout", "192.0.2.1", "/strict"),
        ("timeout", "192.0.2.1", ""),
    ]


def test_nothing_is_read_after_a_refusal(client: Setup) -> None:
    client.send(b"bad\r\n\r\n")
    assert client.send(ASK % 1) == b""
    assert client.service.requests == []


# waiting


def test_a_throttled_answer_waits_and_holds_nobody_else(client: Setup) -> None:
    other, transport = client.connect()
    assert client.send(b"GET /wait/500 HTTP/1.1\r\n\r\n") == b""
    other.data_received(ASK % 1)
    assert answered(transport.text) == ["/1"]
    assert client.later(0.4) == b""
    assert answered(client.later(0.2)) == ["/wait/500"]


def test_answers_behind_one_that_waits_keep_their_order(client: Setup) -> None:
    client.send(ASK % 1 + b"GET /wait/500 HTTP/1.1\r\n\r\n" + ASK % 2 + b"GET /wait/200 HTTP/1.1\r\n\r\n")
    client.send(ASK % 3)
    assert client.targets == ["/1"]
    assert client.later(0.3) == b""
    assert answered(client.later(0.3)) == ["/wait/500", "/2", "/wait/200", "/3"]
    assert client.hub.waiting == 0


def test_the_second_of_two_waits_may_be_the_longer_one(client: Setup) -> None:
    client.send(b"GET /wait/200 HTTP/1.1\r\n\r\nGET /wait/500 HTTP/1.1\r\n\r\n" + ASK % 1)
    assert answered(client.later(0.3)) == ["/wait/200"]
    assert answered(client.later(0.3)) == ["/wait/500", "/1"]


def test_all_were_decided_when_they_came(client: Setup) -> None:
    client.send(b"GET /wait/500 HTTP/1.1\r\n\r\n" + ASK % 1)
    assert len(client.service.requests) == 2


def test_when_every_seat_is_taken_an_answer_goes_at_once() -> None:
    setup = Setup(max_waiting=1)
    other, transport = setup.connect()
    setup.send(b"GET /wait/500 HTTP/1.1\r\n\r\n")
    other.data_received(b"GET /wait/400 HTTP/1.1\r\n\r\n")
    assert answered(transport.text) == ["/wait/400"]
    assert setup.hub.waiting == 1


def test_a_client_that_leaves_gives_its_seat_back(client: Setup) -> None:
    client.send(b"GET /wait/500 HTTP/1.1\r\n\r\n")
    client.connection.connection_lost(ConnectionResetError())
    assert client.hub.waiting == 0
    assert client.later(1) == b""


def test_a_half_closed_client_still_gets_what_waits(client: Setup) -> None:
    client.send(b"GET /wait/500 HTTP/1.1\r\n\r\n" + ASK % 1)
    assert client.connection.eof_received()
    assert answered(client.later(0.6)) == ["/wait/500", "/1"]
    assert client.transport.closed


def test_a_half_closed_client_without_waiting_answers_is_closed(client: Setup) -> None:
    client.send(ASK % 1)
    assert not client.connection.eof_received()


def test_a_refusal_keeps_its_place_behind_what_waits(client: Setup) -> None:
    client.send(b"GET /wait/500 HTTP/1.1\r\n\r\nbad\r\n\r\n")
    assert client.transport.text == b""
    text = client.later(0.6)
    assert text.index(b"204") < text.index(b"400")


def test_too_many_queued_answers_stop_reading(client: Setup) -> None:
    client.send(b"GET /wait/500 HTTP/1.1\r\n\r\n" + ASK % 1 * (MAX_QUEUED - 2))
    assert not client.transport.paused
    client.send(ASK % 2)
    assert client.transport.paused
    assert len(answered(client.later(0.6))) == MAX_QUEUED
    assert not client.transport.paused


# limits


def test_a_head_of_64_kib_passes_and_one_more_header_does_not() -> None:
    filler = b"X-Filler: " + b"a" * (MAX_HEAD_BYTES - 200) + b"\r\n"
    fits = b"GET / HTTP/1.1\r\n" + filler + b"\r\n"
    assert b"204" in Setup().send(fits)
    over = b"GET / HTTP/1.1\r\n" + filler + b"X-More: " + b"a" * 300 + b"\r\n\r\n"
    setup = Setup()
    assert b"HTTP/1.1 431 " in setup.send(over)
    assert setup.service.requests == []


@pytest.mark.parametrize("piece", [100, 1000, 16_000])
def test_a_head_that_never_ends_is_refused_before_it_is_stored(client: Setup, piece: int) -> None:
    client.send(b"GET / HTTP/1.1\r\nX-Filler: ")
    sent = 0
    while not client.transport.writes:
        client.send(b"a" * piece)
        sent += piece
        assert sent <= MAX_HEAD_BYTES + piece
    assert b"HTTP/1.1 431 " in client.transport.text
    assert client.transport.half_closed


def test_a_large_head_in_two_pieces_is_measured_whole(client: Setup) -> None:
    client.send(b"GET / HTTP/1.1\r\nA: " + b"a" * 40_000)
    assert b"431" in client.send(b"b" * 40_000 + b"\r\n\r\n")


def test_a_long_pipeline_is_no_large_head(client: Setup) -> None:
    client.send(ASK % 1 * 1000)
    assert client.targets == ["/1"] * 1000


def test_a_head_that_comes_too_slowly_is_given_up(client: Setup) -> None:
    """One byte a second: every byte arrives, the head never does."""
    seconds = 0
    for byte in b"GET / HTTP/1.1\r\nHost: example.com\r\n":
        client.send(bytes([byte]))
        client.later(1)
        seconds += 1
        if client.transport.writes:
            break
    assert b"HTTP/1.1 408 " in client.transport.text
    assert seconds <= HEADER_TIMEOUT_MS / 1000 + 6
    assert client.transport.half_closed


@pytest.mark.parametrize("drop", [b"\r\n", b"\r\n\r\n", b"\n", b"G"])
def test_no_drop_before_a_request_line_keeps_a_connection(client: Setup, drop: bytes) -> None:
    seconds = 0.0
    while not client.transport.half_closed:
        client.send(drop)
        client.later(0.4)
        seconds += 0.4
        assert seconds <= HEADER_TIMEOUT_MS / 1000 + 2


def test_an_empty_line_before_a_request_is_ignored(client: Setup) -> None:
    client.send(b"\r\n")
    client.send(ASK % 1)
    client.later(HEADER_TIMEOUT_MS / 1000 + 5)
    assert client.targets == ["/1"]
    assert not client.transport.half_closed


def test_bodies_and_heads_that_are_not_whole_have_a_bound_together() -> None:
    setup = Setup(limits=Limits(HEADER_TIMEOUT_MS, IDLE_TIMEOUT_MS, 100, max_kept_bytes=10_000))
    clients = [setup.connect() for _ in range(300)]
    for number, (connection, _) in enumerate(clients):
        start = b"POST / HTTP/1.1\r\nContent-Length: 101\r\n\r\n" if number % 2 else b"GET / HTTP/1.1\r\nX: "
        connection.data_received(start + b"x" * 80)
        assert setup.hub.kept.total_bytes <= 10_000
    ended = [transport for _, transport in clients if b"HTTP/1.1 503 " in transport.text]
    assert len(ended) > 100
    assert b"Retry-After: 1\r\n" in ended[0].text
    for connection, _ in clients:
        connection.connection_lost(None)
    assert setup.hub.kept.total_bytes == 0


def test_a_trailer_without_end_is_refused(client: Setup) -> None:
    client.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: ")
    sent = 0
    while not client.transport.writes:
        client.send(b"b" * 1000)
        sent += 1000
        assert sent <= MAX_HEAD_BYTES + 1000
    assert b"HTTP/1.1 431 " in client.transport.text


def test_an_unused_connection_is_closed(client: Setup) -> None:
    client.send(ASK % 1)
    client.later(IDLE_TIMEOUT_MS / 1000 - 1)
    assert not client.transport.closed
    client.later(2)
    assert client.transport.closed


def test_a_waiting_connection_is_not_unused() -> None:
    setup = Setup()
    setup.send(b"GET /wait/%d HTTP/1.1\r\n\r\n" % (IDLE_TIMEOUT_MS * 2))
    setup.later(IDLE_TIMEOUT_MS / 1000 + 1)
    assert not setup.transport.closed


def test_a_client_that_does_not_read_is_not_read_from_and_then_dropped(client: Setup) -> None:
    client.connection.pause_writing()
    assert client.transport.paused
    client.later(HEADER_TIMEOUT_MS / 1000 + 1)
    assert client.transport.aborted


def test_nothing_is_answered_while_a_client_does_not_read(client: Setup) -> None:
    """A pipeline of 256 KB, as much as a loop reads at once: after 64 KB of answers it stays where it is."""
    client.transport.high_water = HIGH_WATER_BYTES
    client.transport.protocol = client.connection
    client.send(ASK % 1 * 9000)
    assert client.transport.paused
    assert len(client.service.requests) < 2000
    answered_before = len(client.service.requests)
    assert client.hub.kept.total_bytes > 200_000
    client.later(1)
    assert len(client.service.requests) == answered_before
    while client.transport.paused:
        client.transport.read_all()
        client.turns()
    assert client.targets == ["/1"] * 9000
    assert client.hub.kept.total_bytes == 0


def test_a_long_pipeline_lets_others_be_answered_in_between(client: Setup) -> None:
    client.connection.data_received(ASK % 1 * 1000)
    first = len(client.service.requests)
    assert first <= MAX_AT_ONCE + 20  # with those of the piece that the parser has
    other, transport = client.connect()
    other.data_received(ASK % 2)
    assert transport.text
    assert len(client.service.requests) == first + 1
    client.turns()
    assert client.targets == ["/1"] * 1000


def test_what_comes_after_the_end_is_read_a_piece_in_a_turn(client: Setup) -> None:
    """Two hundred clients whose connections were closing once had 44 MB read in one turn of the loop."""
    client.transport.protocol = client.connection
    client.connection.data_received(b"no request\r\n\r\n")
    assert client.transport.half_closed
    for _ in range(3):
        client.connection.data_received(b"x" * 256_000)
        assert client.transport.paused
        assert isinstance(client.transport.pieces, Pieces)
        client.turns()
        assert not client.transport.paused


def test_a_pipeline_that_waits_for_a_client_to_read_is_no_slow_head(client: Setup) -> None:
    client.transport.high_water = HIGH_WATER_BYTES
    client.transport.protocol = client.connection
    client.send(ASK % 1 * 2000 + b"GET /last HTTP/1.1\r\nHo")
    while client.transport.paused:
        client.later(HEADER_TIMEOUT_MS / 1000 - 1)
        client.transport.read_all()
        client.turns()
    client.later(HEADER_TIMEOUT_MS / 1000 - 1)
    client.send(b"st: a\r\n\r\n")
    assert client.targets[-1] == "/last"


def test_pages_are_made_one_at_a_time_and_only_for_a_client_that_reads(client: Setup) -> None:
    client.transport.high_water = HIGH_WATER_BYTES
    client.transport.protocol = client.connection
    client.send(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    for pages in (1, 2, 3):  # of 70,000 bytes: the client has not read the last one
        assert client.service.pages_begun == pages
        client.transport.read_all()
        client.turns()


def test_a_client_that_does_not_read_the_end_is_dropped(client: Setup) -> None:
    """Closing waits until everything is written; a client that reads nothing must not keep it waiting for ever."""
    client.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    client.later(1)
    assert not client.transport.aborted
    client.later(HEADER_TIMEOUT_MS / 1000)
    assert client.transport.aborted


def test_a_fault_of_ours_is_not_called_malformed(client: Setup) -> None:
    client.service.answer = lambda request, now: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    broken, transport = client.connect()
    with pytest.raises(httptools.HttpParserCallbackError):
        broken.data_received(b"GET / HTTP/1.0\r\n\r\n")
    assert transport.aborted
    assert transport.writes == []


def test_a_client_that_reads_again_is_read_from_again(client: Setup) -> None:
    client.connection.pause_writing()
    client.connection.resume_writing()
    assert not client.transport.paused
    assert b"204" in client.send(ASK % 1)


# versions and closing


def test_http_1_0_is_answered_and_closed(client: Setup) -> None:
    assert b"Connection: close\r\n" in client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.transport.closed


def test_http_1_0_may_ask_to_stay(client: Setup) -> None:
    assert b"Connection: keep-alive\r\n" in client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert not client.transport.closed


def test_http_1_1_need_not_be_told_that_it_stays(client: Setup) -> None:
    assert b"Connection" not in client.send(b"GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n")


def test_connection_close_ends_after_the_answer(client: Setup) -> None:
    assert b"Connection: close\r\n" in client.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert client.transport.closed


def test_close_waits_for_a_throttled_answer(client: Setup) -> None:
    client.send(b"GET /wait/500 HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert not client.transport.closed
    assert answered(client.later(0.6)) == ["/wait/500"]
    assert client.transport.closed


def test_an_upgrade_is_answered_as_http_and_ends(client: Setup) -> None:
    answer = client.send(b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello")
    assert answer.startswith(b"HTTP/1.1 204")
    assert client.transport.closed


def test_connect_is_answered_and_ends(client: Setup) -> None:
    assert b"204" in client.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert client.transport.closed


def test_head_has_the_length_and_no_body(client: Setup) -> None:
    assert client.send(b"GET /reject HTTP/1.1\r\n\r\n").endswith(b"Content-Length: 2\r\n\r\nno")
    assert client.send(b"HEAD /reject HTTP/1.1\r\n\r\n").endswith(b"Content-Length: 2\r\n\r\n")


# bodies


def post(target: str, *lines: str, body: bytes = b"") -> bytes:
    return (
        f"POST {target} HTTP/1.1\r\n".encode()
        + "".join(f"{line}\r\n" for line in lines).encode()
        + b"\r\n"
        + body
    )


def test_100_continue_is_sent_when_the_body_is_wanted(client: Setup) -> None:
    assert (
        client.send(post("/", "Content-Length: 2", "Expect: 100-continue"))
        == b"HTTP/1.1 100 Continue\r\n\r\n"
    )
    assert b"204" in client.send(b"ab")
    assert client.service.requests[0].body == b"ab"


def test_100_continue_is_not_sent_when_the_body_is_here(client: Setup) -> None:
    assert b"100 Continue" not in client.send(
        post("/", "Content-Length: 2", "Expect: 100-continue", body=b"ab")
    )


def test_only_the_first_bytes_of_a_long_body_count(client: Setup) -> None:
    client.send(post("/", "Content-Length: 250", body=b"a" * 90))
    client.send(b"b" * 160)
    assert client.service.requests[0].body == b"a" * 90 + b"b" * 10
    assert not client.transport.closed


@pytest.mark.parametrize("expect", [("Expect: 100-continue",), ()])
@pytest.mark.parametrize("body", [b"", b"a" * (BODY_LIMIT + 1)])
def test_a_strict_endpoint_refuses_a_declared_length_at_once(
    client: Setup, expect: tuple[str, ...], body: bytes
) -> None:
    answer = client.send(post("/strict", f"Content-Length: {BODY_LIMIT + 1}", *expect, body=body))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert client.service.requests == []
    assert client.transport.half_closed


def test_a_strict_endpoint_refuses_chunks_that_exceed_it(client: Setup) -> None:
    client.send(post("/strict", "Transfer-Encoding: chunked", body=b"32\r\n" + b"a" * 50 + b"\r\n"))
    assert client.transport.writes == []
    assert client.send(b"33\r\n" + b"a" * 51 + b"\r\n").startswith(b"HTTP/1.1 413 ")


def test_a_strict_endpoint_takes_exactly_its_limit(client: Setup) -> None:
    assert b"204" in client.send(post("/strict", f"Content-Length: {BODY_LIMIT}", body=b"a" * BODY_LIMIT))


def test_a_body_that_is_late_is_done_without(client: Setup) -> None:
    client.send(post("/", "Content-Length: 10"))
    assert client.later(BODY_WAIT_S / 2) == b""
    answer = client.later(BODY_WAIT_S / 2)
    assert answered(answer) == ["/"]
    assert b"Connection: close\r\n" in answer
    assert client.service.requests[0].body is None
    assert client.transport.half_closed


@pytest.mark.parametrize(
    ("length", "sent", "kept", "missing"),
    [
        ("Content-Length: 10", b"abc", b"abc", 7),
        (f"Content-Length: {BODY_LIMIT + 50}", b"a" * (BODY_LIMIT + 10), b"a" * BODY_LIMIT, 50),
        ("Transfer-Encoding: chunked", b"3\r\nabc\r\n", b"abc", 1),
    ],
)
def test_a_body_that_is_late_counts_as_far_as_it_came(
    client: Setup, length: str, sent: bytes, kept: bytes, missing: int
) -> None:
    client.send(post("/", length, body=sent))
    assert answered(client.later(BODY_WAIT_S)) == ["/"]
    request = client.service.requests[0]
    assert (request.body, request.cut_bytes) == (kept, missing)


@pytest.mark.parametrize("size", [BODY_LIMIT - 1, BODY_LIMIT, BODY_LIMIT + 1])
def test_a_body_says_how_much_of_it_was_cut(client: Setup, size: int) -> None:
    client.send(post("/", f"Content-Length: {size}", body=b"a" * size))
    client.send(post("/", "Transfer-Encoding: chunked", body=b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"a" * size)))
    found = [(len(request.body or b""), request.cut_bytes) for request in client.service.requests]
    assert found == [(min(size, BODY_LIMIT), max(0, size - BODY_LIMIT))] * 2


def test_a_strict_endpoint_cannot_do_without(client: Setup) -> None:
    client.send(post("/strict", "Content-Length: 10", body=b"abc"))
    assert client.later(BODY_WAIT_S).startswith(b"HTTP/1.1 408 ")


def test_an_endpoint_that_reads_no_body_does_not_wait_for_one(client: Setup) -> None:
    """nginx sends the client's Content-Length with a subrequest that has no body."""
    answer = client.send(post("/none", "Content-Length: 10"))
    assert answered(answer) == ["/none"]
    assert b"Connection: close\r\n" in answer
    assert client.transport.half_closed


def test_an_endpoint_that_reads_no_body_ignores_one_that_is_here(client: Setup) -> None:
    answer = client.send(post("/none", "Content-Length: 2", body=b"ab") + ASK % 1)
    assert answered(answer) == ["/none", "/1"]
    assert client.service.requests[0].body is None
    assert answered(client.send(post("/none", "Content-Length: 2", body=b"ab"))) == ["/none"]
    assert client.service.requests[2].body is None


def test_trailers_without_end_are_refused(client: Setup) -> None:
    client.send(post("/", "Transfer-Encoding: chunked", body=b"1\r\na\r\n0\r\n"))
    assert b"HTTP/1.1 431 " in client.send(b"A: b\r\n" * 200)


def test_a_client_that_leaves_in_a_body_leaves_nothing_behind(client: Setup) -> None:
    client.send(post("/", "Content-Length: 10", body=b"abc"))
    client.connection.connection_lost(None)
    assert client.later(BODY_WAIT_S) == b""
    assert client.service.requests == []


# stopping


def test_when_the_worker_stops_the_next_answer_is_the_last(client: Setup) -> None:
    client.hub.stop()
    assert b"Connection: close\r\n" in client.send(ASK % 1)
    assert client.transport.closed


def test_when_the_worker_stops_an_unused_connection_has_a_moment(client: Setup) -> None:
    client.hub.stop()
    assert not client.transport.closed
    client.later(LINGER_S)
    client.later(0.001)
    assert client.transport.closed


def test_what_came_in_that_moment_is_read_by_a_loop_that_is_late(client: Setup) -> None:
    """A loop without a processor for a while calls what is due before it reads."""
    client.hub.stop()
    client.later(LINGER_S)
    assert b"Connection: close\r\n" in client.send(ASK % 1)
    assert client.targets == ["/1"]


def test_when_the_worker_stops_what_waits_is_still_answered(client: Setup) -> None:
    client.send(b"GET /wait/5000 HTTP/1.1\r\n\r\n")
    client.hub.stop()
    client.later(LINGER_S)
    assert not client.transport.closed
    assert answered(client.later(5)) == ["/wait/5000"]
    assert client.transport.closed


def test_shedding_tells_as_many_connections_as_asked_to_come_again(client: Setup) -> None:
    other, transport = client.connect()
    client.hub.shed(1)
    assert b"Connection: close\r\n" in client.send(ASK % 1)
    assert client.transport.closed
    other.data_received(ASK % 2)
    assert b"Connection" not in transport.text
    assert not transport.closed


def test_the_date_moves_on(client: Setup) -> None:
    def date(answer: bytes) -> str:
        return next(line for line in answer.decode().split("\r\n") if line.startswith("Date: "))

    first = date(client.send(ASK % 1))
    client.later(1)
    assert date(client.send(ASK % 1)) != first


def test_it_runs_on_a_real_loop() -> None:
    """The same protocol behind asyncio's own streams: two requests, one of them throttled."""

    async def talk() -> bytes:
        loop = asyncio.get_running_loop()
        hub = Hub(Service(), Limits(HEADER_TIMEOUT_MS, IDLE_TIMEOUT_MS, 10), Loop().now)
        hub.loop = loop
        server: Any = await loop.create_server(lambda: Connection(hub), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET /wait/10 HTTP/1.1\r\n\r\nGET /two HTTP/1.1\r\nConnection: close\r\n\r\n")
        text = await reader.read()
        writer.close()
        server.close()
        return text

    assert answered(asyncio.run(talk())) == ["/wait/10", "/two"]
