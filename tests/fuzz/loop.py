"""Feeds a target with inputs that nobody wrote: those of the corpus, changed, again and again.

What a target makes of an input, its outcome, stands for the way it took through the code: an input with an outcome that
was not seen before is changed further. Everything follows from the seed, so that a run can be repeated. This module
knows bytes; what they mean is in `targets.py`.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

MOST_BYTES = 20_000
MOST_KEPT = 4000
BATCH = 250
PATIENCE_S = 60  # processor time for a batch: nothing that is read may take longer, a machine may stand still
NUMBERS = (
    b"0",
    b"-1",
    b"1e999",
    b"9223372036854775808",
    b"18446744073709551616",
    b"0.1",
    b"NaN",
    b"null",
    b"true",
)
SIGNS = b"\x00\xff\r\n \t,;:=\"'\\/%[]{}#?.-+~"

Run = Callable[[bytes], Hashable]


class Fuzzed(NamedTuple):
    """What came of it. `failed`: the input that broke a promise, and how; None: none did."""

    executions: int
    outcomes: int
    failed: tuple[bytes, str] | None


class Hung(Exception):
    """Reading took too long."""


def fuzz(
    run: Run,
    corpus: Sequence[bytes],
    words: Sequence[bytes],
    executions: int,
    seed: int,
    tell: Callable[[int], None] = lambda _: None,
) -> Fuzzed:
    """Run the corpus, then changed inputs, `executions` in all. `tell` is called with how many more are done."""
    seen: set[Hashable] = set()
    kept = list(corpus)
    with _impatience() as start_again:
        for done, data in enumerate(_inputs(kept, words, executions, random.Random(seed))):
            if not done % BATCH:
                start_again()
                tell(min(BATCH, executions - done))
            try:
                outcome = run(data)
            except Exception as error:
                return Fuzzed(done + 1, len(seen), (data, f"{type(error).__name__}: {error}"))
            if outcome not in seen:
                seen.add(outcome)
                if len(kept) < MOST_KEPT:
                    kept.append(data)
    return Fuzzed(executions, len(seen), None)


def _inputs(
    kept: list[bytes], words: Sequence[bytes], executions: int, dice: random.Random
) -> Iterator[bytes]:
    first = tuple(kept)
    yield from first[:executions]
    for _ in range(executions - len(first)):
        data = bytearray(dice.choice(kept))
        for _ in range(1 << dice.randrange(4)):
            _CHANGES[dice.randrange(len(_CHANGES))](data, dice, kept, words)
        yield bytes(data[:MOST_BYTES])


@contextmanager
def _impatience() -> Iterator[Callable[[], object]]:
    """Raises Hung in whatever runs when the time of a batch is over."""

    def ring(number: int, frame: object) -> None:
        raise Hung(f"a batch of {BATCH} took more than {PATIENCE_S} s of the processor")

    before = signal.signal(signal.SIGPROF, ring)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# ---- changes: each alters `data` in place

Change = Callable[[bytearray, random.Random, Sequence[bytes], Sequence[bytes]], None]


def _piece(data: bytearray, dice: random.Random) -> slice:
    start = dice.randrange(len(data) + 1)
    return slice(start, start + (1 << dice.randrange(8)) - dice.randrange(2))


def _flip(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    if data:
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _sign(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    data[at : at + dice.randrange(2)] = bytes([dice.choice(SIGNS)])


def _cut(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    del data[_piece(data, dice)]


def _repeat(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    piece = _piece(data, dice)
    data[piece.start : piece.start] = bytes(data[piece]) * (1 << dice.randrange(6))


def _word(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = dice.randrange(len(data) + 1)
    word = dice.choice(words or NUMBERS)
    data[at : at + (len(word) if dice.randrange(2) else 0)] = word


def _number(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    """A number becomes another one."""
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        start = end = dice.choice(digits)
        while end < len(data) and 48 <= data[end] <= 57:
            end += 1
        data[start:end] = dice.choice(NUMBERS)


def _splice(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    other = bytearray(dice.choice(kept))
    data[_piece(data, dice)] = other[_piece(other, dice)]


def _shorten(data: bytearray, dice: random.Random, kept: Sequence[bytes], words: Sequence[bytes]) -> None:
    del data[dice.randrange(len(data) + 1) :]


_CHANGES: tuple[Change, ...] = (
    _flip,
    _flip,
    _sign,
    _cut,
    _repeat,
    _word,
    _word,
    _number,
    _splice,
    _splice,
    _shorten,
)
