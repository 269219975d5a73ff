"""What reads bytes that a stranger wrote, each as one function from bytes to an outcome.

A target lets the errors pass that the reader promises, and raises for everything else: an exception that nobody
promised, or an answer that contradicts another reader's. The corpus of a target is `corpus/NAME/`, and what it takes
from the other tests. How inputs are made is in `loop.py`.
"""

from __future__ import annotations

import base64
import gzip
import hmac
import json
import logging
import os
import random
import re
import tempfile
import zlib
from collections.abc import Callable, Hashable
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from edge import bucket, policy, tokens
from one_reading import OneReading
from proxy_wires import LIMITS, Wired
from request_script import Exchange, read_script, request_bytes
from request_transports import Loop, Wire, World
from test_head import assert_same

from fairvisor.bundle.compile import compile_bundle
from fairvisor.bundle.load import parse, verify_signature
from fairvisor.cli.logs import FollowedLog
from fairvisor.codings import SLICE_BYTES, decoder_of
from fairvisor.counters.segment import Segment
from fairvisor.errors import BundleInvalid, FairvisorError, RequestError
from fairvisor.follow import decision_options
from fairvisor.http._head import parse as parse_plain_head
from fairvisor.http.connection import Connection
from fairvisor.http.hub import HIGH_WATER_BYTES, Hub, Limits
from fairvisor.identity.addresses import Addresses, parse_address
from fairvisor.identity.keys import key_from_secret
from fairvisor.identity.tokens import Tokens, claim_text, claim_values
from fairvisor.llm.request import MAX_NAMES, read_request
from fairvisor.llm.stream import UsageReader
from fairvisor.proxy.bodies import BadBody, body_of
from fairvisor.proxy.heads import (
    BadResponse,
    plain_request_head,
    plain_response_head,
    read_request_head,
    read_response_head,
)
from fairvisor.replay.fields import Maker
from fairvisor.replay.files import LogError
from fairvisor.replay.reading import RequestLog
from fairvisor.settings import Settings
from fuzz import words
from fuzz.one_request import NotOneRequest, read_requests

TESTS = Path(__file__).parents[1]
CORPUS = Path(__file__).parent / "corpus"
WALL_NS = 1_800_000_000 * 10**9
SECRET = "a secret of the fuzzer, more than sixty-four bytes long so that any HMAC may use it"
SEGMENT_BYTES = 1 << 20
MOST_DECODED = 1 << 20
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
EXPECTED_STATUSES = {100, 200, 204, 400, 401, 403, 404, 405, 408, 410, 413, 417, 429, 431, 501, 503, 505}


FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # kept until the process ends


class Broken(Exception):
    """A promise was broken."""


