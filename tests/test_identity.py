"""The whole of identity in one object, as requests and the refreshing thread use it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jwt
import mmdb
import orjson
import pytest
from test_jwks import Issuer, issuer, key_set, publish  # noqa: F401 - a fixture
from test_tokens import NOW, SECRET, private_key, public_jwk, signed, unsigned

from fairvisor.bundle.model import JwtIssuer, JwtKey
from fairvisor.clock import NS_PER_S, Now
from fairvisor.identity import Identity, KeyFetcher, Refresher, Web
from fairvisor.identity.refresher import CHECK_EVERY_NS
from fairvisor.identity.stored import KeySets
from fairvisor.identity.tokens import TokenState
from fairvisor.settings import Settings

ENVIRON = {"TOKEN_SECRET": SECRET, "SHORT_SECRET": "short"}
HS_KEY = JwtKey(secret_env="TOKEN_SECRET", kid="s1")


def identity(jwt_keys: tuple[JwtKey, ...] = (), **settings: object) -> Identity:
    variables = {f"FAIRVISOR_{name.upper()}": str(value) for name, value in settings.items()}
    return Identity.from_settings(Settings.load(variables, {}), jwt_keys, ENVIRON)


def fetch(who: Identity, now: Now) -> None:
    """What the worker that leads does when it is time, and then every worker."""
    web = Web({}, networks=[ip_network("127.0.0.0/8")])
    for thread in KeyFetcher(who.sets, web).step(who.endpoints, lambda: now):
        thread.join()
    who.refresh(now)


def at(seconds: int) -> Now:
    return Now(seconds * NS_PER_S, NOW + seconds * NS_PER_S)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_without_any_source_of_keys_claims_are_unverified_and_it_says_so() -> None:
    who = identity()
    assert not who.verified
    assert who.tokens.claims(unsigned({"alg": "none"}, {"sub": "ann"}), NOW) == {"sub": "ann"}
    assert who.problems() == ()


def test_the_keys_of_the_bundle_verify() -> None:
    who = identity(
        (HS_KEY, JwtKey(jwk=public_jwk("RSA", kid="k1"), issuer="https://a.example", audience=["api"]))
    )
    assert who.verified
    assert who.problems() == ()
    assert who.tokens.claims(signed({"sub": "ann"}, "HS256", kid="s1"), NOW) == {"sub": "ann"}
    claims = {"sub": "bob", "iss": "https://a.example", "aud": "api"}
    assert who.tokens.claims(signed(claims, "RS256", kid="k1"), NOW) == claims
    assert who.tokens.claims(signed({"sub": "bob"}, "RS256", kid="k1"), NOW) is None
    assert who.tokens.claims(unsigned({"alg": "none"}, {"sub": "ann"}), NOW) is None
    assert sum(who.refused_tokens.values()) == 2


def test_a_secret_with_a_kid_verifies_only_tokens_that_name_it() -> None:
    assert identity((HS_KEY,)).tokens.claims(signed({"sub": "ann"}, "HS256", kid="s2"), NOW) is None


def test_the_bundle_may_name_the_kid_of_a_jwk() -> None:
    who = identity((JwtKey(jwk=public_jwk("RSA", alg="PS256"), kid="k1"),))
    assert who.tokens.claims(signed({"sub": "ann"}, "PS256", kid="k1"), NOW) is not None
    assert who.tokens.claims(signed({"sub": "ann"}, "RS256", kid="k1"), NOW) is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (JwtKey(secret_env="NOT_SET"), "NOT_SET"),
        (JwtKey(secret_env="SHORT_SECRET"), "shorter"),
    ],
)
def test_a_key_that_cannot_be_used_means_no_claims_and_not_ready(key: JwtKey, message: str) -> None:
    who = identity((key,))
    assert who.verified
    assert who.tokens.claims(signed({"sub": "ann"}, "HS256"), NOW) is None
    assert message in who.problems()[0]
    assert who.problems()[0].startswith("jwt_keys[0]: ")


def test_a_new_bundle_changes_the_keys_for_tokens_that_are_remembered_too() -> None:
    who = identity((HS_KEY,))
    token = signed({"sub": "ann"}, "HS256", kid="s1")
    first = who.tokens.claims(token, NOW)
    who.use_keys((JwtKey(secret_env="TOKEN_SECRET", kid="s1"),))
    assert who.tokens.claims(token, NOW) is first  # the same keys keep the cache
    who.use_keys((JwtKey(jwk=public_jwk("RSA", kid="k1")),))
    assert who.tokens.claims(token, NOW) is None
    who.use_keys(())
    assert not who.verified


def test_a_jwks_file_verifies_with_the_issuer_and_audience_that_are_set(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set("k1"))
    who = identity(jwks_file=path, jwks_issuer="https://a.example", jwks_audience="api, batch")
    claims = {"sub": "ann", "iss": "https://a.example", "aud": "batch"}
    assert who.tokens.claims(signed(claims, "ES256", kid="k1"), NOW) == claims
    assert who.tokens.claims(signed(claims | {"aud": "web"}, "ES256", kid="k1"), NOW) is None
    assert who.tokens.claims(signed(claims | {"iss": "https://b.example"}, "ES256", kid="k1"), NOW) is None
    assert who.problems() == ()


def test_a_key_rotated_out_of_the_file_takes_its_remembered_tokens_along(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set("k1", "k2"))
    who = identity(jwks_file=path)
    token = signed({"sub": "ann"}, "ES256", kid="k1")
    assert who.tokens.claims(token, NOW) is not None
    path.write_bytes(key_set("k2"))
    who.refresh(at(0))
    assert who.tokens.claims(token, NOW) is None


def test_a_jwks_file_that_is_empty_means_no_claims_and_not_ready(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(b'{"keys": []}')
    who = identity(jwks_file=path)
    assert who.verified
    assert who.tokens.claims(unsigned({"alg": "none"}, {"sub": "ann"}), NOW) is None
    assert len(who.problems()) == 1


def test_a_url_is_never_fetched_by_a_request(issuer: Issuer) -> None:  # noqa: F811
    who = identity(jwks_url=issuer.url)
    token = signed({"sub": "ann"}, "ES256", kid="k1")
    assert who.tokens.claims(token, NOW) is None
    assert "was not fetched yet" in who.problems()[0]
    who.refresh(at(0))
    assert issuer.requests == []
    fetch(who, at(0))
    assert who.problems() == ()
    assert who.tokens.claims(token, NOW) == {"sub": "ann"}


def test_a_token_with_an_unknown_key_brings_an_early_refresh(issuer: Issuer) -> None:  # noqa: F811
    who = identity(jwks_url=issuer.url)
    fetch(who, at(0))
    issuer.answer = publish(key_set("k1", "k2"))
    token = signed({"sub": "ann"}, "ES256", kid="k2")
    assert who.tokens.claims(token, NOW) is None
    who.refresh(at(1))  # tells whoever fetches
    fetch(who, at(5))
    assert who.tokens.claims(token, NOW) is None  # invented key ids must not make us hammer the issuer
    fetch(who, at(31))
    assert who.tokens.claims(token, NOW) == {"sub": "ann"}
    assert len(issuer.requests) == 2


def test_the_keys_of_all_sources_count_together(tmp_path: Path, issuer: Issuer) -> None:  # noqa: F811
    path = tmp_path / "jwks.json"
    path.write_bytes(orjson.dumps({"keys": [public_jwk("RSA", kid="k2")]}))
    who = identity((HS_KEY,), jwks_url=issuer.url, jwks_file=path)
    fetch(who, at(0))
    for algorithm, kid in (("HS256", "s1"), ("RS256", "k2"), ("ES256", "k1")):
        assert who.tokens.claims(signed({"sub": "ann"}, algorithm, kid=kid), NOW) is not None
    who.use_keys(())
    assert who.tokens.claims(signed({"sub": "ann"}, "HS256", kid="s1"), NOW) is None
    assert who.tokens.claims(signed({"sub": "ann"}, "RS256", kid="k2"), NOW) is not None


def test_a_token_signed_with_the_public_key_of_the_url_is_refused(issuer: Issuer) -> None:  # noqa: F811
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    who = identity((HS_KEY,), jwks_url=issuer.url)
    fetch(who, at(0))
    pem = private_key("P-256").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(jwt.InvalidKeyError):
        jwt.encode({"sub": "admin"}, pem, "HS256")  # PyJWT itself will not make such a token
    from test_tokens import _hmac_token

    assert who.tokens.claims(_hmac_token({"alg": "HS256", "kid": "k1"}, {"sub": "admin"}, pem), NOW) is None
    assert who.tokens.claims(_hmac_token({"alg": "HS256"}, {"sub": "admin"}, pem), NOW) is None


# --- addresses and places ---------------------------------------------------------------------------------------------


def test_the_default_settings_believe_the_gateway_and_nobody_else() -> None:
    who = identity()
    headers = {"x-forwarded-for": b"1.1.1.1, 203.0.113.7"}
    assert who.addresses.client("127.0.0.1", headers).text == "203.0.113.7"
    assert who.addresses.client("", headers).text == "203.0.113.7"
    assert who.addresses.client("8.8.8.8", headers).text == "8.8.8.8"
    assert who.trusted_peer("10.0.0.1")
    assert not who.trusted_peer("8.8.8.8")


def test_proxies_in_front_of_the_gateway_are_skipped() -> None:
    who = identity(trusted_proxies="192.0.2.0/24", ipv6_prefix="48")
    assert (
        who.addresses.client("127.0.0.1", {"x-forwarded-for": b"203.0.113.7, 192.0.2.9"}).text
        == "203.0.113.7"
    )
    assert who.addresses.client("127.0.0.1", {"x-forwarded-for": b"2001:db8:1:2::3"}).key == "2001:db8:1::/48"


def places(tmp_path: Path) -> Mapping[str, object]:
    (tmp_path / "types").write_text("64496 hosting\n64500 isp\n")
    (tmp_path / "exits").write_text("192.0.2.66\n")
    return {
        "geoip_db": mmdb.write(tmp_path / "c.mmdb", {"192.0.2.0/24": {"country": {"iso_code": "DE"}}}),
        "asn_db": mmdb.write(tmp_path / "a.mmdb", {"192.0.2.0/24": {"autonomous_system_number": 64496}}),
        "asn_types": tmp_path / "types",
        "tor_exits": tmp_path / "exits",
    }


HINTS = {"x-country-code": b"FR", "x-asn": b"64500", "x-asn-type": b"business", "x-tor-exit": b"true"}


def told(who: Identity, headers: Mapping[str, bytes], peer: str = "127.0.0.1") -> list[str | None]:
    client = who.addresses.client(peer, {"x-forwarded-for": b"192.0.2.1"} | dict(headers))
    return [read(client, headers) for read in (who.country, who.asn, who.asn_type, who.tor)]


def test_places_come_from_the_files_whatever_the_client_claims(tmp_path: Path) -> None:
    who = identity(**places(tmp_path))
    assert told(who, {}) == ["DE", "64496", "hosting", "false"]
    assert told(who, HINTS) == ["DE", "64496", "hosting", "false"]
    assert who.warnings() == ()


def test_a_trusted_hint_wins_over_the_files(tmp_path: Path) -> None:
    who = identity(**places(tmp_path), trusted_hints="x-country-code,x-asn,x-asn-type,x-tor-exit")
    assert told(who, HINTS) == ["FR", "64500", "business", "true"]
    assert told(who, {}) == ["DE", "64496", "hosting", "false"]  # absent: the files
    assert told(who, {"x-country-code": b"?"})[0] == "DE"


def test_the_type_follows_a_hinted_network(tmp_path: Path) -> None:
    who = identity(**places(tmp_path), trusted_hints="x-asn")
    assert told(who, HINTS) == ["DE", "64500", "isp", "false"]
    assert told(who, {"x-asn": b"64999"})[2] is None


def test_hints_through_a_peer_that_is_not_trusted_are_not_believed(tmp_path: Path) -> None:
    who = identity(trusted_hints="x-country-code,x-asn,x-asn-type,x-tor-exit")
    assert told(who, HINTS, peer="8.8.8.8") == [None] * 4


def test_a_changed_database_shows_after_the_refresh(tmp_path: Path) -> None:
    files = places(tmp_path)
    who = identity(**files)
    assert told(who, {})[0] == "DE"
    mmdb.write(tmp_path / "c.mmdb", {"192.0.2.0/24": {"country": {"iso_code": "AT"}, "more": 1}})
    who.refresh(at(0))
    assert told(who, {})[0] == "AT"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"ua:bot"}),
        ({"geoip_db": "c"}, {"ua:bot", "ip:country"}),
        ({"asn_db": "a"}, {"ua:bot", "ip:asn"}),
        ({"asn_types": "t"}, {"ua:bot"}),
        ({"asn_db": "a", "asn_types": "t"}, {"ua:bot", "ip:asn", "ip:type"}),
        ({"tor_exits": "t"}, {"ua:bot", "ip:tor"}),
        ({"trusted_hints": "x-country-code,x-tor-exit"}, {"ua:bot", "ip:country", "ip:tor"}),
        ({"trusted_hints": "x-asn"}, {"ua:bot", "ip:asn"}),
        ({"trusted_hints": "x-asn", "asn_types": "t"}, {"ua:bot", "ip:asn", "ip:type"}),
        ({"trusted_hints": "x-asn-type"}, {"ua:bot", "ip:type"}),
    ],
)
def test_which_descriptors_can_be_filled(settings: dict[str, str], expected: set[str]) -> None:
    assert identity(**settings).sources() == expected


def test_bots_are_told_by_their_user_agent() -> None:
    assert identity().bot("Mozilla/5.0 (compatible; Googlebot/2.1)") == ("true", "search-engine")


# --- issuers of the bundle --------------------------------------------------------------------------------------------

A, B = "https://a.example", "https://b.example"


def of(iss: str, kid: str = "k1", **claims: object) -> bytes:
    return signed({"sub": "ann", "iss": iss, **claims}, "ES256", kid=kid)


def with_issuers(*issuers: JwtIssuer, jwt_keys: tuple[JwtKey, ...] = ()) -> Identity:
    return Identity.from_settings(Settings.load({}, {}), jwt_keys, ENVIRON, issuers)


def published_by(server: Issuer, issuer: str, **conditions: Any) -> JwtIssuer:  # noqa: F811
    """An issuer whose URL is a server of the test: a bundle could name no such URL, which is not https."""
    made = JwtIssuer.model_validate({"issuer": issuer, "url": "https://127.0.0.1/", **conditions})
    return made.model_copy(update={"url": server.url})


def test_a_token_is_verified_with_the_keys_that_its_issuer_publishes(issuer: Issuer) -> None:  # noqa: F811
    other = Issuer()
    try:
        other.answer = publish(key_set("k2"))
        who = with_issuers(published_by(issuer, A), published_by(other, B))
        assert who.verified
        assert who.tokens.state(of(A), NOW) is TokenState.KEYS_UNAVAILABLE
        fetch(who, at(0))
        assert who.tokens.claims(of(A), NOW) is not None
        assert who.tokens.claims(of(B, "k2"), NOW) is not None
        for foreign in (of(A, "k2"), of(B, "k1"), of("https://c.example"), signed({}, "ES256", kid="k1")):
            assert who.tokens.state(foreign, NOW) is TokenState.INVALID
    finally:
        other.close()


def test_the_conditions_of_an_issuer_hold_for_its_tokens(issuer: Issuer) -> None:  # noqa: F811
    who = with_issuers(published_by(issuer, A, audience="api", algorithms=["ES256"]))
    fetch(who, at(0))
    assert who.tokens.claims(of(A, aud="api"), NOW) is not None
    assert who.tokens.claims(of(A, aud="web"), NOW) is None
    narrow = with_issuers(published_by(issuer, A, algorithms=["RS256"]))
    fetch(narrow, at(0))
    assert narrow.tokens.claims(of(A), NOW) is None


def test_an_issuer_without_keys_leaves_the_edge_ready_and_the_others_served(issuer: Issuer) -> None:  # noqa: F811
    gone = JwtIssuer(issuer=B, url="https://127.0.0.1:1/jwks.json")
    who = with_issuers(published_by(issuer, A), gone)
    fetch(who, at(0))
    assert who.problems() == ()
    assert "https://127.0.0.1:1/jwks.json: " in who.warnings()[0]
    assert who.tokens.claims(of(A), NOW) is not None
    assert who.tokens.state(of(B), NOW) is TokenState.KEYS_UNAVAILABLE


def test_another_bundle_brings_other_issuers_and_keeps_the_keys_of_those_that_stay(issuer: Issuer) -> None:  # noqa: F811
    who = with_issuers(published_by(issuer, A))
    fetch(who, at(0))
    assert who.with_keys((), [published_by(issuer, A)]) is who
    more = who.with_keys(
        (HS_KEY,), [published_by(issuer, A), JwtIssuer(issuer=B, url="https://127.0.0.1:1/")]
    )
    assert more.tokens.claims(of(A), NOW) is not None, "there is no moment without keys"
    assert who.with_keys((), []).tokens.claims(of(A), NOW) is not None, (
        "read unverified, as no keys are configured"
    )


# --- the refreshing thread --------------------------------------------------------------------------------------------


def refreshing(who: Identity, clock: Callable[[], Now], leads: bool = False) -> Refresher:
    return Refresher(who, KeyFetcher(who.sets, Web({})), lambda: leads, clock)


def test_a_step_of_the_refresher_reports_what_went_wrong_and_came_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "jwks.json"
    who = identity(jwks_file=path)
    moments = iter(range(3))
    refresher = refreshing(who, lambda: at(next(moments) * CHECK_EVERY_NS // NS_PER_S))
    with caplog.at_level(logging.INFO):
        refresher.step()
        refresher.step()
        assert len(caplog.records) == 1
        path.write_bytes(key_set("k1"))
        refresher.step()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert who.problems() == ()


def test_the_refresher_runs_beside_the_requests_and_stops() -> None:
    ran = threading.Event()

    def clock() -> Now:
        ran.set()
        return at(0)

    refresher = refreshing(identity(), clock)
    refresher.start()
    assert ran.wait(30)
    refresher.stop()
    refresher._thread.join(30)
    assert not refresher._thread.is_alive()


def test_a_refresh_that_fails_unexpectedly_is_logged_and_does_not_end_the_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    who = identity()

    def broken_clock() -> Now:
        refresher.stop()
        raise RuntimeError("no clock")

    refresher = refreshing(who, broken_clock)
    refresher._run()
    assert "refresh failed" in caplog.text


def test_only_the_worker_that_leads_fetches_and_every_worker_has_what_it_fetched(issuer: Issuer) -> None:  # noqa: F811
    sets = KeySets()
    settings = Settings.load({"FAIRVISOR_JWKS_URL": issuer.url}, {})
    leading, other = (Identity.from_settings(settings, sets=sets) for _ in range(2))
    refreshing(other, lambda: at(0)).step()
    assert issuer.requests == []
    refreshing(leading, lambda: at(0), leads=True).step()
    while not sets.generation:
        threading.Event().wait(0.01)
    refreshing(other, lambda: at(1)).step()
    assert other.problems() == ()
    assert other.tokens.claims(signed({"sub": "ann"}, "ES256", kid="k1"), NOW) == {"sub": "ann"}
    assert len(issuer.requests) == 1


def test_a_worker_waits_for_sets_that_were_never_fetched_and_for_no_others(issuer: Issuer) -> None:  # noqa: F811
    who = identity(jwks_url=issuer.url)
    refresher = refreshing(who, lambda: at(0))
    refresher.step()
    assert not refresher._settled.is_set()
    issuer.answer = publish(b"", status=500)
    fetch(who, at(0))
    refresher.step()
    assert refresher._settled.is_set(), "a provider that fails is not waited for"
