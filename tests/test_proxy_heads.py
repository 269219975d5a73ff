"""What the strict readers accept, llhttp reads the same: the request, its fields, its body, and where it ends.

Plain heads are read in C: what that accepts, the strict readers read the same.
"""

from __future__ import annotations

from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairvisor.errors import RequestError
from fairvisor.proxy.bodies import BadBody, body_of
from fairvisor.proxy.heads import (
    CHUNKED,
    UNTIL_CLOSE,
    BadResponse,
    RequestHead,
    ResponseHead,
    plain_request_head,
    plain_response_head,
    read_request_head,
    read_response_head,
)


class Llhttp:
    """One message as llhttp reads it."""

    def __init__(self) -> None:
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.done = 0
        self.in_head = True
        self.method = b""
        self.status = 0

    @classmethod
    def request(cls, data: bytes) -> Llhttp:
        read = cls()
        parser = httptools.HttpRequestParser(read)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            read.done += 1
        read.method = parser.get_method()
        return read

    @classmethod
    def response(cls, data: bytes) -> Llhttp:
        read = cls()
        parser = httptools.HttpResponseParser(read)
        parser.feed_data(data)
        read.status = parser.get_status_code()
        return read

    @property
    def headers(self) -> dict[str, bytes]:
        """Fields by name, repeated ones joined."""
        merged: dict[str, bytes] = {}
        for name, value in self.pairs:
            text = name.decode("latin-1")
            merged[text] = merged[text] + b", " + value if text in merged else value
        return merged

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.pairs.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.in_head = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done += 1


def strictly(data: bytes) -> Any:
    """(head, body) when the whole of `data` is one request by our reading, else None."""
    raw, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    try:
        head = read_request_head(raw)
        body = body_of(head.length)
        content, rest = body.feed(rest)
    except (RequestError, BadBody):
        return None
    return (head, content) if body.done and not rest else None


FIELD = st.sampled_from(
    [
        b"Host: a", b"Host:a", b"Host: a ", b"Content-Length: 3", b"Content-Length: 03", b"Content-Length : 3",
        b"content-length:\t3", b"Content-Length: 3,3", b"Transfer-Encoding: chunked", b"transfer-encoding: Chunked",
        b"Transfer-Encoding: identity", b"Transfer-Encoding:\x0bchunked", b"X: y", b"X:", b"X: y\n", b"X: y\r",
        b"X: \xff", b" folded", b"\tfolded", b"Connection: close", b"Connection: upgrade", b"Upgrade: websocket",
        b"Expect: 100-continue", b"Cookie: a=b; c=d", b"", b"X Y: z", b"X\x00: y", b"Keep-Alive: 3",
    ]
)  # fmt: skip
BODY = st.lists(
    st.sampled_from(
        [b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\n", b"\r\n", b"1;x=y\r\na\r\n", b"1 \r\na\r\n", b"1\na\r\n",
         b"0003\r\nabc\r\n", b"A: b\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"+1\r\na\r\n", b"F\r\n", b"\n"]
    ),
    max_size=4,
)  # fmt: skip
LINE = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b"PUT /%41 HTTP/1.0", b"OPTIONS * HTTP/1.1", b"GET  / HTTP/1.1",
     b"GET /\xff HTTP/1.1", b"HEAD /x HTTP/1.1", b"GET http://a/b HTTP/1.1", b"POST / HTTP/1.2", b"GET / http/1.1"]
)  # fmt: skip


@given(line=LINE, fields=st.lists(FIELD, max_size=5), body=BODY)
@example(b"POST / HTTP/1.1", [b"Host: a", b"Content-Length: 3"], [b"abc"])
@example(b"GET /\xff HTTP/1.1", [b"Host: a"], [])
@example(b"POST / HTTP/1.1", [b"Host: a", b"Transfer-Encoding: chunked"], [b"3\r\nabc\r\n", b"0\r\n\r\n"])
def test_what_is_accepted_llhttp_reads_the_same(line: bytes, fields: list[bytes], body: list[bytes]) -> None:
    data = b"\r\n".join([line, *fields]) + b"\r\n\r\n" + b"".join(body)
    ours = strictly(data)
    if ours is None:
        return
    head, content = ours
    theirs = Llhttp.request(data)
    assert theirs.done == 1
    assert theirs.method.decode() == head.method
    assert theirs.url.endswith(head.target.encode("latin-1"))
    if not head.flags & 64:  # llhttp hands everything after an upgrade on unread
        assert theirs.body == content
    assert theirs.headers == head.headers


