"""The audit log: what becomes a line, how a flood stays small, and that no action goes uncounted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from edge import SEGMENT_BYTES, Edge, bucket, budget, policy, tokens

from fairvisor.audit import (
    CHARACTERS_PER_LINE,
    LINES_PER_BATCH,
    LINES_SAVED,
    MAX_RECORDS,
    Audit,
    hashed,
    plain,
    record_of,
)
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.segment import Segment
from fairvisor.decision import Reason
from fairvisor.linefile import LineFile, PartlyWritten

START = Now(NS_PER_S, 1_772_409_600_123_000_000)


class Log:
    """Takes lines; with `room` only as many as that, then the disk is full."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.size = 0
        self.room: int | None = None
        self.lost = 0
        self.is_closed = False

    def append(self, lines: Sequence[bytes]) -> None:
        taken = lines if self.room is None else lines[: self.room]
        self.lines += [json.loads(line) for line in taken]
        self.size += sum(map(len, taken))
        if len(taken) < len(lines):
            raise PartlyWritten(len(taken), OSError(28, "No space left on device"))

    def lose(self, events: int) -> None:
        self.lost += events

    def close(self) -> None:
        self.is_closed = True


class Audited:
    """An edge, its audit log, and requests that are asked and noted."""

    def __init__(self, *policies: Any, text: Any = plain, **more: Any) -> None:
        self.edge = Edge(*policies, **more)
        self.log = Log()
        self.audit = Audit(self.edge.segment, self.log, text, 77, lambda: None)
        self.now = START

    def ask(self, *request: Any, **more: Any) -> None:
        outcome = self.edge.ask(*request, **more)
        if outcome.decision.remarked:
            self.audit.note(outcome.decision, outcome.context)

    def flush(self, after_ms: int = 100) -> list[dict[str, Any]]:
        """The lines of this batch."""
        self.now = Now(self.now.mono_ns + after_ms * 1_000_000, self.now.wall_ns + after_ms * 1_000_000)
        before = len(self.log.lines)
        self.audit.flush(self.now)
        return self.log.lines[before:]

    def counted(self, name: str) -> int:
        return sum(value for series, _, value in self.edge.segment.series_values() if series == name)


def test_a_reject_says_when_what_and_for_whom() -> None:
    audited = Audited(policy("p", bucket("r", "header:x-key", burst=1)))
    audited.ask(key="alice")
    audited.ask(key="alice")
    assert audited.flush() == [
        {
            "time": "2026-03-02T00:00:00.223Z",
            "action": "reject",
            "reason": "rate_limit_exceeded",
            "policy": "p",
            "rule": "r",
            "mode": "enforce",
            "key": {"header:x-key": "alice"},
            "count": 1,
            "worker": 77,
        }
    ]


def test_an_allowed_request_leaves_nothing() -> None:
    audited = Audited(policy("p", bucket("r", burst=5)))
    audited.ask()
    assert audited.flush() == []


def test_the_same_action_on_the_same_key_is_one_line_with_a_count() -> None:
    audited = Audited(policy("p", bucket("r", "header:x-key", burst=1)))
    for key in "aababaab":
        audited.ask(key=key)
    assert {line["key"]["header:x-key"]: line["count"] for line in audited.flush()} == {"a": 4, "b": 2}
    audited.ask(key="a")
    assert [line["count"] for line in audited.flush()] == [1]


def test_keys_that_agree_in_one_of_their_parts_are_different_keys() -> None:
    audited = Audited(policy("p", bucket("r", "header:x-key", "query:q", burst=1)))
    for _ in range(2):
        for query in "12":
            audited.ask("GET", f"/?q={query}", key="a")
    assert [line["key"] for line in audited.flush()] == [
        {"header:x-key": "a", "query:q": "1"},
        {"header:x-key": "a", "query:q": "2"},
    ]


def test_budgets_tell_warnings_throttles_and_rejects() -> None:
    stages = [
        {"threshold_percent": 40, "action": "warn"},
        {"threshold_percent": 80, "action": "throttle", "delay_ms": 10},
        {"threshold_percent": 100, "action": "reject"},
    ]
    audited = Audited(policy("p", budget("b", amount=5, staged_actions=stages)))
    for _ in range(7):
        audited.ask()
    assert [(line["action"], line["reason"], line["count"]) for line in audited.flush()] == [
        ("warn", "budget_warn", 2),
        ("throttle", "budget_throttle", 2),
        ("reject", "budget_exhausted", 2),
    ]


