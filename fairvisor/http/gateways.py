"""Which headers of which gateway describe the original request: one endpoint for each way of telling it.

Each endpoint reads exactly one family of headers, the one its gateway overwrites, so that a client cannot choose its
own method, path or host by sending another family's headers along. What an endpoint does beyond that (status of an
allow, form of a deny, whether it reads a body, what request ids mean) is in the same table.

This module decides what the original request was. It knows nothing of policies; the path is handed on as it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from fairvisor.errors import MissingHeader, RequestError
from fairvisor.http.request import Request
from fairvisor.reading import HOSTS, JOINED, METHODS, Repeated

ENVOY_PREFIXES: Final = ("/v1/ext-authz/", "/v1/decision/")
# Envoy sets it when it sends a body: "true" for one that it has cut at max_request_bytes (allow_partial_message).
PARTIAL_HEADER: Final = "x-envoy-auth-partial-body"
# A gateway that sends the beginning of a body, or nothing of it, sets it to the size of the whole. Both are read only
# where the gateways of an endpoint set or delete them: behind a gateway that sends no bodies, a client that says "1"
# would reserve one token in place of its limit's default, and count for the model `unread` in place of the path's.
SIZE_HEADER: Final = "x-fairvisor-body-bytes"
# The content type of the original request, where the gateway cannot send it under its own name: Envoy takes a failed
# question for an allow when the question itself says that it is a gRPC call.
TYPE_HEADER: Final = "x-original-content-type"
_MAX_SIZE_DIGITS: Final = 12

# The original request: method in upper case, target as sent (Latin-1), host normalised, "" when not told. A plain
# tuple, because one is made for every request and a named one takes three times as long.
Original: TypeAlias = tuple[str, str, str]


class Family(NamedTuple):
    """The three headers of one family, by their lower-case names."""

    method: str
    target: str
    host: str


class RequestIds(Enum):
    """What X-Fairvisor-Request-Id means at an endpoint."""

    IGNORED = "ignored"  # the gateway may pass on what a client wrote
    COUNT = "count"  # a question with the id of an allowed one is the same question
    REQUIRED = "required"  # they count, and a question without one is malformed


ORIGINAL: Final = Family("x-original-method", "x-original-uri", "x-original-host")
FORWARDED: Final = Family("x-forwarded-method", "x-forwarded-uri", "x-forwarded-host")
URL_HEADER: Final = "x-original-url"


class Source:
    """Where a gateway describes the original request."""

    def describe(self, request: Request) -> Original:
        """The original request. Raises RequestError (400) when it is not told, or not told clearly."""
        raise NotImplementedError


class Endpoint:
    """A path that decides.

    `source` finds the original request; `allow_status` is the status of an allow, None for the configured one;
    `carrier` says that a reject is a 403 with the real status in a header, for gateways that pass nothing else;
    `host_header` is what a request without a host is told to send; `joins` says that the gateway joins repeated header
    lines with commas; `size_headers` are those in which it says how much of a body it keeps back.
    """

    __slots__ = (
        "allow_status",
        "carrier",
        "host_header",
        "joins",
        "needs_id",
        "reads_body",
        "reads_id",
        "size_headers",
        "source",
    )

    def __init__(
        self,
        source: Source,
        host_header: str,
        *,
        allow_status: int | None = None,
        carrier: bool = False,
        reads_body: bool = True,
        request_ids: RequestIds = RequestIds.IGNORED,
        joins: bool = False,
        size_headers: tuple[str, ...] = (),
    ) -> None:
        self.source = source
        self.host_header = host_header
        self.allow_status = allow_status
        self.carrier = carrier
        self.reads_body = reads_body
        self.reads_id = request_ids is not RequestIds.IGNORED
        self.needs_id = request_ids is RequestIds.REQUIRED
        self.joins = joins
        self.size_headers = size_headers

    def request_id(self, headers: Mapping[str, bytes]) -> str:
        """Return the gateway's id of the request, "" when it has none. Raises RequestError where one is required."""
        found = headers.get("x-fairvisor-request-id", b"").decode("latin-1")
        if self.needs_id and not found:
            raise MissingHeader(
                "the header X-Fairvisor-Request-Id is missing; a gateway that does not set it asks /v1/auth-request"
            )
        return found

    def with_joined(self, repeated: Repeated | None) -> Repeated:
        """Return the repeated fields of a request from a gateway that joins: those that came apart, and the others.

        Envoy joins the lines of Authorization also where it passes the lines of other fields on one by one.
        """
        return JOINED if repeated is None else Repeated(repeated.lines, joined=True)

    def missing_bytes(self, request: Request) -> int:
        """Return how much is missing of the body, by what was read and what the gateway says. Raises RequestError."""
        cut_bytes = request.cut_bytes
        for name in self.size_headers:
            if name in request.headers:
                cut_bytes = max(cut_bytes, _kept_back(name, request.headers[name], request.body))
        return cut_bytes


def _kept_back(name: str, value: bytes, body: bytes | None) -> int:
    """Return how much of a body one header says is missing, 0 or less for nothing. Raises RequestError."""
    if name == PARTIAL_HEADER:
        return 1 if b"true" in value else 0
    return _size(value) - len(body or b"")


def _size(value: bytes) -> int:
    """Return the largest size that is said. Raises RequestError."""
    sizes = [size.strip() for size in value.split(b",")]
    if not all(size.isdigit() and len(size) <= _MAX_SIZE_DIGITS for size in sizes):
        raise RequestError(
            f"the header X-Fairvisor-Body-Bytes is {value[:80].decode('latin-1')!r}, not a number of bytes of at most"
            f" {_MAX_SIZE_DIGITS} digits"
        )
    return max(map(int, sizes))


