"""The upstreams: where they are, which one takes the next request, and the connections kept open to them.

The upstream with the fewest requests in flight takes the next one. One that fails three times in a row (cannot be
reached, breaks off, does not begin to answer in time) is left out for a while, longer each time; when all are left
out, all are tried again. The module knows addresses and connections, nothing of HTTP or of policies.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from fairvisor.metrics import Cells, Counter
from fairvisor.metrics.families import UPSTREAM_EJECTIONS, UPSTREAM_FAILURES
from fairvisor.proxy.link import Link

FAILURES_UNTIL_EJECTED: Final = 3
EJECTED_MS: Final = 5_000  # the first time; doubled each time, up to the longest
MAX_EJECTED_MS: Final = 60_000
MAX_IDLE_LINKS: Final = 256  # kept open to one upstream

_PORTS: Final = {"http": 80, "https": 443}

_log = logging.getLogger(__name__)


class Address(NamedTuple):
    """Where an upstream is: TCP (`tls` for https) or, with `path`, a unix socket."""

    host: str
    port: int
    tls: bool
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """`http://host[:port]`, `https://host[:port]` or `unix:/path`. Raises ValueError for anything else."""
        if text.startswith("unix:/"):
            return cls("", 0, False, text.removeprefix("unix:"))
        parts = urlsplit(text)
        plain = parts.path in ("", "/") and not parts.query and not parts.fragment and not parts.username
        if parts.scheme not in _PORTS or not parts.hostname or not plain:
            raise ValueError(
                "allowed are http://host:port, https://host:port and unix:/path, comma-separated"
            )
        return cls(parts.hostname, parts.port or _PORTS[parts.scheme], parts.scheme == "https")

    @property
    def authority(self) -> bytes:
        """What a Host header for this upstream says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == _PORTS["https" if self.tls else "http"]
        return (host if usual else f"{host}:{self.port}").encode("ascii", "replace")

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


class Backend:
    """One upstream: its idle connections, latest first, and how it has been doing."""

    def __init__(self, address: Address, cells: Cells) -> None:
        self.address = address
        self.idle: list[Link] = []
        self.active = 0  # requests in flight
        self.failures = 0  # in a row
        self.ejections = 0  # in a row
        self.ejected_until_ms = 0
        self._name = str(address)
        self._failed = {
            kind: Counter(cells, UPSTREAM_FAILURES, self._name, kind)
            for kind in ("connect", "closed", "timeout", "malformed")
        }
        self._ejected = Counter(cells, UPSTREAM_EJECTIONS, self._name)

    def worked(self) -> None:
        """It answered."""
        self.failures = self.ejections = 0

    def failed(self, kind: str, now_ms: int) -> None:
        """It did not; `kind` is connect, closed, timeout or malformed."""
        self._failed[kind].add()
        self.failures += 1
        if self.failures >= FAILURES_UNTIL_EJECTED and now_ms >= self.ejected_until_ms:
            rest_ms = min(EJECTED_MS << min(self.ejections, 10), MAX_EJECTED_MS)
            self.ejected_until_ms = now_ms + rest_ms
            self.ejections += 1
            self._ejected.add()
            _log.warning(
                "upstream %s failed %d times: left out for %d ms", self._name, self.failures, rest_ms
            )


class Backends:
    """All upstreams of a worker."""

    def __init__(
        self,
        addresses: tuple[Address, ...],
        cells: Cells,
        tls: ssl.SSLContext | None,
        connect_timeout_ms: int,
        keep_ms: int,
    ) -> None:
        self._all = [Backend(address, cells) for address in addresses]
        self._tls = tls
        self._connect_timeout_s = connect_timeout_ms / 1000
        self._keep_ms = keep_ms
        self._tasks: set[asyncio.Task[None]] = set()
        self.attempts = len(addresses)  # how often a request may try to connect: each upstream once

    def choose(self, now_ms: int, tried: list[Backend]) -> Backend:
        """The upstream for the next request: the least busy one that is not left out, those tried already last."""
        if len(self._all) == 1:
            return self._all[0]
        return min(
            self._all,
            key=lambda backend: (backend in tried, backend.ejected_until_ms > now_ms, backend.active),
        )

    def idle(self, backend: Backend, now_ms: int) -> Link | None:
        """An open connection that nobody uses, if there is one."""
        idle = backend.idle
        while idle:
            link = idle.pop()
            if not link.is_closing() and now_ms < link.keep_until_ms:
                return link
            link.close()
        return None

    def connect(
        self, backend: Backend, connected: Callable[[Link], None], failed: Callable[[bool], None]
    ) -> asyncio.Task[None]:
        """Open a connection; one of the two is called when it is known how that went (`failed(in_time)`)."""
        task = asyncio.get_running_loop().create_task(self._connect(backend, connected, failed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(
        self, backend: Backend, connected: Callable[[Link], None], failed: Callable[[bool], None]
    ) -> None:
        try:
            link = await asyncio.wait_for(self._open(backend), self._connect_timeout_s)
        except asyncio.TimeoutError:
            failed(False)
        except (OSError, ssl.SSLError, UnicodeError) as error:
            _log.debug("cannot connect to %s: %s", backend.address, error)
            failed(True)
        else:
            connected(link)

    async def _open(self, backend: Backend) -> Link:
        loop = asyncio.get_running_loop()
        address = backend.address
        if address.path:
            _, link = await loop.create_unix_connection(lambda: Link(backend), address.path)
        else:
            _, link = await loop.create_connection(
                lambda: Link(backend),
                address.host,
                address.port,
                ssl=self._tls if address.tls else None,
                server_hostname=address.host if address.tls else None,
            )
        return link

    def release(self, link: Link, now_ms: int) -> None:
        """A connection that can take another request."""
        idle = link.backend.idle
        keep_ms = self._keep_ms if link.keep_s is None else min(self._keep_ms, link.keep_s * 1000 - 1000)
        if len(idle) >= MAX_IDLE_LINKS or keep_ms <= 0:
            link.close()
            return
        link.keep_until_ms = now_ms + keep_ms
        idle.append(link)

    def sweep(self, now_ms: int) -> None:
        """Close connections that were not used for too long."""
        for backend in self._all:
            old = [link for link in backend.idle if now_ms >= link.keep_until_ms]
            for link in old:
                backend.idle.remove(link)
                link.close()

    def close(self) -> None:
        """Close all idle connections and give up those being opened."""
        for task in tuple(self._tasks):
            task.cancel()
        for backend in self._all:
            for link in backend.idle:
                link.close()
            backend.idle.clear()


def tls_context(authorities: str | None) -> ssl.SSLContext:
    """How upstreams are verified: by the system's certificate authorities, or those in the file `authorities`."""
    context = ssl.create_default_context(cafile=authorities)
    context.set_alpn_protocols(["http/1.1"])
    return context
