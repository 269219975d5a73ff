"""Bearer tokens (JWT, RFC 7519): from the Authorization header to claims that may be counted by.

With keys, a token has claims only when a key of ours verifies its signature, it is within `nbf` and `exp`, and it
carries the issuer and audience that the key is for. Whatever is wrong with it, the result is the same: no claims, and
one more in `refused` under a reason. Without any configured source of keys the payload is read as it is, for
deployments whose gateway has verified it.

Tokens that were read are remembered with the keys that read them: when the keys change, everything remembered goes
with the old ones. A remembered token is held against the clock each time. Tokens that were refused are remembered in a
place of their own, so that a flood of false ones does not push out the real ones.

This module knows nothing of where keys come from, and does no I/O.
"""

from __future__ import annotations

import enum
import math
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import jwt
import orjson
from xxhash import xxh3_64_intdigest

from fairvisor.clock import NS_PER_S
from fairvisor.identity.keys import TokenKey
from fairvisor.identity.recent import Recent
from fairvisor.reading import CREDENTIAL_SPACE

JsonObject = Mapping[str, object]

# Clocks differ, and applications accept an expired token for a while: a limit must not end before they do.
LEEWAY_S: Final = 60
# A token that names no key id is tried against at most so many keys: each try costs tens of microseconds.
MAX_TRIES: Final = 8

# Of a generation of each cache. A token may be as long as a head, and the client chooses how long it is.
_REMEMBERED: Final = 4096
_REMEMBERED_BYTES: Final = 16 << 20
_REMEMBERED_REFUSED: Final = 1024
_REMEMBERED_REFUSED_BYTES: Final = 1 << 20

# What Python needs for a token and its claims, an object or array with one element, and each further element.
_CLAIMS_BYTES: Final = 768
_OBJECT_BYTES: Final = 256
_ARRAY_BYTES: Final = 120
_MEMBER_BYTES: Final = 120

_FOREVER_NS: Final = 1 << 80

# RFC 9110 section 11.4, read as widely as servers do: any case, any white space, and the first word after it.
_BEARER: Final = re.compile(
    rb"%b*[Bb][Ee][Aa][Rr][Ee][Rr]%b+(?P<token>[!-~]+|[^ \t])" % (CREDENTIAL_SPACE, CREDENTIAL_SPACE)
)
# RFC 7515 section 7.1.
_COMPACT: Final = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_NO_BASE64: Final = re.compile(rb"[^A-Za-z0-9_+/-]+")

# Why a token has no claims: the values of the metric's label.
MALFORMED: Final = "malformed"
CRITICAL: Final = "critical_header"
NO_KEYS: Final = "no_keys"
UNKNOWN_KEY: Final = "unknown_key"
ALGORITHM: Final = "wrong_algorithm"
SIGNATURE: Final = "bad_signature"
ISSUER: Final = "wrong_issuer"
AUDIENCE: Final = "wrong_audience"
NOT_YET: Final = "not_yet_valid"
EXPIRED: Final = "expired"
REASONS: Final = (
    MALFORMED,
    CRITICAL,
    NO_KEYS,
    UNKNOWN_KEY,
    ALGORITHM,
    SIGNATURE,
    ISSUER,
    AUDIENCE,
    NOT_YET,
    EXPIRED,
)


# What a token gets that is signed with a key which we do not have.
_OF_ANOTHER_KEY: Final = (UNKNOWN_KEY, ALGORITHM, SIGNATURE)


class TokenState(enum.Enum):
    """What became of a request's bearer token."""

    ABSENT = "absent"  # no Authorization header, or of another scheme
    ACCEPTED = "accepted"  # it has claims
    INVALID = "invalid"  # it does not verify
    KEYS_UNAVAILABLE = "keys_unavailable"  # it may verify, but its keys could never be fetched


class KeySource(NamedTuple):
    """What tokens are verified with; see `Tokens.use`."""

    keys: tuple[TokenKey, ...]
    apart: frozenset[str] = frozenset()
    awaited: frozenset[str | None] = frozenset()


