"""How the values of settings are read: what somebody wrote becomes what the code uses, or a ValueError that says what
is allowed. Secrets are read in `secret_values.py`.

One function for each kind of value. Which settings there are, and which kind each is, stands in `settings.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

Network = IPv4Network | IPv6Network

# Loopback, RFC 1918, RFC 6598 (carrier-grade NAT, used by container networks), RFC 4193 and RFC 4291
# link-local: where gateways live. A peer on a unix socket is trusted as well: the permissions of the
# file decide who that is.
PRIVATE_NETWORKS: Final = (
    "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7,fe80::/10"
)

MAX_HOPS: Final = 64  # that hops:<n> counts: no real chain of proxies is longer
HINTS: Final = ("x-country-code", "x-asn", "x-asn-type", "x-tor-exit", "x-token-estimate")


_URL: Final = re.compile(r"https?://[!-~]+")  # RFC 3986: printable ASCII
_BACKEND: Final = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?/?|unix:/\S+")


class Bind(NamedTuple):
    """Where to listen: a TCP address, the path of a unix socket, or an inherited descriptor."""

    host: str = ""
    port: int = 0
    path: str = ""
    descriptor: int = -1

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        if self.descriptor >= 0:
            return f"fd://{self.descriptor}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


IN_STATE_DIR: Final = Bind()  # for the admin listener: a socket in the state directory


def text(value: str) -> str:
    return value


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"allowed are {', '.join(choices)}")
        return value.lower()

    return parse


def integer(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value) or not least <= int(value) <= most:
            raise ValueError(f"allowed is a whole number from {least} to {most}")
        return int(value)

    return parse


def size(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        match = re.fullmatch(r"([0-9]{1,12})([kmg]?)", value.lower())
        size_bytes = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]] if match else -1
        if not least <= size_bytes <= most:
            raise ValueError(f"allowed are {least} to {most} bytes, such as 1048576, 512k or 48m")
        return size_bytes

    return parse


def yes_or_no(value: str) -> bool:
    if value.lower() in ("true", "1", "yes", "on"):
        return True
    if value.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("allowed are true and false")


def names(value: str) -> tuple[str, ...]:
    return tuple(name for part in value.split(",") if (name := part.strip()))


def path(value: str) -> Path:
    return Path(value)


def edge_url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+/?|unix:.+", value):
        raise ValueError("allowed are http://host:port, https://host:port and unix:/path")
    return value.rstrip("/")


class Url(str):
    """A URL whose `repr` is `shown`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(self.shown)

    @property
    def shown(self) -> str:
        """The URL without what may be secret in it: user, password and query."""
        parts = urlsplit(self)
        query = "?…" if parts.query else ""
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def url(value: str) -> Url:
    if not _URL.fullmatch(value) or not is_url(value):
        raise ValueError("allowed is an http:// or https:// URL")
    return Url(value)


def is_url(value: str) -> bool:
    """Whether the host and the port of a URL can be told."""
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def networks(value: str) -> tuple[Network, ...]:
    if value.lower() == "none":
        return ()
    try:
        return tuple(ip_network(part.strip()) for part in value.split(","))
    except ValueError as error:
        raise ValueError(f"allowed is none or a list of addresses and networks ({error})") from None


def hints(value: str) -> frozenset[str]:
    named = frozenset(name.strip().lower() for name in value.split(",")) - {"none"}
    if not named <= set(HINTS):
        raise ValueError(f"allowed are none or any of {', '.join(HINTS)}")
    return named


def client_header(value: str) -> str:
    form = value.lower()
    hops = re.fullmatch(r"hops:([0-9]{1,2})", form)
    if hops:
        if not 1 <= int(hops[1]) <= MAX_HOPS:
            raise ValueError(f"the hops are counted from the right of X-Forwarded-For, from 1 to {MAX_HOPS}")
    elif not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]{1,64}", form):  # a token, RFC 9110 5.6.2
        raise ValueError(
            "allowed are x-forwarded-for, forwarded, none, hops:<n> and the name of a header with one address"
        )
    return form


def processes(value: str) -> int | None:
    return None if value.lower() == "auto" else integer(1, 512)(value)


def backends(value: str) -> tuple[str, ...]:
    """Upstreams, comma-separated; a path of theirs would change what policies have seen, so there is none."""
    found = names(value)
    for backend in found:
        if not _BACKEND.fullmatch(backend):
            raise ValueError(
                "allowed are http://host:port, https://host:port and unix:/path, comma-separated"
            )
    return found


def instance(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("allowed are 1 to 64 letters, digits, dots, dashes and underscores")
    return value


def bind(value: str) -> Bind:
    if value.startswith("unix:") and len(value) > len("unix:"):
        return Bind(path=value.removeprefix("unix:"))
    if match := re.fullmatch(r"fd://([0-9]{1,6})", value):
        return Bind(descriptor=int(match[1]))
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]*)):([0-9]{1,5})", value)
    if not match or not 0 < int(match[3]) < 65536:
        raise ValueError("allowed are host:port, [IPv6 address]:port, unix:/path and fd://number")
    return Bind(host=match[1] or match[2] or "0.0.0.0", port=int(match[3]))


def admin_bind(value: str) -> Bind | None:
    if value.lower() == "none":
        return None
    where = IN_STATE_DIR if value.lower() == "auto" else bind(value)
    if where.descriptor >= 0:
        raise ValueError("allowed are auto, none, unix:/path, host:port and [IPv6 address]:port")
    return where


def binds(value: str) -> tuple[Bind, ...]:
    return tuple(bind(part.strip()) for part in value.split(","))
