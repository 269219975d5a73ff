"""What the fields of a log mean, and a request made of their values.

A field is known by its name: nginx's variables, Envoy's commands, and the keys that JSON logs use. What it means is
written as a policy would write it (`request:path`, `header:x-api-key`, `ip:address`), so that `--map` and the names
known here speak one language. A request made here has the form in which a gateway would have described it: the
client's address stands in the header that the edge is configured to read, claims in a bearer token.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo
from typing import Final, NamedTuple
from urllib.parse import quote_plus

import orjson

from fairvisor.identity.addresses import client_header, parse_node
from fairvisor.reading import HOSTS, METHODS, Repeated
from fairvisor.replay.times import Times

Headers = dict[str, bytes]
Value = bytes | None

TIME: Final = "time"
DATE: Final = "date"  # where the time has a field of its own
REQUEST: Final = "request"  # the whole request line
METHOD: Final = "request:method"
TARGET: Final = "request:path"  # with the query
QUERY: Final = "request:query"
HOST: Final = "request:host"
ADDRESS: Final = "ip:address"
BODY: Final = "body"

# Hints that gateways send, by the descriptor they fill: a value that the log tells is believed.
HINTS: Final[Mapping[str, str]] = {
    "ip:country": "x-country-code",
    "ip:asn": "x-asn",
    "ip:type": "x-asn-type",
    "ip:tor": "x-tor-exit",
}
MAPPABLE: Final = (TIME, REQUEST, METHOD, TARGET, QUERY, HOST, ADDRESS, BODY, *HINTS)
MAPPABLE_SOURCES: Final = ("header", "cookie", "query", "jwt")


# Names as `normal_name` spells them. Of two fields that mean the same, the one that stands earlier here wins.
_MEANINGS: Final[Mapping[str, tuple[str, ...]]] = {
    TIME: (
        "msec", "time_iso8601", "time_local", "starttime", "start_time", "startutc", "starteddatetime", "started_at",
        "edgestarttimestamp", "edgeendtimestamp", "requesttimeepoch", "requesttime", "ts", "time", "timestamp",
    ),
    DATE: ("date",),
    REQUEST: ("request", "request_line"),
    METHOD: (
        "request_method", "requestmethod", "clientrequestmethod", "cs_method", "method", "http_method", "httpmethod",
        "verb", "req(:method)",
    ),
    TARGET: (
        "req(x_envoy_original_path?:path)", "req(:path)", "x_envoy_origin_path", "request_uri", "requestpath",
        "clientrequesturi", "cs_uri", "uri", "url", "requesturl", "requesturi", "target", "request_path",
        "clientrequestpath", "cs_uri_stem", "path", "document_uri",
    ),
    QUERY: ("args", "query_string", "cs_uri_query", "query", "requestquery"),
    HOST: (
        "http_host", "host", "authority", "req(:authority)", "req(host)", "requesthost", "clientrequesthost",
        "x_host_header", "cs(host)", "cs_host", "hostname", "vhost", "sni",
    ),
    ADDRESS: (
        "remote_addr", "downstream_remote_address_without_port", "downstream_remote_address", "client_ip",
        "clienthost", "remote_ip", "clientip", "remoteip", "c_ip", "clientaddr", "client_addr", "remoteaddress",
        "remote_address", "client", "ip",
    ),
    BODY: ("request_body", "body"),
    "header:user-agent": ("user_agent", "useragent", "clientrequestuseragent"),
    "header:referer": ("referer", "referrer", "clientrequestreferer"),
    "header:x-forwarded-for": ("x_forwarded_for",),
}  # fmt: skip
_KNOWN: Final = {
    name: (meaning, rank) for meaning, names in _MEANINGS.items() for rank, name in enumerate(names)
}


def normal_name(field: str) -> str:
    """The name of a field without its writer's habits: lower case, underscores, no leading `@`, `:` or `$`."""
    return field.lower().lstrip("@:$").replace("-", "_")


def meaning_of(field: str) -> tuple[str, int] | None:
    """What a field means, and how good a source of that it is (0 is best); None for one that is not known."""
    name = normal_name(field)
    known = _KNOWN.get(name)
    if known is not None:
        return known
    if name.startswith("http_"):  # nginx: $http_x_api_key
        return "header:" + name[5:].replace("_", "-"), 1
    if name.startswith("req(:"):
        return None
    if name.startswith("req("):  # Envoy: %REQ(X-API-KEY?X-KEY)%, the first that is there
        return "header:" + name[4:-1].partition("?")[0].replace("_", "-"), 1
    if name.startswith("cs(") and name.endswith(")"):  # W3C: cs(User-Agent)
        return "header:" + name[3:-1].replace("_", "-"), 1
    if name.startswith("cookie_"):
        return "cookie:" + field.partition("_")[2], 1
    if field.startswith("request_") and field[8:9].isupper():  # Traefik: request_User-Agent
        return "header:" + name[8:].replace("_", "-"), 1
    return None


