"""The service as a WSGI application (PEP 3333), for meinheld and any other WSGI server.

The same requests get the same answers as from the edge worker, with one difference: a WSGI worker that waited would
keep others waiting, so a throttled answer goes at once and tells in X-Fairvisor-Throttle-Ms how long it should have
been held. `application` is for servers that are started without `fairvisor serve`: it is made from the environment
by the first request of each process, so that it does not matter when the server forks.
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Callable, Iterable
from functools import cache
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

from fairvisor.clock import Now, read_now
from fairvisor.errors import BodyTooLarge, RequestError, SettingsError
from fairvisor.http.hub import Answering, BodyRule
from fairvisor.http.request import Request
from fairvisor.http.start import check_environment, make_beside, make_service, open_segment
from fairvisor.http.wire import NO_STORE
from fairvisor.reading import JOINED
from fairvisor.response import Answer
from fairvisor.settings import Settings, environment

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]

_CONTENT_HEADERS: Final = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}
_PIECE_BYTES: Final = 64 * 1024
_MOST_COUNTED_BYTES: Final = 64 * 1024 * 1024
_PATH_SAFE: Final = "/!$&'()*+,;=:@~"  # a percent sign that is left after decoding was sent as %25
_DOT_SEGMENT: Final = re.compile(r"/\.{1,2}(?:/|$)")


class Application:
    """A WSGI application around a service."""

    def __init__(self, service: Answering, read_now: Callable[[], Now]) -> None:
        self._service = service
        self._read_now = read_now

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        service = self._service
        peer, target = service.peer(environ.get("REMOTE_ADDR") or ""), ""
        try:
            target = _target(environ)
            body, cut_bytes = _body(environ, service.body_rule(target))
        except RequestError as error:
            refusal = service.refusal(error, peer, self._read_now(), target)
            return _send(refusal, environ, start_response)
        request = Request(environ["REQUEST_METHOD"], target, _headers(environ), peer, body, cut_bytes, JOINED)
        answer = service.answer(request, self._read_now())
        return _send(answer if isinstance(answer, Answer) else answer.whole(), environ, start_response)


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The application of this process: `fairvisor.http.wsgi:application`."""
    return _of_this_process()(environ, start_response)


@cache
def _of_this_process() -> Application:
    settings = Settings.load(environment(), {})
    check_environment(settings)
    if settings.health_bind is not None:
        raise SettingsError(
            f"FAIRVISOR_HEALTH_BIND: {settings.health_bind} is wrong: only fairvisor serve listens there"
        )
    segment = open_segment(settings)
    beside = make_beside(settings, segment)
    beside.publisher.start()
    atexit.register(beside.stop)
    return Application(make_service(settings, segment, beside, can_wait=False), read_now)


def _target(environ: Environ) -> str:
    """The request target as it was sent, where the server tells it; else put together again.

    meinheld tells the decoded path only, and decodes %252e to a dot: dot segments may not be what was sent, and
    resolving them could take a path out of its policy. Raises RequestError (400) for them.
    """
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if isinstance(raw, str) and raw:
        return raw
    decoded = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    if _DOT_SEGMENT.search(decoded):
        raise RequestError(
            "this server does not tell paths as they were sent: none with dot segments is read"
        )
    path = quote(decoded, safe=_PATH_SAFE, encoding="latin-1")
    query = environ.get("QUERY_STRING")
    return f"{path}?{query}" if query else path


def _headers(environ: Environ) -> dict[str, bytes]:
    headers = {
        name[5:].replace("_", "-").lower(): value.encode("latin-1").strip()
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    for name, header in _CONTENT_HEADERS.items():
        if environ.get(name):
            headers[header] = environ[name].encode("latin-1")
    return headers


def _body(environ: Environ, rule: BodyRule) -> tuple[bytes | None, int]:
    """What is read of the body, and how many bytes are missing of it; None when the endpoint reads none or none was
    sent."""
    length = environ.get("CONTENT_LENGTH") or ""
    chunked = not length and "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower()
    declared = (
        int(length) if length.isascii() and length.isdigit() else rule.limit_bytes + 1 if chunked else 0
    )
    if not declared or not rule.limit_bytes:
        return None, 0
    source = environ["wsgi.input"]
    body: bytes = source.read(min(declared, rule.limit_bytes + 1))
    missing = len(body) - rule.limit_bytes
    if missing <= 0:
        return body, 0
    if rule.strict:
        raise BodyTooLarge(f"the body exceeds {rule.limit_bytes} bytes")
    return body[: rule.limit_bytes], missing + _count_rest(source) if chunked else declared - rule.limit_bytes


def _count_rest(source: Any) -> int:
    """How much more there is of a body that did not say, up to the largest that any setting reads."""
    counted = 0
    while counted < _MOST_COUNTED_BYTES:
        size = len(source.read(_PIECE_BYTES))
        if not size:
            break
        counted += size
    return counted


def _send(answer: Answer, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    status = answer.status
    headers = [
        (name, value)
        for line in (NO_STORE + answer.head).splitlines()
        for name, _, value in [line.partition(": ")]
    ]
    if answer.delay_ms > 0:
        headers.append(("X-Fairvisor-Throttle-Ms", str(answer.delay_ms)))
    if status != HTTPStatus.NO_CONTENT:
        headers.append(("Content-Length", str(len(answer.body))))
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    if status == HTTPStatus.NO_CONTENT or environ["REQUEST_METHOD"] == "HEAD":
        return []
    return [answer.body]