@given(st.binary(max_size=200), st.integers(1, 7))
def test_chunks_are_the_same_however_they_are_cut(content: bytes, size: int) -> None:
    framed = b"".join(
        b"%X\r\n%b\r\n" % (len(content[at : at + 50]), content[at : at + 50])
        for at in range(0, len(content), 50)
    )
    data = framed + b"0\r\nA: b\r\n\r\nrest"
    body = body_of(-1)
    got = rest = b""
    for at in range(0, len(data), size):
        if body.done:
            rest += data[at : at + size]
            continue
        piece, rest = body.feed(data[at : at + size])
        got += piece
    assert (got, body.trailers, rest, body.done) == (content, b"A: b\r\n", b"rest", True)


def told(head: RequestHead | ResponseHead) -> dict[str, Any]:
    """All that a head says, but for what it took on the wire."""
    return {name: getattr(head, name) for name in dir(head) if name[0] != "_" and name != "size_bytes"}


PLAIN_FIELD = st.sampled_from(
    [
        b"Host: a", b"Host: a:80", b"host:  a.b \t", b"Host: [::1]", b"Host: a:b", b"Host:", b"Host: a b", b"HOST: a,b",
        b"Content-Length: 3", b"Content-Length: 0", b"Content-Length: 1234567890123456", b"Content-Length: +3",
        b"Content-Length:", b"Transfer-Encoding: chunked", b"Connection: keep-alive", b"Connection: Keep-Alive, X",
        b"Connection: close", b"Accept-Encoding: gzip", b"X-Forwarded-For: 1.2.3.4", b"X_Forwarded_For: 1",
        b"Via: 1.1 x", b"TE: trailers", b"Keep-Alive: timeout=5", b"Expect: 100-continue", b"Upgrade: websocket",
        b"X-Fairvisor-A: b", b"RateLimit: x", b"Content-Type: a/b; c=\xe4", b"Content-Type: d",
        b"Set-Cookie: a", b"Set-Cookie: b", b"X: y", b"X:", b"X: \x00", b"X: \x7f", b"X : y", b" folded",
        b"nonsense", b"X: y\r", b"X: y\n", b"Proxy-Connection: x", b"Date: now", b"Server: nginx/1.22.1",
    ]
)  # fmt: skip
END = st.sampled_from([b"\r\n\r\n", b"\r\n\r\nbody", b"\r\n", b"\n\n", b"\r\n\r\n\r\n"])


@given(line=LINE, fields=st.lists(PLAIN_FIELD, max_size=6), end=END)
@example(b"GET /a?b=c HTTP/1.1", [b"Host: a", b"X: y", b"Connection: keep-alive"], b"\r\n\r\n")
@example(b"POST / HTTP/1.1", [b"Host: a:1", b"Content-Length: 12"], b"\r\n\r\nbody")
@example(b"POST / HTTP/1.1", [b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked"], b"\r\n\r\n")
@example(b"GET /#a HTTP/1.1", [b"Host: a"], b"\r\n\r\n")
def test_a_plain_request_is_read_in_c_as_by_the_strict_reader(
    line: bytes, fields: list[bytes], end: bytes
) -> None:
    """Twice: the strict reader may have made names known that the first reading did not know."""
    data = b"\r\n".join([line, *fields]) + end
    raw = data.partition(b"\r\n\r\n")[0]
    for _ in range(2):
        plain = plain_request_head(data)
        try:
            strict = read_request_head(raw)
        except RequestError:
            assert plain is None
            continue
        if plain is not None:
            assert told(plain) == told(strict)
            assert plain.size_bytes == len(raw) + 4


STATUS_LINE = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 ", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 404", b"HTTP/1.0 200 OK",
     b"HTTP/1.1 100 Continue", b"HTTP/1.1 999 \xe4", b"HTTP/1.1  200 OK", b"HTTP/1.1 2x0 OK", b"HTTP/1.1 200 \x01",
     b"http/1.1 200 OK"]
)  # fmt: skip


