"""Content codings are taken off a slice at a time, within bounds, and only where there is one reading of them."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.codings import SLICE_BYTES, Decoder, Decoding, decoder_of

MIB = 1 << 20
TEXT = b"".join(b'{"n": %d, "text": "%x"}, ' % (n, n * 0x9E3779B97F4A7C15 % 2**64) for n in range(2000))

brotli = import_module("brotli")
zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def bare_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


CODINGS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "gzip of two members": (
        b"x-gzip",
        lambda data: gzip.compress(data[:9], mtime=0) + gzip.compress(data[9:], mtime=0),
    ),
    "deflate": (b"Deflate", zlib.compress),
    "bare deflate": (b"deflate", bare_deflate),
    "br": (b"br", lambda data: bytes(brotli.compress(data, quality=5))),
    "zstd": (b" zstd ", zstd.compress),
}
BOMBS = {name: each for name, each in CODINGS.items() if "two" not in name}


def decoder(coding: bytes, most_bytes: int = 64 * MIB, most_ratio: int = 0) -> Decoder:
    found = decoder_of(coding, most_bytes, most_ratio)
    assert found is not None
    return found


def drain(decoder: Decoder) -> list[bytes]:
    """All slices that are waiting."""
    slices = []
    while decoder.waiting:
        slices.append(decoder.step())
    return slices


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_however_it_arrives_it_decodes_to_what_was_encoded(name: str, size: int) -> None:
    coding, encode = CODINGS[name]
    encoded = encode(TEXT)
    decode = decoder(coding)
    slices = []
    for start in range(0, len(encoded), size):
        decode.feed(encoded[start : start + size])
        slices += drain(decode)
    assert b"".join(slices) == TEXT
    assert (decode.is_whole, decode.size_bytes) == (True, len(TEXT))


@pytest.mark.parametrize("name", BOMBS)
def test_a_step_gives_no_more_than_a_slice_however_much_there_is(name: str) -> None:
    coding, encode = BOMBS[name]
    decode = decoder(coding)
    decode.feed(encode(bytes(8 * MIB)))
    sizes = [len(each) for each in drain(decode)]
    assert (sum(sizes), decode.is_whole) == (8 * MIB, True)
    assert max(sizes) <= 16 * SLICE_BYTES
    assert len(sizes) >= 8 * MIB // (16 * SLICE_BYTES)


@pytest.mark.parametrize("name", BOMBS)
def test_what_swells_too_much_is_not_decoded_on(name: str) -> None:
    coding, encode = BOMBS[name]
    bomb = encode(bytes(8 * MIB))
    for most_bytes, most_ratio in ((MIB, 0), (MIB, 16)):
        decode = decoder(coding, most_bytes, most_ratio)
        decode.feed(bomb)
        drain(decode)
        assert decode.failed
        assert decode.size_bytes <= max(MIB, 16 * len(bomb)) + 16 * SLICE_BYTES
        decode.feed(bomb)
        assert not decode.waiting


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"x" + data]
)
def test_what_is_damaged_cut_or_goes_on_is_not_whole(name: str, damage: Callable[[bytes], bytes]) -> None:
    coding, encode = CODINGS[name]
    decoding = Decoding(coding, damage(encode(TEXT)), 64 * MIB)
    assert decoding.runs_out(10_000)
    assert decoding.body is None
    assert decoding.unread_bytes > 0


def test_members_without_end_are_not_decoded() -> None:
    """An empty member of gzip takes a state of 40 KB and 20 bytes."""
    decode = decoder(b"gzip")
    decode.feed(gzip.compress(b"", mtime=0) * 10_000)
    assert len(drain(decode)) < 200
    assert decode.failed


def test_a_window_larger_than_others_decode_is_not_decoded() -> None:
    for bits, failed in (
        (10, False),
        (16, False),
        (17, False),
        (18, False),
        (22, False),
        (23, True),
        (24, True),
    ):
        decode = decoder(b"br")
        decode.feed(brotli.compress(TEXT, quality=5, lgwin=bits))
        drain(decode)
        assert decode.failed is failed, bits


@pytest.mark.parametrize("coding", [b"", b"compress", b"gzip, gzip", b"identity", b"aws-chunked"])
def test_other_codings_and_several_are_not_known(coding: bytes) -> None:
    assert decoder_of(coding, MIB) is None


def test_json_that_claims_a_coding_has_two_readings() -> None:
    decoding = Decoding(b"gzip", b' {"model": "o1"}', MIB)
    assert (decoding.advance(), decoding.body, decoding.unread_bytes) == (True, None, 16)


def test_a_body_that_was_cut_cannot_be_decoded() -> None:
    decoding = Decoding(b"gzip", gzip.compress(TEXT, mtime=0), MIB, 100)
    assert (decoding.advance(), decoding.body) == (True, None)


def test_a_body_is_decoded_in_as_many_steps_as_it_has_slices() -> None:
    decoding = Decoding(b"gzip", gzip.compress(bytes(MIB), mtime=0), MIB)
    steps = 1
    while not decoding.advance():
        steps += 1
    assert decoding.body == bytes(MIB)
    assert MIB // SLICE_BYTES <= steps <= MIB // SLICE_BYTES + 2


@given(st.sampled_from([b"gzip", b"deflate", b"br", b"zstd"]), st.binary(), st.integers(1, 9))
def test_no_bytes_break_a_decoder(coding: bytes, data: bytes, size: int) -> None:
    decode = decoder(coding, MIB)
    for start in range(0, len(data), size):
        decode.feed(data[start : start + size])
        drain(decode)