class _Refused(Exception):
    """The token has no claims; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Claims(dict[str, object]):
    """The claims of one token. `texts[name]` is `claim_text(claims, name)`, worked out once for a remembered token.

    `held_bytes` is about what the token and its claims hold in memory.
    """

    __slots__ = ("held_bytes", "texts")

    def __init__(self, document: JsonObject, held_bytes: int = 0) -> None:
        super().__init__(document)
        self.texts = _Texts(document)
        self.held_bytes = held_bytes


class _Texts(dict[str, "str | None"]):
    """Claims as text by name. The names are those that the bundle counts by, so they are few."""

    __slots__ = ("_document",)

    def __init__(self, document: JsonObject) -> None:
        super().__init__()
        self._document = document

    def __missing__(self, name: str) -> str | None:
        text = self[name] = claim_text(self._document, name)
        return text


class _Read(NamedTuple):
    """A token that has claims from `from_ns` until before `until_ns` (wall clock)."""

    authorization: bytes
    claims: Claims
    from_ns: int
    until_ns: int


def _read_bytes(stamp: int, read: _Read) -> int:
    """Weigh a remembered token."""
    return read.claims.held_bytes


def _refused_bytes(authorization: bytes, reason: str) -> int:
    """Weigh a remembered refusal: the reason is a constant."""
    return len(authorization)


class _Ring:
    """The keys that may verify the tokens of an issuer. `awaited`: some of them could never be fetched."""

    __slots__ = ("awaited", "by_kid", "keys", "unnamed")

    def __init__(self, keys: Sequence[TokenKey], awaited: bool) -> None:
        self.keys = tuple(keys)
        self.awaited = awaited
        self.by_kid: dict[str, list[TokenKey]] = {}
        for key in keys:
            if key.kid is not None:
                self.by_kid.setdefault(key.kid, []).append(key)
        self.unnamed = [key for key in keys if key.kid is None]

    def candidates(self, kid: object) -> Sequence[TokenKey]:
        """The keys that a token with this `kid` (None: without one) may have been signed with."""
        if kid is None:
            return self.keys
        return (self.by_kid.get(kid) if isinstance(kid, str) else None) or self.unnamed


class _Keys:
    """A set of keys and all that was read with it: they come and go together. `source` is None: read unverified."""

    __slots__ = ("_others", "_rings", "read", "refused", "source")

    def __init__(self, source: KeySource | None) -> None:
        self.source = source
        keys, apart, awaited = source or KeySource(())
        self._rings = {
            issuer: _Ring([key for key in keys if key.issuer == issuer], issuer in awaited)
            for issuer in apart
        }
        self._others = _Ring([key for key in keys if key.issuer not in apart], not awaited <= apart)
        self.read: Recent[int, _Read] = Recent(_REMEMBERED, _REMEMBERED_BYTES, _read_bytes)
        self.refused: Recent[bytes, str] = Recent(
            _REMEMBERED_REFUSED, _REMEMBERED_REFUSED_BYTES, _refused_bytes
        )

    def ring(self, payload: bytes) -> _Ring:
        """The keys for the token with this payload, which is not verified yet."""
        if not self._rings:
            return self._others
        issuer = _object(payload).get("iss")
        ring = self._rings.get(issuer) if isinstance(issuer, str) else None
        return self._others if ring is None else ring


class Refusals(dict[str, int]):
    """How many tokens had no claims, by reason. `told` is called with the reason of each."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(REASONS, 0))
        self.told: Callable[[str], object] | None = None

    def count(self, reason: str) -> None:
        """One more."""
        self[reason] += 1
        if self.told is not None:
            self.told(reason)


