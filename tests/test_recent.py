"""The bounded map behind every cache of identities: what it keeps, what it forgets."""

from __future__ import annotations

from fairvisor.identity.recent import Recent


def weighed(generation: int, generation_bytes: int) -> Recent[int, bytes]:
    return Recent(generation, generation_bytes, lambda _, value: len(value))


def held_bytes(kept: Recent[int, bytes], keys: range) -> int:
    """Sum up what is kept, without asking in a way that moves entries."""
    found = {**kept._old, **kept.young}
    return sum(len(found[key]) for key in keys if key in found)


def test_a_flood_of_keys_is_bounded_by_their_number() -> None:
    kept: Recent[int, int] = Recent(10)
    for key in range(1000):
        kept.put(key, key)
    assert len(kept) <= 20
    assert kept.get(999) == 999
    assert kept.get(0) is None


def test_a_flood_of_long_entries_is_bounded_by_their_bytes() -> None:
    kept = weighed(1000, 100)
    for key in range(1000):
        kept.put(key, b"x" * 30)
        assert held_bytes(kept, range(1000)) <= 200
    assert kept.get(999) is not None


def test_an_entry_larger_than_a_generation_is_not_kept_and_pushes_nothing_out() -> None:
    kept = weighed(1000, 100)
    kept.put(1, b"small")
    kept.put(2, b"x" * 101)
    assert kept.get(1) == b"small"
    assert kept.get(2) is None


def test_what_is_asked_for_survives_a_flood() -> None:
    kept = weighed(1000, 100)
    kept.put(-1, b"mine")
    for key in range(1000):
        kept.put(key, b"x" * 30)
        assert kept.get(-1) == b"mine"


def test_an_entry_that_is_put_again_and_again_does_not_outgrow_the_bound() -> None:
    kept = weighed(1000, 100)
    for _ in range(1000):
        kept.put(1, b"x" * 60)
    assert kept.get(1) is not None
    assert len(kept) == 1
