"""Keys that verify tokens: from JSON Web Keys (RFC 7517) and shared secrets to what PyJWT checks a signature with.

A key decides which algorithms it may be used with, from its type and, where it says one, its own `alg`; the token's
header only picks among these. So a public RSA key never becomes an HMAC secret and `none` belongs to no key. Keys for
encryption, keys that come with their private part and keys too short to be safe are refused, and the message says so.
This module knows nothing of where keys come from or of tokens.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm

# RFC 7518 section 3.1, RFC 8037 section 3.1, RFC 8812 section 3.2, RFC 9864 section 2.2. No key type has "none".
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("EC", "secp256k1"): ("ES256K",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
    ("OKP", "Ed448"): ("EdDSA", "Ed448"),
}
# The newer names say the curve as well: a key has one curve, so both names mean the same.
_EDDSA: Final = ("EdDSA", "Ed25519", "Ed448")
# RFC 7518 section 3.2: a secret is at least as long as the hash, in bytes.
_SECRET_BYTES: Final[Mapping[str, int]] = {"HS256": 32, "HS384": 48, "HS512": 64}
# RFC 7518 section 3.3.
_RSA_BITS: Final = 2048

_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})


class UnusableKey(ValueError):
    """A key that cannot verify anything; the message says why, without the key."""


@dataclass(frozen=True)
class TokenKey:
    """One key and the tokens it is for.

    `verifiers` has one entry for each algorithm that the key may be used with. `issuer` and `audiences` are what the
    token must carry, None and empty when it is not looked at. `stamp` stands for all of it in comparisons.
    """

    kid: str | None
    issuer: str | None
    audiences: tuple[str, ...]
    stamp: bytes = field(repr=False)
    verifiers: Mapping[str, jwt.PyJWK] = field(repr=False, compare=False)


def key_from_jwk(
    jwk: Mapping[str, Any],
    issuer: str | None = None,
    audiences: Sequence[str] = (),
    *,
    shared: bool = False,
    algorithms: Sequence[str] = (),
) -> TokenKey:
    """A key from a JWK. `shared` allows one that is a secret (`kty` "oct"); `algorithms` may narrow what it is for.

    Raises:
        UnusableKey: it is malformed, too short, of an unknown type, or not for signatures.

    """
    jwk = without_empty(jwk)
    if not _PRIVATE_MEMBERS.isdisjoint(jwk):
        raise UnusableKey("it holds the private key, which belongs to the issuer alone")
    kid = jwk.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise UnusableKey("kid is not a string")
    if jwk.get("use", "sig") != "sig":
        raise UnusableKey("use is not sig")
    operations = jwk.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise UnusableKey("key_ops does not list verify")
    if jwk.get("kty") == "oct" and not shared:
        raise UnusableKey("a shared secret (kty oct) is not accepted here")
    wanted = [name for name in _algorithms(jwk) if not algorithms or name in algorithms]
    if not wanted:
        raise UnusableKey(f"it is for none of the algorithms {', '.join(algorithms)}")
    verifiers = {name: _verifier(jwk, name) for name in wanted}
    conditions = [jwk, issuer, list(audiences), wanted]
    stamp = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).digest()
    return TokenKey(kid, issuer, tuple(audiences), stamp, verifiers)


def without_empty(jwk: Mapping[str, Any]) -> dict[str, Any]:
    """A JWK without members that are null or empty: .NET, for one, publishes every member it knows."""
    return {name: value for name, value in jwk.items() if value not in (None, "", [], {})}


def key_from_secret(
    secret: str,
    kid: str | None = None,
    algorithm: str | None = None,
    issuer: str | None = None,
    audiences: Sequence[str] = (),
) -> TokenKey:
    """A key from a shared secret (its UTF-8 bytes) for HS256, HS384 and HS512, or only `algorithm` of them. A line end
    that a Secret or a file left after it does not count.

    Raises:
        UnusableKey: the secret is shorter than the algorithm's hash.

    """
    encoded = base64.urlsafe_b64encode(secret.rstrip("\r\n").encode()).rstrip(b"=").decode()
    members = {"kty": "oct", "k": encoded, "kid": kid, "alg": algorithm}
    jwk = {name: value for name, value in members.items() if value is not None}
    return key_from_jwk(jwk, issuer, audiences, shared=True)


def keys_from_jwks(
    document: bytes,
    issuer: str | None,
    audiences: Sequence[str],
    *,
    shared: bool,
    algorithms: Sequence[str] = (),
) -> tuple[tuple[TokenKey, ...], tuple[str, ...]]:
    """The usable keys of a JWK Set (RFC 7517 section 5), and why the others are not.

    Raises:
        ValueError: the document is not a JWK Set.

    """
    parsed = orjson.loads(document)
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError('it is not a JWK Set: an object with an array "keys"')
    keys, unusable = [], []
    for position, jwk in enumerate(entries):
        try:
            if not isinstance(jwk, dict):
                raise UnusableKey("it is not an object")
            keys.append(key_from_jwk(jwk, issuer, audiences, shared=shared, algorithms=algorithms))
        except UnusableKey as error:
            unusable.append(f"keys[{position}]: {error}")
    return tuple(keys), tuple(unusable)


def _algorithms(jwk: Mapping[str, Any]) -> Iterable[str]:
    """What the key may be used with: what its type allows, narrowed by its own `alg`."""
    kind = jwk.get("kty")
    if kind == "RSA":
        allowed: tuple[str, ...] = _RSA
    elif kind == "oct":
        allowed = tuple(_SECRET_BYTES)
    else:
        allowed = _CURVES.get((str(kind), str(jwk.get("crv"))), ())
    if not allowed:
        raise UnusableKey(f"kty {kind!r} with crv {jwk.get('crv')!r} is not supported")
    if "alg" in jwk:
        if jwk["alg"] not in allowed:
            raise UnusableKey(
                f"alg {jwk['alg']!r} does not belong to its type; allowed are {', '.join(allowed)}"
            )
        return allowed if jwk["alg"] in _EDDSA else (jwk["alg"],)
    if kind == "oct":
        return tuple(name for name in allowed if len(_secret(jwk)) >= _SECRET_BYTES[name]) or ("HS256",)
    return allowed


def _verifier(jwk: Mapping[str, Any], algorithm: str) -> jwt.PyJWK:
    if jwk["kty"] == "oct" and len(_secret(jwk)) < _SECRET_BYTES[algorithm]:
        raise UnusableKey(
            f"the secret is shorter than the {_SECRET_BYTES[algorithm]} bytes that {algorithm} needs"
        )
    try:
        verifier = jwt.PyJWK(dict(jwk), "EdDSA" if algorithm in _EDDSA else algorithm)
        verifier.algorithm_name = algorithm  # the library knows no Ed25519 and compares names
    except (
        jwt.PyJWTError,
        UnsupportedAlgorithm,
        ValueError,
        TypeError,
        ArithmeticError,
        LookupError,
    ) as error:
        raise UnusableKey(f"it is malformed ({type(error).__name__})") from None
    if jwk["kty"] == "RSA" and verifier.key.key_size < _RSA_BITS:
        raise UnusableKey(f"the RSA key is shorter than {_RSA_BITS} bits")
    return verifier


def _secret(jwk: Mapping[str, Any]) -> bytes:
    try:
        text = jwk["k"]
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (KeyError, TypeError, ValueError):
        raise UnusableKey("k is missing or not base64url") from None