def read_mapping(assignments: Sequence[str]) -> dict[str, str]:
    """`header:x-api-key=FIELD` and the like: the meaning of each field. Raises ValueError, naming the one at fault."""
    mapping: dict[str, str] = {}
    for assignment in assignments:
        meaning, mark, field = assignment.partition("=")
        source, _, name = meaning.partition(":")
        meaning = ADDRESS if meaning == "ip:addr" else meaning
        if not mark or not field or not (meaning in MAPPABLE or (source in MAPPABLE_SOURCES and name)):
            raise ValueError(
                f"{assignment!r}: allowed are MEANING=FIELD with a meaning of {', '.join(MAPPABLE)}, "
                f"{', '.join(each + ':NAME' for each in MAPPABLE_SOURCES)}"
            )
        if field in mapping:
            raise ValueError(f"{assignment!r}: the field {field!r} is {mapping[field]} already")
        mapping[field] = meaning
    return mapping


class Logged(NamedTuple):
    """A request of a log. `target` is path and query as sent, `peer` who described it, as the edge sees peers."""

    wall_ns: int
    method: str
    host: str
    target: str
    headers: Headers
    peer: str
    body: bytes | None
    repeated: Repeated | None = None


class Maker:
    """What all requests of one log share.

    `client_ip_header` is the setting of that name, `default_host` is used where the log names none, `zone` where a time
    has none (None: UTC).
    """

    __slots__ = ("client_ip_header", "default_host", "read_time", "zone")

    def __init__(self, client_ip_header: str, default_host: str = "", zone: tzinfo | None = None) -> None:
        self.client_ip_header = client_ip_header
        self.default_host = default_host
        self.zone = zone
        self.read_time = Times(zone).read

    def again(self) -> Maker:
        """Return one for the same log that has read nothing yet."""
        return Maker(self.client_ip_header, self.default_host, self.zone)


class Plan:
    """Where the parts of a request stand among the values of one kind of line. Made once per kind.

    `meanings` has one meaning (or None) for each value. Raises ValueError when a request cannot be made of them.
    """

    __slots__ = (
        "_cookies",
        "_date",
        "_headers",
        "_hints",
        "_jwt",
        "_maker",
        "_parameters",
        "_place",
        "_seldom",
        "_time",
    )

    def __init__(self, meanings: Sequence[str | None], maker: Maker) -> None:
        self._maker = maker
        self._place = {meaning: index for index, meaning in reversed([*enumerate(meanings)]) if meaning}
        self._date = self._place.pop(DATE, None)
        if TIME not in self._place and self._date is not None:
            self._place[TIME], self._date = self._date, None
        if TIME not in self._place:
            raise ValueError("no field is a time")
        self._time = self._place[TIME]
        if REQUEST not in self._place and not {METHOD, TARGET} <= self._place.keys():
            raise ValueError("no field is a request line, and none a method and a path")
        self._headers = self._named("header")
        self._hints = tuple((HINTS[name], index) for name, index in self._place.items() if name in HINTS)
        self._cookies = self._named("cookie")
        self._parameters = self._named("query")
        self._jwt = self._named("jwt")
        self._seldom = bool(self._hints or self._cookies or self._parameters or self._jwt)

    def _named(self, source: str) -> tuple[tuple[str, int], ...]:
        """(name, place) of every field that is a `source:name`."""
        named = [
            (meaning.partition(":")[2], index)
            for meaning, index in self._place.items()
            if meaning.startswith(source + ":")
        ]
        return tuple((name.lower() if source == "header" else name, index) for name, index in named)

    def logged(
        self, values: Sequence[Value], headers: Headers | None = None, repeated: Repeated | None = None
    ) -> Logged:
        """The request of one line. Raises ValueError or RequestError for values that are none."""
        maker = self._maker
        moment = values[self._time] or b""
        if self._date is not None and moment[2:3] == b":":
            moment = b"%b %b" % (values[self._date] or b"", moment)
        wall_ns = maker.read_time(moment)
        method, target = self._request_line(values)
        headers = {} if headers is None else headers
        for name, index in self._headers:
            value = values[index]
            if value and value != b"-":
                headers[name] = value
        host = self._value(HOST, values)
        text = target.decode("latin-1")
        if not text.startswith("/") and "://" in text:
            authority, slash, rest = text.partition("://")[2].partition("/")
            host, text = host or authority.encode("latin-1"), slash + rest or "/"
        if self._seldom:
            text = self._add_seldom(values, headers, text)
        host = host or headers.get("host", b"")
        return Logged(
            wall_ns,
            METHODS[method],
            HOSTS[host] if host else maker.default_host,
            text,
            headers,
            _describe_client(maker.client_ip_header, headers, self._value(ADDRESS, values)),
            self._value(BODY, values) or None,
            repeated,
        )

    def _value(self, meaning: str, values: Sequence[Value]) -> bytes:
        """The value with this meaning, b"" when there is none."""
        index = self._place.get(meaning)
        value = None if index is None else values[index]
        return value if value and value != b"-" else b""

    def _request_line(self, values: Sequence[Value]) -> tuple[bytes, bytes]:
        """Method and target."""
        index = self._place.get(REQUEST)
        if index is None:
            method, target = self._value(METHOD, values), self._value(TARGET, values)
            query = self._value(QUERY, values).removeprefix(b"?")
            if query and b"?" not in target:
                target += b"?" + query
        else:
            method, target = split_request_line(values[index] or b"")
        if not method or not target:
            raise ValueError("it names no method and path")
        if b" " in target:
            raise ValueError("its path holds a space")
        return method, target

    def _add_seldom(self, values: Sequence[Value], headers: Headers, target: str) -> str:
        """Hints, cookies, parameters and claims that have fields of their own; gives the target."""
        for name, index in self._hints:
            headers[name] = values[index] or b""
        cookies = [b"%b=%b" % (name.encode(), value) for name, value in _present(self._cookies, values)]
        if cookies:
            known = [headers["cookie"]] if "cookie" in headers else []
            headers["cookie"] = b"; ".join([*known, *cookies])
        for name, value in _present(self._parameters, values):
            target += f"{'&' if '?' in target else '?'}{quote_plus(name)}={quote_plus(value)}"
        claims = {name: value.decode("utf-8", "replace") for name, value in _present(self._jwt, values)}
        if claims:
            headers["authorization"] = _token(claims)
        return target


