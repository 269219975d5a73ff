"""What one process needs before it can answer: identity, bundle, service, put together from the settings.

The gunicorn master calls it in each worker after the fork, the WSGI application in each process that serves it. It
knows how the parts fit; it knows nothing of requests.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from fairvisor.beside import Beside
from fairvisor.bundle import earlier
from fairvisor.clock import read_now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.errors import SegmentError
from fairvisor.http.service import Service
from fairvisor.identity import Identity
from fairvisor.key_sets import SharedKeySets
from fairvisor.memory import InstanceMemory
from fairvisor.metrics import Counter
from fairvisor.metrics.families import BEARER_REFUSED
from fairvisor.proxy.start import Proxy
from fairvisor.setting_names import check_names, secrets_named_in
from fairvisor.settings import Settings, declared, environment
from fairvisor.snapshots import Snapshots
from fairvisor.state import StateDirectory

_log = logging.getLogger(__name__)


def check_environment(settings: Settings) -> None:
    """Raise SettingsError for a variable that is no setting; bundles may name variables of their own."""
    state = StateDirectory(settings.state_dir, settings.instance)
    secrets: set[str] = set()
    with suppress(OSError):  # a missing or unreadable one is reported where it is offered
        secrets |= secrets_named_in(state.read(state.bundle))
    if settings.config_file is not None:
        with suppress(OSError):
            secrets |= secrets_named_in(settings.config_file.read_bytes())
    check_names(environment(), declared(), secrets)


def open_segment(settings: Settings) -> Segment:
    """The instance's segment: the one that is there, else a new one, with what the last snapshot holds."""
    try:
        directory = InstanceMemory.make(settings.instance)
    except OSError as error:
        raise SegmentError(f"the memory of the instance cannot be used: {error}") from error
    snapshots = Snapshots(directory, StateDirectory(settings.state_dir, settings.instance))
    segment = Segment.open(directory, settings.shared_dict_size, find_saved=snapshots.find)
    if segment.replaces:
        _log.error("%s: it is replaced, and what the last snapshot holds is restored", segment.replaces)
    earlier.take_over(directory, segment.table.word_get(Word.BUNDLE_GENERATION))
    return segment


def make_beside(settings: Settings, segment: Segment) -> Beside:
    """What runs beside the requests of this process, not started yet."""
    environ = environment()
    state = StateDirectory(settings.state_dir, settings.instance)
    sets = SharedKeySets(segment.table, segment.directory, state)
    identity = Identity.from_settings(settings, environ=environ, sets=sets)
    refused = {reason: Counter(segment, BEARER_REFUSED, reason) for reason in identity.refused_tokens}
    identity.refused_tokens.told = lambda reason: refused[reason].add()
    return Beside(settings, segment, identity, environ)


def make_proxy(settings: Settings, segment: Segment, beside: Beside) -> Proxy:
    """The proxy of this process, its bundle loaded and followed from now on."""
    beside.start()
    return Proxy(settings, segment, beside, read_now)


def make_service(settings: Settings, segment: Segment, beside: Beside, *, can_wait: bool) -> Service:
    """The service of this process, its bundle loaded and followed from now on.

    `can_wait`: whether the transport can hold a throttled answer; if not and the bundle throttles, the log says so.
    """
    beside.start()
    current = beside.active.current
    if not can_wait and current is not None and current.about.throttles:
        _log.warning(
            "the bundle throttles, and this worker class cannot hold an answer: it tells the delay in "
            "X-Fairvisor-Throttle-Ms instead (FAIRVISOR_WORKER_CLASS=edge can)"
        )
    return Service(settings, segment, beside.identity, beside.active, read_now, beside.audit, beside.top_keys)
