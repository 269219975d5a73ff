"""How many lines a second the audit log takes, and what their chain costs: `python -m perf.audit`.

Batches as large as a worker ever writes at once are appended to a file, as they are, chained, and chained with a key.
Other threads of a worker decide meanwhile: what counts is that a batch takes a small part of the
tenth of a second in which it came together.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Final

from fairvisor.audit import LINES_PER_BATCH
from fairvisor.linefile import LineFile

BATCHES: Final = 100
LINE: Final = {
    "time": "2026-03-02T10:15:00.123Z",
    "action": "reject",
    "reason": "rate_limit_exceeded",
    "policy": "api",
    "rule": "per-customer",
    "mode": "enforce",
    "key": {"jwt:sub": "h:039b9e1e68cb023c"},
    "count": 16,
    "worker": 4711,
}


def main() -> None:
    """Measure and print."""
    batch = [json.dumps(LINE, separators=(",", ":")).encode() + b"\n"] * LINES_PER_BATCH
    for name, key in (("as they are", None), ("chained", b""), ("chained with a key", b"k" * 32)):
        with tempfile.TemporaryDirectory() as place:
            log = LineFile(Path(place) / "audit.log", key)
            began = time.perf_counter()
            for _ in range(BATCHES):
                log.append(batch)
            took_s = time.perf_counter() - began
            log.close()
        each_ms = took_s * 1000 / BATCHES
        print(
            f"{name:20} {BATCHES * LINES_PER_BATCH / took_s:>10,.0f} lines/s  {each_ms:.1f} ms a batch of 1,000"
        )


if __name__ == "__main__":
    main()
