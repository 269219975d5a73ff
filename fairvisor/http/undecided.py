"""What is said when no decision can be made: fail-open or fail-closed, in one place for every way of asking.

A missing bundle is 503 always; a failure of the engine is 503, or passes where FAIRVISOR_FAIL_OPEN says so. Either is
counted and goes to the audit log. It knows nothing of requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairvisor.decision import Reason
from fairvisor.metrics import DECISIONS, Cells, Counter
from fairvisor.response import Answer, unavailable_answer

if TYPE_CHECKING:
    from fairvisor.audit import Audit


class Undecided:
    """Speaks for the requests of one process that nothing could be decided about."""

    def __init__(self, cells: Cells, fail_open: bool, audit: Audit | None) -> None:
        self._fail_open = fail_open
        self._audit = audit
        self._failed_open = Counter(cells, DECISIONS, "", "", "allow", Reason.ENGINE_ERROR.value)
        self._refused = {
            reason: Counter(cells, DECISIONS, "", "", "reject", reason.value)
            for reason in (Reason.ENGINE_ERROR, Reason.NO_BUNDLE_LOADED)
        }

    def passes(self) -> bool:
        """Whether a request passes that the engine failed on; counted if it does."""
        if self._fail_open:
            self._failed_open.add()
            if self._audit is not None:
                self._audit.undecided("allow", Reason.ENGINE_ERROR)
        return self._fail_open

    def refuse(self, reason: Reason, path: str = "") -> Answer:
        """503, counted, in the dialect of the path: where a gateway asks, its own setting decides."""
        self._refused[reason].add()
        if self._audit is not None:
            self._audit.undecided("reject", reason)
        return unavailable_answer(reason, path)
