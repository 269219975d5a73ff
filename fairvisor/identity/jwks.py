"""JWK Sets that live outside the bundle: in a file or behind a URL, brought up to date off the request path.

Both kinds of source answer the same questions: which keys there are now, why there are none, what went wrong lately.
A source that fails keeps the keys it had: the file's until the file is right again, the URL's for a day, so that an
outage of the issuer does not take every caller's identity away, and a withdrawn key does not live for ever. A source
that answers with an empty set has none from that moment. This module knows nothing of tokens.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fairvisor.clock import NS_PER_S, Now
from fairvisor.errors import SettingsError
from fairvisor.identity.keys import TokenKey, keys_from_jwks
from fairvisor.identity.watched import Watched, read_bounded

# Real sets have a few kilobytes.
MAX_JWKS_BYTES: Final = 256 * 1024
# One fetch, from connecting to the last byte.
FETCH_TIMEOUT_S: Final = 10.0
REFRESH_NS: Final = 300 * NS_PER_S
# After a failure, doubled each time up to REFRESH_NS.
FIRST_RETRY_NS: Final = 5 * NS_PER_S
# How soon after the last fetch an unknown key id may cause another: a client can invent key ids.
EARLY_REFRESH_NS: Final = 30 * NS_PER_S
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


class JwksUrl:
    """Keys behind an http or https URL. Secrets are not accepted: what a URL publishes is no secret.

    Certificates are verified against the system's authorities. Redirects are not followed: the operator named the
    place that is trusted.
    """

    def __init__(self, url: str, issuer: str | None = None, audiences: Sequence[str] = ()) -> None:
        self._url = url
        self._fetch = _Fetch(url)
        self._issuer = issuer
        self._audiences = tuple(audiences)
        self.keys: tuple[TokenKey, ...] = ()
        self._unusable: tuple[str, ...] = ()
        self._failure: str | None = "was not fetched yet"
        self._failures = 0
        self._due_ns: int | None = None  # None: at once
        self._fetched_ns = 0
        self._tried_ns = 0

    def problem(self) -> str | None:
        """Why there are no keys; None when there are."""
        return None if self.keys else f"{self._url}: {self._failure or 'it publishes no usable key'}"

    def warnings(self) -> tuple[str, ...]:
        """What is wrong although there may be keys."""
        failed = (
            (f"{self._url}: {self._failure}; its last keys are still used",)
            if self._failure and self.keys
            else ()
        )
        return failed + tuple(f"{self._url}: {text}" for text in self._unusable)

    def hasten(self) -> None:
        """A token named a key that is not known: fetch sooner, but not more often than EARLY_REFRESH_NS."""
        if self._due_ns is not None:
            self._due_ns = min(self._due_ns, self._tried_ns + EARLY_REFRESH_NS)

    def refresh(self, now: Now) -> bool:
        """Fetch if it is time. True when the keys may have changed."""
        if self._due_ns is not None and now.mono_ns < self._due_ns:
            return False
        self._tried_ns = now.mono_ns
        try:
            self._take(self._fetch.get(), now)
        except (OSError, ValueError, http.client.HTTPException) as error:
            return self._failed(str(error) or type(error).__name__, now)
        return True

    def _take(self, document: bytes | None, now: Now) -> None:
        if document is not None:
            self.keys, self._unusable = keys_from_jwks(document, self._issuer, self._audiences, shared=False)
            self._fetch.accepted()
        self._failure = None
        self._failures = 0
        self._fetched_ns = now.mono_ns
        self._due_ns = now.mono_ns + _jittered(REFRESH_NS)

    def _failed(self, reason: str, now: Now) -> bool:
        self._failure = reason
        self._due_ns = now.mono_ns + _jittered(min(REFRESH_NS, FIRST_RETRY_NS << min(self._failures, 16)))
        self._failures += 1
        if self.keys and now.mono_ns - self._fetched_ns > KEEP_NS:
            self.keys = ()
            self._fetch = _Fetch(self._url)
            return True
        return False


class _Fetch:
    """GETs one URL; remembers the `accepted` answer's ETag, so that it is not sent again (RFC 9110 13.1.2)."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            self._port = parts.port
        except ValueError as error:
            raise SettingsError(f"FAIRVISOR_JWKS_URL: {url!r} is wrong: {error}") from None
        self._host = parts.hostname or ""
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._etag: str | None = None
        self._offered_etag: str | None = None

    def accepted(self) -> None:
        """The document that `get` gave last was good: from now on ask only for a newer one."""
        self._etag = self._offered_etag

    def get(self) -> bytes | None:
        """The document, or None when it is the accepted one.

        Raises:
            OSError, http.client.HTTPException: no answer in time.
            ValueError: not a document: another status, or too large.

        """
        connection = self._connection()
        try:
            connection.connect()
            return self._in_time(connection)
        finally:
            connection.close()

    def _in_time(self, connection: http.client.HTTPConnection) -> bytes | None:
        """The exchange, ended after FETCH_TIMEOUT_S also when a byte comes now and then."""
        late = threading.Event()
        # The socket itself: the connection forgets it as soon as the response owns it.
        watchdog = threading.Timer(FETCH_TIMEOUT_S, _abort, (connection.sock, late))
        watchdog.daemon = True
        watchdog.start()
        try:
            document = self._exchange(connection)
        except (OSError, ValueError, http.client.HTTPException):
            if not late.is_set():
                raise
        finally:
            watchdog.cancel()
        if late.is_set():  # what was read may be half of it
            raise TimeoutError(f"no complete answer within {FETCH_TIMEOUT_S:g} s")
        return document

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=FETCH_TIMEOUT_S, context=self._tls
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=FETCH_TIMEOUT_S)

    def _exchange(self, connection: http.client.HTTPConnection) -> bytes | None:
        headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
        if self._etag is not None:
            headers["If-None-Match"] = self._etag
        connection.request("GET", self._target, headers=headers)
        response = connection.getresponse()
        if response.status == http.client.NOT_MODIFIED and self._etag is not None:
            return None
        if response.status != http.client.OK:
            raise ValueError(f"answered {response.status}, not 200")
        document = response.read(MAX_JWKS_BYTES + 1)
        if len(document) > MAX_JWKS_BYTES:
            raise ValueError(f"the answer is larger than {MAX_JWKS_BYTES} bytes")
        self._offered_etag = response.getheader("ETag")
        return document


def _abort(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):  # it ended by itself meanwhile
        sock.shutdown(socket.SHUT_RDWR)


def _jittered(interval_ns: int) -> int:
    """The interval give or take a tenth, so that many workers do not fetch in step."""
    return int(interval_ns * random.uniform(0.9, 1.1))  # noqa: S311 - it spreads load, it hides nothing
