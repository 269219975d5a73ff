"""What a counter holds for somebody, for operators: found by the values of the limit keys instead of by a request.

A limit that counts by keys has `standings`, which names its counters for given values and reads them without charging
anything. A counter is forgotten by deleting its key: the next request finds a fresh one.
"""

from __future__ import annotations

from typing import NamedTuple

from fairvisor.decision import Quota


class Standing(NamedTuple):
    """One counter. `name` says which of its limit's it is, `reset_ns` when it is full again or its window ends."""

    name: str
    key: int
    quota: Quota
    remaining_u: int
    reset_ns: int
