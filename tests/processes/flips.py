"""Bits of a segment that flip, as bad memory does it: where, and whose counter stood there.

The header has a checksum, so any of its bits that flips is noticed by who reads it. A slot has none: its flip is a
change of the one counter that it holds, which becomes another number, or is lost. Slots hold hashes of keys, so names
are hashed here as the edge hashes them. This module does not know when a bit flips, nor what may follow.
"""

from __future__ import annotations

import json
import mmap
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from campaign import bundle, rule_of
from edge_server import memory_of

from fairvisor.bundle.compile import DEFAULT_OPTIONS, Compiler
from fairvisor.bundle.load import parse
from fairvisor.clock import Now
from fairvisor.counters import layout, objects
from fairvisor.counters._table import SLOT_BYTES
from fairvisor.counters.layout import CHECKSUM, FIELDS, MAGIC, MIN_BYTES, PAGE_BYTES
from fairvisor.counters.segment import Segment
from fairvisor.memory import SHM_DIR

HEADER_BYTES = len(MAGIC) + FIELDS.size + CHECKSUM.size
KEY_AT = slice(24, 32)  # of a slot


@contextmanager
def _memory(instance: str) -> Iterator[mmap.mmap]:
    path = SHM_DIR / objects.find(memory_of(instance))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def flip(instance: str, bit: int) -> None:
    """Flip this bit of the segment; once more puts it back."""
    with _memory(instance) as memory:
        memory[bit // 8] ^= 1 << bit % 8


def some_header_bit(chance: random.Random) -> int:
    """Any bit that the header is read from."""
    return chance.randrange(8 * HEADER_BYTES)


def flip_in_slots(instance: str, chance: random.Random, number: int) -> set[int]:
    """Flip so many bits of slots that are in use, where any is: the keys that these are about, before and after."""
    keys = set()
    with _memory(instance) as memory:
        geometry = layout.unpack(memory[:PAGE_BYTES]).geometry
        with memoryview(memory)[geometry.slots_at :] as rest, rest.cast("Q") as words:
            used = [slot for slot, word in enumerate(words[1 :: SLOT_BYTES // 8].tolist()) if word]
        for _ in range(number):
            at = geometry.slots_at + SLOT_BYTES * chance.choice(used or range(geometry.slots))
            keys.add(memory[at : at + SLOT_BYTES][KEY_AT])
            memory[at + chance.randrange(SLOT_BYTES)] ^= 1 << chance.randrange(8)
            keys.add(memory[at : at + SLOT_BYTES][KEY_AT])
    return {int.from_bytes(key, "little") for key in keys}


def named(keys: Collection[int], names: Collection[str], seed: int, wall_ns: int) -> set[str]:
    """Which of these names of the campaign's bundle have one of these keys, under the seed of their segment."""
    model = parse(json.dumps(bundle(1)).encode(), wall_ns=wall_ns, environ={}).model
    counters = Segment.private(MIN_BYTES, seed=seed)
    policy = Compiler(counters, DEFAULT_OPTIONS, model.defaults).policy(model.policies[0], with_shadow=False)
    rules = {rule.tally.rule: rule for rule in policy.rules}
    now = Now(0, wall_ns)

    def key(name: str) -> int:
        (standing,) = rules[rule_of(name)[0]].standings(counters.table, name, now)
        return int(standing.key)

    return {name for name in names if key(name) in keys}
