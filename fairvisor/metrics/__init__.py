"""What is counted, and with what. No label takes a value from a client.

    families.py    every family: name, help, labels, kind
    counting.py    the objects that count, each bound to a cell of the shared segment

How the numbers become text for Prometheus is in `fairvisor/exposition.py`.
"""

from __future__ import annotations

from fairvisor.metrics.counting import Cells, Counter, Latency, Latest, Lowest, Open, Tally, TokenMeter
from fairvisor.metrics.families import (
    BREAKER_TRIPS,
    CIRCUIT_STATE,
    DECISIONS,
    DESCRIPTOR_MISSING,
    ESTIMATE_MISSING,
    FAMILIES,
    KILL_SWITCH_HITS,
    LIMIT_RESULTS,
    LOOPS,
    LOOPS_SKIPPED,
    RELOADS,
    REMAINING,
    REPEATS,
    SHADOW_REJECTS,
    TABLE_FULL,
    TOKENS_REMAINING,
    TOKENS_RESERVED,
    Family,
)

__all__ = [
    "BREAKER_TRIPS",
    "CIRCUIT_STATE",
    "DECISIONS",
    "DESCRIPTOR_MISSING",
    "ESTIMATE_MISSING",
    "FAMILIES",
    "KILL_SWITCH_HITS",
    "LIMIT_RESULTS",
    "LOOPS",
    "LOOPS_SKIPPED",
    "RELOADS",
    "REMAINING",
    "REPEATS",
    "SHADOW_REJECTS",
    "TABLE_FULL",
    "TOKENS_REMAINING",
    "TOKENS_RESERVED",
    "Cells",
    "Counter",
    "Family",
    "Latency",
    "Latest",
    "Lowest",
    "Open",
    "Tally",
    "TokenMeter",
]
