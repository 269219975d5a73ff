"""A fault campaign: clients count what was admitted while processes are killed, stopped and starved; then it is proved.

Every request is for a key with a quota, half of them budgets and half buckets, and some are refused by a later rule.
What must hold whatever happened, for each key: no more was admitted than its quota; what the counter holds was
admitted, or belongs to a request that a hurt worker (killed, or out of memory) left unanswered or answered 503; and no
other worker lost a request. A key is exempt when a bit of its own slot was flipped: such a flip is a change of that
counter, and of no other. Which faults there are stands in `faults.py`, who chooses them is the test, or `perf/chaos.py`
for longer. The clients take part in no fault and know of none.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Collection
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any, NamedTuple

from edge_server import Client, Edge, ask, attach
from test_reload import worker_of

from fairvisor.cli.edge import Edge as Admin
from fairvisor.counters.segment import Segment
from fairvisor.http.hub import LINGER_S
from fairvisor.metrics import DECISIONS

QUOTA = 40
KEYS_AT_ONCE = 4
ASKED_PER_KEY = 5 * QUOTA
LATE_EVERY = 7  # of so many requests one is refused by the later rule
CLIENTS = 6
RULES = {"key": ("quota", "x-key"), "bucket": ("bucket", "x-bucket")}  # by the beginning of a key
_RETRY_S = 0.05
_PAUSE_S = 0.001  # between two requests: several campaigns share a machine
_STALE_S = (
    LINGER_S / 4
)  # unused for so long, a connection may end at any moment: a worker that stops waits no longer


def bundle(version: int) -> dict[str, Any]:
    """A quota for each key, and a later rule that refuses what the quota has already been charged for.

    What flows into a bucket during a run is no whole token, by the clock that buckets follow.
    """
    budget = {"budget": QUOTA, "period": "30d"}
    bucket = {"tokens_per_second": 0.0001, "burst": QUOTA}
    nothing = {"budget": 0.5, "period": "30d"}
    rules = [
        {
            "name": "quota",
            "limit_keys": ["header:x-key"],
            "algorithm": "cost_based",
            "algorithm_config": budget,
        },
        {
            "name": "bucket",
            "limit_keys": ["header:x-bucket"],
            "algorithm": "token_bucket",
            "algorithm_config": bucket,
        },
        {
            "name": "later",
            "limit_keys": [],
            "match": {"header:x-late": "yes"},
            "algorithm": "cost_based",
            "algorithm_config": nothing,
        },
    ]
    policy = {"id": "all", "spec": {"selector": {"pathPrefix": "/"}, "rules": rules}}
    return {"bundle_version": version, "policies": [policy]}


def start_edge_on(machine: Path, place: Path, workers: int, **environ: str) -> Edge:
    """An edge with that bundle on a machine (its control file), with its operators' socket and audit log in `place`."""
    command = [sys.executable, str(Path(__file__).with_name("fake_machine.py")), str(machine), "serve"]
    environ = {
        "FAIRVISOR_WORKER_PROCESSES": str(workers),
        "FAIRVISOR_ADMIN_BIND": f"unix:{place}/admin",
        "FAIRVISOR_AUDIT_LOG": f"{place}/audit.log",
        **environ,
    }
    return Edge(place, bundle(1), environ, program=command)


class Ledger:
    """What the clients saw, by key: how many were admitted, and how many got no answer. Shared by their threads."""

    def __init__(self) -> None:
        self.asked = 0
        self.admitted: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.left_by: Counter[int] = Counter()  # pids that owed an answer
        self.failed_by: Counter[int] = Counter()  # pids that answered 503
        self.odd: Counter[str] = Counter()
        self._lock = threading.Lock()

    def next_request(self) -> tuple[str, bytes]:
        """A key, and a question for it. Keys go out of use when they were asked for often."""
        with self._lock:
            self.asked += 1
            asked = self.asked
        group, place = divmod(asked, KEYS_AT_ONCE * ASKED_PER_KEY)
        number = group * KEYS_AT_ONCE + place % KEYS_AT_ONCE
        key = f"key-{number}" if number % 2 else f"bucket-{number}"
        late = ("X-Late: yes",) if asked % LATE_EVERY == 0 else ()
        return key, ask("/", "GET", f"{rule_of(key)[1]}: {key}", *late)

    def answered(self, key: str, status: int, pid: int) -> None:
        with self._lock:
            self.admitted[key] += status == 204
            if status == 503:  # it may have failed after it charged
                self.unanswered[key] += 1
                self.failed_by[pid] += 1
            elif status not in (204, 429):
                self.odd[f"status {status}"] += 1

    def was_left(self, key: str, pid: int) -> None:
        """The connection ended with no answer."""
        with self._lock:
            self.unanswered[key] += 1
            self.left_by[pid] += 1


