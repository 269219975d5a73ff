"""What one process needs before it can answer: identity, bundle, service, put together from the settings.

The gunicorn master calls it in each worker after the fork, the WSGI application in each process that serves it. It
knows how the parts fit; it knows nothing of requests.
"""

from __future__ import annotations

import logging

from fairvisor.bundle.model import Bundle, CostBased
from fairvisor.clock import read_now
from fairvisor.counters.segment import Segment
from fairvisor.http.service import Service
from fairvisor.identity import Identity, Refresher
from fairvisor.reload import ActiveBundle
from fairvisor.settings import Settings, environment

_log = logging.getLogger(__name__)


def segment_name(instance: str) -> str:
    """The name of an instance's segment."""
    return f"fairvisor-{instance}"


def make_service(settings: Settings, segment: Segment, *, can_wait: bool) -> Service:
    """The service of this process, its bundle loaded, its identity kept up to date by a thread.

    `can_wait`: whether the transport can hold a throttled answer; if not and the bundle throttles, the log says so.
    """
    environ = environment()
    identity = Identity.from_settings(settings, environ=environ)
    Refresher(identity).start()
    active = ActiveBundle(settings, segment, identity, environ)
    active.look(read_now())
    if not can_wait and active.parsed is not None and throttles(active.parsed.model):
        _log.warning(
            "the bundle throttles, and this worker class cannot hold an answer: it tells the delay in "
            "X-Fairvisor-Throttle-Ms instead (FAIRVISOR_WORKER_CLASS=edge can)"
        )
    return Service(settings, segment, identity, active, read_now)


def throttles(bundle: Bundle) -> bool:
    """Whether a policy holds answers: a stage of a budget, or a loop, with the action `throttle`."""
    for policy in bundle.policies:
        loop = policy.spec.loop_detection
        if loop is not None and loop.enabled and loop.action == "throttle":
            return True
        for _, rule in policy.spec.placed_rules():
            config = rule.algorithm_config
            if isinstance(config, CostBased) and any(
                stage.action == "throttle" for stage in config.staged_actions
            ):
                return True
    return False
