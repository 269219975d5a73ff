"""The decision service: a request becomes an answer. The edge worker and the WSGI application both call it.

Who may ask, what is at which path, and what is said when something fails stand here; what the gateways' headers mean
is `gateways.py`'s business, what is decided the engine's, what an answer looks like `response.py`'s. No I/O of its own
and no clock: time comes with the request.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from itertools import cycle
from typing import Final

import orjson

from fairvisor.audit import Audit
from fairvisor.clock import Now
from fairvisor.codings import AT_ONCE, STEPS, Decoding
from fairvisor.context import Context
from fairvisor.counters.segment import Segment
from fairvisor.decision import Reason
from fairvisor.engine import decide
from fairvisor.errors import (
    Conflict,
    Forbidden,
    Gone,
    MissingHeader,
    RequestError,
    UntrustedPeer,
    WrongSecret,
)
from fairvisor.follow import ActiveBundle
from fairvisor.http.complaints import Complaints
from fairvisor.http.debug import DebugSessions, explanation
from fairvisor.http.gateways import ENVOY_PREFIXES, Endpoint, decision_endpoints
from fairvisor.http.health import Health
from fairvisor.http.hub import BodyRule
from fairvisor.http.pages import NO_BODY, Decided, Page, Sliced, open_page, page_at, path_of
from fairvisor.http.request import Peer, Request
from fairvisor.http.undecided import Undecided
from fairvisor.identity import Identity
from fairvisor.llm.reservation import unseal
from fairvisor.llm.usage import read_usage
from fairvisor.metrics import Counter, Latency, TokenMeter
from fairvisor.metrics.families import (
    DEBUG_ENDPOINT,
    HEALTH_ENDPOINT,
    OTHER_ENDPOINT,
    SETTLEMENTS,
    USAGE_ENDPOINT,
)
from fairvisor.response import Answer, Renderer, carried, error_answer, rejection
from fairvisor.rules.llm_tokens import claim, settle
from fairvisor.secret_values import encoded, is_one_of
from fairvisor.settings import Settings
from fairvisor.top_keys import TopKeys

_TIMED_ONE_IN: Final = 16  # decisions that are timed: a second look at the clock costs as much as a limit
CONTROL_BODY_BYTES: Final = 64 * 1024  # what /v1/usage and /v1/debug accept

# What came of a settlement that was refused, by the status that says so.
_UNSETTLED: Final = {
    RequestError.status: "forged",
    Conflict.status: "repeated",
    Gone.status: "expired",
}

_CONTROL_BODY: Final = BodyRule(CONTROL_BODY_BYTES, strict=True)


class Service:
    """Answers every request of one process."""

    def __init__(
        self,
        settings: Settings,
        segment: Segment,
        identity: Identity,
        active: ActiveBundle,
        read_now: Callable[[], Now],
        audit: Audit | None = None,
        top_keys: TopKeys | None = None,
    ) -> None:
        """`audit`: where enforcement actions are logged, `top_keys`: where who is rejected is counted; without them
        they are only counted."""
        # per process
        self._identity = identity
        self._active = active
        self._read_now = read_now
        self._counters = segment.table
        self._reservation_key = segment.reservation_key
        self._endpoints = decision_endpoints(settings.request_id)
        self.health = Health(segment, active, identity.trusted_peer)
        self._renderer = Renderer(settings.ratelimit_headers, settings.llm_headers)
        self._allow_status = settings.allow_status
        self._max_body = BodyRule(settings.max_body)
        self._known_tokens = encoded(settings.decision_token)
        self._complaints = Complaints(segment)
        self._debug = DebugSessions(settings.debug_session_secret, segment, audit)
        self._pages = self._make_pages(with_health=settings.health_bind is None)
        self._undecided = Undecided(segment, settings.fail_open, audit)
        self._audit = audit
        self._top_keys = top_keys
        self._is_timed = cycle((False,) * (_TIMED_ONE_IN - 1) + (True,)).__next__
        self._took = Latency(segment).observe
        self._tokens = TokenMeter(segment)
        self._settlements = {result: Counter(segment, SETTLEMENTS, result) for result in SETTLEMENTS.known}

    def _make_pages(self, *, with_health: bool) -> dict[str, Page]:
        return {
            **(self.health.pages if with_health else {}),
            USAGE_ENDPOINT: Page(self._usage, ("POST",), _CONTROL_BODY, guarded=True),
            "/v1/debug/session": Page(self._debug.open, ("POST",), _CONTROL_BODY),
            "/v1/debug/logout": Page(self._debug.close, ("POST",), _CONTROL_BODY),
        }

    def answer(self, request: Request, now: Now) -> Answer | Sliced | Decided:
        """Answer one request. Never raises."""
        endpoint = self._endpoints.get(request.target) or self._find(request.target)
        if endpoint is not None and request.body and "content-encoding" in request.headers:
            return self._answer_encoded(endpoint, request, now)
        return self._answer(endpoint, request, now)

    def _answer(
        self, endpoint: Endpoint | None, request: Request, now: Now, decoding: Decoding | None = None
    ) -> Answer | Sliced:
        try:
            if endpoint is None:
                return self._other(request, now)
            answer = self._decide(endpoint, request, now, decoding)
            if self._is_timed():
                self._took(self._read_now().mono_ns - now.mono_ns)
            return answer
        except Forbidden as error:  # about the gateway, which must not take it for a reject
            return self.refusal(error, request.peer, now, request.target)
        except RequestError as error:
            self._complain(error, request.peer, now, request.target)
            answer = rejection(error, request.headers)
            return carried(answer) if endpoint is not None and endpoint.carrier else answer
        except Exception as error:  # a fault of ours must stop neither the worker nor the gateway
            self._complaints.failure(error, now)
            return self._failed(endpoint)

    def _answer_encoded(self, endpoint: Endpoint, request: Request, now: Now) -> Answer | Sliced | Decided:
        """Decode the body first where the decision looks at what it says: at once, or in slices."""
        try:
            decoding = self._decoding(endpoint, request)
        except RequestError:
            decoding = None  # the decision says so
        if decoding is None or decoding.runs_out(AT_ONCE):
            return self._answer(endpoint, request, now, decoding)
        return Decided(
            lambda: decoding.runs_out(STEPS),
            lambda: self._answer(endpoint, request, self._read_now(), decoding),
        )

    def _decoding(self, endpoint: Endpoint, request: Request) -> Decoding | None:
        """How the body is decoded; None: it is not encoded, or nothing looks at what it says. Raises RequestError."""
        coding = request.headers["content-encoding"]
        active = self._active.current
        if coding.lower() in (b"", b"identity") or active is None or request.body is None:
            return None
        method, target, host = endpoint.source.describe(request)
        if not active.bundle.reads_model(active.bundle.routes.plan(method, host, target).policies):
            return None
        return Decoding(coding, request.body, self._max_body.limit_bytes, endpoint.missing_bytes(request))

    def refusal(self, error: RequestError, peer: Peer, now: Now, target: str = "") -> Answer:
        """Return the answer to what cannot be answered as asked, counted and logged; `target` where it was read."""
        self._complain(error, peer, now, target)
        return error_answer(error)

    def _complain(self, error: RequestError, peer: Peer, now: Now, target: str) -> None:
        """Count and log a request that gets an error instead of a decision."""
        self._complaints.undecided(self._endpoint_name(target), error, peer.address, now)

    def peer(self, address: str) -> Peer:
        """The other end of a new connection; `address` is "" on a unix socket."""
        return Peer(address, self._identity.trusted_peer(address))

    def body_rule(self, target: str) -> BodyRule:
        """How much of a request's body is read at this target."""
        endpoint = self._endpoints.get(target) or self._find(target)
        if endpoint is not None:
            return self._max_body if endpoint.reads_body else NO_BODY
        page = self._pages.get(path_of(target))
        return page.body if page is not None else NO_BODY

    # decisions

    def _find(self, target: str) -> Endpoint | None:
        """The deciding endpoint of a target with a query (Caddy appends the client's), a prefix or an absolute form."""
        path = path_of(target)
        endpoint = self._endpoints.get(path)
        if endpoint is None:
            for prefix in ENVOY_PREFIXES:
                if path.startswith(prefix):
                    return self._endpoints[prefix]
        return endpoint

    def _endpoint_name(self, target: str) -> str:
        """Return the endpoint of a target, as metrics and the log name it."""
        path = path_of(target)
        if path in self._endpoints or path == USAGE_ENDPOINT:
            return path
        if path in self.health.pages:
            return HEALTH_ENDPOINT
        for prefix in (*ENVOY_PREFIXES, DEBUG_ENDPOINT):
            if path.startswith(prefix):
                return prefix
        return OTHER_ENDPOINT

    def _decide(
        self, endpoint: Endpoint, request: Request, now: Now, decoding: Decoding | None = None
    ) -> Answer:
        peer, headers = request.peer, request.headers
        if not peer.trusted or self._known_tokens:
            self._check_peer(request)
        active = self._active.current
        if active is None:
            return self._undecided.refuse(Reason.NO_BUNDLE_LOADED)
        method, target, host = endpoint.source.describe(request)
        bundle = active.bundle
        if not host and bundle.routes.selects_by_host:
            raise MissingHeader(
                f"the header {endpoint.host_header} is missing, and the policies select by host"
            )
        context = Context(
            method,
            host,
            target,
            headers,
            peer.address,
            active.identity,
            now,
            request.body or None,  # an empty one may be what the gateway left of it
            endpoint.request_id(headers) if endpoint.reads_id else "",
            endpoint.missing_bytes(request),
            endpoint.with_joined(request.repeated) if endpoint.joins else request.repeated,
        )
        if decoding is not None:
            _use(decoding, context)
        decision = decide(bundle, self._counters, context, now)
        if decision.remarked:
            if self._audit is not None:
                self._audit.note(decision, context)
            if self._top_keys is not None:
                self._top_keys.note(decision, context)
        answer = self._renderer.answer(
            decision, context, endpoint.allow_status or self._allow_status, endpoint.carrier
        )
        if "cookie" in headers and self._debug.wanted(context):
            answer.head += explanation(decision, context, self._read_now().mono_ns - now.mono_ns)
        return answer

    def _check_peer(self, request: Request) -> None:
        """Raises Forbidden for a peer that may not describe requests, or lacks the token."""
        if not request.peer.trusted:
            raise UntrustedPeer("this peer may not ask for decisions (FAIRVISOR_TRUSTED_PEERS)")
        given = request.headers.get("x-fairvisor-token", b"")
        if self._known_tokens and not is_one_of(given, self._known_tokens):
            raise WrongSecret("the header X-Fairvisor-Token is missing or wrong")

    def _failed(self, endpoint: Endpoint | None) -> Answer:
        """What a failure of ours means: the gateway decides by its own setting, or the request passes, counted."""
        if endpoint is not None and self._undecided.passes():
            return Answer(endpoint.allow_status or self._allow_status)
        return self._undecided.refuse(Reason.ENGINE_ERROR)

    # other pages

    def _other(self, request: Request, now: Now) -> Answer | Sliced:
        path = path_of(request.target)
        page = page_at(self._pages, path)
        if page.guarded and request.method in page.methods:
            self._check_peer(request)
        return open_page(page, path, request, now)

    def _usage(self, request: Request, now: Now) -> Answer:
        """Settle a reservation once: `{"reservation": token, "usage": {...}}` or `{"reservation", "failed": true}`."""
        document = _read_json(request.body)
        token = document.get("reservation")
        if not isinstance(token, str):
            raise RequestError('the field "reservation" is missing')
        failed = document.get("failed") is True
        usage = None if failed else read_usage(document)
        if usage is None and not failed:
            raise RequestError(
                'the field "usage" holds no usage that can be read; {"failed": true} gives all back'
            )
        try:
            reservation = unseal(self._reservation_key, token, now.wall_ns)
            gives_back = claim(self._counters, reservation, now)
        except RequestError as error:
            self._settlements[_UNSETTLED[error.status]].add()
            raise
        for each in settle(self._counters, reservation, usage, now, gives_back=gives_back):
            self._tokens.settled(*each)
        result = "charged_only" if not gives_back else "failed_upstream" if failed else "settled"
        self._settlements[result].add()
        return Answer(HTTPStatus.NO_CONTENT)


def _use(decoding: Decoding, context: Context) -> None:
    """Let the policies see what was decoded."""
    if decoding.body is None:
        context.unread_bytes = decoding.unread_bytes
    else:
        context.body = decoding.body


def _read_json(body: bytes | None) -> dict[str, object]:
    try:
        document = orjson.loads(body or b"")
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RequestError("the body is not a JSON object")
    return document
