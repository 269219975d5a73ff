"""The audit log: every enforcement action, as JSON lines that a flood cannot make large.

Requests leave a count behind (`note`), a thread writes them as lines every 100 ms (`flush`). Actions of the same limit,
reason and key within a batch are one line with a count. A batch has at most 1,000 lines with a key, and a worker at
most 200 a second in the long run; what comes beyond that is one line for each policy, rule and reason, without a key.
What cannot be written is kept in that form until it can be: the sum of all counts is what happened. Keys are logged
as keyed hashes, unless the operator wants them plain.

It knows decisions and lines. It knows nothing of HTTP, threads or files; time is passed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

import orjson

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.decision import Decision, Reason, Verdict
from fairvisor.linefile import PartlyWritten
from fairvisor.metrics import Cells, Counter
from fairvisor.metrics.families import AUDIT_DROPPED, AUDIT_EVENTS, AUDIT_LINES, AUDIT_MERGED
from fairvisor.rules.limit import Described, Limit
from fairvisor.visible import visible_json

LINES_PER_BATCH: Final = 1000
# In the long run; a worker that was quiet may write ten seconds' worth at once. A million rejects in a minute then
# leave less than 3 MB per worker.
LINES_PER_S: Final = 200
LINES_SAVED: Final = 10 * LINES_PER_S
CHARACTERS_PER_LINE: Final = (
    1024  # of a key that waits to be written: a longer one takes the room of several lines
)
MAX_RECORDS: Final = 1000  # of the operators' actions, while the log cannot be written

MAX_VALUE: Final = 128  # characters of a plain value, and descriptors of a key: a line stays below 4 KiB
MAX_DESCRIPTORS: Final = 8
_SLICE: Final = 50  # lines made at once; other threads run in between

REJECT: Final = "reject"
WOULD_REJECT: Final = "would_reject"
TRIPPED: Final = "circuit_breaker_opened"


class Subject(NamedTuple):
    """What an action was, without whom it hit."""

    action: str
    reason: str
    policy: str
    rule: str
    mode: str


class Entry:
    """Actions on one key: how many in this batch."""

    __slots__ = ("count", "described", "limit", "reason", "subject")

    def __init__(self, limit: Limit, reason: str, subject: Subject, described: Described) -> None:
        self.limit = limit  # it and `reason` are held: their identity is the batch's key
        self.reason = reason
        self.subject = subject
        self.described = described
        self.count = 1


class Lines(Protocol):
    """Where lines go. `append` raises PartlyWritten when not all of them could be written."""

    def append(self, lines: Sequence[bytes], /) -> None: ...


class Audit:
    """The audit log of one process. `note` and `record` may be called from any thread, `flush` from one."""

    def __init__(
        self,
        cells: Cells,
        target: Lines,
        key_text: Callable[[str, str], str],
        worker: int,
        pause: Callable[[], object],
    ) -> None:
        """`key_text` says how a descriptor's value is written, `pause` lets other threads run."""
        self._target = target
        self._key_text = key_text
        self._worker = worker
        self._pause = pause
        self._counters = {
            family: Counter(cells, family)
            for family in (AUDIT_EVENTS, AUDIT_LINES, AUDIT_MERGED, AUDIT_DROPPED)
        }
        self._lock = threading.Lock()
        # what changes
        self._batch: dict[tuple[int, int, int], Entry] = {}
        self._merged: dict[Subject, int] = {}
        self._records: list[Mapping[str, object]] = []
        self._saved = LINES_SAVED
        self._room = LINES_PER_BATCH
        self._flushed_ns = 0
        self.problem: OSError | None = None

    def note(self, decision: Decision, context: Context) -> None:
        """Count what a decision did."""
        verdict = decision.verdict
        if verdict is not None and verdict.reason is not None:
            self._count(REJECT, verdict.limit, verdict.reason, verdict.key, context)
        for verdict in decision.would_reject:
            assert verdict.reason is not None, "a refusal says why"
            self._count(WOULD_REJECT, verdict.limit, verdict.reason, verdict.key, context)
        for verdict in decision.marked:
            self._count(verdict.action.value, verdict.limit, _remark(verdict), verdict.key, context)
        for limit in decision.tripped:
            self._count("trip", limit, TRIPPED, 0, context)

    def undecided(self, action: str, reason: Reason) -> None:
        """Count a request that was answered without a policy: there is no bundle, or the engine failed."""
        with self._lock:
            self._merge(Subject(action, reason.value, "", "", ""), 1)

    def record(self, action: str, fields: Mapping[str, object], now: Now) -> None:
        """Log something that happens once: a bundle was replaced, an operator did something."""
        with self._lock:
            if len(self._records) < MAX_RECORDS:
                self._records.append({"time": _time(now), "action": action, **fields, "worker": self._worker})
            else:
                self._counters[AUDIT_DROPPED].add()

    def probe(self) -> None:
        """Find out whether the log can be written, before there is anything to write."""
        try:
            self._target.append(())
            self.problem = None
        except PartlyWritten as problem:
            self.problem = problem

    def flush(self, now: Now) -> int:
        """Write what has come together; how many lines. `problem` says why some could not be written."""
        batch, merged, records = self._take(now)
        if not (batch or merged or records):
            return 0
        entries: list[tuple[Subject, int, bool]] = []
        lines = [visible_json(orjson.dumps(record, default=str)) + b"\n" for record in records]
        for line, subject, count, is_merged in self._made(batch, merged, now):
            lines.append(line)
            entries.append((subject, count, is_merged))
        written = len(lines)
        try:
            self._target.append(lines)
            self.problem = None
        except PartlyWritten as problem:
            written = problem.lines
            self.problem = problem
        self._account(entries[: max(0, written - len(records))], written)
        self._keep(records[written:], entries[max(0, written - len(records)) :])
        return written

    def give_up(self) -> None:
        """The process stops and nothing more can be written: say how much is lost."""
        with self._lock:
            lost = sum(self._merged.values()) + sum(entry.count for entry in self._batch.values())
            if lost + len(self._records):
                self._counters[AUDIT_DROPPED].add(lost + len(self._records))
            self._batch, self._merged, self._records = {}, {}, []

    def _count(self, action: str, limit: Limit, reason: str, key: int, context: Context) -> None:
        spot = (id(limit), id(reason), key or hash(limit.describe(context)) or 1)
        self._lock.acquire()  # no `with`: compiled, it takes as long as all the rest
        try:
            entry = self._batch.get(spot)
            if entry is not None:  # what a flood consists of: another reject of the same key
                entry.count += 1
                return
            tally = limit.tally
            name = reason.value if isinstance(reason, Reason) else reason
            subject = Subject(action, name, tally.policy_id, tally.rule, tally.mode)
            if self._room > 0:
                described = limit.describe(context)
                self._room -= _room_of(described)
                self._batch[spot] = Entry(limit, reason, subject, described)
            else:
                self._merge(subject, 1)
        finally:
            self._lock.release()

    def _merge(self, subject: Subject, count: int) -> None:
        self._merged[subject] = self._merged.get(subject, 0) + count

    def _take(
        self, now: Now
    ) -> tuple[dict[tuple[int, int, int], Entry], dict[Subject, int], list[Mapping[str, object]]]:
        with self._lock:
            taken = self._batch, self._merged, self._records
            self._batch, self._merged, self._records = {}, {}, []
            passed_ns = now.mono_ns - self._flushed_ns if self._flushed_ns else 0
            self._flushed_ns = now.mono_ns
            earned = passed_ns * LINES_PER_S // NS_PER_S
            self._flushed_ns -= (
                passed_ns - earned * NS_PER_S // LINES_PER_S
            )  # what is left over counts next time
            self._saved = min(LINES_SAVED, self._saved + earned) - len(taken[0])
            self._room = max(0, min(LINES_PER_BATCH, self._saved))
        return taken

    def _made(
        self, batch: dict[tuple[int, int, int], Entry], merged: dict[Subject, int], now: Now
    ) -> Iterator[tuple[bytes, Subject, int, bool]]:
        """Lines with what they count, and whether they lack their key."""
        time = _time(now)
        for number, entry in enumerate(batch.values(), 1):
            key = {
                name: None if value is None else self._key_text(name, value)
                for name, value in entry.described[:MAX_DESCRIPTORS]
            }
            yield self._line(time, entry.subject, entry.count, key), entry.subject, entry.count, False
            if number % _SLICE == 0:
                self._pause()
        for subject, count in merged.items():
            yield self._line(time, subject, count, None), subject, count, True

    def _line(self, time: str, subject: Subject, count: int, key: Mapping[str, str | None] | None) -> bytes:
        line: dict[str, object] = {"time": time, **subject._asdict()}
        if key is not None:
            line["key"] = key
        return visible_json(orjson.dumps({**line, "count": count, "worker": self._worker})) + b"\n"

    def _account(self, written: Sequence[tuple[Subject, int, bool]], lines: int) -> None:
        events = sum(count for _, count, _ in written)
        merged = sum(count for _, count, is_merged in written if is_merged)
        for family, amount in ((AUDIT_EVENTS, events), (AUDIT_LINES, lines), (AUDIT_MERGED, merged)):
            if amount:
                self._counters[family].add(amount)

    def _keep(
        self, records: Sequence[Mapping[str, object]], unwritten: Sequence[tuple[Subject, int, bool]]
    ) -> None:
        with self._lock:
            self._records[:0] = records
            for subject, count, _ in unwritten:
                self._merge(subject, count)


