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
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final, NamedTuple

import jwt
import orjson
from xxhash import xxh3_64_intdigest

from fairvisor.clock import NS_PER_S
from fairvisor.identity.keys import TokenKey
from fairvisor.identity.recent import Recent

JsonObject = Mapping[str, object]

# The whole header. Identity providers warn above 4 KiB, and servers refuse a head of 8 to 16 KiB.
MAX_TOKEN_BYTES: Final = 8192
# How much earlier than `nbf` a token counts: the issuer's clock may be ahead of ours. `exp` has no such grace.
NBF_LEEWAY_NS: Final = 30 * NS_PER_S
# A token that names no key id is tried against at most so many keys: each try costs tens of microseconds.
MAX_TRIES: Final = 8

_REMEMBERED: Final = 4096
_REMEMBERED_REFUSED: Final = 1024

_FOREVER_NS: Final = 1 << 80

_BEARER: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +(?P<token>.+)", re.DOTALL)
_COMPACT: Final = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")  # RFC 7515 section 7.1

# Why a token has no claims: the values of the metric's label.
MALFORMED: Final = "malformed"
OVERSIZED: Final = "oversized"
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
    OVERSIZED,
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


class TokenState(enum.Enum):
    """What became of a request's bearer token."""

    ABSENT = "absent"  # no Authorization header, or of another scheme
    ACCEPTED = "accepted"  # it has claims
    INVALID = "invalid"  # it does not verify
    KEYS_UNAVAILABLE = "keys_unavailable"  # it may verify, but its keys could never be fetched


class _Refused(Exception):
    """The token has no claims; `reason` is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Claims(dict[str, object]):
    """The claims of one token. `texts[name]` is `claim_text(claims, name)`, worked out once for a remembered token."""

    __slots__ = ("texts",)

    def __init__(self, document: JsonObject) -> None:
        super().__init__(document)
        self.texts = _Texts(document)


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


class _Keys:
    """A set of keys and all that was read with it: they come and go together. `keys` is None: read unverified."""

    __slots__ = ("by_kid", "keys", "read", "refused", "unnamed")

    def __init__(self, keys: Sequence[TokenKey] | None) -> None:
        self.keys = None if keys is None else tuple(keys)
        self.by_kid: dict[str, list[TokenKey]] = {}
        for key in keys or ():
            if key.kid is not None:
                self.by_kid.setdefault(key.kid, []).append(key)
        self.unnamed = [key for key in keys or () if key.kid is None]
        self.read: Recent[int, _Read] = Recent(_REMEMBERED)
        self.refused: Recent[bytes, str] = Recent(_REMEMBERED_REFUSED)

    def candidates(self, kid: object) -> Sequence[TokenKey]:
        """The keys that a token with this `kid` (None: without one) may have been signed with."""
        if kid is None:
            return self.keys or ()
        return (self.by_kid.get(kid) if isinstance(kid, str) else None) or self.unnamed


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
    """Reads bearer tokens with the keys of the moment. `refused` counts tokens without claims by reason."""

    def __init__(self, on_unknown_key: Callable[[], None], refused: Refusals | None = None) -> None:
        self.refused = Refusals() if refused is None else refused
        self._on_unknown_key = on_unknown_key
        self._seed = secrets.randbits(64)
        self._keys = _Keys(None)

    @property
    def verified(self) -> bool:
        """Whether claims are verified ones."""
        return self._keys.keys is not None

    def use(self, keys: Sequence[TokenKey] | None) -> None:
        """Read with these keys from now on; None: no source is configured, read unverified. Safe at any moment."""
        if (None if keys is None else tuple(keys)) != self._keys.keys:
            self._keys = _Keys(keys)

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
        return self._look(keys, authorization, stamp, wall_ns)

    def _look(self, keys: _Keys, authorization: bytes, stamp: int, wall_ns: int) -> Claims | None:
        found = _BEARER.fullmatch(authorization)
        if found is None:
            return None  # another scheme: not a token, so not a bad one
        try:
            read = keys.read.get(stamp)
            if read is None or read.authorization != authorization:
                read = self._first_look(keys, authorization, found["token"])
                keys.read.put(stamp, read)
            _check_time(read, wall_ns)
        except _Refused as refused:
            self.refused.count(refused.reason)
            return None
        return read.claims

    def _first_look(self, keys: _Keys, authorization: bytes, token: bytes) -> _Read:
        """Read a token; one that will not do with these keys at any time is read only once."""
        if len(authorization) > MAX_TOKEN_BYTES:
            raise _Refused(OVERSIZED)
        reason = keys.refused.get(authorization)
        if reason is not None:
            raise _Refused(reason)
        try:
            return self._read(keys, authorization, token)
        except _Refused as refused:
            keys.refused.put(authorization, refused.reason)
            raise

    def _read(self, keys: _Keys, authorization: bytes, token: bytes) -> _Read:
        compact = _COMPACT.fullmatch(token)
        if compact is None:
            raise _Refused(MALFORMED)
        if keys.keys is None:
            return _Read(authorization, Claims(_json_object(compact[2])), 0, _FOREVER_NS)
        claims = self._verify(keys, token.decode("ascii"), _json_object(compact[1]))
        from_ns, until_ns = _moment_ns(claims, "nbf"), _moment_ns(claims, "exp")
        return _Read(
            authorization,
            Claims(claims),
            0 if from_ns is None else from_ns - NBF_LEEWAY_NS,
            _FOREVER_NS if until_ns is None else until_ns,
        )

    def _verify(self, keys: _Keys, token: str, header: JsonObject) -> JsonObject:
        """The claims if one of the keys verifies the token; time is not looked at here."""
        if "crit" in header or header.get("b64", True) is not True:
            raise _Refused(
                CRITICAL
            )  # RFC 7515 section 4.1.11: extensions that must be understood; we know none
        if not keys.keys:
            raise _Refused(NO_KEYS)
        candidates = keys.candidates(header.get("kid"))
        if not candidates:
            self._on_unknown_key()
            raise _Refused(UNKNOWN_KEY)
        algorithm = header.get("alg")
        fitting = (
            [key for key in candidates if algorithm in key.verifiers] if isinstance(algorithm, str) else []
        )
        refused = _Refused(ALGORITHM)
        for key in fitting[:MAX_TRIES]:
            try:
                return _verified(token, key, str(algorithm))
            except _Refused as this_time:
                if refused.reason is ALGORITHM or this_time.reason is not SIGNATURE:
                    refused = this_time
        if refused.reason is SIGNATURE and "kid" not in header:
            self._on_unknown_key()
        raise refused


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


def _json_object(segment: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)))
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
