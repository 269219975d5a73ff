"""A short run of every fuzz target; `make fuzz` is the long one. What was found stays in `fuzz/corpus/`."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from fuzz.loop import fuzz
from fuzz.targets import TARGETS, Target

EXECUTIONS = 1500


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_that_a_stranger_writes_breaks_a_promise(target: Target) -> None:
    corpus = target.corpus()
    fuzzed = fuzz(target.run, corpus, target.words, len(corpus) + EXECUTIONS, seed=1)
    assert fuzzed.failed is None, fuzzed.failed
    assert fuzzed.executions == len(corpus) + EXECUTIONS
    assert fuzzed.outcomes > 5, "the inputs all go the same way"


def deep(data: bytes) -> Hashable:
    """Breaks behind two steps that only an input which took the first one takes."""
    if not data.startswith(b"{"):
        return 0
    if b"[[" not in data:
        return 1
    if data.count(b"0") > 3:
        raise ValueError("found")
    return 2


def test_what_breaks_is_found_and_told_with_its_input() -> None:
    fuzzed = fuzz(deep, [b"x1"], [b"{", b"["], 20_000, seed=7)
    assert fuzzed.failed is not None
    data, why = fuzzed.failed
    assert why == "ValueError: found"
    with pytest.raises(ValueError, match="found"):
        deep(data)


def test_a_seed_repeats_a_run() -> None:
    first, again, other = (
        _inputs_of(seed) for seed in (1, 1, 2)
    )  # fmt: skip
    assert first == again
    assert first != other


def _inputs_of(seed: int) -> list[bytes]:
    inputs: list[bytes] = []

    def run(data: bytes) -> Hashable:
        inputs.append(data)
        return len(data) % 7

    fuzz(run, [b"a", b"bc"], [b"word"], 500, seed)
    return inputs
