"""Whatever a client writes, it is counted as who it is, by every transport alike (`one_reading.py`)."""

from __future__ import annotations

import random
from pathlib import Path

from one_reading import KINDS, OneReading

DRAWS = 20_000


def test_no_way_to_write_an_identity_escapes_its_counter(tmp_path: Path) -> None:
    world, chance = OneReading(tmp_path), random.Random(12)
    kinds = {world.draw(chance)[0] for _ in range(DRAWS)}
    assert kinds == {each.name for each in KINDS}
