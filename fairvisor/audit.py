"""The audit log: every enforcement action, as JSON lines that a flood cannot make large.

Requests leave a count behind (`note`), a thread writes them as lines every 100 ms (`flush`). Actions of the same limit,
reason and key within a batch are one line with a count. A batch has at most 1,000 lines with a key, and a worker at
most 200 a second in the long run; what comes beyond that is one line for each policy, rule and reason, without a key.
What cannot be written is kept in that form until it can be: the sum of all counts is what happened. Keys are logged
as keyed hashes, unless the operator wants them plain. What happens once (an operator's action, a new bundle) is a line
of its own.

It knows decisions and lines. It knows nothing of HTTP, threads or files; time is passed in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from hashlib import blake2b
from typing import Final, NamedTuple, Protocol

import orjson

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.decision import Decision, Reason, Verdict
from fairvisor.linefile import Lines, PartlyWritten
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
MAX_RECORDS: Final = 1000  # of what happens once, while the log cannot be written

MAX_VALUE: Final = 128  # characters of a plain value, and descriptors of a key: a line stays below 4 KiB
MAX_DESCRIPTORS: Final = 8
_SLICE: Final = 50  # lines made at once; other threads run in between

REJECT: Final = "reject"
WOULD_REJECT: Final = "would_reject"
TRIPPED: Final = "circuit_breaker_opened"
STREAM_ENDED: Final = "stream_ended"


class Subject(NamedTuple):
    """What an action was, without whom it hit."""

    action: str
    reason: str
    policy: str
    rule: str
    mode: str


class Entry:
    """Actions on one key: how many in this batch, and how many tokens the streams had that were ended."""

    __slots__ = ("count", "described", "limit", "reason", "subject", "tokens")

    def __init__(self, limit: Limit, reason: str, subject: Subject, described: Described) -> None:
        self.limit = limit  # it and `reason` are held: their identity is the batch's key
        self.reason = reason
        self.subject = subject
        self.described = described
        self.count = 1
        self.tokens = 0


class Target(Lines, Protocol):
    """Where the lines of the log go. `lose` counts events that will never be written. `close` may raise OSError."""

    def lose(self, events: int, /) -> None: ...

    def close(self) -> None: ...


class Audit:
    """The audit log of one process. `note` and `record` may be called from any thread, `flush` from one."""

    def __init__(
        self,
        cells: Cells,
        target: Target,
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
        self._lost = 0
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

    def stream_ended(self, limit: Limit, described: Described, reason: str, tokens: int) -> None:
        """Count a stream that was ended at its limit, after so many tokens."""
        spot = (id(limit), id(reason), hash(described))
        with self._lock:
            entry = self._batch.get(spot)
            if entry is not None:
                entry.count += 1
            else:
                entry = Entry(limit, reason, _subject(STREAM_ENDED, limit, reason), described)
                self._begin(spot, entry)
            entry.tokens += tokens

    def record(self, action: str, fields: Mapping[str, object], now: Now) -> None:
        """Log an event that is not counted with others: an action of an operator."""
        self.log([record_of(action, fields, now)])

    def log(self, records: Sequence[Mapping[str, object]]) -> None:
        """Log records that `record_of` made, in this or another process."""
        with self._lock:
            room = max(0, MAX_RECORDS - len(self._records))
            self._records += [{**record, "worker": self._worker} for record in records[:room]]
            if records[room:]:
                self._lose(len(records) - room)

    def key_of(self, described: Described) -> dict[str, str | None]:
        """Return a key as it is written."""
        return {
            name: None if value is None else self._key_text(name, value)
            for name, value in described[:MAX_DESCRIPTORS]
        }

    def probe(self) -> None:
        """Find out whether the log can be written, before there is anything to write."""
        try:
            self._target.append(())
            self.problem = None
        except PartlyWritten as problem:
            self.problem = problem

    def flush(self, now: Now) -> int:
        """Write what has come together; how many lines. `problem` says why some could not be written.

        With nothing to write, a problem is looked at again: it may be gone.
        """
        batch, merged, records, lost = self._take(now)
        self._target.lose(lost)
        if not (batch or merged or records):
            if self.problem is not None:
                self.probe()
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
        """Count what is lost when the process stops and cannot write any more, for the metrics and the next writer."""
        with self._lock:
            lost = sum(self._merged.values()) + sum(entry.count for entry in self._batch.values())
            if lost + len(self._records):
                self._lose(lost + len(self._records))
            self._batch, self._merged, self._records = {}, {}, []
            self._target.lose(self._lost)
        with suppress(OSError):  # the directory of the log is gone too: only the metric has the number
            self._target.close()

    def _lose(self, events: int) -> None:
        self._lost += events
        self._counters[AUDIT_DROPPED].add(events)

    def _count(self, action: str, limit: Limit, reason: str, key: int, context: Context) -> None:
        spot = (id(limit), id(reason), key or hash(limit.describe(context)) or 1)
        self._lock.acquire()  # no `with`: compiled, it takes as long as all the rest
        try:
            entry = self._batch.get(spot)
            if entry is not None:  # what a flood consists of: another reject of the same key
                entry.count += 1
                return
            subject = _subject(action, limit, reason)
            if self._room > 0:
                self._begin(spot, Entry(limit, reason, subject, limit.describe(context)))
            else:
                self._merge(subject, 1)
        finally:
            self._lock.release()

    def _begin(self, spot: tuple[int, int, int], entry: Entry) -> None:
        """Add a line with a key while there is room for one, else count the action without its key."""
        if self._room > 0:
            self._room -= _room_of(entry.described)
            self._batch[spot] = entry
        else:
            self._merge(entry.subject, 1)

    def _merge(self, subject: Subject, count: int) -> None:
        self._merged[subject] = self._merged.get(subject, 0) + count

    def _take(
        self, now: Now
    ) -> tuple[dict[tuple[int, int, int], Entry], dict[Subject, int], list[Mapping[str, object]], int]:
        with self._lock:
            taken = self._batch, self._merged, self._records, self._lost
            self._batch, self._merged, self._records, self._lost = {}, {}, [], 0
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
            line = self._line(time, entry.subject, entry.count, self.key_of(entry.described), entry.tokens)
            yield line, entry.subject, entry.count, False
            if number % _SLICE == 0:
                self._pause()
        for subject, count in merged.items():
            yield self._line(time, subject, count, None), subject, count, True

    def _line(
        self,
        time: str,
        subject: Subject,
        count: int,
        key: Mapping[str, str | None] | None,
        tokens: int = 0,
    ) -> bytes:
        line: dict[str, object] = {"time": time, **subject._asdict()}
        if key is not None:
            line["key"] = key
        if tokens:
            line["tokens"] = tokens
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


def record_of(action: str, fields: Mapping[str, object], now: Now) -> dict[str, object]:
    """Return the fields of an event that is logged once, as `Audit.log` takes them."""
    return {"time": _time(now), "action": action, **fields}


def key_writer(audit_keys: str, secret: bytes) -> Callable[[str, str], str]:
    """Return how a descriptor's value is written: plain or hashed, as FAIRVISOR_AUDIT_KEYS says."""
    return plain if audit_keys == "plain" else hashed(secret)


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


def _subject(action: str, limit: Limit, reason: str) -> Subject:
    tally = limit.tally
    name = reason.value if isinstance(reason, Reason) else reason
    return Subject(action, name, tally.policy_id, tally.rule, tally.mode)


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