def test_a_shadow_policy_tells_what_it_would_have_rejected() -> None:
    audited = Audited(policy("p", bucket("r", burst=1), mode="shadow"))
    for _ in range(3):
        audited.ask()
    lines = audited.flush()
    assert [(line["action"], line["mode"], line["count"]) for line in lines] == [
        ("would_reject", "shadow", 2)
    ]


def test_loops_name_the_values_of_the_policys_descriptors() -> None:
    loop = {"enabled": True, "window_seconds": 60, "threshold_identical_requests": 2, "action": "warn"}
    audited = Audited(policy("p", bucket("r", "header:x-key", burst=50), loop_detection=loop))
    for key in "aaab":
        audited.ask(key=key)
    (line,) = audited.flush()
    assert (line["action"], line["reason"], line["count"]) == ("warn", "loop_warn", 2)
    assert line["key"] == {"header:x-key": "a"}


def test_a_circuit_breaker_tells_that_it_opened_and_whom_it_rejects() -> None:
    breaker = {"enabled": True, "spend_rate_threshold_per_minute": 2, "scope": "key"}
    audited = Audited(policy("p", bucket("r", "header:x-key", burst=50), circuit_breaker=breaker))
    for _ in range(4):
        audited.ask(key="a")
    lines = audited.flush()
    assert [(line["action"], line["reason"], line["count"]) for line in lines] == [
        ("trip", "circuit_breaker_opened", 1),
        ("reject", "circuit_breaker_open", 2),
    ]
    assert all(line["key"] == {"header:x-key": "a"} for line in lines)


def test_a_kill_switch_tells_what_it_looked_at() -> None:
    switches = [{"scope_key": "header:x-key", "scope_value": "*"}]
    audited = Audited(policy("p", bucket("r")), kill_switches=switches)
    for key in "aba":
        audited.ask(key=key)
    lines = audited.flush()
    assert {line["key"]["header:x-key"]: line["count"] for line in lines} == {"a": 2, "b": 1}
    assert {line["reason"] for line in lines} == {"kill_switch_active"}


def test_a_missing_descriptor_is_null() -> None:
    audited = Audited(policy("p", bucket("r", "header:x-other", on_missing="reject")))
    audited.ask()
    (line,) = audited.flush()
    assert (line["reason"], line["key"]) == ("descriptor_missing", {"header:x-other": None})


def test_one_limit_tells_its_reasons_apart() -> None:
    audited = Audited(policy("p", tokens("t", tpm=1000, tokens_per_day=1500, default_max_completion=900)))
    for _ in range(2):
        audited.ask("POST", "/", body={"max_tokens": 900})
    audited.ask("POST", "/", body={"max_tokens": 5000})
    assert {line["reason"] for line in audited.flush()} == {"tpm_exceeded", "max_tokens_per_request_exceeded"}


def test_a_request_that_no_policy_answered_is_counted_too() -> None:
    audited = Audited(policy("p", bucket("r")))
    for _ in range(3):
        audited.audit.undecided("reject", Reason.NO_BUNDLE_LOADED)
    (line,) = audited.flush()
    assert (line["action"], line["reason"], line["policy"], line["count"]) == (
        "reject",
        "no_bundle_loaded",
        "",
        3,
    )
    assert "key" not in line


def test_what_happens_once_is_a_line_of_its_own() -> None:
    audited = Audited(policy("p", bucket("r")))
    audited.audit.record("bundle", {"version": 7, "source": "admin"}, START)
    assert audited.flush() == [
        {
            "time": "2026-03-02T00:00:00.123Z",
            "action": "bundle",
            "version": 7,
            "source": "admin",
            "worker": 77,
        }
    ]


def test_keys_are_hashed_the_same_way_as_long_as_the_secret_is_the_same() -> None:
    text = hashed(b"s" * 32)
    assert text("jwt:sub", "alice") == hashed(b"s" * 32)("jwt:sub", "alice")
    assert text("jwt:sub", "alice").startswith("h:")
    different = {
        text("jwt:sub", "alice"),
        text("jwt:sub", "bob"),
        text("jwt:org", "alice"),
        hashed(b"t" * 32)("jwt:sub", "alice"),
    }
    assert len(different) == 4


