"""Bearer tokens: which have claims, which have none and why, and what may be remembered of them."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.clock import NS_PER_S
from fairvisor.identity import tokens
from fairvisor.identity.keys import TokenKey, UnusableKey, key_from_jwk, key_from_secret, keys_from_jwks
from fairvisor.identity.tokens import LEEWAY_S, Tokens, TokenState, claim_text, claim_values

NOW_S = 1_700_000_000
NOW = NOW_S * NS_PER_S
SECRET = "a secret of more than sixty-four bytes, so that HS512 may use it as well"


@cache
def private_key(kind: str) -> Any:
    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "Ed448":
        return ed448.Ed448PrivateKey.generate()
    curves = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1, "secp256k1": ec.SECP256K1}
    return ec.generate_private_key(curves[kind]())


KINDS = {
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "ES256K": "secp256k1",
    "EdDSA": "Ed25519",
}


def public_jwk(kind: str, **members: str) -> dict[str, Any]:
    named = "EdDSA" if kind == "Ed448" else next(name for name, of in KINDS.items() if of == kind)
    algorithm = jwt.get_algorithm_by_name(named)
    return algorithm.to_jwk(private_key(kind).public_key(), as_dict=True) | members


def reader(*keys: TokenKey) -> Tokens:
    found = Tokens(on_unknown_key=lambda: None)
    found.use(keys)
    return found


def bearer(token: str | bytes) -> bytes:
    return b"Bearer " + (token.encode() if isinstance(token, str) else token)


def signed(claims: Mapping[str, Any], algorithm: str = "RS256", **header: Any) -> bytes:
    key = SECRET if algorithm.startswith("HS") else private_key(KINDS[algorithm])
    return bearer(jwt.encode(dict(claims), key, algorithm, headers=header or None))


def unsigned(header: object, payload: object, signature: str = "") -> bytes:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    return b"Bearer " + b".".join([*parts, signature.encode()])


def refusals(found: Tokens) -> dict[str, int]:
    return {reason: count for reason, count in found.refused.items() if count}


# --- what is accepted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", list(KINDS))
def test_every_asymmetric_algorithm_is_verified_with_a_jwk(algorithm: str) -> None:
    found = reader(key_from_jwk(public_jwk(KINDS[algorithm], kid="k1")))
    assert found.claims(signed({"sub": "ann"}, algorithm, kid="k1"), NOW) == {"sub": "ann"}
    assert found.verified


def test_ed448_is_verified() -> None:
    key = private_key("Ed448")
    jwk = jwt.get_algorithm_by_name("EdDSA").to_jwk(key.public_key(), as_dict=True)
    assert reader(key_from_jwk(jwk)).claims(bearer(jwt.encode({"sub": "ann"}, key, "EdDSA")), NOW) == {
        "sub": "ann"
    }


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_every_hmac_algorithm_is_verified_with_a_secret(algorithm: str) -> None:
    assert reader(key_from_secret(SECRET)).claims(signed({"sub": "ann"}, algorithm), NOW) == {"sub": "ann"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_line_end_after_a_secret_does_not_count(end: str) -> None:
    assert reader(key_from_secret(SECRET + end)).claims(signed({"sub": "ann"}, "HS256"), NOW) == {
        "sub": "ann"
    }
    with pytest.raises(UnusableKey):
        key_from_secret("short" + "\n" * 100)


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer   "])
def test_the_scheme_is_case_insensitive(scheme: bytes) -> None:
    token = signed({"sub": "ann"}, "HS256").removeprefix(b"Bearer ")
    assert reader(key_from_secret(SECRET)).claims(scheme + token, NOW) == {"sub": "ann"}


def test_a_numeric_subject_is_accepted_as_real_issuers_write_it() -> None:
    token = bearer(_encode_raw({"sub": 42}))
    claims = reader(key_from_secret(SECRET)).claims(token, NOW)
    assert claims is not None
    assert claim_text(claims, "sub") == "42"


def _encode_raw(payload: object) -> str:
    return jwt.api_jws.encode(json.dumps(payload).encode(), SECRET, "HS256")


@pytest.mark.parametrize(
    "header", [None, b"", b"Basic YTpi", b"Bearer", b"Bearer ", b"Token x.y.z", b"a.b.c"]
)
def test_without_a_bearer_token_there_are_no_claims_and_nothing_to_count(header: bytes | None) -> None:
    found = reader(key_from_secret(SECRET))
    assert found.claims(header, NOW) is None
    assert refusals(found) == {}


# --- forgeries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 0, ["RS256"], "HS256 "])
def test_alg_none_and_its_spellings_have_no_claims(alg: object) -> None:
    found = reader(key_from_jwk(public_jwk("RSA")), key_from_secret(SECRET))
    assert found.claims(unsigned({"alg": alg}, {"sub": "ann"}), NOW) is None
    assert found.claims(unsigned({"alg": alg}, {"sub": "ann"}, "AAAA"), NOW) is None
    assert refusals(found) == {tokens.ALGORITHM: 2}


@pytest.mark.parametrize("shape", ["pem", "der", "modulus", "jwk"])
def test_a_public_key_is_never_an_hmac_secret(shape: str) -> None:
    """The classic confusion: an RS256 deployment is sent HS256, signed with the bytes of the public key."""
    public = private_key("RSA").public_key()
    encoded = {
        "pem": public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "der": public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "modulus": public_jwk("RSA")["n"].encode(),
        "jwk": orjson.dumps(public_jwk("RSA")),
    }[shape]
    forged = _hmac_token({"alg": "HS256", "kid": "k1"}, {"sub": "admin"}, encoded)
    found = reader(key_from_jwk(public_jwk("RSA", kid="k1")))
    assert found.claims(forged, NOW) is None
    assert refusals(found) == {tokens.ALGORITHM: 1}


def _hmac_token(header: object, payload: object, key: bytes) -> bytes:
    import hashlib
    import hmac

    head = unsigned(header, payload).removeprefix(b"Bearer ").removesuffix(b".")
    signature = base64.urlsafe_b64encode(hmac.digest(key, head, hashlib.sha256)).rstrip(b"=")
    return b"Bearer " + head + b"." + signature


def test_a_key_that_names_its_algorithm_is_used_with_no_other() -> None:
    found = reader(key_from_jwk(public_jwk("RSA", alg="RS256")))
    assert found.claims(signed({"sub": "ann"}, "PS256"), NOW) is None
    assert found.claims(signed({"sub": "ann"}, "RS256"), NOW) == {"sub": "ann"}
    secret = reader(key_from_secret(SECRET, algorithm="HS512"))
    assert secret.claims(signed({"sub": "ann"}, "HS256"), NOW) is None


def test_a_changed_payload_or_signature_is_refused() -> None:
    found = reader(key_from_jwk(public_jwk("P-256")))
    good = signed({"sub": "ann"}, "ES256")
    head, _, signature = good.split(b".")
    other = base64.urlsafe_b64encode(b'{"sub":"bob"}').rstrip(b"=")
    assert found.claims(b".".join([head, other, signature]), NOW) is None
    assert found.claims(good[:-2] + (b"AA" if good[-2:] != b"AA" else b"BB"), NOW) is None
    assert found.claims(good, NOW) == {"sub": "ann"}
    assert sum(found.refused.values()) == 2


@pytest.mark.parametrize(
    "header", [{"crit": ["exp"], "exp": 1}, {"crit": []}, {"b64": False, "crit": ["b64"]}]
)
def test_a_critical_header_that_we_do_not_understand_is_refused(header: dict[str, Any]) -> None:
    found = reader(key_from_secret(SECRET))
    assert found.claims(_hmac_token({"alg": "HS256"} | header, {"sub": "ann"}, SECRET.encode()), NOW) is None
    assert refusals(found) == {tokens.CRITICAL: 1}


@pytest.mark.parametrize("header", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_that_the_token_brings_along_is_not_used(header: str) -> None:
    attacker = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    brought = jwt.get_algorithm_by_name("RS256").to_jwk(attacker.public_key(), as_dict=True)
    forged = bearer(jwt.encode({"sub": "admin"}, attacker, "RS256", headers={header: brought, "kid": "k1"}))
    assert reader(key_from_jwk(public_jwk("RSA", kid="k1"))).claims(forged, NOW) is None


@pytest.mark.parametrize("between", [b" , ", b"\t", b" "])
def test_of_two_credentials_on_one_line_the_first_is_read(between: bytes) -> None:
    found = reader(key_from_secret(SECRET))
    good = signed({"sub": "ann"}, "HS256")
    for both in (good + between + good, good + between + b"Basic YTpi"):
        assert found.claims(both, NOW) == {"sub": "ann"}
    assert found.claims(b"Basic YTpi" + between + good, NOW) is None


@pytest.mark.parametrize(
    "token",
    [
        b"x",
        b"a.b",
        b"a.b.c",
        b"..",
        b"a.b.c.d",
        b"eyJhbGciOiJIUzI1NiJ9.!!.x",
        b"W10.W10.AA",
        b"bnVsbA.e30.AA",
        b"\xff.\xff.\xff",
    ],
)
def test_what_is_no_token_is_counted_as_malformed(token: bytes) -> None:
    found = reader(key_from_secret(SECRET))
    assert found.claims(bearer(token), NOW) is None
    assert refusals(found) == {tokens.MALFORMED: 1}


def test_a_payload_that_is_no_object_is_malformed() -> None:
    found = reader(key_from_secret(SECRET))
    assert found.claims(bearer(_encode_raw(["sub"])), NOW) is None
    assert refusals(found) == {tokens.MALFORMED: 1}


def test_a_genuine_token_counts_however_long_it_is() -> None:
    found = reader(key_from_secret(SECRET))
    token = signed({"sub": "ann", "groups": "x" * 60_000}, "HS256")
    assert claim_text(found.claims(token, NOW) or {}, "sub") == "ann"


# --- spelling ---------------------------------------------------------------------------------------------------------

SPELLINGS = {
    "lower case": lambda token: b"bearer " + token,
    "upper case": lambda token: b"BEARER " + token,
    "a tab": lambda token: b"Bearer\t" + token,
    "many spaces": lambda token: b"Bearer" + b" " * 9000 + token,
    "spaces and tabs": lambda token: b"bEaReR \t \t" + token,
    "padding": lambda token: b"Bearer " + token + b"=",
    "more padding": lambda token: b"Bearer\t" + token + b"====",
    # text.split() of Python, /\s+/ of JavaScript, strings.Fields of Go
    "the space of Latin-1": lambda token: b"Bearer\xa0" + token,
    "the next line of Latin-1": lambda token: b"\xa0Bearer \x85" + token + b"\xa0",
    "the space of Latin-1 in UTF-8": lambda token: b"\xc2\xa0Bearer\xc2\xa0" + token + b"\xc2\xa0",
    # header.split(" ")[1]
    "a word behind it": lambda token: b"Bearer " + token + b" word",
    "a comma behind it": lambda token: b"Bearer " + token + b"\t, Basic eA==",
    # base64 as Python and Node.js decode it
    "padding and what follows it": lambda token: b"Bearer " + token + b"=abcd",
    "characters that are not base64": lambda token: b"Bearer " + token[:-9] + b"!~,%" + token[-9:],
    "one character that is not base64": lambda token: b"Bearer " + token + b"!",
    "the other alphabet": lambda token: b"Bearer " + _in_plain_base64(token),
}


def _in_plain_base64(token: bytes) -> bytes:
    signed_text, _, signature = token.rpartition(b".")
    return signed_text + b"." + signature.replace(b"-", b"+").replace(b"_", b"/")


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("verified", [True, False])
def test_a_token_has_one_reading_however_it_is_spelled(how: str, verified: bool) -> None:
    found = reader(key_from_secret(SECRET)) if verified else Tokens(on_unknown_key=lambda: None)
    token = signed({"sub": "mallory"}, "HS256").removeprefix(b"Bearer ")
    claims = found.claims(SPELLINGS[how](token), NOW)
    assert claims == {"sub": "mallory"}
    assert found.claims(b"Bearer " + token, NOW) is claims
    assert len(found._keys.read) == 1


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_false_token_is_remembered_once_however_it_is_spelled(how: str) -> None:
    found = reader(key_from_secret("b" * 64))
    token = signed({"sub": "mallory"}, "HS256").removeprefix(b"Bearer ")
    assert found.claims(b"Bearer " + token, NOW) is None
    assert found.claims(SPELLINGS[how](token), NOW) is None
    assert refusals(found) == {tokens.SIGNATURE: 2}
    assert len(found._keys.refused) == 1


# --- what became of a token -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, b"", b"Basic YTpi", b"Bearer", b"Token x", b"x.y.z"])
def test_without_a_bearer_token_it_is_absent(header: bytes | None) -> None:
    assert reader(key_from_secret(SECRET)).state(header, NOW) is TokenState.ABSENT


def test_a_token_with_claims_is_accepted_and_another_one_is_invalid() -> None:
    found = reader(key_from_secret(SECRET))
    assert found.state(signed({"sub": "ann"}, "HS256"), NOW) is TokenState.ACCEPTED
    for bad in (
        bearer(b"x"),
        signed({"exp": 1}, "HS256"),
        signed({}, "RS256"),
        unsigned({"alg": "none"}, {}),
    ):
        assert found.state(bad, NOW) is TokenState.INVALID
    assert refusals(found) == {}, "only asking for claims counts"


def test_a_token_whose_keys_could_never_be_fetched_is_told_from_an_invalid_one() -> None:
    found = Tokens(on_unknown_key=lambda: None)
    found.use([], awaited=[None])
    token = signed({"sub": "ann"}, "RS256", kid="k1")
    assert found.claims(token, NOW) is None
    assert found.state(token, NOW) is TokenState.KEYS_UNAVAILABLE
    assert found.state(bearer(b"x"), NOW) is TokenState.INVALID
    assert refusals(found) == {tokens.NO_KEYS: 1}
    found.use([])  # the set was fetched, and is empty
    assert found.state(token, NOW) is TokenState.INVALID


def test_keys_that_are_awaited_do_not_hinder_those_that_are_there() -> None:
    found = Tokens(on_unknown_key=lambda: None)
    found.use([key_from_secret(SECRET, kid="s1")], awaited=[None])
    assert found.state(signed({"sub": "ann"}, "HS256", kid="s1"), NOW) is TokenState.ACCEPTED
    assert found.state(signed({"sub": "ann", "exp": 1}, "HS256", kid="s1"), NOW) is TokenState.INVALID
    for other in (signed({"sub": "ann"}, "RS256", kid="k1"), signed({"sub": "ann"}, "RS256")):
        assert found.state(other, NOW) is TokenState.KEYS_UNAVAILABLE


def test_only_tokens_of_the_issuer_whose_keys_are_awaited_are_in_doubt() -> None:
    found = Tokens(on_unknown_key=lambda: None)
    a, b = "https://a.example", "https://b.example"
    found.use([key_from_secret(SECRET, kid="s1", issuer=a)], apart=[a, b], awaited=[b])
    assert found.state(signed({"iss": a}, "HS256", kid="s1"), NOW) is TokenState.ACCEPTED
    assert found.state(signed({"iss": a}, "HS256", kid="s2"), NOW) is TokenState.INVALID
    assert found.state(signed({"iss": b}, "HS256", kid="s1"), NOW) is TokenState.KEYS_UNAVAILABLE
    assert found.state(signed({"iss": "https://c.example"}, "HS256", kid="s1"), NOW) is TokenState.INVALID


def test_a_token_is_verified_only_with_the_keys_of_its_own_issuer() -> None:
    a, b = "https://a.example", "https://b.example"
    found = Tokens(on_unknown_key=lambda: None)
    any_issuer = key_from_secret(SECRET, kid="s1")
    found.use([any_issuer, key_from_secret("b" * 64, kid="s1", issuer=b)], apart=[b])
    assert found.claims(signed({"sub": "ann", "iss": a}, "HS256", kid="s1"), NOW) is not None
    assert found.claims(signed({"sub": "ann"}, "HS256", kid="s1"), NOW) is not None
    assert found.claims(signed({"sub": "ann", "iss": b}, "HS256", kid="s1"), NOW) is None
    of_b = bearer(jwt.encode({"sub": "ann", "iss": b}, "b" * 64, "HS256", headers={"kid": "s1"}))
    assert found.claims(of_b, NOW) is not None
    assert refusals(found) == {tokens.SIGNATURE: 1}


# --- key ids ----------------------------------------------------------------------------------------------------------


def test_the_key_id_picks_the_key() -> None:
    found = reader(key_from_jwk(public_jwk("RSA", kid="k1")), key_from_jwk(public_jwk("P-256", kid="k2")))
    assert found.claims(signed({"sub": "ann"}, "RS256", kid="k1"), NOW) == {"sub": "ann"}
    assert found.claims(signed({"sub": "ann"}, "ES256", kid="k2"), NOW) == {"sub": "ann"}
    assert found.claims(signed({"sub": "ann"}, "RS256", kid="k2"), NOW) is None
    assert found.claims(signed({"sub": "ann"}, "RS256", kid="K1"), NOW) is None
    assert refusals(found) == {tokens.ALGORITHM: 1, tokens.UNKNOWN_KEY: 1}


def test_a_token_without_key_id_is_tried_against_the_keys_that_fit() -> None:
    found = reader(key_from_secret("b" * 64, kid="other"), key_from_secret(SECRET, kid="ours"))
    assert found.claims(signed({"sub": "ann"}, "HS256"), NOW) == {"sub": "ann"}


def test_a_key_without_id_serves_tokens_with_any() -> None:
    found = reader(key_from_secret(SECRET), key_from_jwk(public_jwk("RSA", kid="k1")))
    assert found.claims(signed({"sub": "ann"}, "HS256", kid="whatever"), NOW) == {"sub": "ann"}


def test_two_issuers_may_use_the_same_key_id() -> None:
    found = reader(
        key_from_secret("b" * 64, kid="1", issuer="https://b.example"),
        key_from_secret(SECRET, kid="1", issuer="https://a.example"),
    )
    token = signed({"sub": "ann", "iss": "https://a.example"}, "HS256", kid="1")
    assert claim_text(found.claims(token, NOW) or {}, "sub") == "ann"
    assert found.claims(signed({"sub": "ann", "iss": "https://b.example"}, "HS256", kid="1"), NOW) is None
    assert refusals(found) == {tokens.ISSUER: 1}


def test_an_unknown_key_id_asks_for_fresh_keys_once() -> None:
    asked = []
    found = Tokens(on_unknown_key=lambda: asked.append(1))
    found.use([key_from_jwk(public_jwk("RSA", kid="k1"))])
    token = signed({"sub": "ann"}, "RS256", kid="k2")
    assert [found.claims(token, NOW) for _ in range(3)] == [None] * 3
    assert len(asked) == 1
    assert refusals(found) == {tokens.UNKNOWN_KEY: 3}
    found.use([key_from_jwk(public_jwk("RSA", kid="k2"))])
    assert found.claims(token, NOW) == {"sub": "ann"}


# --- issuer and audience ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://a.example", "aud": "api"}, None),
        ({"iss": "https://a.example", "aud": ["web", "api"]}, None),
        ({"iss": "https://a.example", "aud": "batch"}, None),
        ({"iss": "https://a.example/", "aud": "api"}, tokens.ISSUER),
        ({"iss": "HTTPS://A.EXAMPLE", "aud": "api"}, tokens.ISSUER),
        ({"aud": "api"}, tokens.ISSUER),
        ({"iss": "https://a.example"}, tokens.AUDIENCE),
        ({"iss": "https://a.example", "aud": "API"}, tokens.AUDIENCE),
        ({"iss": "https://a.example", "aud": ["web"]}, tokens.AUDIENCE),
        ({"iss": "https://a.example", "aud": []}, tokens.AUDIENCE),
        ({"iss": "https://a.example", "aud": [1]}, tokens.AUDIENCE),
    ],
)
def test_issuer_and_audience_are_verified_where_set(claims: dict[str, Any], reason: str | None) -> None:
    found = reader(key_from_secret(SECRET, issuer="https://a.example", audiences=("api", "batch")))
    assert (found.claims(signed(claims, "HS256"), NOW) is None) is (reason is not None)
    assert refusals(found) == ({} if reason is None else {reason: 1})


def test_issuer_and_audience_are_not_looked_at_where_not_set() -> None:
    claims = {"iss": "https://anybody.example", "aud": ["anything"]}
    assert reader(key_from_secret(SECRET)).claims(signed(claims, "HS256"), NOW) == claims


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "offset_ns", "reason"),
    [
        ({"exp": NOW_S + 1 - LEEWAY_S}, 0, None),
        ({"exp": NOW_S + 1 - LEEWAY_S}, NS_PER_S - 1, None),
        ({"exp": NOW_S + 1 - LEEWAY_S}, NS_PER_S, tokens.EXPIRED),
        ({"exp": NOW_S - LEEWAY_S}, 0, tokens.EXPIRED),
        ({"exp": NOW_S - 10}, 0, None),  # as applications accept it for a while
        ({"exp": NOW_S + 0.5 - LEEWAY_S}, NS_PER_S // 2 - 1, None),
        ({"exp": NOW_S + 0.5 - LEEWAY_S}, NS_PER_S // 2, tokens.EXPIRED),
        ({"exp": 0}, 0, tokens.EXPIRED),
        ({"exp": -1}, 0, tokens.EXPIRED),
        ({"exp": 10**30}, 0, None),
        ({"nbf": NOW_S}, 0, None),
        ({"nbf": NOW_S + LEEWAY_S}, 0, None),  # the issuer's clock may be ahead
        ({"nbf": NOW_S + LEEWAY_S + 1}, 0, tokens.NOT_YET),
        ({"nbf": NOW_S + LEEWAY_S + 1}, NS_PER_S, None),
        ({"nbf": NOW_S + 90, "exp": NOW_S - 90}, 0, tokens.NOT_YET),
        ({"iat": NOW_S + 3600}, 0, None),
        ({"exp": str(NOW_S + 1)}, 0, tokens.MALFORMED),
        ({"exp": None}, 0, tokens.MALFORMED),
        ({"exp": True}, 0, tokens.MALFORMED),
        ({"exp": float("inf")}, 0, tokens.MALFORMED),
        ({"exp": float("nan")}, 0, tokens.MALFORMED),
        ({"exp": [NOW_S + 1]}, 0, tokens.MALFORMED),
        ({"nbf": "now"}, 0, tokens.MALFORMED),
    ],
)
def test_validity_is_held_against_the_requests_clock(
    claims: dict[str, Any], offset_ns: int, reason: str | None
) -> None:
    found = reader(key_from_secret(SECRET))
    token = bearer(_encode_raw(claims))
    for _ in range(2):  # the second time from memory
        assert (found.claims(token, NOW + offset_ns) is None) is (reason is not None)
    assert refusals(found) == ({} if reason is None else {reason: 2})


def test_a_remembered_token_does_not_outlive_its_expiry() -> None:
    found = reader(key_from_secret(SECRET))
    token = signed({"sub": "ann", "exp": NOW_S + 10 - LEEWAY_S}, "HS256")
    assert found.claims(token, NOW) is not None
    assert found.claims(token, NOW + 10 * NS_PER_S - 1) is not None
    assert found.claims(token, NOW + 10 * NS_PER_S) is None
    assert found.claims(token, NOW + 10**9 * NS_PER_S) is None


def test_a_token_that_was_too_early_counts_when_its_time_has_come() -> None:
    found = reader(key_from_secret(SECRET))
    token = signed({"sub": "ann", "nbf": NOW_S + 100}, "HS256")
    assert found.claims(token, NOW) is None
    assert found.claims(token, NOW + 100 * NS_PER_S) is not None


def test_a_wall_clock_that_steps_back_is_followed() -> None:
    found = reader(key_from_secret(SECRET))
    token = signed({"sub": "ann", "exp": NOW_S - LEEWAY_S}, "HS256")
    assert found.claims(token, NOW) is None
    assert found.claims(token, NOW - NS_PER_S) is not None


def test_the_leeway_is_a_setting_that_serves_both_ends() -> None:
    found = Tokens(lambda: None, leeway_s=0)
    found.use([key_from_secret(SECRET)])
    assert found.claims(signed({"exp": NOW_S}, "HS256"), NOW) is None
    assert found.claims(signed({"nbf": NOW_S + 1}, "HS256"), NOW) is None
    assert found.claims(signed({"nbf": NOW_S, "exp": NOW_S + 1}, "HS256"), NOW) is not None


# --- keys that come and go --------------------------------------------------------------------------------------------


def test_a_remembered_token_does_not_outlive_its_key() -> None:
    old, new = key_from_jwk(public_jwk("RSA", kid="k1")), key_from_jwk(public_jwk("P-256", kid="k2"))
    found = reader(old, new)
    token = signed({"sub": "ann"}, "RS256", kid="k1")
    assert found.claims(token, NOW) is not None
    found.use([new])
    assert found.claims(token, NOW) is None
    assert refusals(found) == {tokens.UNKNOWN_KEY: 1}
    found.use([old, new])
    assert found.claims(token, NOW) is not None


def test_a_token_that_was_being_read_while_its_key_went_is_not_remembered() -> None:
    found = reader(key_from_secret(SECRET))
    before = found._keys
    found.use([key_from_secret("b" * 64)])
    token = signed({"sub": "ann"}, "HS256")
    assert found._look(before, token, 1, NOW) is not None  # it began with the old keys
    assert found.claims(token, NOW) is None


def test_the_same_keys_again_keep_what_is_remembered() -> None:
    found = reader(key_from_jwk(public_jwk("RSA", kid="k1")))
    token = signed({"sub": "ann"}, "RS256", kid="k1")
    first = found.claims(token, NOW)
    found.use([key_from_jwk(public_jwk("RSA", kid="k1"))])
    assert found.claims(token, NOW) is first


@pytest.mark.parametrize(
    "changed",
    [{"issuer": "https://a.example"}, {"audiences": ("api",)}, {"algorithm": "HS512"}, {"kid": "k2"}],
)
def test_a_key_whose_conditions_change_forgets_what_it_verified(changed: dict[str, Any]) -> None:
    found = reader(key_from_secret(SECRET, kid="k1"))
    token = signed({"sub": "ann"}, "HS256", kid="k1")
    assert found.claims(token, NOW) is not None
    found.use([key_from_secret(SECRET, **({"kid": "k1"} | changed))])
    assert found.claims(token, NOW) is None


def test_a_configured_source_without_keys_means_no_claims() -> None:
    found = reader()
    assert found.claims(signed({"sub": "ann"}, "HS256"), NOW) is None
    assert found.verified
    assert refusals(found) == {tokens.UNKNOWN_KEY: 1}


def test_a_flood_of_false_tokens_does_not_push_out_the_real_ones() -> None:
    found = reader(key_from_secret(SECRET))
    real = signed({"sub": "ann"}, "HS256")
    first = found.claims(real, NOW)
    for number in range(5000):
        assert found.claims(unsigned({"alg": "none"}, {"sub": number}), NOW) is None
    assert found.claims(real, NOW) is first
    assert len(found._keys.refused) <= 2 * 1024


def test_a_flood_of_real_tokens_stays_bounded_and_right() -> None:
    found = Tokens(on_unknown_key=lambda: None)
    for number in range(10_000):
        claims = found.claims(unsigned({"alg": "none"}, {"sub": str(number)}), NOW)
        assert claims == {"sub": str(number)}
    assert len(found._keys.read) <= 2 * 4096


SHAPES = {
    "a long text": lambda n: b'{"a":"' + b"x" * n + b'"}',
    "a text with a wide character": lambda n: '{"a":"\N{GRINNING FACE}'.encode() + b"x" * n + b'"}',
    "a text with an escaped wide character": lambda n: b'{"a":"\\ud83d\\ude00' + b"x" * n + b'"}',
    "many texts": lambda n: b'{"a":[' + b",".join([b'"ab"'] * (n // 5)) + b"]}",
    "many numbers": lambda n: b'{"a":[' + b",".join([b"1e9"] * (n // 4)) + b"]}",
    "many members": lambda n: b"{" + b",".join([b'"%d":""' % i for i in range(n // 7)]) + b"}",
    "empty lists": lambda n: b'{"a":[' + b",".join([b"[]"] * (n // 3)) + b"]}",
    "empty objects": lambda n: b'{"a":[' + b",".join([b"{}"] * (n // 3)) + b"]}",
    "lists in lists": lambda n: b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
    "objects in objects": lambda n: b'{"a":' * 900 + b"1" + b"}" * 900,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_remembered_token_holds_is_not_underestimated(shape: str) -> None:
    payload = SHAPES[shape](4500)
    tracemalloc.start()
    try:
        kept = [tokens.Claims(orjson.loads(payload)) for _ in range(20)]
        held_bytes = tracemalloc.get_traced_memory()[0] / len(kept)
    finally:
        tracemalloc.stop()
    assert held_bytes <= 1.1 * tokens.claims_bytes(payload)


def test_a_flood_of_long_tokens_that_are_read_unverified_stays_bounded_in_bytes() -> None:
    found = Tokens(on_unknown_key=lambda: None)
    groups = [f"{number:032x}" for number in range(100)]
    for number in range(5000):
        found.claims(unsigned({"alg": "none"}, {"sub": str(number), "groups": groups}), NOW)
    kept = {**found._keys.read._old, **found._keys.read.young}
    assert sum(read.claims.held_bytes for read in kept.values()) <= 32 << 20
    assert len(kept) > 1000


# --- without keys -----------------------------------------------------------------------------------------------------


def test_without_a_source_of_keys_claims_are_read_unverified() -> None:
    found = Tokens(on_unknown_key=lambda: None)
    assert not found.verified
    assert found.claims(signed({"sub": "ann", "exp": 1}, "HS256"), NOW) == {"sub": "ann", "exp": 1}
    assert found.claims(bearer(b"a.b.c"), NOW) is None
    good = signed({"sub": "ann"}, "HS256")
    assert found.claims(b"Basic YTpi, " + good, NOW) is None


def test_keys_that_arrive_end_the_unverified_reading_at_once() -> None:
    found = Tokens(on_unknown_key=lambda: None)
    token = unsigned({"alg": "none"}, {"sub": "admin"})
    assert found.claims(token, NOW) == {"sub": "admin"}
    found.use([key_from_secret(SECRET)])
    assert found.claims(token, NOW) is None


# --- keys as their issuers publish them -------------------------------------------------------------------------------

EMPTY_MEMBERS = {
    "key_ops": [],
    "oth": [],
    "x5c": [],
    "d": None,
    "alg": None,
    "use": None,
    "kid": "",
    "x5t": None,
}


@pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
def test_null_and_empty_members_of_a_jwk_are_absent_ones(kind: str) -> None:
    key = key_from_jwk(public_jwk(kind) | EMPTY_MEMBERS)
    algorithm = next(name for name, of in KINDS.items() if of == kind)
    assert reader(key).claims(signed({"sub": "ann"}, algorithm, kid="k1"), NOW) == {"sub": "ann"}


def test_a_set_as_dotnet_publishes_it_is_usable() -> None:
    document = orjson.dumps({"keys": [public_jwk("RSA", kid="k1") | EMPTY_MEMBERS | {"kid": "k1"}]})
    keys, unusable = keys_from_jwks(document, None, (), shared=False)
    assert ([key.kid for key in keys], unusable) == (["k1"], ())


@pytest.mark.parametrize("kind", ["Ed25519", "Ed448"])
@pytest.mark.parametrize("named", ["EdDSA", "of the curve", None])
@pytest.mark.parametrize("head", ["EdDSA", "of the curve"])
def test_the_algorithm_of_an_edwards_curve_has_two_names(kind: str, named: str | None, head: str) -> None:
    """RFC 9864 calls by its curve what RFC 8037 calls EdDSA."""
    key = key_from_jwk(public_jwk(kind) | {"alg": kind if named == "of the curve" else named})
    fields = [{"alg": kind if head == "of the curve" else head}, {"sub": "ann"}]
    signed_part = b".".join(base64.urlsafe_b64encode(orjson.dumps(each)).rstrip(b"=") for each in fields)
    signature = base64.urlsafe_b64encode(private_key(kind).sign(signed_part)).rstrip(b"=")
    assert reader(key).claims(bearer(signed_part + b"." + signature), NOW) == {"sub": "ann"}


def test_the_name_of_one_edwards_curve_does_not_fit_another() -> None:
    with pytest.raises(UnusableKey, match="alg 'Ed448' does not belong"):
        key_from_jwk(public_jwk("Ed25519") | {"alg": "Ed448"})
    found = reader(key_from_jwk(public_jwk("Ed25519")))
    assert found.claims(unsigned({"alg": "Ed448"}, {"sub": "ann"}, "AAAA"), NOW) is None


# --- keys that cannot be used -----------------------------------------------------------------------------------------


def small_rsa() -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    return jwt.get_algorithm_by_name("RS256").to_jwk(key.public_key(), as_dict=True)


@pytest.mark.parametrize(
    ("jwk", "message"),
    [
        ({}, "is not supported"),
        ({"kty": "RSA"}, "malformed"),
        ({"kty": "RSA", "n": 1, "e": []}, "malformed"),
        ({"kty": "EC", "crv": "P-999"}, "is not supported"),
        ({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, "malformed"),
        ({"kty": ["RSA"]}, "is not supported"),
        ({"kty": "OKP", "crv": "X25519", "x": "AA"}, "is not supported"),
        ({"kty": "oct", "k": "c2VjcmV0"}, "is not accepted here"),
        (public_jwk("RSA", alg="HS256"), "does not belong to its type"),
        (public_jwk("RSA", alg="none"), "does not belong to its type"),
        (public_jwk("P-256", alg="ES384"), "does not belong to its type"),
        (public_jwk("RSA", use="enc"), "use is not sig"),
        (public_jwk("RSA") | {"key_ops": ["sign"]}, "key_ops"),
        (public_jwk("RSA") | {"kid": 1}, "kid is not a string"),
        (small_rsa(), "shorter than 2048 bits"),
    ],
)
def test_an_unusable_jwk_says_why(jwk: dict[str, Any], message: str) -> None:
    with pytest.raises(UnusableKey, match=message):
        key_from_jwk(jwk)


jwk_values = st.sampled_from(["AQAB", "AQ", "", "!", "é", "A" * 43, None, 0, True, [], {}]) | st.text(
    max_size=8
)


@given(
    st.sampled_from([public_jwk(kind) for kind in ("RSA", "P-256", "P-521", "secp256k1", "Ed25519")]),
    st.dictionaries(
        st.sampled_from(["kty", "crv", "n", "e", "x", "y", "k", "alg", "use", "kid"]), jwk_values
    ),
    st.booleans(),
)
def test_a_jwk_is_a_key_or_says_why_not(jwk: dict[str, Any], changes: dict[str, Any], shared: bool) -> None:
    try:
        assert key_from_jwk(jwk | changes, shared=shared).verifiers
    except UnusableKey as error:
        assert str(error)


@pytest.mark.parametrize(("secret", "algorithm"), [("short", None), ("x" * 31, None), ("x" * 63, "HS512")])
def test_a_secret_that_is_too_short_is_refused(secret: str, algorithm: str | None) -> None:
    with pytest.raises(UnusableKey, match="shorter than"):
        key_from_secret(secret, algorithm=algorithm)


def test_a_secret_serves_the_algorithms_it_is_long_enough_for() -> None:
    assert set(key_from_secret("x" * 32).verifiers) == {"HS256"}
    assert set(key_from_secret("x" * 64).verifiers) == {"HS256", "HS384", "HS512"}


@pytest.mark.parametrize("kind", ["RSA", "P-256", "Ed25519"])
def test_a_jwk_that_holds_the_private_key_is_refused(kind: str) -> None:
    algorithm = jwt.get_algorithm_by_name(next(name for name, of in KINDS.items() if of == kind))
    with pytest.raises(UnusableKey, match="private key"):
        key_from_jwk(algorithm.to_jwk(private_key(kind), as_dict=True))


def test_a_key_set_gives_the_usable_keys_and_says_why_the_others_are_not() -> None:
    document = orjson.dumps({"keys": [public_jwk("RSA", kid="k1"), {"kty": "oct", "k": "AAAA"}, 7]})
    keys, unusable = keys_from_jwks(document, None, (), shared=False)
    assert [key.kid for key in keys] == ["k1"]
    assert unusable == (
        "keys[1]: a shared secret (kty oct) is not accepted here",
        "keys[2]: it is not an object",
    )


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b"<html>"])
def test_what_is_no_key_set_is_an_error(document: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        keys_from_jwks(document, None, (), shared=False)


def test_no_secret_shows_in_a_repr_or_message() -> None:
    assert SECRET not in repr(key_from_secret(SECRET))
    with pytest.raises(UnusableKey) as caught:
        key_from_secret("hunter2")
    assert "hunter2" not in str(caught.value)


# --- claims as text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "name", "expected"),
    [
        ({"sub": "ann"}, "sub", "ann"),
        ({"sub": "ann"}, "SUB", None),
        ({"sub": ""}, "sub", ""),
        ({"n": 42}, "n", "42"),
        ({"n": -1}, "n", "-1"),
        ({"n": 1.5}, "n", "1.5"),
        ({"n": 1.0}, "n", "1.0"),
        ({"n": float("nan")}, "n", None),
        ({"n": float("inf")}, "n", None),
        ({"b": True}, "b", "true"),
        ({"b": False}, "b", "false"),
        ({"x": None}, "x", None),
        ({"x": ["a"]}, "x", None),
        ({"x": {"y": "z"}}, "x", None),
        ({"x": {"y": "z"}}, "x.y", "z"),
        ({"x": {"y": {"z": 7}}}, "x.y.z", "7"),
        ({"x.y": "literal", "x": {"y": "nested"}}, "x.y", "literal"),
        ({"x": {"y.z": "inner"}}, "x.y.z", "inner"),
        ({"x": "text"}, "x.y", None),
        ({"x": [{"y": "z"}]}, "x.y", None),
        ({"https://a.example/tenant": "t1"}, "https://a.example/tenant", "t1"),
        ({"https://a.example/app": {"tenant": "t1"}}, "https://a.example/app.tenant", "t1"),
        ({"urn:a:b": "c"}, "urn:a:b", "c"),
        ({".": "dot"}, ".", "dot"),
        ({}, "a..b", None),
    ],
)
def test_a_claim_as_text(claims: dict[str, Any], name: str, expected: str | None) -> None:
    assert claim_text(claims, name) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", 1, True, 1.5], ["a", "1", "true", "1.5"]),
        (["a", None, ["b"], {"c": 1}], ["a"]),
        ([], []),
        ("a", ["a"]),
        (7, ["7"]),
        ({"a": 1}, []),
        (None, []),
    ],
)
def test_the_values_that_match_compares(value: object, expected: list[str]) -> None:
    assert list(claim_values({"x": value}, "x")) == expected
    assert list(claim_values({"y": {"x": value}}, "y.x")) == expected
    assert list(claim_values({}, "x")) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4), st.text(alphabet="ab.", max_size=6))
def test_reading_a_claim_never_fails(claims: dict[str, Any], name: str) -> None:
    text = claim_text(claims, name)
    assert text is None or isinstance(text, str)
    assert all(isinstance(each, str) for each in claim_values(claims, name))


@given(st.binary(max_size=200) | st.text(alphabet='eyJ.-_=, {}":01', max_size=80).map(str.encode))
def test_no_authorization_header_makes_the_reading_fail(token: bytes) -> None:
    assert reader(key_from_secret(SECRET)).claims(bearer(token), NOW) is None


@given(json_values, json_values)
def test_no_json_in_a_token_makes_the_reading_fail(header: object, payload: object) -> None:
    head = {"alg": "HS256"} | header if isinstance(header, dict) else header
    claims = reader(key_from_secret(SECRET)).claims(_hmac_token(head, payload, SECRET.encode()), NOW)
    assert claims is None or isinstance(payload, dict)
    Tokens(on_unknown_key=lambda: None).claims(_hmac_token(head, payload, b"x"), NOW)