class Target(NamedTuple):
    """One reader. `words` are what its inputs are made of, beside the corpus."""

    name: str
    run: Callable[[bytes], Hashable]
    words: tuple[bytes, ...]
    more: Callable[[], list[bytes]] = list

    def corpus(self) -> list[bytes]:
        """All inputs to begin with, in an order that does not change."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())] + self.more()


def _shape(text: object) -> str:
    """A message without what is quoted in it."""
    return re.sub(r"[0-9]+|'[^']*'|\"[^\"]*\"", "_", str(text))[:80]


# ---- bundles


def _bundle(data: bytes) -> Hashable:
    try:
        parsed = parse(verify_signature(data, ()), wall_ns=WALL_NS, environ={"LONG": "s" * 64})
    except BundleInvalid as invalid:
        return tuple(_shape(problem) for problem in invalid.problems[:3])
    segment = Segment.private(SEGMENT_BYTES)
    bundle = compile_bundle(parsed.model, parsed.sha256, segment, decision_options(Settings.load({}, {})))
    return type(bundle).__name__, tuple(_shape(warning) for warning in parsed.warnings[:3])


def _bundles() -> list[bytes]:
    paths = sorted((TESTS / "bundles").glob("*/*.json"))
    return [data for data in (path.read_bytes() for path in paths) if len(data) < 20_000]


# ---- the HTTP front


class _Front:
    """A service with a policy, and connections to it that live for one input."""

    def __init__(self) -> None:
        folder = TESTS / "requests" / "gateways"
        self.world = World(folder, Path(os.devnull).parent / "none", {}, WALL_NS)
        self.world.load("bundle.json")
        self.hub = Hub(self.world.service, Limits(10_000, 60_000, 100), self.world.now)
        self.loop = Loop()
        self.hub.loop = self.loop  # type: ignore[assignment]

    def answers(self, data: bytes) -> bytes:
        """All that a client gets who sends this in two pieces, and waits."""
        self.hub.set_time(self.hub.read_now())
        wire = Wire("127.0.0.1")
        connection = Connection(self.hub)
        connection.connection_made(wire)
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            if piece and not wire.closed:
                connection.data_received(piece)
        while not wire.closed and self.loop.ring() is not None:
            pass
        connection.connection_lost(None)
        self.loop.timers.clear()
        return wire.written


_FRONT: list[_Front] = []


def _connection(data: bytes) -> Hashable:
    if not _FRONT:
        _FRONT.append(_Front())
    written = _FRONT[0].answers(data)
    if written and not STATUS.match(written):
        raise Broken(f"no answer begins like this: {written[:80]!r}")
    statuses = tuple(int(status) for status in STATUS.findall(written))
    if not EXPECTED_STATUSES.issuperset(statuses) or b"engine_error" in written:
        raise Broken(f"an answer of {statuses}: {written[:200]!r}")
    message = re.search(rb'"message":"([^"]*)', written)
    return statuses[:4], _shape(message[1]) if message else ""


def _requests() -> list[bytes]:
    scripts = [read_script(path) for path in sorted((TESTS / "requests" / "gateways").glob("*.http"))]
    steps = [step for script in scripts for step in script.steps if isinstance(step, Exchange)]
    return [request_bytes(step.lines, {}) for step in steps if "{{" not in "".join(step.lines)]


def _head(data: bytes) -> Hashable:
    """What is read in one pass of C, httptools reads the same."""
    head = parse_plain_head(data)
    if head is None:
        return None
    assert_same(data)
    method, _, headers, body = head
    return method, tuple(sorted(headers))[:6], body is None


def _proxy_head(data: bytes) -> Hashable:
    """A head that is read in one pass of C says what the strict reader says."""
    raw, mark, rest = data.partition(b"\r\n\r\n")
    found: list[Hashable] = []
    for plain, strict, promised in (
        (plain_request_head, read_request_head, RequestError),
        (lambda each: plain_response_head(each, to_head=False),
         lambda each: read_response_head(each, to_head=False), BadResponse),
    ):  # fmt: skip
        quick = plain(data)
        try:
            head = strict(raw)
        except promised as error:
            if quick is not None:
                raise Broken(f"read quickly, and refused by the strict reader: {error}") from None
            found.append(_shape(error))
            continue
        names = [name for name in dir(head) if name[0] != "_" and name != "size_bytes"]
        if quick is not None and [getattr(quick, name) for name in names] != [
            getattr(head, name) for name in names
        ]:
            raise Broken("the two readers differ")
        found.append((quick is not None, _framed(rest, head.length)))
    return (bool(mark), *found)


# ---- the proxy, from end to end

UPSTREAM_SAYS = b"\xff\xfe"  # what follows in an input is the upstream's answer to the next request
KEPT_BYTES = 10_000
_PROXY: list[Wired] = []


def _proxy() -> Wired:
    logging.getLogger("fairvisor.proxy").setLevel(logging.ERROR)  # of an upstream that fails again and again
    policies = (
        policy("llm", tokens("t", tpm=1e9), path="/v1"),
        policy("few", bucket("r", "header:x-api-key", burst=2, rate=1e-6), path="/few"),
        policy("all", bucket("r", "ip:address", burst=1e6, rate=1e6)),
    )
    switch = {"scope_key": "header:x-key", "scope_value": "bad", "reason": "leaked"}
    limits = LIMITS._replace(max_head_bytes=4096, max_kept_bytes=KEPT_BYTES)
    return Wired(*policies, limits=limits, environ={"FAIRVISOR_MAX_BODY": "2000"}, kill_switches=[switch])


def _proxied(data: bytes) -> Hashable:
    """Whatever clients and upstreams send, what is forwarded is one request at a time, and little is kept."""
    if not _PROXY:
        _PROXY.append(_proxy())
    proxy = _PROXY[0]
    proxy.forget_links()
    sent, *answers = data.split(UPSTREAM_SAYS)
    client = proxy.connect(reads=len(data) % 3 > 0)
    third = len(sent) // 3 + 1
    forwarded = 0
    for start in range(0, len(sent), third):
        client.send(sent[start : start + third], 1000)
        forwarded += _answered(proxy, answers)
    if (
        proxy.hub.kept.total_bytes > KEPT_BYTES
        or client.wire.most_unread > HIGH_WATER_BYTES + len(data) + 4096
    ):
        raise Broken(f"{proxy.hub.kept.total_bytes} bytes are kept, {client.wire.most_unread} are unread")
    for link, _ in proxy.busy:
        if link.heard:
            link.connection_lost(None)
    proxy.later(LIMITS.header_timeout_ms / 1000 + 1)
    client.leave()
    if proxy.hub.kept.total_bytes:
        raise Broken(f"{proxy.hub.kept.total_bytes} bytes are kept of a client that is gone")
    written = client.received
    if (written and not STATUS.match(written)) or b"engine_error" in written:
        raise Broken(f"no answer: {written[:200]!r}")
    message = re.search(rb'"message":"([^"]*)', written)
    chunked = b"chunked" in proxy.requests, b"chunked" in written
    why = _shape(message[1]) if message else ""
    return min(forwarded, 4), tuple(client.statuses[:4]), client.wire.closed, len(proxy.links), chunked, why


def _answered(proxy: Wired, answers: list[bytes]) -> int:
    """Let the upstream answer what came, one answer for each request; gives how many it had."""
    answered = 0
    while True:
        waiting = [(link, wire) for link, wire in proxy.busy if not link.heard and not wire.held]
        for link, wire in proxy.links:
            whole, _ = ([], b"") if wire.switched else read_requests(bytes(wire.written))
            if len(whole) > wire.answers + 1:
                raise NotOneRequest(f"{len(whole)} requests where one was forwarded: {bytes(wire.written)!r}")
            if (link, wire) in waiting:
                wire.answers += 1
                proxy.offer_link()
                answer = answers.pop(0) if answers else OK
                wire.switched = b"HTTP/1.1 101 " in answer  # then bytes pass as they are
                link.data_received(answer)
                proxy.clock.turns()
                answered += 1
        if not waiting:
            return answered


def _proxy_requests() -> list[bytes]:
    return [
        request.replace(b"\r\n", b"\r\nHost: a\r\n", 1) if b"\r\nHost:" not in request else request
        for request in _requests()
    ]


def _framed(rest: bytes, length: int) -> Hashable:
    body = body_of(length)
    try:
        body.feed(rest)
    except BadBody as error:
        return _shape(error)
    return body.done


# ---- who asks


def _segment_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _jwt(data: bytes) -> Hashable:
    """As an Authorization header, and as the payload of a token whose signature is right."""
    signed = f"{_segment_of(json.dumps({'alg': 'HS256', 'typ': 'JWT'}).encode())}.{_segment_of(data)}"
    signature = _segment_of(hmac.digest(SECRET.encode(), signed.encode(), "sha256"))
    found = []
    for keys in (None, [key_from_secret(SECRET)]):
        for authorization in (data, b"Bearer " + data, f"Bearer {signed}.{signature}".encode()):
            tokens = Tokens(on_unknown_key=lambda: None)
            tokens.use(keys)
            claims = tokens.claims(authorization, WALL_NS)
            if claims is not None:
                found.append((claim_text(claims, "sub"), len(claim_values(claims, "a.b"))))
            found.append(tuple(name for name, count in tokens.refused.items() if count))
    return tuple(_shape(each) for each in found)


def _forwarded(data: bytes) -> Hashable:
    found = []
    for header in ("x-forwarded-for", "forwarded"):
        addresses = Addresses(
            header, [ip_network("10.0.0.0/8")], [ip_network("192.168.0.0/16"), ip_network("fd00::/8")], 64
        )
        client = addresses.client("10.0.0.1", {header: data})
        if parse_address(client.text) is None:
            raise Broken(f"{client.text!r} is no address")
        if addresses.client("203.0.113.1", {header: data}).text != "203.0.113.1":
            raise Broken("a stranger chose its address")
        found.append((client.text == "10.0.0.1", ":" in client.text, client.text.startswith("192.168.")))
    return tuple(found)


# ---- language models


def _usage(data: bytes) -> Hashable:
    """However a body is cut, it tells the same usage; and a usage is never negative."""
    found = []
    for content_type in ("text/event-stream", "application/json"):
        whole, cut = UsageReader(content_type), UsageReader(content_type)
        whole.feed(data)
        third = len(data) // 3
        for piece in (data[:third], data[third : 2 * third], data[2 * third :]):
            cut.feed(piece)
        usage = whole.finish()
        if usage != cut.finish():
            raise Broken(f"{usage} in one piece, {cut.usage} in three")
        if usage is not None and min(usage) < 0:
            raise Broken(f"{usage} is negative")
        found.append(None if usage is None else tuple(number.bit_length() for number in usage))
    return tuple(found)


def _llm_request(data: bytes) -> Hashable:
    """As JSON and as forms; a body that is not read counts with all its bytes, and names are few."""
    found = []
    for path, cut_bytes, kind in (
        ("/v1/chat/completions", 0, b"application/json"),
        ("/v1beta/models/g:generateContent", 0, b""),
        ("/v1/messages", 9, b""),
        ("/v1/audio/transcriptions", 0, b"multipart/form-data; boundary=b"),
        ("/v1/audio/transcriptions", 9, b"multipart/form-data; boundary=b"),
        ("/v1/images/edits", 0, b"application/x-www-form-urlencoded"),
    ):
        request = read_request(path, data, cut_bytes, kind)
        if request is not None:
            cap, choices = request.completion_cap or 0, request.choices
            if min(cap, choices) < 0:
                raise Broken(f"it asks for {choices} times {cap} tokens")
            counts = request.cut_bytes == len(data) or cut_bytes or len(request.names) > MAX_NAMES
            if request.unread and not counts:
                raise Broken(f"{request.cut_bytes} bytes are unread of {len(data)}")
            found.append(
                (bool(request.model), request.unread, request.stream, cap.bit_length(), len(request.names))
            )
    return tuple(found)


def _coding(data: bytes) -> Hashable:
    """Steps are bounded, whatever is decoded, and a body that is read is what zlib makes of it."""
    found = []
    for coding in (b"gzip", b"deflate", b"br", b"zstd"):
        decoder = decoder_of(coding, MOST_DECODED, 16)
        if decoder is None:
            continue
        steps = 0
        for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
            decoder.feed(piece)
            while decoder.waiting:
                steps += 1
                if len(decoder.step()) > 16 * SLICE_BYTES or steps > 10_000:
                    raise Broken(f"{coding!r}: a step gives too much, or there is no end of them")
        found.append((decoder.failed, decoder.is_whole, steps.bit_length()))
    return tuple(found)


def _encoded_bodies() -> list[bytes]:
    plain = b'{"model": "gpt-4o", "messages": []}'
    return [
        gzip.compress(plain, mtime=0),
        zlib.compress(plain),
        gzip.compress(bytes(100_000), mtime=0),
        zlib.compress(plain)[2:],
    ]


# ---- logs


def _file_of(data: bytes) -> int:
    descriptor = os.memfd_create("fuzz")
    os.write(descriptor, data)
    return descriptor


def _logs() -> list[bytes]:
    """The corpus of logs, one of every format and every wrapping."""
    return [path.read_bytes() for path in sorted((TESTS / "replay").glob("*.log"))]


def _replay(data: bytes) -> Hashable:
    descriptor = _file_of(data)
    try:
        with RequestLog(f"/proc/self/fd/{descriptor}", "", {}, Maker("x-forwarded-for", "")) as log:
            try:
                count = sum(1 for _ in log.requests())
            except LogError as error:
                return _shape(error)
            return log.format[:20], min(count, 3), min(log.unreadable, 3), _shape(log.complaints[:1])
    finally:
        os.close(descriptor)


def _audit(data: bytes) -> Hashable:
    """Every line that is there is given, and nothing else."""
    descriptor = _file_of(data)
    try:
        with FollowedLog(Path(f"/proc/self/fd/{descriptor}"), lambda: True) as log:
            lines = list(log.lines(len(data), lambda line: True))
    except FairvisorError as error:
        return _shape(error)
    finally:
        os.close(descriptor)
    written = [line for line in data.rpartition(b"\n")[0].split(b"\n") if line.strip()]
    if lines[: len(written)] != written:
        raise Broken(f"{len(written)} lines were written, {len(lines)} read")
    return min(len(lines), 5), data.endswith(b"\n")


# ---- identities


@cache
def _one_reading() -> OneReading:
    folder = tempfile.TemporaryDirectory()
    FOLDERS.append(folder)
    return OneReading(Path(folder.name))


def _identity(data: bytes) -> Hashable:
    """Draw requests of one identity; the input is what the draw is made of."""
    return _one_reading().draw(random.Random(data))


TARGETS = (
    Target("identity", _identity, (b"0", b"1")),
    Target("bundle", _bundle, words.BUNDLE, _bundles),
    Target("connection", _connection, words.HTTP, _requests),
    Target("head", _head, words.HTTP, _requests),
    Target("proxy-head", _proxy_head, words.RESPONSE, _requests),
    Target("proxy", _proxied, (*words.RESPONSE, *words.PROXY), _proxy_requests),
    Target("jwt", _jwt, words.TOKEN),
    Target("forwarded", _forwarded, words.FORWARDED),
    Target("usage", _usage, words.USAGE),
    Target("llm-request", _llm_request, words.LLM_REQUEST),
    Target("coding", _coding, words.CODING, _encoded_bodies),
    Target("replay", _replay, words.LOG, _logs),
    Target("audit", _audit, words.AUDIT),
)
