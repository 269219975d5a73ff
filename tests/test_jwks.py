"""Keys outside the bundle: a file and a URL that change, are late, broken, too large or empty."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from test_tokens import public_jwk

from fairvisor.clock import NS_PER_S, Now
from fairvisor.identity import fetch
from fairvisor.identity.fetch import MAX_JWKS_BYTES, Web
from fairvisor.identity.fetcher import EARLY_REFRESH_NS, REFRESH_NS, KeyFetcher, jittered
from fairvisor.identity.jwks import KEEP_NS, Endpoint, JwksFile, JwksUrl
from fairvisor.identity.keys import TokenKey
from fairvisor.identity.stored import KeySets
from fairvisor.setting_values import Url

WALL_NS = 1_700_000_000 * NS_PER_S


def key_set(*kids: str) -> bytes:
    return orjson.dumps({"keys": [public_jwk("P-256", kid=kid) for kid in kids]})


class Published:
    """A URL as the worker that fetches for all sees it: fetched when that is due, then taken over."""

    def __init__(
        self, url: str, *conditions: Any, sets: KeySets | None = None, web: Web | None = None
    ) -> None:
        self.endpoint = Endpoint(url, *conditions)
        self.sets = KeySets() if sets is None else sets
        self.source = JwksUrl(self.endpoint, self.sets)
        self.fetcher = KeyFetcher(self.sets, web or Web({}))
        self.problem, self.warnings = self.source.problem, self.source.warnings

    @property
    def keys(self) -> tuple[TokenKey, ...]:
        return self.source.keys

    def refresh(self, now: Now) -> bool:
        if self.fetcher.is_due(self.endpoint, now):
            self.fetcher.fetch(self.endpoint, now)
        return self.source.refresh(now)


def kids(source: JwksFile | Published) -> list[str | None]:
    return [key.kid for key in source.keys]


def at(seconds: float) -> Now:
    return after(int(seconds * NS_PER_S))


def after(nanoseconds: int) -> Now:
    return Now(mono_ns=0, wall_ns=WALL_NS + nanoseconds)


class Issuer:
    """A real HTTP server on the loopback interface that publishes whatever `answer` writes; over TLS with a context."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[dict[str, str]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = publish(key_set("k1"))
        self.release = threading.Event()  # lets a handler that dawdles end with the test
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(dict(self.headers))
                issuer.answer(self)

            def do_CONNECT(self) -> None:
                issuer.requests.append(dict(self.headers))
                issuer.connect(self)

            def log_message(self, *_: object) -> None:
                pass

        self._handler = Handler
        self._tls = tls
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handle)
        self.port = self._server.server_port
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/jwks.json?v=1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def serve(self, connection: socket.socket) -> None:
        """Answer on a connection that is there already."""
        self._handle(connection, ("", 0), self._server)

    def _handle(self, connection: socket.socket, address: Any, server: Any) -> None:
        if self._tls is None:
            self._handler(connection, address, server)
            return
        unbelieving = contextlib.suppress(ssl.SSLError, ConnectionError)
        with unbelieving, self._tls.wrap_socket(connection, server_side=True) as secured:
            self._handler(secured, address, server)

    def connect(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_error(405)

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def publish(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    server = Issuer()
    yield server
    server.close()


# --- a URL ------------------------------------------------------------------------------------------------------------


def test_before_the_first_fetch_there_are_no_keys_and_a_reason(issuer: Issuer) -> None:
    source = Published(issuer.url)
    assert source.keys == ()
    assert source.problem() == f"{Url(issuer.url).shown}: was not fetched yet"
    assert issuer.requests == []


def test_the_first_refresh_fetches_and_later_ones_when_it_is_time(issuer: Issuer) -> None:
    source = Published(issuer.url, "https://a.example", ("api",))
    assert source.refresh(at(0))
    assert kids(source) == ["k1"]
    assert (source.keys[0].issuer, source.keys[0].audiences) == ("https://a.example", ("api",))
    assert source.problem() is None
    assert source.warnings() == ()
    assert not source.refresh(after(int(REFRESH_NS * 0.89)))
    assert len(issuer.requests) == 1
    issuer.answer = publish(key_set("k1", "k2"))
    assert source.refresh(after(int(REFRESH_NS * 1.11)))
    assert kids(source) == ["k1", "k2"]


def test_refreshes_of_many_workers_do_not_fall_on_one_moment() -> None:
    intervals = {jittered(REFRESH_NS) for _ in range(50)}
    assert len(intervals) > 10
    assert all(0.9 * REFRESH_NS <= interval <= 1.1 * REFRESH_NS for interval in intervals)


def test_an_unchanged_set_is_not_sent_again(issuer: Issuer) -> None:
    issuer.answer = publish(key_set("k1"), ETag='"v1"')
    source = Published(issuer.url)
    source.refresh(at(0))
    issuer.answer = publish(b"", status=304)
    source.refresh(at(1000))
    assert issuer.requests[1]["If-None-Match"] == '"v1"'
    assert kids(source) == ["k1"]
    assert source.warnings() == ()


def test_the_etag_of_a_broken_set_is_not_remembered(issuer: Issuer) -> None:
    issuer.answer = publish(b"{", ETag='"broken"')
    source = Published(issuer.url)
    source.refresh(at(0))
    source.refresh(at(1000))
    assert "If-None-Match" not in issuer.requests[1]


def test_a_304_that_was_not_asked_for_is_a_failure(issuer: Issuer) -> None:
    issuer.answer = publish(b"", status=304)
    source = Published(issuer.url)
    source.refresh(at(0))
    assert "304" in str(source.problem())


BROKEN = {
    "not JSON": publish(b"<html>"),
    "no set": publish(b"[]"),
    "an error": publish(b'{"keys": []}', status=500),
    "a redirect": publish(b"", status=302, Location="http://127.0.0.1:9/"),
    "too large": publish(b'{"keys": []}' + b" " * MAX_JWKS_BYTES),
    "hangs up": lambda handler: handler.connection.close(),
    "half an answer": lambda handler: handler.wfile.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"
    ),
    "no HTTP": lambda handler: handler.wfile.write(b"hello\r\n\r\n"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_answer_keeps_the_keys_and_is_reported(issuer: Issuer, how: str) -> None:
    source = Published(issuer.url)
    source.refresh(at(0))
    issuer.answer = BROKEN[how]
    assert not source.refresh(at(1000))
    assert kids(source) == ["k1"]
    assert source.problem() is None
    assert "its last keys are still used" in source.warnings()[0]
    issuer.answer = publish(key_set("k2"))
    assert source.refresh(at(2000))
    assert kids(source) == ["k2"]
    assert source.warnings() == ()


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_answer_at_the_start_means_no_keys_and_a_reason(issuer: Issuer, how: str) -> None:
    issuer.answer = BROKEN[how]
    source = Published(issuer.url)
    source.refresh(at(0))
    assert source.keys == ()
    assert source.problem() not in {None, f"{Url(issuer.url).shown}: was not fetched yet"}


def test_an_empty_set_takes_the_keys_away(issuer: Issuer) -> None:
    source = Published(issuer.url)
    source.refresh(at(0))
    issuer.answer = publish(b'{"keys": []}')
    assert source.refresh(at(1000))
    assert source.keys == ()
    assert "no usable key" in str(source.problem())


def test_a_secret_that_a_url_publishes_is_not_a_key(issuer: Issuer) -> None:
    issuer.answer = publish(
        orjson.dumps({"keys": [{"kty": "oct", "k": "A" * 64}, public_jwk("P-256", kid="k1")]})
    )
    source = Published(issuer.url)
    source.refresh(at(0))
    assert kids(source) == ["k1"]
    assert "keys[0]" in source.warnings()[0]


@pytest.mark.parametrize("where", ["in the head", "in the body", "before the head"])
def test_an_issuer_that_dawdles_is_given_up(
    issuer: Issuer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_TIMEOUT_S", 0.3)
    beginnings = {"in the head": b"HTTP/1.1 200 OK\r\nX: ", "in the body": b"HTTP/1.1 200 OK\r\n\r\n"}

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(beginnings.get(where, b""))
        while not issuer.release.wait(0.02):
            if where != "before the head":
                try:
                    handler.wfile.write(b"x")
                except OSError:
                    return

    issuer.answer = drip
    source = Published(issuer.url)
    source.refresh(at(0))
    assert source.keys == ()
    assert str(source.problem()).endswith(("no complete answer within 0.3 s", "timed out"))


def test_an_issuer_that_is_not_there_is_tried_again_less_and_less_often() -> None:
    source = Published("http://127.0.0.1:1/jwks.json")
    tries, moment = [], 0
    while len(tries) < 12:
        if source.fetcher.is_due(source.endpoint, after(moment)):
            tries.append(moment)
        source.refresh(after(moment))
        moment += NS_PER_S
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert gaps[0] <= 6 * NS_PER_S
    assert gaps[-1] <= 1.1 * REFRESH_NS + NS_PER_S
    assert gaps[-1] >= 0.9 * REFRESH_NS
    assert "refused" in str(source.problem())


def test_keys_do_not_outlive_the_issuers_silence_for_ever(issuer: Issuer) -> None:
    source = Published(issuer.url)
    source.refresh(at(0))
    issuer.answer = publish(b"", status=503)
    source.refresh(after(KEEP_NS))
    assert kids(source) == ["k1"]
    assert source.refresh(after(KEEP_NS + 2 * REFRESH_NS))
    assert source.keys == ()
    assert "503" in str(source.problem())


def test_an_unknown_key_id_hastens_the_next_fetch_but_not_more_often_than_allowed(issuer: Issuer) -> None:
    source = Published(issuer.url)
    source.refresh(at(0))
    source.sets.want(at(1))
    fetches = []
    for moment in (EARLY_REFRESH_NS - 1, EARLY_REFRESH_NS, EARLY_REFRESH_NS + 2, 2 * EARLY_REFRESH_NS - 1):
        source.refresh(after(moment))
        source.sets.want(after(moment + 1))  # clients go on inventing key ids
        fetches.append(len(issuer.requests))
    assert fetches == [1, 2, 2, 2]


def test_a_set_of_keys_none_of_which_can_be_used_is_garbage_and_changes_nothing(issuer: Issuer) -> None:
    source = Published(issuer.url)
    source.refresh(at(0))
    issuer.answer = publish(b'{"keys": [{"kty": "RSA"}, 7]}')
    assert not source.refresh(at(1000))
    assert kids(source) == ["k1"]
    assert "none of its keys can be used: keys[0]" in source.warnings()[0]


def test_the_algorithms_of_an_issuer_narrow_what_its_keys_are_for(issuer: Issuer) -> None:
    issuer.answer = publish(
        orjson.dumps({"keys": [public_jwk("P-256", kid="k1"), public_jwk("RSA", kid="k2")]})
    )
    source = Published(issuer.url, "https://a.example", (), ("RS256", "EdDSA"))
    source.refresh(at(0))
    assert [(key.kid, list(key.verifiers)) for key in source.keys] == [("k2", ["RS256"])]
    assert "keys[0]: it is for none of the algorithms RS256, EdDSA" in source.warnings()[0]


def test_a_clock_that_is_set_back_does_not_put_off_the_next_fetch(issuer: Issuer) -> None:
    source = Published(issuer.url)
    source.refresh(at(1_000_000))
    issuer.answer = publish(key_set("k2"))
    assert source.refresh(at(0))
    assert kids(source) == ["k2"]


def test_another_process_goes_on_where_the_one_that_fetched_was(issuer: Issuer) -> None:
    """The record says when to try again and how often it failed: a new leader does not begin anew."""
    first = Published(issuer.url)
    first.refresh(at(0))
    issuer.answer = publish(b"", status=500)
    for second in range(1000):
        first.refresh(at(second))
    tried = len(issuer.requests)
    heir = Published(issuer.url, sets=first.sets)
    assert not heir.fetcher.is_due(heir.endpoint, at(1000))
    heir.refresh(at(1000))
    assert kids(heir) == ["k1"]
    assert len(issuer.requests) == tried


def test_one_provider_that_hangs_keeps_no_other_waiting(issuer: Issuer) -> None:
    hangs = Issuer()
    hangs.answer = lambda handler: hangs.release.wait()
    try:
        sets = KeySets()
        ends = [Endpoint(hangs.url), Endpoint(issuer.url)]
        fetcher = KeyFetcher(sets, Web({}))
        slow, quick = fetcher.step(ends, lambda: at(0))
        quick.join()
        assert sets.read(issuer.url) is not None
        assert sets.read(hangs.url) is None
        assert fetcher.step(ends, lambda: at(0)) == [], "what is under way is not begun again"
    finally:
        hangs.close()
    slow.join()
    assert "hangs" not in str(sets.read(hangs.url))


# --- a file -----------------------------------------------------------------------------------------------------------


def test_a_file_is_followed_as_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set("k1"))
    source = JwksFile(path, "https://a.example", ("api",))
    assert source.refresh()
    assert kids(source) == ["k1"]
    assert (source.keys[0].issuer, source.keys[0].audiences) == ("https://a.example", ("api",))
    assert not source.refresh()
    path.write_bytes(key_set("k1", "k2"))
    assert source.refresh()
    assert kids(source) == ["k1", "k2"]
    assert source.problem() is None


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b" " * (MAX_JWKS_BYTES + 1), None])
def test_a_broken_file_keeps_the_keys_and_is_reported(tmp_path: Path, broken: bytes | None) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set("k1"))
    source = JwksFile(path)
    source.refresh()
    path.unlink() if broken is None else path.write_bytes(broken)
    assert not source.refresh()
    assert kids(source) == ["k1"]
    assert source.problem() is None
    assert str(path) in source.warnings()[0]


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"keys": []}', b'{"keys": [{"kty": "RSA"}]}'])
def test_a_file_without_usable_keys_at_the_start_is_a_problem(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_bytes(content)
    source = JwksFile(path)
    source.refresh()
    assert source.keys == ()
    assert str(path) in str(source.problem())


def test_an_emptied_set_takes_the_keys_away(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set("k1"))
    source = JwksFile(path)
    source.refresh()
    path.write_bytes(b'{"keys": []}')
    assert source.refresh()
    assert source.keys == ()
    assert source.problem() is not None


def test_a_secret_in_a_file_is_a_key(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(orjson.dumps({"keys": [{"kty": "oct", "kid": "s1", "k": "A" * 64}]}))
    source = JwksFile(path)
    source.refresh()
    assert kids(source) == ["s1"]
