"""Sealed reservations: whole through a round trip, refused when forged, cut, expired or from elsewhere."""

from __future__ import annotations

import base64
import os
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.errors import Gone, RequestError
from fairvisor.llm.reservation import (
    MAX_TAKES,
    Reservation,
    Take,
    Terms,
    fresh_nonce,
    seal,
    signing_with,
    unseal,
)
from fairvisor.llm.usage import Weights

KEY = bytes(range(32))
NOW_NS = 1_790_000_000_000_000_000
EXPIRES_NS = NOW_NS + 3_600_000_000_000
BUCKET = Take("bucket", key=2**64 - 1, amount_u=1_200_000_000, burst_u=10**11, per=268_435)
TOTAL = Take(
    "total", key=7, amount_u=1_200_000_000, until_mono_ns=86_400_000_000_000, weights=Weights(1, 2, 3, 4, 5)
)
RESERVATION = Reservation(12345, EXPIRES_NS, (BUCKET, TOTAL))

U64 = st.integers(0, 2**64 - 1)
NAME = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=128)
TAKES = st.builds(
    Take,
    st.sampled_from(["bucket", "total"]),
    U64,
    U64,
    U64,
    U64,
    U64,
    st.builds(Weights, U64, U64, U64, U64, U64),
    st.none() | st.tuples(NAME, NAME),
)


def sealed(reservation: Reservation) -> str:
    """The token that `unseal` reads as `reservation`."""
    taken = [
        (Terms(kind, burst_u, per, weights, owner), key, amount_u, until_mono_ns)
        for kind, key, amount_u, burst_u, per, until_mono_ns, weights, owner in reservation.takes
    ]
    return seal(signing_with(KEY), reservation.nonce, reservation.expires_wall_ns, taken)


@given(st.builds(Reservation, U64, st.just(EXPIRES_NS), st.lists(TAKES, max_size=5).map(tuple)))
def test_a_reservation_survives_the_round_trip(reservation: Reservation) -> None:
    assert unseal(KEY, sealed(reservation), NOW_NS) == reservation


def test_a_token_is_short_and_safe_in_a_header_and_a_url() -> None:
    token = sealed(RESERVATION._replace(takes=(BUCKET,)))
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,110}", token)


def test_the_largest_reservation_fits() -> None:
    largest = RESERVATION._replace(takes=(TOTAL,) * MAX_TAKES)
    assert unseal(KEY, sealed(largest), NOW_NS) == largest


def test_a_token_of_many_takes_leaves_the_owners_out() -> None:
    owned = BUCKET._replace(owner=("p" * 128, "r" * 128))
    few, many = (RESERVATION._replace(takes=(owned,) * number) for number in (8, 9))
    assert unseal(KEY, sealed(few), NOW_NS) == few
    assert unseal(KEY, sealed(many), NOW_NS).takes == (BUCKET,) * 9


def test_no_bit_of_a_token_can_be_changed() -> None:
    token = bytearray(base64.urlsafe_b64decode(sealed(RESERVATION) + "=="))
    for position in range(len(token)):
        forged = bytes(token[:position]) + bytes([token[position] ^ 1]) + bytes(token[position + 1 :])
        with pytest.raises(RequestError) as refusal:
            unseal(KEY, base64.urlsafe_b64encode(forged).rstrip(b"=").decode(), NOW_NS)
        assert refusal.value.status == 400


def test_a_token_of_another_instance_is_refused() -> None:
    with pytest.raises(RequestError, match="not one that this edge made"):
        unseal(b"k" * 32, sealed(RESERVATION), NOW_NS)


@pytest.mark.parametrize(
    "token", ["", "x", "é", "a b", "\n", "====", "A" * 20, "A" * 200, "A" * 100_000, "\ud800"]
)
def test_what_is_no_token_is_400(token: str) -> None:
    with pytest.raises(RequestError) as refusal:
        unseal(KEY, token, NOW_NS)
    assert refusal.value.status == 400


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(token: str) -> None:
    with pytest.raises(RequestError):
        unseal(KEY, token, NOW_NS)


@pytest.mark.parametrize("foreign", ["!", " ", "\n", "+", "/", "="])
def test_a_token_with_foreign_characters_is_refused(foreign: str) -> None:
    token = sealed(RESERVATION)
    with pytest.raises(RequestError):
        unseal(KEY, token[:40] + 4 * foreign + token[40:], NOW_NS)


def test_a_token_cut_anywhere_is_refused() -> None:
    token = sealed(RESERVATION)
    for length in range(len(token)):
        with pytest.raises(RequestError):
            unseal(KEY, token[:length], NOW_NS)


def test_a_reservation_can_be_settled_until_it_expires_and_not_then() -> None:
    token = sealed(RESERVATION)
    assert unseal(KEY, token, EXPIRES_NS - 1) == RESERVATION
    with pytest.raises(Gone) as refusal:
        unseal(KEY, token, EXPIRES_NS)
    assert refusal.value.status == 410


def test_nonces_differ() -> None:
    assert len({fresh_nonce() for _ in range(1000)}) == 1000


def test_a_forked_process_has_nonces_of_its_own() -> None:
    fresh_nonce()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, struct.pack(">4Q", *(fresh_nonce() for _ in range(4))))
        os._exit(0)
    os.waitpid(child, 0)
    told = struct.unpack(">4Q", os.read(read_end, 32))
    os.close(read_end)
    os.close(write_end)
    assert not {fresh_nonce() for _ in range(4)} & set(told)
