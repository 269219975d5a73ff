"""Everything that says who sent a request, in one object: tokens, addresses, places, bots.

One `Identity` per process. What requests ask of it does no I/O; what changes outside (files, key sets that were
fetched) is taken over by `refresh`, which runs beside the requests (`refresher.py`). The keys of the bundle and the
URLs of its issuers change with the bundle, by `use_keys`. `problems` says why the process should not be ready,
`warnings` what is wrong but does not stop it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from fairvisor.clock import Now
from fairvisor.identity.addresses import Addresses, Client
from fairvisor.identity.bots import Bots
from fairvisor.identity.jwks import Endpoint, JwksFile, JwksUrl
from fairvisor.identity.keys import TokenKey, UnusableKey, key_from_jwk, key_from_secret
from fairvisor.identity.places import Hints, Places
from fairvisor.identity.stored import KeySets
from fairvisor.identity.tokens import Refusals, Tokens

if TYPE_CHECKING:
    from fairvisor.bundle.model import JwtIssuer, JwtKey
    from fairvisor.settings import Settings

_NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})


class _Process:
    """What the identities of all bundles share."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], sets: KeySets) -> None:
        """Read the files that the settings name, once."""
        self.settings = settings
        self.environ = environ
        self.sets = sets
        self.lock = threading.Lock()  # the bundle changes in one thread, the sources outside in another
        self.hints = Hints(settings.trusted_hints)
        self.places = Places(settings.geoip_db, settings.asn_db, settings.asn_types, settings.tor_exits)
        issuer, audiences = settings.jwks_issuer, settings.jwks_audience or ()
        self.file = JwksFile(settings.jwks_file, issuer, audiences) if settings.jwks_file else None
        endpoint = Endpoint(settings.jwks_url, issuer, audiences) if settings.jwks_url else None
        self.url = JwksUrl(endpoint, sets) if endpoint is not None else None
        self.addresses = Addresses(
            settings.client_ip_header,
            settings.trusted_peers,
            settings.trusted_proxies,
            settings.ipv6_prefix,
            unix_trusted=settings.unix_trusted,
        )
        self.bot = Bots().bot
        self.refused_tokens = Refusals()
        if self.file is not None:
            self.file.refresh()