@given(line=STATUS_LINE, fields=st.lists(PLAIN_FIELD, max_size=6), end=END, to_head=st.booleans())
@example(b"HTTP/1.1 200 OK", [b"Content-Length: 3", b"Connection: keep-alive"], b"\r\n\r\nbody", False)
@example(b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked", b"Keep-Alive: timeout=5"], b"\r\n\r\n", False)
@example(b"HTTP/1.1 200 OK", [b"Content-Length: 3", b"Content-Length: 4"], b"\r\n\r\n", False)
def test_a_plain_response_is_read_in_c_as_by_the_strict_reader(
    line: bytes, fields: list[bytes], end: bytes, to_head: bool
) -> None:
    data = b"\r\n".join([line, *fields]) + end
    raw = data.partition(b"\r\n\r\n")[0]
    for _ in range(2):
        plain = plain_response_head(data, to_head=to_head)
        try:
            strict = read_response_head(raw, to_head=to_head)
        except BadResponse:
            assert plain is None
            continue
        if plain is not None:
            assert told(plain) == told(strict)
            assert plain.size_bytes == len(raw) + 4


@given(line=STATUS_LINE, fields=st.lists(PLAIN_FIELD, max_size=5), body=BODY)
@example(b"HTTP/1.1 200 OK", [b"Content-Length: 3"], [b"abc"])
@example(b"HTTP/1.1 200 OK", [b"Transfer-Encoding: chunked"], [b"3\r\nabc\r\n", b"0\r\n\r\n"])
@example(b"HTTP/1.1 304 Not Modified", [b"Content-Length: 3"], [])
def test_a_response_that_is_accepted_llhttp_reads_the_same(
    line: bytes, fields: list[bytes], body: list[bytes]
) -> None:
    data = b"\r\n".join([line, *fields]) + b"\r\n\r\n" + b"".join(body)
    raw, _, rest = data.partition(b"\r\n\r\n")
    try:
        head = read_response_head(raw, to_head=False)
        reader = body_of(head.length)
        content, rest = reader.feed(rest)
    except (BadResponse, BadBody):
        return
    if head.status < 200 or rest or not reader.done:  # not a whole message, or more than one
        return
    theirs = Llhttp.response(data)
    assert (theirs.done, theirs.status, theirs.body) == (1, head.status, content)
    assert {name: theirs.headers[name] for name in head.special} == head.special


@pytest.mark.parametrize("read", [plain_request_head, lambda data: plain_response_head(data, to_head=False)])
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_head_are_not_read_in_c(read: Any, data: bytes) -> None:
    assert read(data) is None
    assert read(b"GET / HTTP/1.1\r\n" + data) is None or b"\r\n\r\n" in data
    assert read(b"HTTP/1.1 200 OK\r\n" + data) is None or b"\r\n\r\n" in data or data[:2] == b"\r\n"


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"GET /a?b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n", 0),
        (b"POST / HTTP/1.1\r\nHost: a:80\r\nConnection: keep-alive\r\nContent-Length: 7\r\n\r\n", 7),
        (b"PUT / HTTP/1.1\r\nHost: My_app-1.example:8080\r\nContent-Length: 0\r\n\r\n", 0),
        (b"DELETE / HTTP/1.1\r\nX-Forwarded-For: 1.2.3.4\r\nVia: 1.1 a\r\nHost: a\r\n\r\n", 0),
    ],
)
def test_what_clients_send_is_plain(head: bytes, length: int) -> None:
    read_request_head(head[:-4])  # makes the names known
    plain = plain_request_head(head + b"more")
    assert plain is not None
    assert (plain.length, plain.size_bytes) == (length, len(head))


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n", 7),
        (b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\n\r\n", CHUNKED),
        (b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n", UNTIL_CLOSE),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", 0),
    ],
)
def test_what_upstreams_send_is_plain(head: bytes, length: int) -> None:
    read_response_head(head[:-4], to_head=False)
    plain = plain_response_head(head + b"more", to_head=False)
    assert plain is not None
    assert (plain.length, plain.size_bytes) == (length, len(head))
