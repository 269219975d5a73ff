"""A replay as plain data, for programs as it is and for people to be printed.

Times are ISO 8601 in UTC, counts whole numbers, and every limit of the bundle is there, also those that did nothing.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final

from fairvisor.clock import NS_PER_S
from fairvisor.counters.sketch import Frequent
from fairvisor.replay.findings import Finding
from fairvisor.replay.reading import RequestLog
from fairvisor.replay.run import Replay
from fairvisor.rules.limit import Described

COLUMNS: Final = 48  # of a timeline

Report = dict[str, Any]


def report_of(replay: Replay, log: RequestLog | None, *, dry_run: bool, top: int) -> Report:
    """What came of a replay; `log` is None where the requests were made up, `top` how many keys are named."""
    clock = replay.clock
    start_s, end_s = clock.first_ns // NS_PER_S, clock.last_ns // NS_PER_S
    findings = replay.findings()
    return {
        "log": _log(replay, log) if log is not None else None,
        "dry_run": dry_run,
        "requests": replay.decided,
        "from": _time(start_s) if replay.decided else None,
        "to": _time(end_s) if replay.decided else None,
        "decisions": {
            "allow": replay.decided - replay.rejected - sum(replay.marked.values()),
            "warn": replay.marked["warn"],
            "throttle": replay.marked["throttle"],
            "reject": replay.rejected,
        },
        "limits": [_limit(finding, replay, start_s, end_s, top) for finding in findings],
        "lacking": [
            {"policy": finding.policy, "rule": finding.rule, "descriptors": list(finding.lacking)}
            for finding in findings
            if finding.lacking
        ],
    }


def _log(replay: Replay, log: RequestLog) -> Report:
    return {
        "name": log.name,
        "format": log.format,
        "unreadable": log.unreadable,
        "unreadable_examples": [complaint._asdict() for complaint in log.complaints],
        "cut_short": log.cut_short or None,
        "out_of_order": replay.clock.late,
        "without_host": replay.without_host,
        "unanswerable": dict(replay.unanswerable),
    }


def _limit(finding: Finding, replay: Replay, start_s: int, end_s: int, top: int) -> Report:
    rejects = finding.rejects
    rejected = rejects.total
    when: Report = {"first": None, "last": None, "worst_minute": None, "timeline": []}
    if rejected:
        when = {
            "first": _time(rejects.first_ns // NS_PER_S),
            "last": _time(rejects.last_ns // NS_PER_S),
            "worst_minute": {"from": _time(rejects.worst_minute * 60), "rejected": rejects.worst},
            "timeline": rejects.timeline.spread(start_s, end_s, COLUMNS),
        }
    return {
        "policy": finding.policy,
        "rule": finding.rule,
        "kind": finding.kind,
        "mode": "shadow" if finding.shadow else "enforce",
        "policy_requests": replay.routed[finding.policy] if finding.policy else replay.decided,
        "asked": finding.asked,
        "rejected": rejected,
        "reasons": dict(rejects.reasons),
        "warned": finding.marked["warn"],
        "throttled": finding.marked["throttle"],
        **when,
        "top": [_key(frequent) for frequent in rejects.top(top)],
        "lacking": list(finding.lacking),
        "missing": dict(finding.missing),
        "on_missing": finding.on_missing or None,
        "without_body": finding.blind,
    }


def _key(frequent: Frequent[Described]) -> Report:
    return {"keys": dict(frequent.key), "rejected": frequent.hits, "too_high_by_at_most": frequent.error}


def _time(wall_s: int) -> str:
    return datetime.fromtimestamp(wall_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
