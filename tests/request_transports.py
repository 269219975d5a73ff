"""The three ways in: the service called directly, the edge worker's protocol, the WSGI application.

Each takes the bytes of a request and gives what a client would get back, all on one simulated clock. The world they
stand in (settings, bundle, counters, keys, time) is made anew for every file. Nothing here listens on a socket: the
edge worker's protocol is fed over a transport that only remembers what was written, on a loop that only remembers
what was asked of it.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from request_checks import Received
from request_script import Script, duration_ns

from fairvisor.bundle.compile import compile_bundle
from fairvisor.bundle.load import parse, verify_signature
from fairvisor.bundle.offer import describe
from fairvisor.clock import Now
from fairvisor.counters.segment import Segment
from fairvisor.errors import BodyTooLarge, BundleInvalid, BundleRefused
from fairvisor.follow import ActiveBundle, Current, decision_options
from fairvisor.http.connection import Connection
from fairvisor.http.hub import Hub, Limits
from fairvisor.http.request import Request
from fairvisor.http.service import Service
from fairvisor.http.wsgi import Application
from fairvisor.identity import Identity, sources
from fairvisor.identity.bots import Bots
from fairvisor.memory import InstanceMemory
from fairvisor.notes import RELOAD, Note, Notes
from fairvisor.reading import read_fields
from fairvisor.response import Answer
from fairvisor.secret_values import encoded
from fairvisor.settings import Settings

MONO_START_NS = (
    600_000 * 10**9
)  # a whole number of minutes, so that minutes of the monotonic clock begin at 0 s
SEGMENT_BYTES = 1 << 20


class Broken:
    """A bundle that cannot be evaluated: whatever is read of it fails."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError("broken on purpose")


@cache
def shared_bots() -> Bots:
    """The list of bots: it takes longer to read than most files take to run, and never changes."""
    return Bots()


class Told(Notes):
    """Notes that are kept in this process."""

    def __init__(self) -> None:
        super().__init__(InstanceMemory.find("none", os.geteuid()))
        self._kept: dict[str, Note] = {}

    def put(self, name: str, text: str, now: Now, about: str = "") -> bool:
        self._kept[name] = Note(text, now.wall_ns, about)
        return True

    def get(self, name: str) -> Note | None:
        return self._kept.get(name)

    def all(self) -> dict[str, Note]:
        return self._kept


class World:
    """What all transports of one file share. `folder` holds the bundles, `place` is where the edge finds its own."""

    def __init__(self, folder: Path, place: Path, environ: dict[str, str], start_ns: int) -> None:
        self._folder = folder
        self._file = place / "policy.json"
        self._file.unlink(missing_ok=True)
        self._start_ns = start_ns
        self.elapsed_ns = 0
        self.settings = Settings.load({"FAIRVISOR_CONFIG_FILE": str(self._file)} | environ, {})
        segment = Segment.private(SEGMENT_BYTES)
        with mock.patch.object(sources, "Bots", shared_bots):
            identity = Identity.from_settings(self.settings, (), environ)
        self._environ = environ
        self._segment = segment
        self._identity = identity
        self._told = Told()
        self._active = ActiveBundle(self._told)
        self.service = Service(self.settings, segment, identity, self._active, self.now)

    @classmethod
    def of(cls, script: Script, place: Path) -> World:
        """The world in which a file begins."""
        folder = script.path.parent
        shared = folder / "settings.json"
        environ = (json.loads(shared.read_text()) if shared.exists() else {}) | script.settings
        environ = {name: value.replace("{folder}", str(folder)) for name, value in environ.items()}
        world = cls(folder, place, environ, script.start_ns)
        if script.bundle:
            world.load(script.bundle)
        return world

    def direct(self, word: str, text: str) -> None:
        """Do what stands between two requests of a file."""
        if word == "@":
            moment_ns = duration_ns(text.removeprefix("+"))
            self.elapsed_ns = moment_ns + (self.elapsed_ns if text.startswith("+") else 0)
        elif word == "load":
            self.load(text)
        elif word == "fail":
            self.fail()

    def now(self) -> Now:
        """The simulated moment."""
        return Now(MONO_START_NS + self.elapsed_ns, self._start_ns + self.elapsed_ns)

    def load(self, name: str) -> None:
        """Offer a bundle of the folder."""
        keys = encoded(self.settings.bundle_signing_key)
        wall_ns = self.now().wall_ns
        try:
            payload = verify_signature((self._folder / name).read_bytes(), keys)
            parsed = parse(payload, wall_ns=wall_ns, environ=self._environ)
        except (BundleInvalid, BundleRefused) as error:
            self._told.put(RELOAD, str(error), self.now())
            return
        self._identity = self._identity.with_keys(parsed.model.jwt_keys)
        bundle = compile_bundle(parsed.model, parsed.sha256, self._segment, decision_options(self.settings))
        self._active.current = Current(bundle, self._identity, describe(parsed, name, wall_ns), 1)

    def fail(self) -> None:
        """From now on every evaluation fails."""
        assert self._active.current is not None, "a bundle is broken that was loaded before"
        self._active.current.bundle = Broken()  # type: ignore[assignment]