class Asking:
    """Threads that ask all the time, from entering to leaving the context."""

    def __init__(self, edge: Edge, ledger: Ledger) -> None:
        self._edge = edge
        self._ledger = ledger
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection: tuple[Client, int] | None = None
        while not self._stop.is_set():
            connection = connection or self._connect()
            used_s = time.monotonic()
            if connection is None:
                self._stop.wait(_RETRY_S)
            elif not self._asked_on(*connection):
                connection = None
            else:
                self._stop.wait(_PAUSE_S)
            if connection is not None and time.monotonic() - used_s > _STALE_S:
                connection[0].close()
                connection = None

    def _asked_on(self, client: Client, pid: int) -> bool:
        """One question; is the connection still good?"""
        key, question = self._ledger.next_request()
        try:
            client.send(question)
            status, headers, _ = client.answer()
        except (OSError, AssertionError):
            client.close()
            self._ledger.was_left(key, pid)
            return False
        self._ledger.answered(key, status, pid)
        if headers.get("connection") == "close":
            client.close()
            return False
        return True

    def _connect(self) -> tuple[Client, int] | None:
        """A connection and the worker that has it; None: nobody takes one now."""
        try:
            client = self._edge.connect()
        except OSError:
            return None
        try:
            client.send(b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n")
            if client.answer()[1].get("connection") != "close":
                return client, worker_of(self._edge, client)
        except (OSError, AssertionError):
            pass  # nothing was asked yet, so nothing is lost
        client.close()
        return None


class Found(NamedTuple):
    """What a campaign came to: violations of what is promised, and how much was seen."""

    violations: list[str]
    asked: int
    admitted: int
    unanswered: int
    keys: int
    exempt: int


def check(
    edge: Edge, ledger: Ledger, hurt: set[int], exempt: Collection[str] = (), counted_before: int = 0
) -> Found:
    """Compare what the clients saw with what the edge holds; nobody asks any more.

    `hurt`: processes that were killed or had no memory. `exempt`: keys of whose own counter a bit was flipped.
    `counted_before`: allows that segments counted which were replaced.
    """
    wrong = [f"{text} answered {times} times" for text, times in ledger.odd.items()]
    for what, blamed in (("left unanswered", ledger.left_by), ("answered with 503", ledger.failed_by)):
        wrong += [
            f"process {pid} was not hurt, and {times} requests were {what}"
            for pid, times in blamed.items()
            if pid not in hurt
        ]
    keys = sorted(ledger.admitted.keys() | ledger.unanswered.keys())
    for key in [key for key in keys if key not in exempt]:
        admitted, unanswered = ledger.admitted[key], ledger.unanswered[key]
        charged = _charged(edge, key)
        if admitted > QUOTA:
            wrong.append(f"{key}: {admitted} were admitted of {QUOTA}")
        if not admitted <= charged <= admitted + unanswered:
            wrong.append(f"{key}: {charged} charged, {admitted} admitted, {unanswered} unanswered")
    admitted, unanswered = ledger.admitted.total(), ledger.unanswered.total()
    counted = counted_before + allows(attach(edge.instance))
    if not admitted <= counted <= admitted + unanswered:
        wrong.append(f"/metrics has {counted} allows, the clients {admitted} and {unanswered} unanswered")
    return Found(wrong, ledger.asked, admitted, unanswered, len(keys), len(set(keys) & set(exempt)))


def rule_of(key: str) -> tuple[str, str]:
    """The rule that counts a key, and the header it comes in."""
    return RULES[key.partition("-")[0]]


def _charged(edge: Edge, key: str) -> Decimal:
    rule, header = rule_of(key)
    where = [("policy", "all"), ("rule", rule), ("key", f"header:{header}={key}")]
    (counter,) = admin_of(edge).ask("GET", "limits", where)["counters"]
    return QUOTA - Decimal(counter["remaining"]).quantize(1, ROUND_FLOOR)


def allows(segment: Segment) -> int:
    """The allows that a segment has counted."""
    return sum(
        value
        for name, labels, value in segment.series_values()
        if name == DECISIONS.name and ("action", "allow") in labels
    )


def admin_of(edge: Edge) -> Admin:
    return Admin(edge.environ["FAIRVISOR_ADMIN_BIND"], None)