class Tokens:
    """Reads bearer tokens with the keys of the moment. `refused` counts tokens without claims by reason.

    `leeway_s`: how much earlier than `nbf` and later than `exp` a token counts.
    """

    def __init__(
        self, on_unknown_key: Callable[[], None], refused: Refusals | None = None, leeway_s: int = LEEWAY_S
    ) -> None:
        self.refused = Refusals() if refused is None else refused
        self._on_unknown_key = on_unknown_key
        self._leeway_ns = leeway_s * NS_PER_S
        self._seed = secrets.randbits(64)
        self._keys = _Keys(None)

    @property
    def verified(self) -> bool:
        """Whether claims are verified ones."""
        return self._keys.source is not None

    def use(
        self,
        keys: Sequence[TokenKey] | None,
        apart: Iterable[str] = (),
        awaited: Iterable[str | None] = (),
    ) -> None:
        """Read with these keys from now on; None: no source is configured, read unverified. Safe at any moment.

        Tokens of the issuers in `apart` are verified with the keys that name them and no others. `awaited` are the
        issuers some of whose keys could never be fetched, None for keys that name no issuer.
        """
        source = None if keys is None else KeySource(tuple(keys), frozenset(apart), frozenset(awaited))
        if source != self._keys.source:
            self._keys = _Keys(source)

    def claims(self, authorization: bytes | None, wall_ns: int) -> Claims | None:
        """The claims of the token in an Authorization header, or None. `wall_ns` is the moment of the request."""
        if authorization is None:
            return None
        # Hashed here: the dictionary's own hash of a bytes object is slower for long tokens, and never kept.
        stamp = xxh3_64_intdigest(authorization, self._seed)
        keys = self._keys
        read = keys.read.young.get(stamp)
        if read is not None:
            known, claims, from_ns, until_ns = read
            if from_ns <= wall_ns < until_ns and known == authorization:
                return claims
        try:
            return self._look(keys, authorization, stamp, wall_ns)
        except _Refused as refused:
            self.refused.count(refused.reason)
            return None

    def state(self, authorization: bytes | None, wall_ns: int) -> TokenState:
        """Say what becomes of the token in an Authorization header; for requests without claims, and not counted."""
        if authorization is None:
            return TokenState.ABSENT
        stamp = xxh3_64_intdigest(authorization, self._seed)
        try:
            claims = self._look(self._keys, authorization, stamp, wall_ns)
        except _Refused as refused:
            return TokenState.KEYS_UNAVAILABLE if refused.reason == NO_KEYS else TokenState.INVALID
        return TokenState.ABSENT if claims is None else TokenState.ACCEPTED

    def _look(self, keys: _Keys, authorization: bytes, stamp: int, wall_ns: int) -> Claims | None:
        """The claims of a token, however it is spelled; None for another scheme. Raises _Refused."""
        found = _BEARER.match(authorization)
        if found is None:
            return None  # another scheme: not a token, so not a bad one
        plain = b"Bearer " + _plain(found["token"])
        if plain != authorization:
            stamp = xxh3_64_intdigest(plain, self._seed)
        read = keys.read.get(stamp)
        if read is None or read.authorization != plain:
            read = self._first_look(keys, plain)
            keys.read.put(stamp, read)
        _check_time(read, wall_ns)
        return read.claims

    def _first_look(self, keys: _Keys, plain: bytes) -> _Read:
        """Read a token; one that will not do with these keys at any time is read only once."""
        reason = keys.refused.get(plain)
        if reason is not None:
            raise _Refused(reason)
        try:
            return self._read(keys, plain)
        except _Refused as refused:
            keys.refused.put(plain, refused.reason)
            raise

    def _read(self, keys: _Keys, plain: bytes) -> _Read:
        compact = _COMPACT.fullmatch(plain, len(b"Bearer "))
        if compact is None:
            raise _Refused(MALFORMED)
        payload = _decoded(compact[2])
        held_bytes = len(plain) + claims_bytes(payload)
        if keys.source is None:
            return _Read(plain, Claims(_object(payload), held_bytes), 0, _FOREVER_NS)
        claims = self._verify(keys.ring(payload), compact[0].decode("ascii"), _object(_decoded(compact[1])))
        from_ns, until_ns = _moment_ns(claims, "nbf"), _moment_ns(claims, "exp")
        return _Read(
            plain,
            Claims(claims, held_bytes),
            0 if from_ns is None else from_ns - self._leeway_ns,
            _FOREVER_NS if until_ns is None else until_ns + self._leeway_ns,
        )

    def _verify(self, ring: _Ring, token: str, header: JsonObject) -> JsonObject:
        """The claims if one of the keys verifies the token; time is not looked at here."""
        # RFC 7515 section 4.1.11: extensions that must be understood; we know none
        if "crit" in header or header.get("b64", True) is not True:
            raise _Refused(CRITICAL)
        algorithm = header.get("alg")
        candidates = ring.candidates(header.get("kid"))
        refused = _Refused(ALGORITHM if candidates else UNKNOWN_KEY)
        if isinstance(algorithm, str):
            for key in [key for key in candidates if algorithm in key.verifiers][:MAX_TRIES]:
                try:
                    return _verified(token, key, algorithm)
                except _Refused as this_time:
                    if refused.reason is ALGORITHM or this_time.reason is not SIGNATURE:
                        refused = this_time
        if refused.reason in _OF_ANOTHER_KEY and ring.awaited:
            raise _Refused(NO_KEYS)
        if refused.reason is UNKNOWN_KEY or (refused.reason is SIGNATURE and "kid" not in header):
            self._on_unknown_key()
        raise refused