def split_request(raw: bytes) -> tuple[str, str, list[tuple[str, bytes]], bytes | None]:
    """Method, target, headers in order, body of the bytes of a request."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.decode("latin-1").split(" ")
    pairs = [
        (name.decode("latin-1"), value.strip()) for name, _, value in (line.partition(b":") for line in lines)
    ]
    declares = any(name.lower() in ("content-length", "transfer-encoding") for name, _ in pairs)
    return method, target, pairs, body if declares else None


def split_head(head: str) -> list[tuple[str, str]]:
    """Header lines as pairs."""
    return [(name, value) for name, _, value in (line.partition(": ") for line in head.split("\r\n") if line)]


class ServiceTransport:
    """The service, called as a transport calls it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def ask(self, raw: bytes, peer: str) -> Received:
        service = self._world.service
        method, target, pairs, body = split_request(raw)
        headers, repeated = read_fields([(name.lower(), value) for name, value in pairs])
        limit, strict = service.body_rule(target)
        if strict and body is not None and len(body) > limit:
            error = BodyTooLarge(f"the body exceeds {limit} bytes")
            answer = service.refusal(error, service.peer(peer), self._world.now(), target)
        else:
            cut_bytes = max(0, len(body or b"") - limit) if limit else 0
            body = None if body is None or not limit else body[:limit]
            request = Request(method, target, headers, service.peer(peer), body, cut_bytes, repeated)
            asked = service.answer(request, self._world.now())
            answer = asked if isinstance(asked, Answer) else asked.whole()
        shown = b"" if method == "HEAD" else answer.body
        return Received(answer.status, split_head(answer.head), shown, answer.delay_ms)


class Timer:
    """What the loop gives for a call that is to come."""

    def __init__(self, delay_s: float, call: Callable[[], object]) -> None:
        self.delay_s = delay_s
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """The loop as far as connections use one: it remembers what is to be called later."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, call: Callable[..., object], *args: object) -> Timer:
        timer = Timer(delay_s, lambda: call(*args))
        self.timers.append(timer)
        return timer

    def ring(self) -> int | None:
        """Let the next timer ring; gives the milliseconds it took, None when there is none."""
        waiting = [timer for timer in self.timers if not timer.cancelled]
        if not waiting:
            return None
        timer = min(waiting, key=lambda each: each.delay_s)
        self.timers.remove(timer)
        timer.call()
        return round(timer.delay_s * 1000)


class Wire(asyncio.Transport):
    """A transport that remembers what was written."""

    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 4711) if peer else ""})
        self.written = b""
        self.closed = False
        self.protocol: asyncio.BaseProtocol | None = None

    def get_protocol(self) -> asyncio.BaseProtocol | None:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class EdgeTransport:
    """The edge worker's protocol, one connection for each peer until it is closed."""

    def __init__(self, world: World) -> None:
        settings = world.settings
        limits = Limits(settings.header_timeout_ms, settings.idle_timeout_ms, settings.max_waiting)
        self._hub = Hub(world.service, limits, world.now)
        self._loop = Loop()
        self._hub.loop = self._loop  # type: ignore[assignment]
        self._open: dict[str, tuple[Connection, Wire]] = {}

    def ask(self, raw: bytes, peer: str) -> Received:
        self._hub.set_time(self._hub.read_now())
        connection, wire = self._connection(peer)
        connection.data_received(raw)
        held_ms = 0
        while not wire.written:
            passed_ms = self._loop.ring()
            assert passed_ms is not None, "no answer came, and nothing will happen any more"
            held_ms += passed_ms
        received, wire.written = read_answer(wire.written, raw.startswith(b"HEAD ")), b""
        received.held_ms = held_ms
        if wire.closed:
            connection.connection_lost(None)
            self._loop.timers.clear()  # only its own can be left: an answer was waited for
            del self._open[peer]
        return received

    def _connection(self, peer: str) -> tuple[Connection, Wire]:
        if peer not in self._open:
            wire = Wire(peer)
            connection = Connection(self._hub)
            connection.connection_made(wire)
            self._open[peer] = connection, wire
        return self._open[peer]


def read_answer(raw: bytes, head_only: bool) -> Received:
    """An answer from its bytes, which must be one answer exactly."""
    head, mark, body = raw.partition(b"\r\n\r\n")
    assert mark, f"no whole head came: {raw!r}"
    first, _, lines = head.decode("latin-1").partition("\r\n")
    received = Received(int(first.split(" ")[1]), split_head(lines), body)
    length = received.header("content-length")
    if received.status == 204:
        assert length is None and not body
    elif not head_only:
        assert length is not None and int(length) == len(body), (
            f"Content-Length {length} for {len(body)} bytes"
        )
    return received


class WsgiTransport:
    """The WSGI application, called as gunicorn calls one (PEP 3333)."""

    def __init__(self, world: World) -> None:
        self._application = Application(world.service, world.now)

    def ask(self, raw: bytes, peer: str) -> Received:
        received = Received(0)

        def start_response(status: str, headers: list[tuple[str, str]]) -> None:
            received.status, received.headers = int(status.partition(" ")[0]), headers

        received.body = b"".join(self._application(environ_of(raw, peer), start_response))
        received.held_ms = int(received.header("x-fairvisor-throttle-ms") or 0)
        received.headers = [pair for pair in received.headers if pair[0] != "X-Fairvisor-Throttle-Ms"]
        return received


def environ_of(raw: bytes, peer: str) -> dict[str, Any]:
    """A request as gunicorn tells it: repeated lines joined with a comma, names with an underscore dropped."""
    method, target, pairs, body = split_request(raw)
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": peer,
        "wsgi.input": io.BytesIO(body or b""),
    }
    for name, value in pairs:
        if "_" in name:
            continue
        known = name.upper().replace("-", "_")
        known = known if known in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{known}"
        text = value.decode("latin-1")
        environ[known] = f"{environ[known]},{text}" if known in environ else text
    return environ


TRANSPORTS: dict[str, Callable[[World], Any]] = {
    "service": ServiceTransport,
    "edge": EdgeTransport,
    "wsgi": WsgiTransport,
}
