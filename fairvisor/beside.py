"""What runs beside the requests in every worker: four threads and what they share.

The follower switches bundles, the refresher keeps tokens and places up to date, the reporter writes what requests
leave behind, the leader does for all workers what one of them must do. Each has a thread of its own, because files and
networks may keep one waiting and none may keep another waiting. This module starts and stops them; it knows nothing of
HTTP.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from fairvisor.counters.segment import Segment
from fairvisor.follow import ActiveBundle, Follower
from fairvisor.identity import Identity, KeyFetcher, Refresher, Web
from fairvisor.leader import Leader
from fairvisor.processes import identity as process_identity
from fairvisor.reload import Publisher
from fairvisor.reporter import Reporter
from fairvisor.settings import Settings
from fairvisor.snapshots import Snapshots
from fairvisor.top_keys import TopKeys

_log = logging.getLogger(__name__)


class Beside:
    """The threads of one process. `active` is what requests read; `publisher` changes the bundle of all workers."""

    def __init__(
        self, settings: Settings, segment: Segment, who: Identity, environ: Mapping[str, str]
    ) -> None:
        self.identity = who
        self.publisher = Publisher(settings, segment, environ)
        self.active = ActiveBundle(self.publisher.notes)
        self._entry = entry = self.publisher.registry.claim(process_identity(os.getpid()))
        if entry is None:
            _log.error("there is no entry left for this worker: reloads will not wait for it")
        fetcher = KeyFetcher(who.sets, Web(environ, settings.jwks_ca, settings.jwks_networks))
        self._refresher = Refresher(who, fetcher, lambda: self.leads)
        self._follower = Follower(settings, segment, self.active, self._refresher, environ, entry)
        self.top_keys = TopKeys(segment.slates, entry)
        self._reporter = Reporter(
            settings, segment, self.active, self.publisher.records, also=(self.top_keys.write,)
        )
        self.audit = self._reporter.audit
        snapshots = Snapshots(segment.directory, self.publisher.state)
        self._leader = Leader(segment, self.publisher, snapshots, lambda: self._follower.shared)

    def start(self) -> None:
        """Load the active bundle, then begin; and wait a moment for key sets that were never fetched."""
        self._follower.start()
        self._leader.start()
        self._refresher.start()
        self._reporter.start()
        self._refresher.wait()

    def stop(self) -> None:
        """Another worker leads from now on, and nobody waits for this one any more."""
        self._leader.stop()
        self._refresher.stop()
        self._follower.stop()
        self._reporter.stop()

    def resign(self) -> None:
        """Leave to another worker what one does for all: this one finishes, with secrets that may be old by now."""
        self._leader.resign()

    @property
    def leads(self) -> bool:
        """Whether this worker does what one must do for all."""
        return self._leader.leads

    def tell(self, connections: int, waiting: int) -> None:
        """This worker has so many connections, and so many answers wait for a throttle; for the metrics."""
        if self._entry is not None:
            self.publisher.registry.tell(self._entry, connections, waiting)
