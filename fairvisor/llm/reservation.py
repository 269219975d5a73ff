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

`_seal.c` packs, signs and spells; tokens are read, which is rarer, by the standard library.
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
from fairvisor.llm._seal import keyed
from fairvisor.llm._seal import seal as _seal
from fairvisor.llm.usage import PLAIN, Weights

__all__ = [
    "LIFETIME_NS",
    "MAX_TAKES",
    "Reservation",
    "Take",
    "Taken",
    "fresh_nonce",
    "keyed",
    "seal",
    "terms",
    "unseal",
]

LIFETIME_NS: Final = 3_600 * 1_000_000_000
"""A reservation can be settled for one hour."""

MAX_TAKES: Final = 255

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQQB")
_TAKE: Final = struct.Struct(">BQQQQQ")
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


# What a request took from one counter, to be sealed: the terms of the limit, then key, amount_u and until_mono_ns as in
# `Take` (0 for a bucket). A plain tuple, which is quicker made than a named one.
Taken: TypeAlias = tuple[bytes, int, int, int]


class Reservation(NamedTuple):
    """All takes of one request, as a token tells them; `nonce` (64 bits, random) is what may be settled once."""

    nonce: int
    expires_wall_ns: int
    takes: tuple[Take, ...]


def fresh_nonce() -> int:
    """A nonce no other reservation has, of this process or another one."""
    return _NONCES.getrandbits(64)


def terms(
    kind: Literal["bucket", "total"],
    burst_u: int = 0,
    per: int = 0,
    weights: Weights = PLAIN,
    owner: tuple[str, str] | None = None,
) -> bytes:
    """What the takes of one limit from one kind of counter have in common, packed: all but key, amount and end.

    The arguments are the fields of `Take`. For load time: nothing of it depends on a request.
    """
    weighted = weights != PLAIN
    flags = (_TOTAL if kind == "total" else 0) | (_WEIGHTED if weighted else 0) | (_OWNED if owner else 0)
    packed = _TAKE.pack(flags, 0, 0, burst_u, per, 0)
    if weighted:
        packed += _WEIGHTS.pack(*weights)
    return packed + b"".join([bytes((len(name),)) + name.encode("ascii") for name in owner or ()])


def seal(signing: bytes, nonce: int, expires_wall_ns: int, taken: list[Taken]) -> str:
    """A reservation as a token: URL- and header-safe ASCII, some 120 characters for one take.

    It is signed with the key that `signing` was made of by `keyed`.
    """
    assert len(taken) <= MAX_TAKES, "a request takes from at most 255 LLM counters"
    if len(taken) > _MAX_OWNED:
        taken = [(_nameless(terms), key, amount_u, until_ns) for terms, key, amount_u, until_ns in taken]
    return _seal(signing, nonce, expires_wall_ns, taken)


def _nameless(terms: bytes) -> bytes:
    """The terms without an owner."""
    end = _TAKE.size + (_WEIGHTS.size if terms[0] & _WEIGHTED else 0)
    return bytes((terms[0] & ~_OWNED,)) + terms[1:end]


def unseal(key: bytes, token: str, wall_ns: int) -> Reservation:
    """The reservation in `token`, read at `wall_ns`.

    Raises RequestError (400) when it was not signed with `key`, Gone (410) when it has expired or was made by another
    version. Whether it was settled before is for the counters to say.
    """
    sealed = _decode(token)
    payload, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, payload)):
        raise RequestError("the reservation is not one that this edge made")
    if payload[0] != _VERSION:
        raise Gone("the reservation was made by another version and can no longer be settled")
    reservation = _unpack(payload)
    if wall_ns >= reservation.expires_wall_ns:
        raise Gone("the reservation has expired: it can be settled for one hour")
    return reservation


def _mac(key: bytes, payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_MAC_BYTES, key=key).digest()


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
