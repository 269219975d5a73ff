"""One fetch of a URL that publishes keys: through which proxy, believing which authorities, at which addresses.

Redirects are not followed: the operator named the place that is trusted. A fetch ends after FETCH_TIMEOUT_S however its
other end dawdles, except for the look-up of the name, which the system bounds. A user and a password in the URL are
sent and never shown. This module knows HTTP; it knows nothing of keys.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from fairvisor.identity.watched import Watched
from fairvisor.setting_values import Network
from fairvisor.visible import visible

# Real sets have a few kilobytes.
MAX_JWKS_BYTES: Final = 256 * 1024
# One fetch, from connecting to the last byte.
FETCH_TIMEOUT_S: Final = 10.0

_SHOWN: Final = 200  # characters of what went wrong: the other end may have written them
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address is in the last 32 bits

FetchErrors: Final = (OSError, ValueError, http.client.HTTPException)


class Fetched(NamedTuple):
    """An answer. `document` is None when it is the one whose ETag was sent along."""

    document: bytes | None
    etag: str | None


class Web:
    """How URLs are fetched by this process.

    `environ` names the proxy (HTTPS_PROXY and NO_PROXY, in either case), `authorities` is a file of certificates that
    take the place of the system's, `networks` are the networks beside the public ones that `guarded` fetches may reach.
    """

    def __init__(
        self, environ: Mapping[str, str], authorities: Path | None = None, networks: Sequence[Network] = ()
    ) -> None:
        self._proxy = environ.get("https_proxy") or environ.get("HTTPS_PROXY") or ""
        self._direct = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        self._networks = tuple(networks)
        self._authorities = None if authorities is None else Watched(authorities, _trusting)
        self._tls: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def get(self, url: str, etag: str | None = None, *, guarded: bool = False) -> Fetched:
        """Fetch a URL, unless it still has the ETag.

        `guarded`: only from addresses that are public or in one of the networks. Raises FetchErrors, whose text holds
        nothing secret: no answer in time, another status than 200, a document that is too large.
        """
        parts = urlsplit(url)
        deadline = _Deadline()
        connection = self._connection(parts, guarded, deadline)
        try:
            with deadline:
                return _exchange(connection, parts, etag)
        finally:
            connection.close()

    def _connection(
        self, parts: SplitResult, guarded: bool, deadline: _Deadline
    ) -> http.client.HTTPConnection:
        host, proxy = parts.hostname or "", self._proxy_for(parts)
        if guarded:
            self._check_literal(host)
        if parts.scheme != "https":
            connection = http.client.HTTPConnection(host, parts.port, timeout=FETCH_TIMEOUT_S)
        elif proxy is None:
            connection = http.client.HTTPSConnection(
                host, parts.port, timeout=FETCH_TIMEOUT_S, context=self._context()
            )
        else:
            connection = http.client.HTTPSConnection(
                proxy.hostname or "", proxy.port or 80, timeout=FETCH_TIMEOUT_S, context=self._context()
            )
            connection.set_tunnel(host, parts.port or 443, _basic("Proxy-Authorization", proxy))

        def opened(address: tuple[str, int], timeout: float, source: object) -> socket.socket:
            # A proxy looks the name up itself, and decides where one may go.
            return deadline.watch(self._open(address, timeout, guarded=guarded and proxy is None))

        connection._create_connection = opened  # type: ignore[attr-defined]
        return connection

    def _proxy_for(self, parts: SplitResult) -> SplitResult | None:
        if parts.scheme != "https" or not self._proxy:
            return None
        if _is_direct(parts.hostname or "", parts.port or 443, self._direct):
            return None
        proxy = urlsplit(self._proxy if "://" in self._proxy else f"http://{self._proxy}")
        if proxy.scheme != "http" or not proxy.hostname:
            raise ValueError("HTTPS_PROXY is not the URL of a proxy: allowed is http://host:port")
        return proxy

    def _context(self) -> ssl.SSLContext:
        """Return what verifies certificates; made once, as it takes tens of milliseconds."""
        with self._lock:
            if self._authorities is None:
                self._tls = self._tls or ssl.create_default_context()
                return self._tls
            self._authorities.check()
            if self._authorities.content is None:
                raise ValueError(f"FAIRVISOR_JWKS_CA: {self._authorities.problem}")
            return self._authorities.content

    def _open(self, address: tuple[str, int], timeout: float, *, guarded: bool) -> socket.socket:
        """Connect to the first address of a host that answers and that may be reached."""
        failure: OSError = OSError("it has no address")
        for family, kind, protocol, _, where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                if guarded:
                    self._check(str(where[0]))
                sock.settimeout(timeout)
                sock.connect(where)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise failure

    def _check_literal(self, host: str) -> None:
        """Check a host that is an address, also where a proxy is asked to connect to it."""
        if not _is_name(host):
            self._check(host)

    def _check(self, text: str) -> None:
        """Raise PermissionError unless the address is public or in one of the networks that may be reached."""
        address = _plain(ip_address(text.partition("%")[0]))
        listed = any(network.version == address.version and address in network for network in self._networks)
        if not listed and (not address.is_global or address.is_multicast):
            raise PermissionError(
                f"its address {address} is not a public one; FAIRVISOR_JWKS_NETWORKS lists networks that may be asked"
            )


def _is_direct(host: str, port: int, listed: str) -> bool:
    """Whether NO_PROXY lists a host: its name, a domain above it, its address or network, or these with the port."""
    for entry in (each.strip().lower().lstrip(".") for each in listed.split(",")):
        name = entry.removesuffix(f":{port}").strip("[]")
        if name and (name in ("*", host) or (_is_name(host) and host.endswith(f".{name}"))):
            return True
        if not _is_name(host):
            with contextlib.suppress(ValueError):  # the entry is a name
                if ip_address(host) in ip_network(name):
                    return True
    return False


def _is_name(host: str) -> bool:
    """Whether a host is a name, not an address."""
    try:
        ip_address(host)
    except ValueError:
        return True
    return False


class _Deadline:
    """Ends what goes over one socket FETCH_TIMEOUT_S after it began, also when a byte comes now and then."""

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._late = threading.Event()
        self._timer = threading.Timer(FETCH_TIMEOUT_S, self._end)
        self._timer.daemon = True

    def watch(self, sock: socket.socket) -> socket.socket:
        """Return the socket; TLS and the response take it over, so that a copy of its descriptor is kept."""
        self._sock = sock.dup()
        if self._late.is_set():
            self._end()
        return sock

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._sock is not None:
            self._sock.close()
        if self._late.is_set() and (kind is None or issubclass(kind, FetchErrors)):
            raise TimeoutError(f"no complete answer within {FETCH_TIMEOUT_S:g} s")

    def _end(self) -> None:
        self._late.set()
        if self._sock is not None:
            with contextlib.suppress(OSError):  # it ended by itself meanwhile
                self._sock.shutdown(socket.SHUT_RDWR)


def failure_text(error: Exception) -> str:
    """Return why a fetch failed, fit for a line: the other end may have written a part of it."""
    return visible(str(error) or type(error).__name__)[:_SHOWN]


def _exchange(connection: http.client.HTTPConnection, parts: SplitResult, etag: str | None) -> Fetched:
    headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
    headers |= _basic("Authorization", parts)
    if etag is not None:
        headers["If-None-Match"] = etag  # RFC 9110 13.1.2
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", target, headers=headers)
    response = connection.getresponse()
    if response.status == http.client.NOT_MODIFIED and etag is not None:
        return Fetched(None, etag)
    if response.status != http.client.OK:
        raise ValueError(f"answered {response.status}, not 200")
    document = response.read(MAX_JWKS_BYTES + 1)
    if len(document) > MAX_JWKS_BYTES:
        raise ValueError(f"the answer is larger than {MAX_JWKS_BYTES} bytes")
    return Fetched(document, response.getheader("ETag"))


def _basic(header: str, parts: SplitResult) -> dict[str, str]:
    """Return the header that carries the user and password of a URL (RFC 7617); none when it has none."""
    if parts.username is None:
        return {}
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {base64.b64encode(credentials.encode()).decode()}"}


def _trusting(path: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(path))
    except ssl.SSLError as error:
        raise ValueError(f"it holds no certificate in PEM form ({error.reason})") from None


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, where it stands for one."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
