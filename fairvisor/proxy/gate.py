"""The decision about a request that wants to pass: an answer in its place, or a passage.

In proxy mode the request itself is what the policies see, read as every transport reads it (`reading.py`): its own
method, target and Host, the peer's address unless the peer is trusted to name another. The gate asks the engine and
says what is to be told and settled; it does no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from fairvisor.clock import Now
from fairvisor.codings import Decoding
from fairvisor.context import Context
from fairvisor.counters.segment import Segment
from fairvisor.decision import Decision, Reason, Remarked
from fairvisor.engine import Bundle, decide
from fairvisor.errors import MethodNotAllowed, MissingHeader, NotFound, RequestError
from fairvisor.follow import ActiveBundle
from fairvisor.http.complaints import Complaints
from fairvisor.http.debug import DebugSessions, explanation
from fairvisor.http.request import Peer, Request
from fairvisor.http.undecided import Undecided
from fairvisor.metrics import Cells, Counter, Family, Latency, TokenMeter
from fairvisor.metrics.families import (
    DEBUG_ENDPOINT,
    PROXY_ENDPOINT,
    SETTLEMENTS,
    STREAMS_ENDED,
    USAGE_MISSING,
)
from fairvisor.proxy.account import Account, Ledger
from fairvisor.proxy.heads import UNDERSCORED
from fairvisor.proxy.rewrite import without
from fairvisor.reading import HOSTS, METHODS
from fairvisor.response import Answer, Renderer, error_answer
from fairvisor.route import Plan

if TYPE_CHECKING:
    from fairvisor.audit import Audit
    from fairvisor.engine import Policy
    from fairvisor.identity import Identity
    from fairvisor.proxy.heads import RequestHead
    from fairvisor.settings import Settings
    from fairvisor.top_keys import TopKeys

_DEBUG_PREFIX: Final = "/v1/debug/"
_TELLS_UNASKED: Final = (
    ".mistral.ai"  # answers 422 to fields that it does not know, stream_options among them
)
_TIMED_ONE_IN: Final = 8  # decisions whose duration is counted


class Passage:
    """The request may pass, after `delay_ms`. `head` are lines for the response, `account` what is to be settled."""

    __slots__ = ("account", "delay_ms", "head")

    def __init__(self, head: str = "", delay_ms: int = 0, account: Account | None = None) -> None:
        self.head = head
        self.delay_ms = delay_ms
        self.account = account


class Gate:
    """Decides every request of one process."""

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
        # per process
        self.pseudonym = _pseudonym(segment.reservation_key)
        self.max_body = settings.max_body
        self._identity = identity
        self._active = active
        self._read_now = read_now
        self._counters = segment.table
        self._render = Renderer(settings.ratelimit_headers, settings.llm_headers).answer
        self._debug_on = bool(settings.debug_session_secret)
        self._complaints = Complaints(segment)
        self._debug = DebugSessions(settings.debug_session_secret, segment, audit)
        self._undecided = Undecided(segment, settings.fail_open, audit)
        self._noted_by = tuple(each.note for each in (audit, top_keys) if each is not None)
        self._is_timed = cycle((False,) * (_TIMED_ONE_IN - 1) + (True,)).__next__
        self._took = Latency(segment).observe
        self._ledger = Ledger(
            segment.table,
            segment.reservation_key,
            _asks_usage(settings),
            read_now,
            TokenMeter(segment),
            _counters(segment, USAGE_MISSING),
            _counters(segment, SETTLEMENTS),
            _counters(segment, STREAMS_ENDED),
            None if audit is None else audit.stream_ended,
        )

    def peer(self, address: str) -> Peer:
        """The other end of a new connection; `address` is "" on a unix socket."""
        return Peer(address, self._identity.trusted_peer(address))

    def refusal(self, error: RequestError, peer: Peer, target: str = "") -> Answer:
        """Return the answer to what cannot be answered as asked, counted and logged; `target` where it was read."""
        is_debug = self._debug_on and target.startswith(_DEBUG_PREFIX)
        endpoint = DEBUG_ENDPOINT if is_debug else PROXY_ENDPOINT
        self._complaints.undecided(endpoint, error, peer.address, self._read_now())
        return error_answer(error)

    def reads_body(self, head: RequestHead) -> bool:
        """Whether the decision needs the body."""
        active = self._active.current
        if active is None:
            return False
        try:
            plan = _plan(active.bundle, head)
        except RequestError:
            return False  # the decision says so
        return active.bundle.kill_switches.reads_body or any(policy.reads_body for policy in plan.policies)

    def decoding(self, head: RequestHead, body: bytes, *, whole: bool) -> Decoding | None:
        """Return how the body is decoded, before `decide`; None: it is not encoded, or nothing looks at it."""
        coding = head.headers.get("content-encoding", b"")
        active = self._active.current
        if not coding or coding.lower() == b"identity" or active is None:
            return None
        try:
            plan = _plan(active.bundle, head)
        except RequestError:
            return None  # the decision says so
        if not active.bundle.reads_model(plan.policies):
            return None
        cut_bytes = 0 if whole else max(head.length - len(body), 1)
        return Decoding(coding, body, self.max_body, cut_bytes)

    def decide(
        self,
        head: RequestHead,
        peer: Peer,
        body: bytes | None,
        *,
        whole: bool,
        decoding: Decoding | None = None,
    ) -> Answer | Passage:
        """Decide a request; `body` is what was read of it, `whole` says whether that is all. Never raises.

        A `decoding` is done.
        """
        now = self._read_now()
        cut_bytes = unread_bytes = 0
        if decoding is not None:
            whole, unread_bytes = False, decoding.unread_bytes if decoding.body is None else 0
            body = body if decoding.body is None else decoding.body
        elif body is None and head.length == 0:
            body = b""  # there is none, which is more than not having read it
        elif body is not None and (not whole or len(body) > self.max_body):
            size = max(head.length, len(body) + (not whole))
            body, whole = body[: self.max_body], False
            cut_bytes = size - len(body)
        try:
            if self._debug_on and head.target.startswith(_DEBUG_PREFIX):
                return self._debug_page(head, peer, now)
            if head.flags & UNDERSCORED:
                self._drop_posing(head)
            outcome = self._decide(head, peer, body, cut_bytes, unread_bytes, whole, now)
            if self._is_timed():
                self._took(self._read_now().mono_ns - now.mono_ns)
            return outcome
        except RequestError as error:
            return self.refusal(error, peer, head.target)
        except Exception as error:  # a fault of ours must not stop the worker
            self._complaints.failure(error, now)
            if self._undecided.passes():
                return Passage()
            return self._undecided.refuse(Reason.ENGINE_ERROR, head.target.partition("?")[0])

    def _decide(
        self,
        head: RequestHead,
        peer: Peer,
        body: bytes | None,
        cut_bytes: int,
        unread_bytes: int,
        whole: bool,
        now: Now,
    ) -> Answer | Passage:
        active = self._active.current
        if active is None:
            return self._undecided.refuse(Reason.NO_BUNDLE_LOADED, head.target.partition("?")[0])
        bundle = active.bundle
        method, host = _method_and_host(head)
        if not host and bundle.routes.selects_by_host:
            raise MissingHeader("the header Host is missing, and the policies select by host")
        context = Context(
            method,
            host,
            _target(head),
            head.headers,
            peer.address,
            active.identity,
            now,
            body,
            cut_bytes=cut_bytes,
            repeated=head.repeated,
        )
        context.unread_bytes = unread_bytes
        decision = decide(bundle, self._counters, context, now)
        if decision.remarked:
            for note in self._noted_by:
                note(decision, context)
        reservation = _take_reservation(decision)
        answer = self._render(decision, context, 200)
        if self._debug_on and "cookie" in head.headers and self._debug.wanted(context):
            answer.head += explanation(decision, context, self._read_now().mono_ns - now.mono_ns)
        if decision.reason is not None:
            return answer
        account = None
        if reservation:
            account = self._ledger.open(reservation, context, decision, whole=whole)
        return Passage(answer.head, answer.delay_ms, account)

    def _drop_posing(self, head: RequestHead) -> None:
        """Drop the headers that differ from one that something is counted or matched by in `_` and `-` only.

        Servers that make variables of names (CGI, WSGI) read X_Api_Key as X-Api-Key: a client could show the upstream
        a key that no rule has seen.
        """
        active = self._active.current
        if active is None:
            return
        watched = {name.replace("_", "-"): name for name in _watched(active.bundle, head)}
        posing = [name for name in head.headers if watched.get(name.replace("_", "-"), name) != name]
        for name in posing:
            del head.headers[name]
        head.lines = without(head.lines, *[name.encode("ascii") + b":" for name in posing])

    def _debug_page(self, head: RequestHead, peer: Peer, now: Now) -> Answer:
        path = head.target.partition("?")[0]
        if path not in ("/v1/debug/session", "/v1/debug/logout"):
            raise NotFound(f"there is nothing at {path[:200]}")
        if head.method != "POST":
            raise MethodNotAllowed(f"{path} takes POST", ("POST",))
        request = Request(head.method, head.target, head.headers, peer)
        return (
            self._debug.close(request, now) if path == "/v1/debug/logout" else self._debug.open(request, now)
        )


def _asks_usage(settings: Settings) -> bool:
    """Whether the usage of a stream is asked for when the client did not; one upstream is enough that refuses it."""
    hosts = [urlsplit(url).hostname or "" for url in settings.backend_url or ()]
    return settings.ask_usage and not any(f".{host}".endswith(_TELLS_UNASKED) for host in hosts)


def _counters(cells: Cells, family: Family) -> dict[str, Counter]:
    """A counter for each value of the family's only label."""
    return {value: Counter(cells, family, value) for value in family.known}


