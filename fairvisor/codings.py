"""Content codings (RFC 9110 8.4.1) taken off a slice at a time: gzip, deflate, br, zstd.

A few kilobytes may decode to gigabytes, so no step gives more than a slice, and whoever drives a decoder lets others
work between the steps. gzip and deflate come with Python; br and zstd are decoded where the packages of the extra
`codings` are installed (zstd also by Python 3.14). This module knows codings: neither HTTP nor what is in a body.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

SLICE_BYTES: Final = 2048
"""What one step gives at most; with br, whose decoder has blocks of its own, sixteen times that."""

STEPS: Final = 32  # of a body that is only decoded, in one turn of the loop: 64 KiB in 0.3 ms
AT_ONCE: Final = 128
"""So many steps are taken in one go, 256 KiB in 1 ms: nearly every body has no more."""

_PIECE_BYTES: Final = 4096  # of the input that a library gets at once: what it does not take is copied
_MOST_MEMBERS: Final = 100  # of gzip: each needs a state of its own
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZLIB_METHOD: Final = 8  # in the low half of the first byte of zlib's own format (RFC 1950)
_MOST_WINDOW_BITS: Final = 22  # a decoder of br fills its whole window in one go: 4 MiB take 7 ms


class Undecodable(Exception):
    """The data is not in this coding, or goes on behind its end."""


class _Codec:
    """One coding. `is_whole` says that the data ends here."""

    is_whole = False

    def decode(self, data: bytes, limit_bytes: int) -> tuple[bytes, bytes, bool]:
        """Return what comes of `data`, what of it was not taken, and whether more would come without any. Raises."""
        raise NotImplementedError


class _Gzip(_Codec):
    """gzip (RFC 1952); what follows the first member must be another one."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_GZIP)
        self._members = 1

    def decode(self, data: bytes, limit_bytes: int) -> tuple[bytes, bytes, bool]:
        """Inflate."""
        if self._inflate.eof and data:
            self._members += 1
            if self._members > _MOST_MEMBERS or not _GZIP_MAGIC.startswith(data[:2]):
                raise Undecodable
            self._inflate = zlib.decompressobj(_GZIP)
        plain = self._inflate.decompress(data, limit_bytes)
        self.is_whole = self._inflate.eof
        rest = self._inflate.unused_data if self.is_whole else self._inflate.unconsumed_tail
        return plain, rest, len(plain) == limit_bytes and not self.is_whole


class _Deflate(_Codec):
    """deflate: zlib's format, as it should be (RFC 1950), or the bare one that some send (RFC 1951)."""

    def __init__(self) -> None:
        self._inflate: zlib._Decompress | None = None

    def decode(self, data: bytes, limit_bytes: int) -> tuple[bytes, bytes, bool]:
        """Inflate."""
        if self._inflate is None:
            bare = bool(data) and data[0] & 0x0F != _ZLIB_METHOD
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS)
        if self.is_whole and data:
            raise Undecodable
        plain = self._inflate.decompress(data, limit_bytes)
        self.is_whole = self._inflate.eof
        rest = self._inflate.unused_data if self.is_whole else self._inflate.unconsumed_tail
        return plain, rest, len(plain) == limit_bytes and not self.is_whole


class _Brotli(_Codec):
    """br (RFC 7932)."""

    def __init__(self, library: Any) -> None:
        self._decoder = library.Decompressor()
        self._begun = False

    def decode(self, data: bytes, limit_bytes: int) -> tuple[bytes, bytes, bool]:
        """Decode."""
        if not self._begun and data:
            self._begun = True
            if _brotli_window_bits(data[0]) > _MOST_WINDOW_BITS:
                raise Undecodable
        if self.is_whole and data:
            raise Undecodable
        plain: bytes = self._decoder.process(data, output_buffer_limit=limit_bytes)
        self.is_whole = self._decoder.is_finished()
        # The library takes more input while it still has output, so it is asked until it has none.
        return plain, b"", not self.is_whole and (bool(plain) or not self._decoder.can_accept_more_data())


class _Zstd(_Codec):
    """zstd (RFC 8878), one frame."""

    def __init__(self, library: Any) -> None:
        options = {library.DecompressionParameter.window_log_max: _MOST_WINDOW_BITS + 1}  # RFC 9659: 8 MiB
        self._decoder = library.ZstdDecompressor(options=options)

    def decode(self, data: bytes, limit_bytes: int) -> tuple[bytes, bytes, bool]:
        """Decode; the library keeps what it has not taken."""
        if self.is_whole and data:
            raise Undecodable
        plain: bytes = self._decoder.decompress(data, limit_bytes)
        self.is_whole = self._decoder.eof
        rest: bytes = self._decoder.unused_data if self.is_whole else b""
        return plain, rest, not self.is_whole and not self._decoder.needs_input


