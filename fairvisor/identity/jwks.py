"""JWK Sets that live outside the bundle: in a file or behind a URL, brought up to date off the request path.

Both kinds of source answer the same questions: which keys there are now, why there are none, what went wrong lately.
A source that fails keeps the keys it had: the file's until the file is right again, the URL's for a day, so that an
outage of the issuer does not take every caller's identity away, and a withdrawn key does not live for ever. A source
that answers with an empty set has none from that moment. Fetching is `fetcher.py`'s business; this module knows nothing
of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fairvisor.clock import NS_PER_S, Now
from fairvisor.identity.fetch import MAX_JWKS_BYTES
from fairvisor.identity.keys import TokenKey, keys_from_jwks
from fairvisor.identity.stored import KeySets, StoredSet
from fairvisor.identity.watched import Watched, read_bounded
from fairvisor.setting_values import Url

# How long keys outlive the last successful fetch.
KEEP_NS: Final = 24 * 3600 * NS_PER_S


class JwksFile:
    """Keys in a local JWK Set; secrets (`kty` "oct") are allowed, the permissions of the file protect them."""

    def __init__(self, path: Path, issuer: str | None = None, audiences: Sequence[str] = ()) -> None:
        self._issuer = issuer
        self._audiences = tuple(audiences)
        self._unusable: tuple[str, ...] = ()
        self._file: Watched[tuple[TokenKey, ...]] = Watched(path, self._load)

    @property
    def keys(self) -> tuple[TokenKey, ...]:
        """The keys of the last usable file."""
        return self._file.content or ()

    @property
    def was_read(self) -> bool:
        """Whether there ever was a set in it."""
        return self._file.content is not None

    def problem(self) -> str | None:
        """Why there are no keys; None when there are."""
        return None if self.keys else self._file.problem or f"{self._file.path}: it holds no usable key"

    def warnings(self) -> tuple[str, ...]:
        """What is wrong although there may be keys."""
        changed = (self._file.problem,) if self._file.problem and self.keys else ()
        return changed + tuple(f"{self._file.path}: {text}" for text in self._unusable)

    def refresh(self) -> bool:
        """Read the file if it changed. True when the keys may have changed."""
        return self._file.check()

    def _load(self, path: Path) -> tuple[TokenKey, ...]:
        data = read_bounded(path, MAX_JWKS_BYTES)
        keys, self._unusable = keys_from_jwks(data, self._issuer, self._audiences, shared=True)
        return keys


class Endpoint(NamedTuple):
    """A URL that publishes keys, and what tokens verified by them must carry.

    `algorithms` are those that its keys may be used with, empty: those of their types. `guarded`: a bundle names it, so
    that it is fetched from public addresses only.
    """

    url: str
    issuer: str | None = None
    audiences: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    guarded: bool = False

    def read(self, document: bytes) -> tuple[tuple[TokenKey, ...], tuple[str, ...]]:
        """Return the usable keys of a set, and why the others are not.

        Secrets are not accepted: what a URL publishes is no secret. ValueError: it is no set, or one of keys none of
        which can be used, which would take every caller's identity away.
        """
        keys, unusable = keys_from_jwks(
            document, self.issuer, self.audiences, shared=False, algorithms=self.algorithms
        )
        if unusable and not keys:
            raise ValueError(f"none of its keys can be used: {unusable[0]}")
        return keys, unusable


class JwksUrl:
    """Keys behind an http or https URL, as they were fetched last.

    `awaited`: there is no set in force, as it could never be fetched, or not for too long.
    """

    def __init__(self, endpoint: Endpoint, sets: KeySets) -> None:
        self.endpoint = endpoint
        self.keys: tuple[TokenKey, ...] = ()
        self.awaited = True
        self._sets = sets
        self._generation = -1
        self._record: StoredSet | None = None
        self._read: tuple[tuple[TokenKey, ...], tuple[str, ...]] = (), ()

    def refresh(self, now: Now) -> bool:
        """Take over what was fetched since. True when the keys may have changed."""
        generation = self._sets.generation
        if generation != self._generation:
            self._generation = generation
            self._take(self._sets.read(self.endpoint.url))
        before = self.keys, self.awaited
        self.awaited = not self._in_force(now)
        self.keys = () if self.awaited else self._read[0]
        return before != (self.keys, self.awaited)

    def settled(self, now: Now, within_ns: int) -> bool:
        """Whether a fetch was tried not longer ago than that, so that there is nothing to wait for."""
        return self._record is not None and now.wall_ns - self._record.tried_ns <= within_ns

    def problem(self) -> str | None:
        """Why there are no keys; None when there are."""
        if self.keys:
            return None
        failure = "was not fetched yet" if self._record is None else self._record.failure
        return f"{Url(self.endpoint.url).shown}: {failure or 'it publishes no usable key'}"

    def warnings(self) -> tuple[str, ...]:
        """What is wrong although there may be keys."""
        url, failure = Url(self.endpoint.url).shown, "" if self._record is None else self._record.failure
        late = (f"{url}: {failure}; its last keys are still used",) if failure and self.keys else ()
        return late + tuple(f"{url}: {text}" for text in self._read[1])

    def _in_force(self, now: Now) -> bool:
        record = self._record
        return (
            record is not None and record.document is not None and now.wall_ns - record.fetched_ns <= KEEP_NS
        )

    def _take(self, record: StoredSet | None) -> None:
        before, self._record = self._record, record
        document = None if record is None else record.document
        if document is None or (before is not None and document == before.document):
            return
        try:
            self._read = self.endpoint.read(document)
        except ValueError as error:  # it was fetched under other settings
            self._read = (), (str(error),)