def _plan(bundle: Bundle, head: RequestHead) -> Plan[Policy]:
    return bundle.routes.plan(*_method_and_host(head), _target(head))


def _method_and_host(head: RequestHead) -> tuple[str, str]:
    """The method and the host as policies see them. Raises RequestError (400)."""
    return METHODS[head.method.encode("ascii")], HOSTS[head.host] if head.host else ""


def _target(head: RequestHead) -> str:
    """The target as policies see it: a request about the server as a whole (`OPTIONS *`) is one to its root."""
    return "/" if head.target == "*" else head.target


def _watched(bundle: Bundle, head: RequestHead) -> frozenset[str]:
    """The headers that something is counted or matched by where this request goes."""
    return bundle.kill_switches.headers.union(*[policy.headers for policy in _plan(bundle, head).policies])


def _pseudonym(secret: bytes) -> bytes:
    """Return this instance's name in Via: the same in all its workers, and no other instance's (RFC 9110 7.6.3)."""
    return b"fairvisor-" + hashlib.blake2b(secret, digest_size=6, person=b"via").hexdigest().encode("ascii")


def _take_reservation(decision: Decision) -> str:
    """The sealed reservation, taken off the decision: it is settled here and is nothing for the client."""
    if not isinstance(decision, Remarked):
        return ""
    reservation, decision.reservation = decision.reservation, ""
    return reservation