@pytest.mark.parametrize("text", [plain, hashed(b"s" * 32)])
def test_a_key_that_no_json_can_hold_still_makes_a_line(text: Any) -> None:
    assert json.loads(json.dumps(text("jwt:sub", "\udcff" * 4)).encode())
    assert len(text("jwt:sub", "x" * 100_000)) <= 128


def test_a_hashed_log_does_not_hold_the_key() -> None:
    audited = Audited(policy("p", bucket("r", "header:x-key", burst=1)), text=hashed(b"s" * 32))
    for _ in range(2):
        audited.ask(key="alice@example.com")
    assert "alice" not in json.dumps(audited.flush())


def test_a_flood_from_one_key_is_a_line_a_batch() -> None:
    audited = Audited(policy("p", bucket("r", burst=1)))
    for _ in range(5):
        for _ in range(1000):
            audited.ask()
        assert len(audited.flush()) == 1
    assert sum(line["count"] for line in audited.log.lines) == 4999


def test_a_flood_of_keys_is_bounded_and_every_reject_is_counted() -> None:
    """What has no line with its key is in one line of its policy, rule and reason."""
    audited = Audited(policy("p", budget("b", "header:x-key", amount=0.000001)))
    asked = 0
    sizes = []
    for _ in range(8):
        for _ in range(2 * LINES_PER_BATCH):
            audited.ask(key=str(asked))
            asked += 1
        sizes.append(len(audited.flush()))
    assert sizes[0] == LINES_PER_BATCH + 1
    assert sum(sizes) <= LINES_SAVED + 8 * 20 + 8
    assert sizes[-1] <= 21
    assert sum(line["count"] for line in audited.log.lines) == asked
    without = [line for line in audited.log.lines if "key" not in line]
    assert {(line["policy"], line["rule"], line["reason"]) for line in without} == {
        ("p", "b", "budget_exhausted")
    }
    assert audited.counted("fairvisor_audit_events_total") == asked
    assert audited.counted("fairvisor_audit_lines_total") == len(audited.log.lines)
    assert audited.counted("fairvisor_audit_merged_total") == sum(line["count"] for line in without)


def test_a_worker_that_was_quiet_may_write_keys_again() -> None:
    audited = Audited(policy("p", budget("b", "header:x-key", amount=0.000001)))
    for batch in range(4):
        for number in range(LINES_PER_BATCH):
            audited.ask(key=f"{batch}-{number}")
        audited.flush()
    for number in range(10):
        audited.ask(key=f"late-{number}")
    assert len(audited.flush(after_ms=1000)) < 11
    audited.flush(after_ms=1000)
    for number in range(10):
        audited.ask(key=f"later-{number}")
    assert Counter("key" in line for line in audited.flush()) == {True: 10}


def test_while_the_log_cannot_be_written_nothing_is_forgotten() -> None:
    audited = Audited(policy("p", budget("b", "header:x-key", amount=0.000001)))
    audited.log.room = 0
    for _ in range(3):
        for number in range(100):
            audited.ask(key=str(number))
        assert audited.flush() == []
    assert "No space" in str(audited.audit.problem)
    audited.log.room = None
    audited.ask(key="after")
    lines = audited.flush()
    assert audited.audit.problem is None
    assert sorted((line["count"], "key" in line) for line in lines) == [(1, True), (300, False)]
    assert audited.counted("fairvisor_audit_events_total") == 301


def test_lines_that_were_written_before_the_disk_was_full_are_not_written_again() -> None:
    audited = Audited(policy("p", budget("b", "header:x-key", amount=0.000001)))
    audited.audit.record("bundle", {"version": 1}, START)
    for number in range(10):
        audited.ask(key=str(number))
    audited.log.room = 4
    assert [line["action"] for line in audited.flush()] == ["bundle", "reject", "reject", "reject"]
    audited.log.room = None
    assert [line["count"] for line in audited.flush()] == [7]


def test_a_log_that_cannot_be_written_is_found_out_before_there_is_anything_to_write(
    tmp_path: Path,
) -> None:
    missing = tmp_path / "missing" / "audit"
    audit = Audit(Segment.private(SEGMENT_BYTES), LineFile(missing), plain, 1, lambda: None)
    audit.probe()
    assert "No such file" in str(audit.problem)
    missing.parent.mkdir()
    audit.probe()
    assert audit.problem is None
    assert missing.read_bytes() == b""