class Identity:
    """Who sent a request. What is asked on every request is at hand: `tokens`, `addresses`, `bot`, `trusted_peer`.

    Attributes:
        tokens: reads bearer tokens; of this bundle.
        addresses: finds the client behind the trusted proxies.
        bot: User-Agent -> ("true" or "false", category or None).
        trusted_peer: peer address ("": a unix socket) -> whether it may describe requests.
        refused_tokens: how many tokens had no claims, by reason; every reason is there from the start.

    """

    tokens: Tokens
    addresses: Addresses
    bot: Callable[[str], tuple[str, str | None]]
    trusted_peer: Callable[[str], bool]

    def __init__(self, process: _Process, issuers: tuple[JwksUrl, ...] = ()) -> None:
        """Without keys of a bundle; `issuers` are those of another bundle, whose key sets may be used on."""
        self._process = process
        self.sets = process.sets
        self.addresses = process.addresses
        self.trusted_peer = process.addresses.trusted_peer
        self.bot = process.bot
        self.refused_tokens = process.refused_tokens
        self.tokens = Tokens(self._unknown_key, self.refused_tokens, process.settings.jwt_leeway_s)
        self._key_wanted = False
        self._jwt_keys: tuple[JwtKey, ...] = ()
        self._bundle_keys: tuple[TokenKey, ...] = ()
        self._bundle_problems: tuple[str, ...] = ()
        self._issuers = issuers

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        jwt_keys: Sequence[JwtKey] = (),
        environ: Mapping[str, str] = _NO_VARIABLES,
        jwt_issuers: Sequence[JwtIssuer] = (),
        sets: KeySets | None = None,
    ) -> Identity:
        """An identity for these settings and a bundle's keys and issuers; `environ` holds the secrets that keys name.

        Reads the files once. `sets` are the key sets that were fetched from URLs, taken over by `refresh`.
        """
        identity = cls(_Process(settings, environ, KeySets() if sets is None else sets))
        identity.use_keys(jwt_keys, jwt_issuers)
        return identity

    def with_keys(self, jwt_keys: Sequence[JwtKey], jwt_issuers: Sequence[JwtIssuer] = ()) -> Identity:
        """This identity with the keys and issuers of another bundle: itself when they are the same.

        A bundle and its keys change in one step, so a request that is being decided keeps the identity that it began
        with, and what it has read so far. Everything that does not come from the bundle is shared.
        """
        endpoints = [_endpoint(each) for each in jwt_issuers]
        if tuple(jwt_keys) == self._jwt_keys and endpoints == [url.endpoint for url in self._issuers]:
            return self
        other = Identity(self._process, self._issuers)
        other._key_wanted = self._key_wanted
        other.use_keys(jwt_keys, jwt_issuers)
        return other

    def use_keys(self, jwt_keys: Sequence[JwtKey], jwt_issuers: Sequence[JwtIssuer] = ()) -> None:
        """Verify with the keys and issuers of this bundle from now on. The same ones again change nothing."""
        keys, problems = [], []
        for position, jwt_key in enumerate(jwt_keys):
            try:
                keys.append(_key(jwt_key, self._process.environ))
            except UnusableKey as error:
                problems.append(f"jwt_keys[{position}]: {error}")
        with self._process.lock:
            known = {url.endpoint: url for url in self._issuers}
            self._jwt_keys = tuple(jwt_keys)
            self._bundle_keys = tuple(keys)
            self._bundle_problems = tuple(problems)
            self._issuers = tuple(
                known.get(endpoint) or JwksUrl(endpoint, self.sets)
                for endpoint in (_endpoint(each) for each in jwt_issuers)
            )
            self._apply()

    def refresh(self, now: Now) -> None:
        """Take over what changed outside. Reads files: never on a request's way."""
        self._process.places.refresh()
        self.refresh_keys(now, also=self._process.file is not None and self._process.file.refresh())

    def refresh_keys(self, now: Now, *, also: bool = False) -> None:
        """Take over key sets that were fetched; quick when there are none. `also`: other keys changed."""
        if self._key_wanted:
            self._key_wanted = False
            self.sets.want(now)
        changed = [url.refresh(now) for url in self._urls]
        if also or any(changed):
            with self._process.lock:
                self._apply()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The URLs that key sets are fetched from, those of the settings first."""
        return tuple(url.endpoint for url in self._urls)

    def settled(self, now: Now, within_ns: int) -> bool:
        """Whether every key set was fetched, or at least tried, not longer ago than that."""
        return all(url.settled(now, within_ns) for url in self._urls)

    @property
    def verified(self) -> bool:
        """Whether claims are verified: a source of keys is configured."""
        return self.tokens.verified

    def problems(self) -> tuple[str, ...]:
        """Why the process is not ready: sources of keys that the operator configured and that have none."""
        sources = [source for source in (self._process.file, self._process.url) if source is not None]
        return self._bundle_problems + tuple(text for source in sources if (text := source.problem()))

    def warnings(self) -> tuple[str, ...]:
        """What is wrong but leaves the process ready: files and keys that cannot be used, a source that is late.

        An issuer without keys is among them: a bundle that names one must not take every other caller's edge away.
        """
        without = tuple(text for url in self._issuers if (text := url.problem()))
        sources = [source for source in (self._process.file, *self._urls) if source is not None]
        late = tuple(text for source in sources for text in source.warnings())
        return self._process.places.warnings() + without + late + self.sets.warnings()

    def sources(self) -> frozenset[str]:
        """The descriptors `ip:country`, `ip:asn`, `ip:type`, `ip:tor`, `ua:bot` that the settings can fill."""
        settings, hints = self._process.settings, self._process.settings.trusted_hints
        asn = settings.asn_db is not None or "x-asn" in hints
        filled = {
            "ip:country": settings.geoip_db is not None or "x-country-code" in hints,
            "ip:asn": asn,
            "ip:type": "x-asn-type" in hints or (asn and settings.asn_types is not None),
            "ip:tor": settings.tor_exits is not None or "x-tor-exit" in hints,
            "ua:bot": True,
        }
        return frozenset(name for name, can in filled.items() if can)

    def country(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """ISO 3166-1 code of the client's country, upper case."""
        return self._process.hints.country(client, headers) or self._process.places.place(client).country

    def asn(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """Number of the client's network, as digits."""
        return self._process.hints.asn(client, headers) or self._process.places.place(client).asn

    def asn_type(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """Type of the client's network as the table or the gateway calls it, lower case."""
        said = self._process.hints.asn_type(client, headers)
        if said is not None:
            return said
        asn = self._process.hints.asn(client, headers)
        return (
            self._process.places.place(client).asn_type if asn is None else self._process.places.asn_type(asn)
        )

    def tor(self, client: Client, headers: Mapping[str, bytes]) -> str | None:
        """ "true" or "false": whether the client is a Tor exit."""
        return self._process.hints.tor(client, headers) or self._process.places.place(client).tor

    def _unknown_key(self) -> None:
        self._key_wanted = True

    @property
    def _urls(self) -> tuple[JwksUrl, ...]:
        url = self._process.url
        return self._issuers if url is None else (url, *self._issuers)

    def _apply(self) -> None:
        """Read tokens with the keys of the moment; the lock is held."""
        if not (self._jwt_keys or self._process.file is not None or self._urls):
            self.tokens.use(None)
            return
        outside = self._process.file.keys if self._process.file is not None else ()
        outside += tuple(key for url in self._urls for key in url.keys)
        apart = [url.endpoint.issuer for url in self._issuers if url.endpoint.issuer is not None]
        self.tokens.use(self._bundle_keys + outside, apart, self._awaited())

    def _awaited(self) -> Iterator[str | None]:
        """The issuers some of whose keys there never were; None for keys that name no issuer."""
        for url in self._urls:
            if url.awaited:
                yield url.endpoint.issuer
        if self._process.file is not None and not self._process.file.was_read:
            yield self._process.settings.jwks_issuer
        if self._bundle_problems:
            yield None


def _endpoint(issuer: JwtIssuer) -> Endpoint:
    return Endpoint(issuer.url, issuer.issuer, tuple(issuer.audience), issuer.algorithms, guarded=True)


def _key(jwt_key: JwtKey, environ: Mapping[str, str]) -> TokenKey:
    """The key that a bundle's entry describes; UnusableKey says why it cannot be used."""
    if jwt_key.jwk is not None:
        jwk = jwt_key.jwk if jwt_key.kid is None else jwt_key.jwk | {"kid": jwt_key.kid}
        return key_from_jwk(jwk, jwt_key.issuer, jwt_key.audience)
    name = jwt_key.secret_env or ""
    secret = environ.get(name)
    if not secret:
        raise UnusableKey(f"the environment variable {name} that holds the secret is not set")
    return key_from_secret(secret, jwt_key.kid, jwt_key.algorithm, jwt_key.issuer, jwt_key.audience)
