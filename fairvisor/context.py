"""One request as the policies see it: method, host, target, headers, client, claims.

A `Context` is made once per request by the edge and read by descriptors and rules; everything that costs something
(claims, query, cookies, the client's address, the parsed LLM body) is worked out on first use and kept. It knows
nothing of gateways (`http/gateways.py` has already decided what the original request was), of policies or of counters,
and does no I/O: tokens, addresses and look-ups are asked of the `Identity` it carries.

Header names are lower-case `str`, values are the `bytes` that arrived, repeated lines joined with ", " (RFC 9110 5.3).
How fields, cookies and queries are read is known by `reading.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fairvisor.clock import Now
from fairvisor.errors import AmbiguousValue
from fairvisor.identity.tokens import TokenState
from fairvisor.llm.request import LlmRequest, read_request
from fairvisor.reading import Pairs, Repeated, header_text, parse_cookies, parse_query

if TYPE_CHECKING:
    from fairvisor.identity import Client, Identity
    from fairvisor.identity.tokens import Claims


class _Unread:
    """The mark of a value that was not asked for yet (None is a value)."""


_UNREAD: Final = _Unread()


class Context:
    """The original request. `target` is path and query as sent; `body` is None when the gateway supplied none, and
    `cut_bytes` how much of it is missing at its end.

    A body that came encoded is there decoded; `unread_bytes` is the size of one that could not be, and is there as it
    came. `request_id` is the gateway's own id of the request, "" where it is not to be believed. `repeated` are the
    header fields that came on several lines, None where each came on one.
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
        "coarse_path",
        "cut_bytes",
        "has_claims",
        "headers",
        "host",
        "identity",
        "method",
        "now",
        "path",
        "peer",
        "repeated",
        "request_id",
        "target",
        "unread_bytes",
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
        repeated: Repeated | None = None,
    ) -> None:
        self.method = method
        self.host = host
        self.target = target
        self.path = ""  # the normalised path, and below the coarsest reading of it: the engine sets both
        self.coarse_path = ""
        self.headers = headers
        self.peer = peer
        self.identity = identity
        self.now = now
        self.body = body
        self.request_id = request_id
        self.cut_bytes = cut_bytes
        self.repeated = repeated
        self.unread_bytes = 0
        self.has_claims = False  # whether `claims` has found some
        self._client: Client | None = None
        self._claims: Claims | None = None
        self._claim_texts: dict[str, str | None] | None = None
        self._claims_asked = False
        self._query: Pairs | None = None
        self._cookies: Pairs | None = None
        self._llm: LlmRequest | None | _Unread = _UNREAD

    def header(self, name: str) -> str | None:
        """Return the value of a header by its lower-case name, as text; None when it is absent.

        Raises AmbiguousValue when its lines differ.
        """
        value = self.headers.get(name)
        if value is None:
            return None
        return header_text(value if self.repeated is None else self.repeated.single(name, value))

    def header_values(self, name: str) -> list[str]:
        """Return every value of a header by its lower-case name, as text; empty ones are none."""
        value = self.headers.get(name)
        if value is None:
            return []
        values = [value] if self.repeated is None else self.repeated.values(name, value)
        return [header_text(each) for each in values if each]

    @property
    def client(self) -> Client:
        """Who sent the request: the address behind the trusted proxies."""
        client = self._client
        if client is None:
            client = self._client = self.identity.addresses.client(self.peer, self.headers)
        return client

    @property
    def claims(self) -> Claims | None:
        """The claims of the bearer token; None when there is no token that counts.

        Raises AmbiguousValue for a request with different credentials.
        """
        if not self._claims_asked:
            credential = self._credential()
            self._claims_asked = True
            self._claims = self.identity.tokens.claims(credential, self.now.wall_ns)
            self.has_claims = self._claims is not None
        return self._claims

    @property
    def token_state(self) -> TokenState:
        """What became of the bearer token. Raises AmbiguousValue for a request with different credentials."""
        if self.claims is not None:
            return TokenState.ACCEPTED
        return self.identity.tokens.state(self._credential(), self.now.wall_ns)

    def all_claims(self) -> list[Claims]:
        """Return the claims of every bearer token that counts: of more than one only where credentials differ.

        Raises AmbiguousValue for more credentials than are looked at.
        """
        credential = self.headers.get("authorization")
        different = (
            [] if self.repeated is None or credential is None else self.repeated.credentials(credential)
        )
        if len(different) < 2:
            return [] if self.claims is None else [self.claims]
        read, wall_ns = self.identity.tokens.claims, self.now.wall_ns
        return [claims for each in different if (claims := read(each, wall_ns)) is not None]

    def _credential(self) -> bytes | None:
        """Return the value of Authorization. Raises AmbiguousValue for different ones."""
        credential = self.headers.get("authorization")
        if credential is not None and self.repeated is not None:
            credential, *others = self.repeated.credentials(credential)
            if others:
                raise AmbiguousValue("header:authorization")
        return credential

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
    def subject(self) -> str | None:
        """The subject of the token, where claims are verified or a limit has read them; else no token is looked at."""
        if self._claims_asked or self.identity.verified:
            return self.claim_text("sub")
        return None

    @property
    def query(self) -> Pairs:
        """The query parameters, percent-decoded once."""
        query = self._query
        if query is None:
            query = self._query = parse_query(self.target)
        return query

    @property
    def cookies(self) -> Pairs:
        """The cookies, percent-decoded once."""
        cookies = self._cookies
        if cookies is None:
            joined = self.repeated is not None and self.repeated.joined
            cookies = self._cookies = parse_cookies(self.headers.get("cookie", b""), joined)
        return cookies

    @property
    def llm(self) -> LlmRequest | None:
        """The LLM request in the body; None when no body was supplied."""
        llm = self._llm
        if isinstance(llm, _Unread):
            if self.unread_bytes:
                llm = read_request(self.path, b"", self.unread_bytes)
            else:
                kind = self.headers.get("content-type", b"")
                llm = read_request(self.path, self.body, self.cut_bytes, kind)
            self._llm = llm
        return llm
