"""What operators may ask and do: the bundle, the counters, the breakers, the state of the instance.

    GET    /v1/admin/status             what the instance is doing
    GET    /v1/admin/bundle             the active bundle, as it was offered
    PUT    /v1/admin/bundle             offer another one: take_over=true where the file decides
    POST   /v1/admin/reload             read the bundle file again
    GET    /v1/admin/limits             one counter: policy=, rule=, key=DESCRIPTOR=VALUE (repeatable)
    DELETE /v1/admin/limits             forget it
    GET    /v1/admin/top                who is rejected most: limit=, policy=, rule=
    GET    /v1/admin/breaker            one circuit breaker: policy=, key=DESCRIPTOR=VALUE
    POST   /v1/admin/breaker/trip       open it
    POST   /v1/admin/breaker/reset      close it

Whoever reaches this may do all of it: who that is, is decided by the listener (`admin_listener.py`). Answers come from
a thread beside the requests and may block. Every change is written to the audit log, with who made it, what was before
and what is afterwards; its request may say more of that: reason=, as=, sudo_user=.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

from fairvisor.actor import By, claiming
from fairvisor.audit import Audit, record_of
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.segment import Segment
from fairvisor.decision import UNIT_U
from fairvisor.errors import (
    BundleInvalid,
    BundleRefused,
    Conflict,
    FairvisorError,
    MethodNotAllowed,
    NotFound,
    RequestError,
)
from fairvisor.follow import ActiveBundle, Current
from fairvisor.http.complaints import Complaints
from fairvisor.http.pages import path_of
from fairvisor.http.request import Request
from fairvisor.lookup import Found, Keys, Lookup
from fairvisor.metrics.families import ADMIN_ENDPOINT
from fairvisor.offered import Published
from fairvisor.reload import NOT_NOW, Publisher
from fairvisor.response import Answer, error_answer, json_answer
from fairvisor.rules.breaker import Breaker
from fairvisor.status import status_of
from fairvisor.top_keys import read_top_keys

MAX_TOP: Final = 1000
DEFAULT_TOP: Final = 20

Parameters = Mapping[str, list[str]]
Handler = Callable[[Request, Parameters, By, Now], Answer]


class Admin:
    """Answers operators. One per process; `answer` may be called from several threads."""

    def __init__(
        self, instance: str, segment: Segment, publisher: Publisher, active: ActiveBundle, audit: Audit
    ) -> None:
        self._instance = instance
        self._segment = segment
        self._publisher = publisher
        self._active = active
        self._audit = audit
        self._complaints = Complaints(segment)
        self._pages: dict[str, dict[str, Handler]] = {
            "/v1/admin/status": {"GET": self._status},
            "/v1/admin/bundle": {"GET": self._get_bundle, "PUT": self._put_bundle},
            "/v1/admin/reload": {"POST": self._reload},
            "/v1/admin/limits": {"GET": self._show_limit, "DELETE": self._reset_limit},
            "/v1/admin/top": {"GET": self._top},
            "/v1/admin/breaker": {"GET": self._show_breaker},
            "/v1/admin/breaker/trip": {"POST": self._trip},
            "/v1/admin/breaker/reset": {"POST": self._reset_breaker},
        }

    def answer(self, request: Request, who: By, now: Now) -> Answer:
        """Answer a request of `who`. What is wrong with it becomes an answer; a fault of ours is raised."""
        try:
            parameters = _parameters(request.target)
            return self._handler(request)(request, parameters, _claiming(who, parameters), now)
        except BundleInvalid as error:
            return _invalid(error)
        except BundleRefused as error:
            status = HTTPStatus.SERVICE_UNAVAILABLE if error.code in NOT_NOW else HTTPStatus.CONFLICT
            message = str(error).removeprefix(f"{error.code}: ")
            return json_answer(status, {"error": {"code": error.code, "message": message}})
        except RequestError as error:
            return self.refusal(error, request.peer.address, now)
        except FairvisorError as error:
            return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": {"message": str(error)}})

    def refusal(self, error: RequestError, address: str, now: Now) -> Answer:
        """Return the answer to what cannot be answered as asked, counted and logged."""
        self._complaints.undecided(ADMIN_ENDPOINT, error, address, now)
        return error_answer(error)

    def _handler(self, request: Request) -> Handler:
        path = path_of(request.target)
        page = self._pages.get(path)
        if page is None:
            raise NotFound(f"there is nothing at {path[:200]}; allowed are {', '.join(self._pages)}")
        handler = page.get(request.method)
        if handler is None:
            raise MethodNotAllowed(f"{path} takes {', '.join(page)}", page)
        return handler

    # the instance and its bundle

    def _status(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        report = status_of(self._instance, self._segment, self._publisher, self._active.current, now)
        return json_answer(HTTPStatus.OK, report)

    def _get_bundle(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        shared = self._publisher.current()
        if shared is None:
            raise NotFound("there is no bundle yet")
        try:
            about = shared.about
            head = (
                "Content-Type: application/json\r\n"
                f'ETag: "{about.sha256}"\r\n'
                f"X-Fairvisor-Bundle-Version: {about.version}\r\n"
                f"X-Fairvisor-Bundle-Generation: {shared.generation}\r\n"
            )
            return Answer(HTTPStatus.OK, head, shared.original())
        finally:
            shared.close()

    def _put_bundle(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        take_over = _flag(parameters, "take_over")
        return _published(self._publisher.push(request.body or b"", by, take_over=take_over))

    def _reload(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        file = self._publisher.file
        if file is None:
            raise Conflict("FAIRVISOR_CONFIG_FILE is not set: there is no file to read")
        try:
            data = file.read_bytes()
        except OSError as error:
            self._publisher.file_is_missing(f"{file}: {error.strerror}")
            raise Conflict(f"{file}: {error.strerror}") from None
        return _published(self._publisher.take_file(data, by))

    # counters

    def _show_limit(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        policy, rule = _one(parameters, "policy"), _one(parameters, "rule")
        found = self._lookup().find(policy, rule, _keys(parameters), now)
        return json_answer(HTTPStatus.OK, found.report())

    def _reset_limit(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        policy, rule = _one(parameters, "policy"), _one(parameters, "rule")
        lookup = self._lookup()
        found = lookup.find(policy, rule, _keys(parameters), now)
        forgotten = lookup.reset(found, now)
        left = lookup.find(policy, rule, _keys(parameters), now)
        fields = {
            "policy": policy,
            "rule": rule,
            "key": self._audit.key_of(tuple(found.keys.items())),
            **by.fields(),
            "old": _remaining(found),
            "new": _remaining(left),
        }
        self._record("limit_reset", fields, now)
        return json_answer(HTTPStatus.OK, {**left.report(), "forgotten": forgotten})

    def _top(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        most = _count(parameters)
        wanted = {name: _one(parameters, name) for name in ("policy", "rule") if name in parameters}
        since_ns, top = read_top_keys(self._segment.slates, now)
        found = [
            {
                **frequent.key._asdict(),
                "keys": dict(frequent.key.keys),
                "rejected": frequent.hits,
                "too_high_by_at_most": frequent.error,
            }
            for frequent in top
            if all(getattr(frequent.key, name) == value for name, value in wanted.items())
        ]
        seconds = (now.wall_ns - since_ns) // NS_PER_S
        return json_answer(HTTPStatus.OK, {"seconds": seconds, "top": found[:most]})

    # breakers

    def _show_breaker(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        return self._breaker_answer(parameters, now)

    def _trip(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        breaker, value = self._breaker(parameters, now)
        changed = breaker.trip(self._segment.table, value, now)
        return self._breaker_changed("breaker_trip", parameters, by, now, changed=changed)

    def _reset_breaker(self, request: Request, parameters: Parameters, by: By, now: Now) -> Answer:
        breaker, value = self._breaker(parameters, now)
        changed = breaker.reset(self._segment.table, value, now)
        return self._breaker_changed("breaker_reset", parameters, by, now, changed=changed)

    def _breaker_changed(
        self, action: str, parameters: Parameters, by: By, now: Now, *, changed: bool
    ) -> Answer:
        breaker, value = self._breaker(parameters, now)
        new, other = (
            ("open", "closed") if breaker.opened_ns(self._segment.table, value, now) else ("closed", "open")
        )
        fields = {
            "policy": _one(parameters, "policy"),
            "key": self._audit.key_of(((breaker.key_name, value),) if breaker.key_name else ()),
            **by.fields(),
            "old": other if changed else new,
            "new": new,
        }
        self._record(action, fields, now)
        return self._breaker_answer(parameters, now, changed=changed)

    def _breaker(self, parameters: Parameters, now: Now) -> tuple[Breaker, str | None]:
        return self._lookup().breaker(_one(parameters, "policy"), _keys(parameters), now)

    def _breaker_answer(self, parameters: Parameters, now: Now, **more: bool) -> Answer:
        breaker, value = self._breaker(parameters, now)
        opened_ns = breaker.opened_ns(self._segment.table, value, now)
        report = {
            "policy": _one(parameters, "policy"),
            "keys": {breaker.key_name: value} if breaker.key_name else {},
            "state": "open" if opened_ns else "closed",
            "open_seconds": (now.wall_ns - opened_ns) // NS_PER_S if opened_ns else None,
            **more,
        }
        return json_answer(HTTPStatus.OK, report)

    def _record(self, action: str, fields: Mapping[str, object], now: Now) -> None:
        """Leave a change for the audit log where it outlives this process."""
        self._publisher.records.post([record_of(action, fields, now)], now)

    def _lookup(self) -> Lookup:
        current = self._current()
        return Lookup(current.bundle, current.identity, self._segment.table)

    def _current(self) -> Current:
        current = self._active.current
        if current is None:
            raise NotFound(f"there is no bundle yet: {self._active.reason}")
        return current


def _published(published: Published) -> Answer:
    return json_answer(HTTPStatus.OK, published._asdict())


def _invalid(error: BundleInvalid) -> Answer:
    problems = [problem._asdict() for problem in error.problems]
    number = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
    message = f"the bundle is not valid, the active one stays: {number}"
    return json_answer(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        {"error": {"code": "invalid_bundle", "message": message, "problems": problems}},
    )


def _parameters(target: str) -> Parameters:
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(target.partition("#")[0].partition("?")[2], keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return found


def _claiming(who: By, parameters: Parameters) -> By:
    """Return the actor with the claims of the request. Raises RequestError."""
    try:
        return claiming(who, {name: values[-1] for name, values in parameters.items()})
    except ValueError as error:
        raise RequestError(str(error)) from None


def _remaining(found: Found) -> dict[str, float]:
    """Return what is left of each counter, in whole units."""
    return {standing.name: standing.remaining_u / UNIT_U for standing in found.standings}


def _one(parameters: Parameters, name: str) -> str:
    values = parameters.get(name, [])
    if len(values) != 1 or not values[0]:
        raise RequestError(f"the parameter {name} is needed, once")
    return values[0]


def _flag(parameters: Parameters, name: str) -> bool:
    """`take_over=true`; absent: false."""
    text = _one(parameters, name) if name in parameters else "false"
    if text not in ("true", "false"):
        raise RequestError(f"the parameter {name} is true or false")
    return text == "true"


def _keys(parameters: Parameters) -> Keys:
    """`key=header:x-api-key=k1`; without a second `=` the request has none."""
    keys: dict[str, str | None] = {}
    for text in parameters.get("key", []):
        name, mark, value = text.partition("=")
        keys[name] = value if mark else None
    return keys


def _count(parameters: Parameters) -> int:
    text = _one(parameters, "limit") if "limit" in parameters else str(DEFAULT_TOP)
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_TOP):
        raise RequestError(f"the parameter limit is a number from 1 to {MAX_TOP}")
    return int(text)
