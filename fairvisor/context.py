"""One request as the policies see it: method, host, target, headers, client, claims.

A `Context` is made once per request by the edge and read by descriptors and rules; everything that costs something
(claims, query, cookies, the client's address, the parsed LLM body) is worked out on first use and kept. It knows
nothing of gateways (`http/gateways.py` has already decided what the original request was), of policies or of counters,
and does no I/O: tokens, addresses and look-ups are asked of the `Identity` it carries.

Header names are lower-case `str`, values are the `bytes` that arrived, repeated lines joined with ", " (RFC 9110 5.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

from fairvisor.clock import Now
from fairvisor.llm.request import LlmRequest, read_request

if TYPE_CHECKING:
    from fairvisor.identity import Client, Identity
    from fairvisor.identity.tokens import Claims


class _Unread:
    """The mark of a value that was not asked for yet (None is a value)."""


_UNREAD: Final = _Unread()


class Context:
    """The original request. `target` is path and query as sent; `body` is None when the gateway supplied none, and
    `cut_bytes` how much of it is missing at its end.

    `request_id` is the gateway's own id of the request, "" where it is not to be believed.
    """

    __slots__ = (
        "_claim_texts",
        "_claims",
        "_claims_asked",
        "_client",
        "_cookies",
        "_llm",
        "_query",
        "body",
        "cut_bytes",
        "headers",
        "host",
        "identity",
        "method",
        "now",
        "path",
        "peer",
        "request_id",
        "target",
    )

    def __init__(
        self,
        method: str,
        host: str,
        target: str,
        headers: dict[str, bytes],
        peer: str,
        identity: Identity,
        now: Now,
        body: bytes | None = None,
        request_id: str = "",
        cut_bytes: int = 0,
    ) -> None:
        self.method = method
        self.host = host
        self.target = target
        self.path = ""  # the normalised path; the engine sets it when it has found the policies
        self.headers = headers
        self.peer = peer
        self.identity = identity
        self.now = now
        self.body = body
        self.request_id = request_id
        self.cut_bytes = cut_bytes
        self._client: Client | None = None
        self._claims: Claims | None = None
        self._claim_texts: dict[str, str | None] | None = None
        self._claims_asked = False
        self._query: Mapping[str, str] | _Unread = _UNREAD
        self._cookies: Mapping[str, str] | _Unread = _UNREAD
        self._llm: LlmRequest | None | _Unread = _UNREAD

    def header(self, name: str) -> str | None:
        """The value of a header by its lower-case name, as text; None when it is absent."""
        value = self.headers.get(name)
        return None if value is None else header_text(value)

    @property
    def client(self) -> Client:
        """Who sent the request: the address behind the trusted proxies."""
        client = self._client
        if client is None:
            client = self._client = self.identity.addresses.client(self.peer, self.headers)
        return client

    @property
    def claims(self) -> Claims | None:
        """The claims of the bearer token; None when there is no token that counts."""
        if not self._claims_asked:
            self._claims_asked = True
            self._claims = self.identity.tokens.claims(self.headers.get("authorization"), self.now.wall_ns)
        return self._claims

    def claim_text(self, name: str) -> str | None:
        """A claim as text, worked out once for a token; None also when there are no claims."""
        texts = self._claim_texts
        if texts is None:
            claims = self.claims
            if claims is None:
                return None
            texts = self._claim_texts = claims.texts
        return texts[name]

    @property
    def query(self) -> Mapping[str, str]:
        """Query parameters: the first of each name, percent-decoded once."""
        query = self._query
        if isinstance(query, _Unread):
            query = self._query = parse_query(self.target)
        return query

    @property
    def cookies(self) -> Mapping[str, str]:
        """Cookies: the first of each name, percent-decoded once."""
        cookies = self._cookies
        if isinstance(cookies, _Unread):
            cookies = self._cookies = parse_cookies(self.headers.get("cookie", b""))
        return cookies

    @property
    def llm(self) -> LlmRequest | None:
        """The LLM request in the body; None when no readable body was supplied."""
        llm = self._llm
        if isinstance(llm, _Unread):
            llm = self._llm = read_request(self.path, self.body, self.cut_bytes)
        return llm


def header_text(value: bytes) -> str:
    """Header bytes as text: UTF-8 where they are, else Latin-1, so that every value has one reading (RFC 9110 5.5)."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def parse_query(target: str) -> dict[str, str]:
    """The query of `target` as first-wins pairs (WHATWG urlencoded parsing, `&` only)."""
    found: dict[str, str] = {}
    _, mark, query = target.partition("#")[0].partition("?")
    if mark:
        for pair in query.split("&"):
            name, _, value = pair.partition("=")
            found.setdefault(unquote_plus(name), unquote_plus(value))
    return found


def query_names(target: str) -> list[str]:
    """The names of all query parameters, each as often as it was sent."""
    query = target.partition("#")[0].partition("?")[2]
    return [unquote_plus(pair.partition("=")[0]) for pair in query.split("&")]


def parse_cookies(header: bytes) -> dict[str, str]:
    """The pairs of a Cookie header (RFC 6265 4.2.1), first wins; quotes around a value are not part of it."""
    found: dict[str, str] = {}
    for pair in header_text(header).replace(", ", "; ").split(";"):
        name, mark, value = pair.strip().partition("=")
        if mark:
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            found.setdefault(name, unquote_plus(value.replace("+", "%2B")))
    return found
