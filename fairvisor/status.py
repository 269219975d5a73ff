"""What an instance is doing, for the person on call: workers, bundle, segment, decisions, faults. Any worker can tell.

Everything is read from shared memory at the moment it is asked for; nothing is kept here. Times are ISO 8601 in UTC,
ages in seconds.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from operator import itemgetter
from typing import Any

import fairvisor
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.counters.series import Labels
from fairvisor.follow import Current
from fairvisor.metrics import DECISIONS, SHADOW_REJECTS
from fairvisor.metrics.families import UNDECIDED, UNDECIDED_LAST
from fairvisor.notes import RELOAD, Note
from fairvisor.processes import pid_of
from fairvisor.reload import Publisher

Report = dict[str, Any]


def status_of(
    instance: str, segment: Segment, publisher: Publisher, current: Current | None, now: Now
) -> Report:
    """Everything, as plain data."""
    table = segment.table
    note = publisher.notes.get(RELOAD)
    problems = list(current.identity.problems()) if current is not None else []
    return {
        "version": fairvisor.__version__,
        "instance": instance,
        "ready": current is not None and not problems,
        "bundle": _bundle(current, publisher, now) if current is not None else None,
        "reload_error": _note(note) if note is not None else None,
        "faults": {name: _note(fault) for name, fault in publisher.notes.faults().items()},
        "identity": {
            "problems": problems,
            "warnings": list(current.identity.warnings()) if current is not None else [],
        },
        "workers": [
            {
                "pid": pid_of(worker.process),
                "generation": worker.generation,
                "heartbeat_age_seconds": _age(worker.heartbeat_ns, now.mono_ns),
                "connections": worker.connections,
                "waiting": worker.waiting,
                "leader": pid_of(worker.process) == table.word_get(Word.LEADER_PID),
            }
            for worker in publisher.registry.workers()
        ],
        "master": table.word_get(Word.MASTER_PID),
        "snapshot": _time(table.word_get(Word.SNAPSHOT_WALL_NS)),
        "segment": {"name": segment.name, **segment.statistics(now.mono_ns)._asdict()},
        "decisions": _decisions(segment),
        "undecided": _undecided(segment, now),
    }


def _bundle(current: Current, publisher: Publisher, now: Now) -> Report:
    about, bundle = current.about, current.bundle
    return {
        "version": about.version,
        "sha256": about.sha256,
        "generation": publisher.generation,
        "source": about.source,
        "published": _time(about.published_ns),
        "expires": _time(about.expires_at_ns or 0),
        "expired": about.expires_at_ns is not None and about.expires_at_ns <= now.wall_ns,
        "policies": about.policies,
        "shadow_policies": about.shadow_policies,
        "kill_switches": about.kill_switches,
        "kill_switches_in_force": bundle.kill_switches.in_force(now.wall_ns),
        "global_shadow": now.wall_ns < bundle.shadow_until_ns,
        "kill_switch_override": now.wall_ns < bundle.override_until_ns,
        "warnings": list(about.warnings),
    }


def _decisions(segment: Segment) -> Report:
    """Since the segment was made: by action, rejects by reason, what shadow policies would have rejected."""
    actions: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    shadow: Counter[str] = Counter()
    for name, labels, count in segment.series_values():
        if name == DECISIONS.name:
            label = dict(labels)
            actions[label["action"]] += count
            if label["reason"]:
                reasons[label["reason"]] += count
        elif name == SHADOW_REJECTS.name:
            shadow[dict(labels)["reason"]] += count
    return {
        "by_action": dict(actions),
        "by_reason": dict(reasons.most_common()),
        "would_reject": dict(shadow.most_common()),
    }


def _undecided(segment: Segment, now: Now) -> list[Report]:
    """Requests that got an error instead of a decision, since the segment was made; the latest kind first."""
    counts: Counter[Labels] = Counter()
    last_s: dict[Labels, int] = {}
    for cell, name, labels in segment.series_entries(1, segment.series_used + 1):
        if name == UNDECIDED.name:
            counts[labels] += segment.table.cell_get(cell)
        elif name == UNDECIDED_LAST.name:
            last_s[labels] = max(segment.table.cell_get(cell), last_s.get(labels, 0))
    return [
        {
            **dict(labels),
            "requests": counts[labels],
            "last_age_seconds": max(0, now.wall_ns // NS_PER_S - seconds),
        }
        for labels, seconds in sorted(last_s.items(), key=itemgetter(1), reverse=True)
        if counts[labels]
    ]


def _note(note: Note) -> Report:
    return {"text": note.text, "since": _time(note.since_ns)}


def _time(wall_ns: int) -> str | None:
    """None for 0, which stands for never."""
    if not wall_ns:
        return None
    return datetime.fromtimestamp(wall_ns // NS_PER_S, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _age(then_ns: int, now_ns: int) -> float:
    return round(max(0, now_ns - then_ns) / NS_PER_S, 1)
