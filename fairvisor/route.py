"""Which policies apply to a request: by host, path and method.

Policies are indexed at load, so a look-up costs the same with one policy and with ten thousand: a dictionary probe per
host pattern and path prefix that could match. The result is kept per (method, host, path) in a bounded map. This
module knows selectors and the spellings of a path; it knows nothing of limits, and a policy is only an id to it.

No spelling of a path escapes its policy. A path is read in the order absolute form, cut at `?` or `#`, decode
percent-encoded unreserved characters (RFC 3986 6.2.2), collapse `//`, resolve dot segments. Servers differ on what
comes next, so further readings are made with `%2F` and `%5C` decoded, with every escape decoded, and with path
parameters (`;…`) cut; where they differ, the policies of every reading apply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

from fairvisor.errors import RequestError

PLAN_CACHE_SIZE: Final = 8192  # plans kept per process; a flood of new paths empties the map and starts again
CACHED_PATH_BYTES: Final = 256  # longer paths are worked out each time, so the cache stays below a few MB

_PLAIN = re.compile(r"/[A-Za-z0-9._~!$&'()*+,=:@/-]*")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_SLASH = re.compile(r"%2F|%5C|\\")  # a server on Windows may read backslashes as slashes
_CONTROL = re.compile(r"[\x00-\x1f\x7f]|%(?:[01][0-9A-Fa-f]|7[Ff])")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH_SAFE: Final = _UNRESERVED | frozenset("/!$&'()*+,;=:@%")


def read_path(target: str) -> tuple[str, ...]:
    """Every reading of the path in a request target, the normalised one first, the coarsest one last.

    Raises RequestError (400) for control characters, `%00` and dot segments above the root.
    """
    path = target.partition("?")[0]
    if _PLAIN.fullmatch(path) and "//" not in path and "/." not in path:
        return (path,)
    absolute = _ABSOLUTE.match(path)
    if absolute:
        path = path[absolute.end() :]
        path = path if path.startswith("/") else "/" + path
    path = path.partition("#")[0]
    if not path.startswith("/"):
        raise RequestError(f"the path {path[:80]!r} must start with '/'")
    if _CONTROL.search(path):
        raise RequestError("the path holds a control character")
    plain = _ESCAPE.sub(_decode_unreserved, path)
    slashes = _SLASH.sub("/", plain)
    decoded = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), path).replace("\\", "/")
    with_parameters = dict.fromkeys((plain, slashes, slashes.replace("%3B", ";"), decoded))
    without = [_cut_parameters(spelling) for spelling in with_parameters]
    coarsest = _resolve(without[-1])
    readings = tuple(dict.fromkeys(_resolve(spelling) for spelling in (plain, slashes, decoded, *without)))
    return readings if readings[-1] == coarsest else (*readings, coarsest)


def normal_route(route: str) -> str:
    """A path of the bundle in its normalised spelling, a raw prefix (ending in `*`) with its escapes normalised."""
    if not route.startswith("/"):
        return route
    text = route.encode().decode("latin-1")
    if route.endswith("*"):
        return _escape_all(_ESCAPE.sub(_decode_unreserved, text))
    return read_path(text)[0]


def _decode_unreserved(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if char in _UNRESERVED else match[0].upper()


def _cut_parameters(path: str) -> str:
    return "/".join(segment.partition(";")[0] for segment in path.split("/"))


def _resolve(path: str) -> str:
    """Collapse empty segments, resolve dot segments (RFC 3986 5.2.4), escape what may not stand in a path."""
    segments: list[str] = []
    parts = path.split("/")
    for part in parts[1:]:
        if part == "..":
            if not segments:
                raise RequestError("the path climbs above the root with '..'")
            segments.pop()
        elif part not in ("", "."):
            segments.append(part)
    tail = "/" if segments and parts[-1] in ("", ".", "..") else ""
    return _escape_all("/" + "/".join(segments) + tail)


def _escape_all(path: str) -> str:
    """Escape what may not stand in a path."""
    if _PATH_SAFE.issuperset(path):
        return path
    return "".join(char if char in _PATH_SAFE else _escape(char) for char in path)


def _escape(char: str) -> str:
    encoded = char.encode("latin-1") if ord(char) < 256 else char.encode()
    return "".join(f"%{byte:02X}" for byte in encoded)


class Selected(Protocol):
    """What a policy must tell to be routed to."""

    @property
    def id(self) -> str: ...
    @property
    def selector(self) -> Selector: ...


class Selector:
    """Where a policy applies. Paths are given as in the bundle, methods upper case, hosts lower case."""

    __slots__ = ("hosts", "methods", "path_exact", "path_prefix")

    def __init__(
        self, path_exact: str | None, path_prefix: str | None, methods: frozenset[str], hosts: tuple[str, ...]
    ) -> None:
        self.path_exact = read_path(path_exact.encode().decode("latin-1"))[0] if path_exact else None
        self.path_prefix = read_path(path_prefix.encode().decode("latin-1"))[0] if path_prefix else None
        self.methods = methods
        self.hosts = hosts


PolicyT = TypeVar("PolicyT", bound=Selected)


class Plan(Generic[PolicyT]):
    """The policies of one (method, host, path), in order of id, and the readings of the path.

    `coarse_path` is what the path is counted by: the coarsest reading, without a final slash, so that no spelling that
    some server takes for the same resource has a counter of its own.
    """

    __slots__ = ("coarse_path", "path", "policies", "readings")

    def __init__(self, readings: tuple[str, ...], policies: tuple[PolicyT, ...]) -> None:
        self.readings = readings
        self.path = readings[0]
        self.coarse_path = readings[-1].rstrip("/") or "/"
        self.policies = policies


class Places(Generic[PolicyT]):
    """The policies of one host pattern, by exact path and by prefix."""

    __slots__ = ("exact", "prefix")

    def __init__(self) -> None:
        self.exact: dict[str, list[PolicyT]] = {}
        self.prefix: dict[str, list[PolicyT]] = {}


class Routes(Generic[PolicyT]):
    """All policies of a bundle, indexed by host pattern, then by exact path and by prefix."""

    def __init__(self, policies: Iterable[PolicyT]) -> None:
        self._hosts: dict[str, Places[PolicyT]] = {}
        self._longest_prefix = 0
        self._plans: dict[tuple[str, str, str], Plan[PolicyT]] = {}
        self.selects_by_host = False
        for policy in policies:
            self.add(policy)

    def add(self, policy: PolicyT) -> None:
        """One more policy; only while no request uses the index yet."""
        selector = policy.selector
        self.selects_by_host = self.selects_by_host or bool(selector.hosts)
        for host in selector.hosts or ("",):
            places = self._hosts.get(host)
            if places is None:
                places = self._hosts[host] = Places()
            if selector.path_exact is not None:
                places.exact.setdefault(selector.path_exact, []).append(policy)
            if selector.path_prefix is not None:
                places.prefix.setdefault(selector.path_prefix, []).append(policy)
                self._longest_prefix = max(self._longest_prefix, len(selector.path_prefix))

    def policies(self) -> Iterator[PolicyT]:
        """Every policy, once for each place of the index it stands in."""
        for places in tuple(self._hosts.values()):
            for part in (places.exact, places.prefix):
                for policies in tuple(part.values()):
                    yield from policies

    def take_apart(self) -> Iterator[None]:
        """Free the index piece by piece, one at each step; only when nobody uses it any more. Let go of at once, ten
        thousand policies would hold everybody else up for milliseconds."""
        yield from _emptied(self._plans)
        while self._hosts:
            _, places = self._hosts.popitem()
            yield from _emptied(places.exact)
            yield from _emptied(places.prefix)

    def plan(self, method: str, host: str, target: str) -> Plan[PolicyT]:
        """The policies for a request. Raises RequestError when the path cannot be read."""
        path = target.partition("?")[0]
        plan = self._plans.get((method, host, path))
        if plan is None:
            plan = self._make(method, host, path)
            if len(path) + len(host) + len(method) <= CACHED_PATH_BYTES:
                if len(self._plans) >= PLAN_CACHE_SIZE:
                    self._plans.clear()
                self._plans[method, host, path] = plan
        return plan

    def _make(self, method: str, host: str, path: str) -> Plan[PolicyT]:
        readings = read_path(path)
        found: dict[str, PolicyT] = {}
        for pattern in _host_patterns(host) if self.selects_by_host else [""]:
            places = self._hosts.get(pattern)
            if places is None:
                continue
            for reading in readings:
                for policy in self._candidates(places, reading):
                    methods = policy.selector.methods
                    if not methods or method in methods:
                        found[policy.id] = policy
        return Plan(readings, tuple(found[policy_id] for policy_id in sorted(found)))

    def _candidates(self, places: Places[PolicyT], path: str) -> list[PolicyT]:
        exact = places.exact.get(path)
        found = [] if exact is None else list(exact)
        for prefix in _prefixes(path, self._longest_prefix):
            below = places.prefix.get(prefix)
            if below is not None:
                found.extend(below)
        return found


def _emptied(part: dict[Any, Any]) -> Iterator[None]:
    while part:
        part.popitem()
        yield


# Lists, not generators: each request with a new path goes through them.


def _host_patterns(host: str) -> list[str]:
    """The spellings under which a selector may name this host: itself, any parent's wildcard, any host."""
    patterns = [""]
    if host:
        patterns.append(host)
        parent = host.partition(".")[2]
        while parent:
            patterns.append("*." + parent)
            parent = parent.partition(".")[2]
    return patterns


def _prefixes(path: str, longest: int) -> list[str]:
    """The whole-segment prefixes of `path`, without and with their final slash, none longer than `longest`."""
    prefixes: list[str] = []
    at = path.find("/")
    while at != -1 and at <= longest:
        if at:
            prefixes.append(path[:at])
        prefixes.append(path[: at + 1])
        at = path.find("/", at + 1)
    if not path.endswith("/") and len(path) <= longest:
        prefixes.append(path)
    return prefixes
