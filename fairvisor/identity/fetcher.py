"""When key sets are fetched: by one process for all of an instance, each in a thread of its own.

A set is fetched every five minutes, sooner when a token names a key that is not known, and after a failure again and
again, with longer and longer pauses. When that is, stands in the record of the set, so that whoever fetches next goes
on where the last one was. A set that cannot be read never replaces one that can.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Final

from fairvisor.clock import NS_PER_S, Now
from fairvisor.identity.fetch import FetchErrors, Web, failure_text
from fairvisor.identity.jwks import Endpoint
from fairvisor.identity.stored import KeySets, StoredSet

REFRESH_NS: Final = 300 * NS_PER_S
# After a failure, doubled each time up to REFRESH_NS.
FIRST_RETRY_NS: Final = 5 * NS_PER_S
# How soon after the last fetch an unknown key id may cause another: a client can invent key ids.
EARLY_REFRESH_NS: Final = 30 * NS_PER_S
TIDY_EVERY_NS: Final = 3600 * NS_PER_S
KEEP_EVERY_NS: Final = NS_PER_S  # after sets could not be kept


class KeyFetcher:
    """Fetches the sets that are due. One process of an instance does so at a time."""

    def __init__(self, sets: KeySets, web: Web) -> None:
        self._sets = sets
        self._web = web
        self._under_way: set[str] = set()
        self._tidied_ns = 0
        self._kept_ns = 0

    def step(self, endpoints: Sequence[Endpoint], clock: Callable[[], Now]) -> list[threading.Thread]:
        """Begin to fetch what is due; the threads that do so. A slow provider keeps no other waiting."""
        begun = []
        now = clock()
        if now.mono_ns - self._tidied_ns >= TIDY_EVERY_NS:
            self._tidied_ns = now.mono_ns
            self._sets.remove_unused({endpoint.url for endpoint in endpoints}, now)
        if now.mono_ns - self._kept_ns >= KEEP_EVERY_NS:
            self._kept_ns = now.mono_ns
            self._sets.keep_again()
        for endpoint in endpoints:
            if endpoint.url not in self._under_way and self.is_due(endpoint, now):
                self._under_way.add(endpoint.url)
                begun.append(threading.Thread(target=self._run, args=(endpoint, clock), daemon=True))
                begun[-1].start()
        return begun

    def is_due(self, endpoint: Endpoint, now: Now) -> bool:
        """Whether it is time to fetch."""
        record = self._sets.read(endpoint.url)
        if record is None or record.tried_ns > now.wall_ns:  # the clock was set back
            return True
        wanted = self._sets.wanted_ns > record.tried_ns
        return now.wall_ns >= record.due_ns or (wanted and now.wall_ns - record.tried_ns >= EARLY_REFRESH_NS)

    def fetch(self, endpoint: Endpoint, now: Now) -> None:
        """Fetch a set, or note why that failed. `now` is when it began."""
        before = self._sets.read(endpoint.url) or StoredSet()
        try:
            record = self._fetched(endpoint, before, now)
        except FetchErrors as error:
            pause_ns = min(REFRESH_NS, FIRST_RETRY_NS << min(before.failures, 16))
            record = before._replace(
                tried_ns=now.wall_ns,
                due_ns=now.wall_ns + jittered(pause_ns),
                failures=before.failures + 1,
                failure=failure_text(error),
            )
        self._sets.write(endpoint.url, record)

    def _fetched(self, endpoint: Endpoint, before: StoredSet, now: Now) -> StoredSet:
        etag = before.etag if before.document is not None else None
        document, etag = self._web.get(endpoint.url, etag, guarded=endpoint.guarded)
        if document is None:
            document = before.document
        else:
            endpoint.read(document)
        due_ns = now.wall_ns + jittered(REFRESH_NS)
        return StoredSet(document, etag, fetched_ns=now.wall_ns, tried_ns=now.wall_ns, due_ns=due_ns)

    def _run(self, endpoint: Endpoint, clock: Callable[[], Now]) -> None:
        try:
            self.fetch(endpoint, clock())
        finally:
            self._under_way.discard(endpoint.url)


def jittered(interval_ns: int) -> int:
    """The interval give or take a tenth, so that many edges do not fetch in step."""
    return int(interval_ns * random.uniform(0.9, 1.1))  # noqa: S311 - it spreads load, it hides nothing
