"""Metrics: every family, declared once, and the objects that count.

A `Counter` is one series (a family with its label values) bound to a cell of the shared segment; compiled rules get
theirs at load and add to it with one atomic operation, so any worker can answer for all. A series is interned when it
first counts, which keeps ten thousand idle policies from filling the segment. Label values come from the bundle or
from a closed vocabulary, never from a client: no paths, no keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, Protocol


class Family(NamedTuple):
    """One metric family: its name without unit surprises, one sentence of help, its label names."""

    name: str
    help: str
    labels: tuple[str, ...]


DECISIONS: Final = Family(
    "fairvisor_decisions_total",
    "Requests decided, by the policy and rule that decided (the tightest one on an allow).",
    ("policy", "rule", "action", "reason"),
)
LIMIT_RESULTS: Final = Family(
    "fairvisor_limit_results_total", "Answers of single limits.", ("policy", "rule", "mode", "result")
)
DESCRIPTOR_MISSING: Final = Family(
    "fairvisor_descriptor_missing_total",
    "Requests that lacked a descriptor a rule counts by.",
    ("policy", "rule", "descriptor"),
)
SHADOW_REJECTS: Final = Family(
    "fairvisor_shadow_would_reject_total",
    "Requests a shadow policy would have rejected.",
    ("policy", "rule", "reason"),
)
LOOPS: Final = Family("fairvisor_loop_detected_total", "Requests found to be loops.", ("policy", "action"))
LOOPS_SKIPPED: Final = Family(
    "fairvisor_loop_skipped_total",
    "Requests not checked for loops because no body was supplied.",
    ("policy",),
)
BREAKER_TRIPS: Final = Family("fairvisor_circuit_trips_total", "Times a circuit breaker opened.", ("policy",))
TABLE_FULL: Final = Family(
    "fairvisor_table_full_total", "Operations that found no room in the counter table.", ("policy", "rule")
)
TOKENS_RESERVED: Final = Family("fairvisor_tokens_reserved_total", "LLM tokens reserved.", ("policy", "rule"))
ESTIMATE_MISSING: Final = Family(
    "fairvisor_estimate_missing_total", "LLM requests without a readable body or hint.", ("policy", "rule")
)
REPEATS: Final = Family(
    "fairvisor_repeated_requests_total", "Requests recognised by id and not charged again.", ()
)

FAMILIES: Final = (
    DECISIONS,
    LIMIT_RESULTS,
    DESCRIPTOR_MISSING,
    SHADOW_REJECTS,
    LOOPS,
    LOOPS_SKIPPED,
    BREAKER_TRIPS,
    TABLE_FULL,
    TOKENS_RESERVED,
    ESTIMATE_MISSING,
    REPEATS,
)


class Cells(Protocol):
    """Where series are interned and counted: the shared segment."""

    def series(self, name: str, labels: tuple[tuple[str, str], ...], /) -> int: ...

    @property
    def table(self) -> CellTable: ...


class CellTable(Protocol):
    def cell_add(self, index: int, amount: int, /) -> None: ...


class Counter:
    """One series. `hit()` counts one and `add(amount)` more; both are atomic over all processes."""

    __slots__ = ("_cells", "_family", "_index", "_values", "hit")

    hit: Callable[[], object]

    def __init__(self, cells: Cells, family: Family, *values: str) -> None:
        assert len(values) == len(family.labels), "one value for each label"
        self._cells = cells
        self._family = family
        self._values = values
        self._index = -1
        self.hit = self.add  # until it is interned: then the bare operation of the table

    def add(self, amount: int = 1) -> None:
        """Count `amount` more."""
        cell_add = self._cells.table.cell_add
        if self._index < 0:
            labels = tuple(zip(self._family.labels, self._values, strict=True))
            self._index = self._cells.series(self._family.name, labels)
            self.hit = partial(cell_add, self._index, 1)
        cell_add(self._index, amount)


class Tally:
    """What one limit of one policy counts. `allowed` and `admitted` are counted for most requests, the rest rarely."""

    __slots__ = ("_cells", "_rare", "admitted", "allowed", "mode", "policy_id", "refused", "rule")

    def __init__(self, cells: Cells, policy_id: str, rule: str, mode: str) -> None:
        self._cells = cells
        self.policy_id = policy_id
        self.rule = rule
        self.mode = mode
        self.allowed = Counter(cells, LIMIT_RESULTS, policy_id, rule, mode, "allowed")
        self.refused = Counter(cells, LIMIT_RESULTS, policy_id, rule, mode, "refused")
        self.admitted = Counter(cells, DECISIONS, policy_id, rule, "allow", "")
        self._rare: dict[tuple[str, ...], Counter] = {}

    def add(self, family: Family, *values: str, amount: int = 1) -> None:
        """Count in a family whose first labels are the policy and, where it has that label, the rule."""
        series = (family.name, *values)
        counter = self._rare.get(series)
        if counter is None:
            own = (self.policy_id, self.rule) if "rule" in family.labels else (self.policy_id,)
            counter = self._rare[series] = Counter(self._cells, family, *own, *values)
        counter.add(amount)
