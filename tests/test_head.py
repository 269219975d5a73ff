"""The one-pass reader of plain requests: what it accepts, httptools reads the same; what is in doubt it leaves."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairvisor.http._head import parse

PLAIN = b"GET /v1/decision?a=b HTTP/1.1\r\nHost: h\r\nX-Original-URI:  /x y\t \r\nX-Empty:\r\n\r\n"
BODY = b'{"model": "m"}\r\n'
POST = PLAIN.replace(b"GET", b"POST").replace(b"X-Empty:", b"Content-Length: %d" % len(BODY)) + BODY


class Collected:
    """What httptools makes of the same bytes."""

    def __init__(self, data: bytes) -> None:
        self.target, self.headers, self.body, self.complete = b"", {}, b"", 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method().decode()
        self.keeps_alive = parser.should_keep_alive()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert name.lower().decode() not in self.headers
        self.headers[name.lower().decode()] = value.strip(b" \t")

    def on_body(self, chunk: bytes) -> None:
        self.body += chunk

    def on_message_complete(self) -> None:
        self.complete += 1


def assert_same(data: bytes) -> None:
    head = parse(data)
    if head is not None:
        full = Collected(data)
        assert (full.method, full.target.decode(), full.headers, full.body or None) == head
        assert full.complete == 1
        assert full.keeps_alive


def test_a_plain_request_is_read_with_names_in_lower_case_and_values_without_white_space_around() -> None:
    headers = {"host": b"h", "x-original-uri": b"/x y", "x-empty": b""}
    assert parse(PLAIN) == ("GET", "/v1/decision?a=b", headers, None)
    assert_same(PLAIN)


def test_a_body_that_is_wholly_there_comes_with_its_head() -> None:
    headers = {"host": b"h", "x-original-uri": b"/x y", "content-length": b"16"}
    assert parse(POST) == ("POST", "/v1/decision?a=b", headers, BODY)
    assert_same(POST)


def test_a_body_may_be_longer_than_a_head() -> None:
    body = b"a" * 100_000
    data = b"PUT / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + body
    assert parse(data) == ("PUT", "/", {"content-length": b"100000"}, body)
    assert_same(data)


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: 15",
        b"Content-Length: 17",
        b"Content-Length: 016",
        b"Content-Length: +16",
        b"Content-Length: 1 6",
        b"Content-Length: 16, 16",
        b"Content-Length: 0x10",
        b"Content-Length: 18446744073709551632",
        b"Content-Length: 1000000000016",
        b"Content-Length:",
        b"Content-Length: 16\r\nContent-Length: 16",
        b"Content-Length: 16\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked",
        b"X-Empty:",
    ],
)
def test_a_body_whose_length_is_in_doubt_is_left_to_the_parser(line: bytes) -> None:
    assert parse(POST.replace(b"Content-Length: 16", line)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"Connection: close",
        b"content-length: 0",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Keep-Alive: 5",
        b"TE: x",
        b"Trailer: x",
    ],
)
def test_a_field_that_says_how_to_read_on_is_left_to_the_parser(line: bytes) -> None:
    assert parse(PLAIN.replace(b"X-Empty:", line)) is None


@pytest.mark.parametrize(
    "data",
    [
        PLAIN[:-1],
        PLAIN + b"G",
        PLAIN + PLAIN,
        b"\r\n" + PLAIN,
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        PLAIN.replace(b"GET", b"get"),
        PLAIN.replace(b"GET", b"HEAD"),
        PLAIN.replace(b"GET", b"CONNECT"),
        PLAIN.replace(b"/v1", b"http://h/v1"),
        PLAIN.replace(b"/v1", b"/\xe9"),
        PLAIN.replace(b"X-Empty:", b"X-Empty :"),
        PLAIN.replace(b"X-Empty:", b" folded"),
        PLAIN.replace(b"X-Empty:", b":"),
        PLAIN.replace(b"X-Empty:", b"host: again"),
        PLAIN.replace(b"X-Empty:", b"X-Empty: \x00"),
        PLAIN.replace(b"X-Empty:", b"X-Empty: \r"),
        PLAIN.replace(b"X-Empty:", b"X" * 129 + b":"),
        PLAIN.replace(b"X-Empty:", b"X-Empty: " + b"a" * 16_384),
        b"",
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(data: bytes) -> None:
    assert parse(data) is None


def test_only_bytes_are_read() -> None:
    with pytest.raises(TypeError, match="takes bytes"):
        parse("GET / HTTP/1.1\r\n\r\n")  # type: ignore[arg-type]


PIECES = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"/",
        b"/a?b",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\r",
        b": ",
        b":",
        b" ",
        b"\t",
        b"Host",
        b"A",
        b"b",
        b"Connection",
        b"close",
        b"Content-Length",
        b"0",
        b"4",
        b"Transfer-Encoding",
        b"chunked",
        b"\x00",
        b"\xff",
        b"%",
        b'"',
    ]
)


@given(st.lists(PIECES, max_size=24).map(b"".join))
@example(PLAIN)
def test_whatever_is_accepted_httptools_reads_the_same(data: bytes) -> None:
    assert_same(b"GET /a HTTP/1.1\r\nHost: h\r\n" + data + b"\r\n\r\n")
    assert_same(data + b"\r\n\r\n")
    assert_same(b"POST /a HTTP/1.1\r\nContent-Length: 4\r\n" + data + b"\r\n\r\n")


@given(st.sampled_from([PLAIN, POST]), st.integers(0, len(PLAIN) - 1), st.binary(max_size=3))
def test_no_change_of_a_plain_request_is_read_in_two_ways(plain: bytes, at: int, insert: bytes) -> None:
    assert_same(plain[:at] + insert + plain[at + 1 :])