def _present(fields: Sequence[tuple[str, int]], values: Sequence[Value]) -> list[tuple[str, bytes]]:
    return [(name, value) for name, index in fields if (value := values[index]) and value != b"-"]


def split_request_line(line: bytes) -> tuple[bytes, bytes]:
    """Return method and target of `GET /path HTTP/1.1`; an old client's line has no version. Raises ValueError."""
    method, space, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not version.startswith(b"HTTP/"):
        target = rest
    if not space or not target or method == b"-":
        raise ValueError(f"{line[:60]!r} is not a request line")
    return method, target


def _token(claims: Mapping[str, str]) -> bytes:
    """An unsigned bearer token, as a gateway that has verified it passes it on."""
    parts = (b'{"alg":"HS256"}', orjson.dumps(claims))
    return b"Bearer " + b".".join([*(urlsafe_b64encode(part).rstrip(b"=") for part in parts), b""])


def _append(headers: Headers, name: str, entry: bytes) -> None:
    """What a proxy does with the address it sees: it goes to the right of what came."""
    came = headers.get(name)
    headers[name] = entry if came is None else came + b", " + entry


def _forwarded_for(headers: Headers, address: bytes) -> str:
    _append(headers, "x-forwarded-for", address)
    return ""


def _forwarded(headers: Headers, address: bytes) -> str:
    bare_ipv6 = address.count(b":") > 1 and not address.startswith(b"[")
    _append(headers, "forwarded", (b'for="[%b]"' if bare_ipv6 else b'for="%b"') % address)
    return ""


def _peer(headers: Headers, address: bytes) -> str:
    return str(parse_node(address.decode("latin-1")) or "")


_DESCRIBERS: Final[Mapping[str, Callable[[Headers, bytes], str]]] = {
    "x-forwarded-for": _forwarded_for,
    "forwarded": _forwarded,
    "": _peer,
}


def _describe_client(form: str, headers: Headers, address: bytes) -> str:
    """Put the client's address where the edge looks for it; gives the peer, "" for a gateway on a unix socket."""
    if not address or address.startswith(b"unix:"):
        return ""
    name, _ = client_header(form)
    describe = _DESCRIBERS.get(name)
    if describe is not None:
        return describe(headers, address)
    headers.setdefault(name, address)  # a header with one address, which the log may have a field for
    return ""