class FamilySource(Source):
    """One family of headers."""

    def __init__(self, family: Family) -> None:
        self._method, self._target, self._host = family

    def describe(self, request: Request) -> Original:
        """What its three headers say."""
        headers = request.headers
        method = headers.get(self._method)
        target = headers.get(self._target)
        if not method or not target:
            raise MissingHeader(f"the header {_written(self._target if method else self._method)} is missing")
        text = _sent_once(self._target, target)
        host = headers.get(self._host)
        return METHODS[method], text, HOSTS[host] if host else ""


class EitherSource(Source):
    """X-Original-* when any of them is there, else X-Forwarded-*: one family whole."""

    def __init__(self) -> None:
        self._original, self._forwarded = FamilySource(ORIGINAL), FamilySource(FORWARDED)

    def describe(self, request: Request) -> Original:
        """What the family that is there says."""
        headers = request.headers
        if ORIGINAL.target in headers or ORIGINAL.method in headers or ORIGINAL.host in headers:
            return self._original.describe(request)
        if FORWARDED.method not in headers and FORWARDED.target not in headers:
            raise MissingHeader("the header X-Original-Method (or X-Forwarded-Method) is missing")
        return self._forwarded.describe(request)


class RequestLineSource(Source):
    """The request line after the prefix, and Host: Envoy prepends its prefix to the original path.

    The content type becomes what the gateway says that it was.
    """

    def __init__(self, prefix: str) -> None:
        self._kept = len(prefix) - 1

    def describe(self, request: Request) -> Original:
        """What the request itself says."""
        target, headers = request.target, request.headers
        if TYPE_HEADER in headers:
            headers["content-type"] = headers.pop(TYPE_HEADER)
        sent = headers.get("host")
        host = HOSTS[sent] if sent else ""
        if not target.startswith("/"):
            target = self._origin_form(target, host)
        return METHODS[request.method.encode("latin-1")], target[self._kept :], host

    def _origin_form(self, target: str, host: str) -> str:
        """Return the path and query of an absolute form (RFC 9112 3.2.2). Raises RequestError for another host's."""
        named, path = split_url(target)
        if named != host:
            raise RequestError(
                f"the request line names the host {named[:80]!r}, the header Host {host[:80]!r}"
            )
        return path


class UrlSource(Source):
    """X-Original-URL and X-Original-Method, as ingress-nginx's template sets them."""

    def describe(self, request: Request) -> Original:
        """Return what the two headers say."""
        headers = request.headers
        method = headers.get(ORIGINAL.method)
        url = headers.get(URL_HEADER)
        if not method or not url:
            raise MissingHeader(
                f"the header {_written(URL_HEADER if method else ORIGINAL.method)} is missing"
            )
        host, target = split_url(_sent_once(URL_HEADER, url))
        return METHODS[method], target, host


def split_url(text: str) -> tuple[str, str]:
    """Return the normalised host, "" where it is empty, and the path with the query of an http or https URL.

    The authority ends at the first slash alone: gateways put the URL together from a Host header, in which they accept
    `?` and `#` (nginx), and whatever is before the slash is that header. Raises RequestError (400).
    """
    scheme, _, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    if not slash or scheme.lower() not in ("http", "https"):
        raise RequestError(f"{text[:80]!r} is not an http or https URL with a path")
    return HOSTS[authority.encode("latin-1")] if authority else "", slash + path


def _sent_once(name: str, value: bytes) -> str:
    """Return the text of a header that holds no space, as one that came on two lines does. Raises RequestError."""
    text = value.decode("latin-1")
    if " " in text:
        raise RequestError(f"the header {_written(name)} holds a space or was sent twice")
    return text


def _written(name: str) -> str:
    """A header name as people write it: `x-original-uri` is X-Original-URI."""
    return name.title().replace("-Uri", "-URI").replace("-Url", "-URL")


def decision_endpoints(request_ids: bool) -> Mapping[str, Endpoint]:
    """Every deciding endpoint by its path; those under a prefix end in a slash.

    `request_ids` says whether X-Fairvisor-Request-Id counts where a gateway is asked for more than nginx's
    auth_request module, which passes on whatever its configuration does not overwrite.
    """
    ids = RequestIds.COUNT if request_ids else RequestIds.IGNORED
    table = {
        "/v1/decision": Endpoint(
            EitherSource(), "X-Original-Host", request_ids=ids, size_headers=(SIZE_HEADER,)
        ),
        "/v1/auth-request": _auth_request(FamilySource(ORIGINAL), "X-Original-Host"),
        "/v1/auth-request/once": _auth_request(
            FamilySource(ORIGINAL), "X-Original-Host", RequestIds.REQUIRED
        ),
        # 200: with auth-keepalive, ingress-nginx's template takes no other status for an allow.
        "/v1/auth-url": _auth_request(UrlSource(), "Host", allow_status=200),
        "/v1/forward-auth": Endpoint(FamilySource(FORWARDED), "X-Forwarded-Host", request_ids=ids),
    }
    for prefix in ENVOY_PREFIXES:
        table[prefix] = Endpoint(
            RequestLineSource(prefix),
            "Host",
            allow_status=200,
            request_ids=ids,
            joins=True,
            size_headers=(SIZE_HEADER, PARTIAL_HEADER),
        )
    return table


def _auth_request(
    source: Source,
    host_header: str,
    ids: RequestIds = RequestIds.IGNORED,
    *,
    allow_status: int | None = None,
) -> Endpoint:
    """Return an endpoint for nginx's auth_request module: it sends no body, and passes on no reject but a 403."""
    return Endpoint(
        source, host_header, allow_status=allow_status, carrier=True, reads_body=False, request_ids=ids
    )