def hashed(secret: bytes) -> Callable[[str, str], str]:
    """How keys are written unless they are to be plain: hashed with a secret of the instance (BLAKE2b, RFC 7693)."""
    key = blake2b(b"fairvisor audit keys", key=secret, digest_size=32).digest()

    def text(name: str, value: str) -> str:
        data = f"{name}\0{value}".encode("utf-8", "surrogatepass")
        return "h:" + blake2b(data, key=key, digest_size=8).hexdigest()

    return text


def plain(name: str, value: str) -> str:
    """A key as it is, cut where it is long (claims may hold lone surrogates, which JSON files may not)."""
    return value[:MAX_VALUE].encode("utf-8", "replace").decode()


def _room_of(described: Described) -> int:
    """How many lines' room a key takes until it is written: it is held as it is, however long a client made it."""
    return 1 + sum([len(value) // CHARACTERS_PER_LINE for _, value in described if value])


def _remark(verdict: Verdict) -> str:
    """The warning that the client reads too: `budget_warn`, `budget_throttle`, `loop_warn` or `loop_throttle`."""
    return _REMARKS[verdict.loop_count > 0, verdict.action.value]


_REMARKS: Final = {
    (looped, action): f"{'loop' if looped else 'budget'}_{action}"
    for looped in (False, True)
    for action in ("warn", "throttle")
}


def _time(now: Now) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    seconds, rest_ns = divmod(now.wall_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest_ns // 1_000_000:03}Z"