def test_what_a_stopping_worker_cannot_write_is_counted_as_dropped() -> None:
    audited = Audited(policy("p", budget("b", amount=0.000001)))
    audited.log.room = 0
    for _ in range(5):
        audited.ask()
    audited.audit.record("bundle", {"version": 1}, START)
    audited.flush()
    audited.audit.give_up()
    assert audited.counted("fairvisor_audit_dropped_total") == 6
    audited.log.room = None
    assert audited.flush() == []


def test_a_line_fits_into_what_a_pipe_takes_at_once() -> None:
    names = [f"header:x-{number:0100}" for number in range(20)]
    audited = Audited(policy("p" * 128, budget("b" * 128, *names, amount=0.000001)))
    audited.ask(headers={name.removeprefix("header:"): "ä" * 500 for name in names})
    audited.flush()
    assert 0 < audited.log.size <= 4096


def test_a_flood_of_long_keys_takes_no_more_memory_than_one_of_short_ones() -> None:
    """A key is held as it is until it is written: a long one takes the room of several lines."""
    audited = Audited(policy("p", budget("b", "header:x-key", amount=0.000001)))
    for number in range(LINES_PER_BATCH):
        audited.ask(key=f"{number:0{16 * CHARACTERS_PER_LINE - 1}}")
    lines = audited.flush()
    assert sum("key" in line for line in lines) == -(-LINES_PER_BATCH // 16)
    assert sum(line["count"] for line in lines) == LINES_PER_BATCH


class TestWhatHappensOnce:
    def test_it_is_a_line_of_its_own(self) -> None:
        audited = Audited(policy("p", bucket("r")))
        audited.audit.record("limit_reset", {"policy": "p"}, START)
        audited.audit.log([record_of("stop", {"instance": "e"}, START)])
        assert audited.flush() == [
            {"time": "2026-03-02T00:00:00.123Z", "action": "limit_reset", "policy": "p", "worker": 77},
            {"time": "2026-03-02T00:00:00.123Z", "action": "stop", "instance": "e", "worker": 77},
        ]

    def test_what_finds_no_room_is_counted_and_the_next_writer_knows(self) -> None:
        audited = Audited(policy("p", bucket("r")))
        audited.log.room = 0
        for number in range(MAX_RECORDS + 3):
            audited.audit.record("limit_reset", {"number": number}, START)
        audited.flush()
        assert audited.log.lost == 3
        assert audited.counted("fairvisor_audit_dropped_total") == 3

    def test_what_a_stopping_process_could_not_write_is_counted_for_the_next_writer(self) -> None:
        audited = Audited(policy("p", bucket("r", burst=1)))
        audited.log.room = 0
        for _ in range(3):
            audited.ask()
        audited.audit.record("limit_reset", {}, START)
        audited.flush()
        audited.audit.give_up()
        assert audited.log.lost == 3  # two rejects and the reset
        assert audited.log.is_closed


class TestEndedStreams:
    def ended(self, audited: Audited, key: str, tokens: int) -> None:
        (policy,) = audited.edge.bundle.routes.policies()
        limit = policy.rules[0]
        described = (("header:x-key", key),)
        audited.audit.stream_ended(limit, described, "max_completion_tokens_exceeded", tokens)

    def test_a_stream_that_was_ended_tells_its_rule_whose_it_was_and_its_tokens(self) -> None:
        audited = Audited(policy("p", tokens("t", "header:x-key", tpm=1000)))
        self.ended(audited, "a", 40)
        self.ended(audited, "b", 50)
        self.ended(audited, "a", 2)
        first, second = audited.flush()
        assert {name: first[name] for name in first if name not in ("time", "worker")} == {
            "action": "stream_ended", "reason": "max_completion_tokens_exceeded", "policy": "p", "rule": "t",
            "mode": "enforce", "key": {"header:x-key": "a"}, "tokens": 42, "count": 2,
        }  # fmt: skip
        assert (second["key"], second["tokens"], second["count"]) == ({"header:x-key": "b"}, 50, 1)

    def test_a_flood_of_them_stays_small(self) -> None:
        audited = Audited(policy("p", tokens("t", "header:x-key", tpm=1000)))
        for number in range(LINES_PER_BATCH + 10):
            self.ended(audited, str(number), 1)
        lines = audited.flush()
        assert len(lines) == LINES_PER_BATCH + 1
        assert sum(line["count"] for line in lines) == LINES_PER_BATCH + 10
