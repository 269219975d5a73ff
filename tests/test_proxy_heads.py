"""What the strict readers accept, llhttp reads the same: the request, its fields, its body, and where it ends."""

from __future__ import annotations

from typing import Any

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from fairvisor.errors import RequestError
from fairvisor.proxy.bodies import BadBody, body_of
from fairvisor.proxy.heads import read_request_head


class Llhttp:
    """One request as llhttp reads it."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.done = 0
        self.in_head = True
        parser = httptools.HttpRequestParser(self)
        self.method = b""
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.done += 1
        self.method = parser.get_method()

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
    theirs = Llhttp(data)
    assert theirs.done == 1
    assert theirs.method.decode() == head.method
    assert theirs.url.endswith(head.target.encode("latin-1"))
    if not head.flags & 64:  # llhttp hands everything after an upgrade on unread
        assert theirs.body == content
    merged: dict[str, bytes] = {}
    for name, value in theirs.pairs:
        text = name.decode("latin-1")
        merged[text] = merged[text] + b", " + value if text in merged else value
    assert merged == head.headers


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