def _plain(token: bytes) -> bytes:
    """Return the one spelling of a token.

    Many libraries accept a signature with the padding that RFC 7515 leaves out, and those that decode base64 leniently,
    as Python and Node.js do, with characters that are none of base64url's.
    """
    signed, dot, signature = token.rpartition(b".")
    letters = _NO_BASE64.sub(b"", signature)
    for text in (signature, letters):
        try:
            return signed + dot + urlsafe_b64encode(_decoded(text)).rstrip(b"=")
        except _Refused:
            continue
    return signed + dot + letters


def _verified(token: str, key: TokenKey, algorithm: str) -> JsonObject:
    """The claims of a token whose signature, issuer and audience are what `key` asks for."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.verifiers[algorithm],
            algorithms=[algorithm],
            issuer=key.issuer,
            audience=key.audiences or None,
            options={
                "verify_aud": bool(key.audiences),
                "verify_iss": key.issuer is not None,
                # Held against the request's own clock, on every request: _check_time.
                "verify_exp": False,
                "verify_nbf": False,
                # Not part of what is promised, and real issuers write numbers into sub.
                "verify_iat": False,
                "verify_sub": False,
                "verify_jti": False,
            },
        )
    except jwt.InvalidSignatureError:
        raise _Refused(SIGNATURE) from None
    except jwt.InvalidAudienceError:
        raise _Refused(AUDIENCE) from None
    except jwt.InvalidIssuerError:
        raise _Refused(ISSUER) from None
    except jwt.MissingRequiredClaimError as error:
        raise _Refused(AUDIENCE if error.claim == "aud" else ISSUER) from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _Refused(MALFORMED) from None
    return claims


def _check_time(read: _Read, wall_ns: int) -> None:
    if wall_ns < read.from_ns:
        raise _Refused(NOT_YET)
    if wall_ns >= read.until_ns:
        raise _Refused(EXPIRED)


def _moment_ns(claims: JsonObject, name: str) -> int | None:
    """A NumericDate (RFC 7519 section 2) in nanoseconds; None when the claim is absent."""
    if name not in claims:
        return None
    seconds = claims[name]
    if isinstance(seconds, float) and math.isfinite(seconds):
        return int(Fraction(seconds) * NS_PER_S)
    if isinstance(seconds, int) and not isinstance(seconds, bool):
        return seconds * NS_PER_S
    raise _Refused(MALFORMED)


def claims_bytes(payload: bytes) -> int:
    """About what the claims in a payload hold in memory, at most: told by counting, as a client sends many.

    An object or array of one element has some 30 times as many bytes as its text; a text with one wide character has
    four for each of its characters.
    """
    width = 1 if payload.isascii() and b"\\u" not in payload else 4
    containers = _OBJECT_BYTES * payload.count(b"{") + _ARRAY_BYTES * payload.count(b"[")
    return _CLAIMS_BYTES + width * len(payload) + containers + _MEMBER_BYTES * payload.count(b",")


def _decoded(segment: bytes) -> bytes:
    try:
        return urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    except ValueError:
        raise _Refused(MALFORMED) from None


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except ValueError:
        raise _Refused(MALFORMED) from None
    if not isinstance(value, dict):
        raise _Refused(MALFORMED)
    return value


def claim_text(claims: JsonObject, name: str) -> str | None:
    """A claim as text: strings as they are, numbers and booleans as in JSON; None for anything else.

    `name` is looked up as it is first; then its dots reach into nested claims, with the longest name first at each
    step: `https://example.com/app.role` finds `role` in the claim `https://example.com/app`.
    """
    for value in _find(claims, name):
        return _text(value)
    return None


def claim_values(claims: JsonObject, name: str) -> Sequence[str]:
    """The texts that `match` compares: the elements of an array, or the one value; empty when there is none."""
    for value in _find(claims, name):
        each = value if isinstance(value, list) else [value]
        return [text for text in map(_text, each) if text is not None]
    return ()


def _find(claims: JsonObject, name: str) -> Iterator[object]:
    if name in claims:
        yield claims[name]
        return
    dot = name.rfind(".")
    while dot > 0:
        inner = claims.get(name[:dot])
        if isinstance(inner, dict):
            yield from _find(inner, name[dot + 1 :])
        dot = name.rfind(".", 0, dot)


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    return None