class Decoder:
    """Decodes one body. `size_bytes` is how much has come of it; `failed` that no more will, for whatever reason.

    More than `most_bytes`, and more than `most_ratio` times what came in, is not decoded.
    """

    __slots__ = ("_codec", "_goes_on", "_input", "_most_bytes", "_most_ratio", "_position", "_taken_bytes",
                 "failed", "size_bytes")  # fmt: skip

    def __init__(self, codec: _Codec, most_bytes: int, most_ratio: int = 0) -> None:
        self._codec = codec
        self._most_bytes = most_bytes
        self._most_ratio = most_ratio
        self._input = b""
        self._position = 0
        self._taken_bytes = 0
        self._goes_on = False  # the codec has more without further input
        self.failed = False
        self.size_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether a step would do anything."""
        return not self.failed and (self._goes_on or self._position < len(self._input))

    @property
    def is_whole(self) -> bool:
        """Whether all that came was decoded, and nothing is missing."""
        return not self.failed and not self.waiting and self._codec.is_whole

    @property
    def has_ended(self) -> bool:
        """Whether the encoded data was whole, whatever follows it."""
        return self._codec.is_whole

    def feed(self, data: bytes) -> None:
        """Take the next piece of what is encoded."""
        if not self.failed:
            self._input = self._input[self._position :] + data
            self._position = 0

    def step(self) -> bytes:
        """Return the next slice; nothing where none is waiting, or where it fails."""
        if not self.waiting:
            return b""
        piece = b"" if self._goes_on else self._input[self._position : self._position + _PIECE_BYTES]
        try:
            plain, rest, self._goes_on = self._codec.decode(piece, SLICE_BYTES)
        except Exception:  # each library has errors of its own, and all say the same
            self.fail()
            return b""
        self._position += len(piece) - len(rest)
        self._taken_bytes += len(piece) - len(rest)
        if rest and not self._codec.is_whole:
            self._goes_on = False  # it goes on with the rest
        self.size_bytes += len(plain)
        if self.size_bytes > max(self._most_bytes, self._most_ratio * self._taken_bytes):
            self.fail()
            return b""
        return plain

    def fail(self) -> None:
        """Decode no more."""
        self.failed = True
        self._input = b""


class Decoding:
    """A whole body that is being decoded: call `advance` until it is true.

    `body` is then what it decodes to; None where it cannot be decoded, within the bound, or in one way only.
    `unread_bytes` is how much there is of such a body, as far as it is known.
    """

    __slots__ = ("_decoder", "_pieces", "body", "unread_bytes")

    def __init__(self, coding: bytes, body: bytes, most_bytes: int, cut_bytes: int = 0) -> None:
        """`cut_bytes` is what is missing at the end of `body`: then it cannot be decoded."""
        is_plain = body.lstrip()[:1] == b"{"
        self._decoder = None if cut_bytes or is_plain else decoder_of(coding, most_bytes)
        self._pieces: list[bytes] = []
        self.body: bytes | None = None
        self.unread_bytes = len(body) + cut_bytes
        if self._decoder is not None:
            self._decoder.feed(body)

    def advance(self) -> bool:
        """Decode one slice; is it done?"""
        decoder = self._decoder
        if (
            decoder is None
        ):  # JSON is not encoded, whatever the header says, and some servers do not look at that
            return True
        self._pieces.append(decoder.step())
        if decoder.waiting:
            return False
        if decoder.is_whole:
            self.body = b"".join(self._pieces)
        else:
            self.unread_bytes = max(self.unread_bytes, decoder.size_bytes)
        self._pieces.clear()
        return True

    def runs_out(self, steps: int) -> bool:
        """Decode up to so many slices; is it done?"""
        return any(self.advance() for _ in range(steps))


def decoder_of(coding: bytes, most_bytes: int, most_ratio: int = 0) -> Decoder | None:
    """Return a decoder for a Content-Encoding; None for one that is not known, or for several."""
    make = _CODECS.get(coding.strip().lower())
    return None if make is None else Decoder(make(), most_bytes, most_ratio)


def _brotli_window_bits(first: int) -> int:
    """The size of the window that a stream declares in its first byte (RFC 7932 9.1)."""
    if not first & 1:
        return 16
    if first >> 1 & 7:
        return 17 + (first >> 1 & 7)
    high = first >> 4 & 7
    return 17 if high == 0 else 8 + high if high > 1 else 30  # 1: a larger window than the format has


def _library(*names: str) -> Any:
    """The first package that is installed; None: none is."""
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _codecs() -> dict[bytes, Callable[[], _Codec]]:
    brotli, zstd = _library("brotli"), _library("compression.zstd", "backports.zstd")
    codecs: dict[bytes, Callable[[], _Codec]] = {b"gzip": _Gzip, b"x-gzip": _Gzip, b"deflate": _Deflate}
    if hasattr(
        getattr(brotli, "Decompressor", None), "can_accept_more_data"
    ):  # from 1.2 on its output can be bounded
        codecs[b"br"] = lambda: _Brotli(brotli)
    if zstd is not None:
        codecs[b"zstd"] = lambda: _Zstd(zstd)
    return codecs


_CODECS: Final = _codecs()
