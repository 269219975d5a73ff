"""The keys in a bundle that verify bearer tokens: public JSON Web Keys, HMAC secrets by the name of a variable, and
issuers by the URL where they publish theirs.

A bundle is copied, logged and pushed around, so it never holds a secret: a symmetric key is named by the environment
variable that holds it, and a JWK with private members is refused. Whether a key is fit to verify anything is asked of
`identity/keys.py`, which is also what uses it later; so a key that loads here works there.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict, ValidationInfo, field_validator

from fairvisor.bundle.fields import Checked, Text, fault, read_text, show
from fairvisor.bundle.model_limits import Strictly
from fairvisor.identity.keys import UnusableKey, key_from_jwk, key_from_secret, without_empty
from fairvisor.setting_values import is_url

_PRIVATE = (
    "k",
    "d",
    "p",
    "q",
    "dp",
    "dq",
    "qi",
    "oth",
)  # RFC 7518 sections 6.2.2, 6.3.2 and 6.4, RFC 8037 section 2


def _audience(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return (read_text(value),)
    if not value:
        raise fault("must not be an empty array: leave the field out to accept any audience")
    return tuple(read_text(item) for item in value)


_ONE = {"type": "string", "minLength": 1, "maxLength": 256}
Audience = Annotated[
    tuple[str, ...], Checked(_audience, anyOf=[_ONE, {"type": "array", "items": _ONE, "minItems": 1}])
]


def _https_url(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if len(text) > _URL_LENGTH or not _HTTPS.fullmatch(text) or not is_url(text):
        raise fault(f"must be an https:// URL of at most {_URL_LENGTH:,} characters, not {show(value)}")
    if "@" in text.partition("://")[2].partition("/")[0]:
        raise fault("must not hold a user or password: a bundle is copied, logged and pushed around")
    return text


_URL_LENGTH: Final = 2048
_HTTPS: Final = re.compile(r"https://[!-~]+")  # RFC 3986: printable ASCII
HttpsUrl = Annotated[
    str, Checked(_https_url, type="string", pattern=r"^https://[!-~]+$", maxLength=_URL_LENGTH)
]

AsymmetricAlgorithm = Literal[
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "ES256K",
    "EdDSA",
    "Ed25519",
    "Ed448",
]


class JwtIssuer(Strictly):
    """An identity provider whose keys are fetched. Its tokens are verified with them and with no other issuer's."""

    issuer: Text = Field(description="What `iss` of its tokens is.")
    url: HttpsUrl = Field(
        description="Where it publishes its keys (JWK Set, RFC 7517): an https URL, without redirects, at a public "
        "address or in a network of `FAIRVISOR_JWKS_NETWORKS`."
    )
    audience: Audience = Field(
        default=(), description="What `aud` of the token must have, one of them. Absent: anything."
    )
    algorithms: Annotated[tuple[AsymmetricAlgorithm, ...], Strict(False)] = Field(
        default=(), description="What its keys may be used with. Absent: what their types allow."
    )

    @field_validator("algorithms")
    @classmethod
    def _not_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise fault(
                "must not be an empty array: leave the field out to allow what the types of the keys allow"
            )
        return names


class JwtKey(Strictly):
    """One key: `jwk`, or `secret_env` with `kid` and `algorithm` (absent: HS256, HS384 and HS512).

    `issuer` and `audience` (any one of them) are what a token verified by this key must carry, where set.
    """

    issuer: Text | None = Field(
        default=None, description="What `iss` of the token must be. Absent: anything."
    )
    audience: Audience = Field(
        default=(), description="What `aud` of the token must have, one of them. Absent: anything."
    )
    kid: Text | None = Field(default=None, description="With `secret_env`: the key id that tokens name.")
    jwk: dict[str, Any] | None = Field(
        default=None,
        description="A public JSON Web Key (RFC 7517). This or `secret_env` is required, not both.",
    )
    algorithm: Literal["HS256", "HS384", "HS512"] | None = Field(
        default=None, description="With `secret_env`: the only algorithm. Absent: any of the three."
    )
    secret_env: Text | None = Field(
        default=None,
        validate_default=True,
        description="The environment variable that holds a shared secret.",
    )

    @field_validator("jwk")
    @classmethod
    def _public_and_usable(cls, jwk: dict[str, Any] | None) -> dict[str, Any] | None:
        if jwk is None:
            return None
        if jwk.get("kty") == "oct":
            raise fault(
                "must be a public key: put the secret into the environment and its name into secret_env"
            )
        jwk = without_empty(jwk)
        private = [name for name in _PRIVATE if name in jwk]
        if private:
            raise fault(f"must be a public key: remove its private members {', '.join(private)}")
        try:
            key_from_jwk(jwk)
        except UnusableKey as error:
            raise fault(f"is not a usable key: {error}") from None
        return jwk

    @field_validator("algorithm")
    @classmethod
    def _of_a_secret(cls, algorithm: str | None, info: ValidationInfo) -> str | None:
        if algorithm is not None and info.data.get("jwk") is not None:
            raise fault("belongs to secret_env: a jwk says its algorithm itself, in alg")
        return algorithm

    @field_validator("secret_env")
    @classmethod
    def _secret_is_there(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is None:
            if info.data.get("jwk", "") is None:
                raise fault("is required where there is no jwk")
            return None
        if info.data.get("jwk") is not None:
            raise fault("must be left out where there is a jwk")
        environ = (info.context or {}).get("environ")
        if environ is not None:
            if not environ.get(name):
                raise fault(f"the environment has no variable {show(name)}")
            try:
                key_from_secret(environ[name], None, info.data.get("algorithm"))
            except UnusableKey as error:
                raise fault(f"the secret in {show(name)} is not usable: {error}") from None
        return name
