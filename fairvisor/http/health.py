"""What an operator's programs ask: is it alive, is it ready, what does it count.

The pages stand beside the decisions, or on a listener of their own (FAIRVISOR_HEALTH_BIND), for which `Health` is the
whole service. Anybody may ask; why the edge is not ready, with paths of files and addresses of key sources, is shown to
trusted peers only. It knows nothing of decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from fairvisor.clock import Now
from fairvisor.counters.registry import Registry
from fairvisor.counters.segment import Segment
from fairvisor.decision import Reason
from fairvisor.errors import RequestError
from fairvisor.exposition import CONTENT_TYPE, Active, Crowd, Exposition, Sources
from fairvisor.follow import ActiveBundle
from fairvisor.http.complaints import Complaints
from fairvisor.http.hub import BodyRule
from fairvisor.http.pages import NO_BODY, READING, Page, Sliced, open_page, page_at, path_of
from fairvisor.http.request import Peer, Request
from fairvisor.lame_duck import LameDuck
from fairvisor.metrics.families import HEALTH_ENDPOINT
from fairvisor.response import Answer, error_answer, json_answer

_TEXT: Final = "Content-Type: text/plain\r\n"
_METRICS: Final = f"Content-Type: {CONTENT_TYPE}\r\n"


class Health:
    """Answers /livez, /readyz and /metrics, and nothing else. `trusts` says whether a peer may see details."""

    def __init__(self, segment: Segment, active: ActiveBundle, trusts: Callable[[str], bool]) -> None:
        self._active = active
        self._trusts = trusts
        self._registry = Registry(segment.table)
        self._exposition = Exposition(segment, Sources(self._active_bundle, active.notes.faults, self._crowd))
        self._complaints = Complaints(segment)
        self.lame_duck: LameDuck | None = None  # the master's, if there is one
        self.pages = {
            "/livez": Page(self._livez, READING),
            "/readyz": Page(self._readyz, READING),
            "/metrics": Page(self._metrics, READING),
        }

    # what a transport asks of a service

    def answer(self, request: Request, now: Now) -> Answer | Sliced:
        """Answer one request. Never raises."""
        path = path_of(request.target)
        try:
            return open_page(page_at(self.pages, path), path, request, now)
        except RequestError as error:
            return self.refusal(error, request.peer, now)
        except Exception as error:  # a fault of ours must not stop the worker
            self._complaints.failure(error, now)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR)

    def refusal(self, error: RequestError, peer: Peer, now: Now, target: str = "") -> Answer:
        """Return the answer to what cannot be answered as asked, counted and logged."""
        self._complaints.undecided(HEALTH_ENDPOINT, error, peer.address, now)
        return error_answer(error)

    def peer(self, address: str) -> Peer:
        """Return the other end of a new connection; `address` is "" on a unix socket."""
        return Peer(address, self._trusts(address))

    def body_rule(self, target: str) -> BodyRule:
        """No page reads one."""
        return NO_BODY

    # pages

    def _livez(self, request: Request, now: Now) -> Answer:
        return Answer(HTTPStatus.OK, _TEXT, b"ok")

    def _readyz(self, request: Request, now: Now) -> Answer:
        if self.lame_duck is not None and self.lame_duck.has_begun:
            return _not_ready("stopping", "the instance was asked to stop; decisions go on", request.peer)
        active = self._active.current
        if active is None:
            return _not_ready(Reason.NO_BUNDLE_LOADED.value, self._active.reason, request.peer)
        problems = active.identity.problems()
        if problems:
            return _not_ready("identity", "; ".join(problems), request.peer)
        about = active.about
        return json_answer(
            HTTPStatus.OK,
            {
                "status": "ok",
                "policy_version": about.version,
                "policy_hash": about.sha256,
                "policies": about.policies,
                "expired": about.expires_at_ns is not None and about.expires_at_ns <= now.wall_ns,
            },
        )

    def _metrics(self, request: Request, now: Now) -> Sliced:
        return Sliced(
            _METRICS, self._exposition.pieces(now), lambda error: self._complaints.failure(error, now)
        )

    def _active_bundle(self) -> Active | None:
        current = self._active.current
        if current is None:
            return None
        about = current.about
        return Active(current.bundle, about.policies, about.published_ns, about.expires_at_ns)

    def _crowd(self) -> Crowd:
        workers = self._registry.workers()
        return Crowd(
            len(workers), sum(each.connections for each in workers), sum(each.waiting for each in workers)
        )


def _not_ready(reason: str, detail: str, peer: Peer) -> Answer:
    document = {"status": "not_ready", "reason": reason}
    if peer.trusted:
        document["detail"] = detail
    return json_answer(HTTPStatus.SERVICE_UNAVAILABLE, document)
