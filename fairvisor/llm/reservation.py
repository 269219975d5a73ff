"""A reservation as a token: what was taken from which counter for one LLM request, signed, to be settled later.

The token travels through a gateway, so it carries all that settling needs (counter keys, amounts, weights) and the
bundle is never asked: a reload between request and response changes nothing. It is signed with a key that lives with
the counters. This module must not know counters, rules or the clock; it turns a `Reservation` into text and back.

Format, big-endian, then base64url without padding (RFC 4648 5):

    version u8 = 1 | nonce u64 | expires_wall_ns u64 | takes u8
    per take: flags u8 (1: a total, 2: weights follow, 4: an owner follows) | key u64 | amount_u u64 | burst_u u64
              | per u64 | until_mono_ns u64 | with flag 2: five weights u64, in millionths, in the order of `Weights`
              | with flag 4: policy id and rule name, each as length u8 and ASCII
    keyed BLAKE2b of everything before it, 16 bytes (RFC 7693; half the time of an HMAC-SHA256)
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import random
import struct
from hashlib import blake2b
from typing import Final, Literal, NamedTuple, TypeAlias

from fairvisor.errors import Gone, RequestError
from fairvisor.llm.usage import PLAIN, Weights

LIFETIME_NS: Final = 3_600 * 1_000_000_000
"""A reservation can be settled for one hour."""

REPEAT_NS: Final = 10 * 1_000_000_000
"""How long a gateway's repeated question is recognised: what it gets then is a token with the same nonce, which
expires later than the first one, by less than this."""

MAX_TAKES: Final = 255

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQQB")
_TAKE: Final = struct.Struct(">BQQQQQ")
_RATE: Final = struct.Struct(">QQ")  # burst_u and per of a take
_ON_TERMS: Final = struct.Struct(f">BQQ{_RATE.size}sQ")  # a take whose rate is packed already
_WEIGHTS: Final = struct.Struct(">5Q")
_MAC_BYTES: Final = 16
_TOTAL: Final = 1
_WEIGHTED: Final = 2
_OWNED: Final = 4
_MAX_OWNED: Final = 8  # takes of a token that names owners: a header must hold it
_MAX_TOKEN: Final = 32 * 1024  # 255 takes with weights need 29 KB

# Nonces must differ, between processes too; to foresee one helps nobody, who cannot seal it. The system seeds the
# generator when a process starts, and again in every process that is forked from it.
_NONCES: Final = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_NONCES.seed)


class Take(NamedTuple):
    """What one counter gave: `amount_u` millionths from the bucket (`burst_u`, `per`) or the total `key`.

    `until_mono_ns` is when a total's window ends (a closed one is left alone), 0 for a bucket. `weights` price the
    real usage. `owner` is (policy id, rule name) where the settlement is counted, and None elsewhere.
    """

    kind: Literal["bucket", "total"]
    key: int
    amount_u: int
    burst_u: int = 0
    per: int = 0
    until_mono_ns: int = 0
    weights: Weights = PLAIN
    owner: tuple[str, str] | None = None


class Terms:
    """What the takes of one limit from one kind of counter have in common, packed when the bundle is compiled.

    The arguments are the fields of `Take`.
    """

    __slots__ = ("_flags", "_owner", "_rate", "_weights")

    def __init__(
        self,
        kind: Literal["bucket", "total"],
        burst_u: int = 0,
        per: int = 0,
        weights: Weights = PLAIN,
        owner: tuple[str, str] | None = None,
    ) -> None:
        self._flags = (_TOTAL if kind == "total" else 0) | (_WEIGHTED if weights != PLAIN else 0)
        self._rate = _RATE.pack(burst_u, per)
        self._weights = _WEIGHTS.pack(*weights) if weights != PLAIN else b""
        self._owner = b"".join([bytes((len(name),)) + name.encode("ascii") for name in owner or ()])

    def pack(self, key: int, amount_u: int, until_mono_ns: int, named: bool) -> bytes:
        """A take on these terms; `named`: with its owner, if it has one."""
        owner = self._owner if named else b""
        flags = self._flags | _OWNED if owner else self._flags
        return _ON_TERMS.pack(flags, key, amount_u, self._rate, until_mono_ns) + self._weights + owner


# What a request took from one counter, to be sealed: the limit's terms, then key, amount_u and until_mono_ns as in
# `Take` (0 for a bucket). A plain tuple, which is quicker made than a named one.
Taken: TypeAlias = tuple[Terms, int, int, int]


class Reservation(NamedTuple):
    """All takes of one request, as a token tells them; `nonce` (64 bits, random) is what may be settled once."""

    nonce: int
    expires_wall_ns: int
    takes: tuple[Take, ...]


def fresh_nonce() -> int:
    """A nonce no other reservation has, of this process or another one."""
    return _NONCES.getrandbits(64)


def signing_with(key: bytes) -> blake2b:
    """What `seal` signs with: the hash as it is when it has taken in the key, of 1 to 64 bytes."""
    return blake2b(digest_size=_MAC_BYTES, key=key)


def seal(signing: blake2b, nonce: int, expires_wall_ns: int, taken: list[Taken]) -> str:
    """A reservation as a token: URL- and header-safe ASCII, some 120 characters for one take.

    It is signed with the key that `signing` was made with.
    """
    assert len(taken) <= MAX_TAKES, "a request takes from at most 255 LLM counters"
    named = len(taken) <= _MAX_OWNED
    payload = _HEAD.pack(_VERSION, nonce, expires_wall_ns, len(taken))
    for terms, key, amount_u, until_mono_ns in taken:
        payload += terms.pack(key, amount_u, until_mono_ns, named)
    sealed = binascii.b2a_base64(payload + _mac(signing, payload), newline=False)
    # base64url (RFC 4648 section 5); for two letters, replacing is quicker than a table
    return sealed.replace(b"+", b"-").replace(b"/", b"_").rstrip(b"=").decode("ascii")


def unseal(key: bytes, token: str, wall_ns: int) -> Reservation:
    """The reservation in `token`, read at `wall_ns`.

    Raises RequestError (400) when it was not signed with `key`, Gone (410) when it has expired or was made by another
    version. Whether it was settled before is for the counters to say.
    """
    sealed = _decode(token)
    payload, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(signing_with(key), payload)):
        raise RequestError("the reservation is not one that this edge made")
    if payload[0] != _VERSION:
        raise Gone("the reservation was made by another version and can no longer be settled")
    reservation = _unpack(payload)
    if wall_ns >= reservation.expires_wall_ns:
        raise Gone("the reservation has expired: it can be settled for one hour")
    return reservation


def _mac(signing: blake2b, payload: bytes) -> bytes:
    mac = signing.copy()
    mac.update(payload)
    return mac.digest()


def _decode(token: str) -> bytes:
    try:
        if len(token) > _MAX_TOKEN:
            raise ValueError
        sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise RequestError(
            "the reservation is not a token: pass X-Fairvisor-Reservation on unchanged"
        ) from None
    if len(sealed) < _HEAD.size + _MAC_BYTES:
        raise RequestError("the reservation is cut short: pass X-Fairvisor-Reservation on unchanged")
    return sealed


def _unpack(payload: bytes) -> Reservation:
    _, nonce, expires_wall_ns, count = _HEAD.unpack_from(payload)
    offset = _HEAD.size
    takes = []
    for _ in range(count):
        flags, counter, amount_u, burst_u, per, until_mono_ns = _TAKE.unpack_from(payload, offset)
        offset += _TAKE.size
        weights = PLAIN
        if flags & _WEIGHTED:
            weights = Weights(*_WEIGHTS.unpack_from(payload, offset))
            offset += _WEIGHTS.size
        owner = None
        if flags & _OWNED:
            policy_id, offset = _unpack_name(payload, offset)
            rule, offset = _unpack_name(payload, offset)
            owner = (policy_id, rule)
        kind: Literal["bucket", "total"] = "total" if flags & _TOTAL else "bucket"
        takes.append(Take(kind, counter, amount_u, burst_u, per, until_mono_ns, weights, owner))
    return Reservation(nonce, expires_wall_ns, tuple(takes))


def _unpack_name(payload: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + payload[offset]
    return payload[offset + 1 : end].decode("ascii"), end
