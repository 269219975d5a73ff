"""What clients chose never reaches a terminal or a log as anything but text, whichever command shows it."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import click
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fairvisor
from fairvisor.applog import Console, Json
from fairvisor.cli import (
    breaker,
    changed,
    connect,
    explain,
    limits,
    logs,
    main,
    replayed,
    status,
    validate,
    verified,
)
from fairvisor.cli.edge import Refused
from fairvisor.cli.screen import print_document, print_json
from fairvisor.errors import BundleInvalid, FairvisorError, Problem
from fairvisor.response import json_answer
from fairvisor.visible import visible, visible_json

# Sets a title, ends a line, clears the screen (C1), deletes, turns a line around, splits it; markup of rich.
HOSTILE = ["\x1b]0;title\x07", "\r\n2026-11-28T00:00:00Z forged", "\x9b2J", "\x7f", "\u202e", "\u2066", "\u2028",
           "\u200b", "\x00", "\ud800", "\U000e0001", "[bold red]", "[/]", ":warning:", "plain", "é", " "]  # fmt: skip
texts = st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=4).map("".join)


def test_printable_text_stays_as_it_is() -> None:
    assert visible("grün 漢字 🙂 \\ [x] «»") == "grün 漢字 🙂 \\ [x] «»"


def test_what_a_terminal_acts_on_is_escaped_as_repr_does_it() -> None:
    assert visible("a\x1b[2J\n\t\x9b\u202e\ud800\U000e0001") == r"a\x1b[2J\n\t\x9b\u202e\ud800\U000e0001"


@given(st.text() | texts)
def test_visible_text_is_printable_and_one_line(text: str) -> None:
    assert visible(text).isprintable()


whole = st.text() | texts.filter(lambda text: "\ud800" not in text)
documents = st.recursive(whole, lambda inner: st.lists(inner) | st.dictionaries(whole, inner))


@settings(max_examples=30)
@given(documents)
def test_visible_json_is_the_same_document(document: object) -> None:
    data = visible_json(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    assert orjson.loads(data) == document
    assert data.decode().replace("\n", "").isprintable()


def shows(show: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What `show` prints; every line of it is printable."""
    show()
    captured = capsys.readouterr()
    printed: str = captured.out + captured.err
    assert all(line.isprintable() for line in printed.split("\n"))
    return printed


def status_report(text: str) -> dict[str, Any]:
    note = {"text": text, "since": text}
    bundle = {"version": text, "sha256": text, "generation": 1, "source": text, "published": text, "expires": text,
              "expired": True, "policies": 1, "shadow_policies": 0, "kill_switches": 0, "kill_switches_in_force": 0,
              "global_shadow": True, "kill_switch_override": True, "warnings": [text]}  # fmt: skip
    worker = {
        "pid": 1,
        "generation": 0,
        "heartbeat_age_seconds": 9.0,
        "connections": 1,
        "waiting": 1,
        "leader": True,
    }
    segment = {"times": 1, "totals": 1, "slots": 8, "evictions": 0, "full": 0}
    return {"version": text, "instance": text, "ready": False, "bundle": bundle, "reload_error": note,
            "faults": {text: note}, "identity": {"problems": [text], "warnings": [text]}, "workers": [worker],
            "segment": segment, "snapshot": text,
            "decisions": {"by_action": {text: 1}, "by_reason": {text: 1}, "would_reject": {text: 1}}}  # fmt: skip


def replay_report(text: str) -> dict[str, Any]:
    limit = {"policy": text, "rule": text, "kind": text, "mode": "enforce", "policy_requests": 1, "asked": 1,
             "rejected": 1, "reasons": {text: 1}, "warned": 1, "throttled": 1, "first": text, "last": text,
             "worst_minute": {"from": text, "rejected": 1}, "timeline": [1],
             "top": [{"keys": {text: text}, "rejected": 1, "too_high_by_at_most": 0}], "lacking": [text],
             "missing": {text + "x": 1}, "on_missing": text, "without_body": 1}  # fmt: skip
    log = {"name": text, "format": text, "unreadable": 1, "cut_short": text, "out_of_order": 0, "without_host": 0,
           "unreadable_examples": [{"line": 1, "reason": text, "text": text}], "unanswerable": {text: 1}}  # fmt: skip
    return {"log": log, "dry_run": False, "requests": 1, "from": text, "to": text, "decisions": {"allow": 1},
            "limits": [limit], "lacking": [{"policy": text, "rule": text, "descriptors": [text]}]}  # fmt: skip


def explain_report(text: str) -> dict[str, Any]:
    limit = {"rule": text, "kind": text, "keys": {text: text}, "why": text}
    return {"request": {"method": text, "host": text, "path": text},
            "policies": [{"id": text, "applies": True, "shadow": False, "why": text, "limits": [limit]}],
            "decision": {"action": "reject", "why": text},
            "answer": {"status": 429, "headers": [text], "body": text, "delay_ms": 0}, "warnings": [text]}  # fmt: skip


def limit_report(text: str) -> dict[str, Any]:
    counter = {"counter": text, "remaining": 1, "limit": 2, "reset_seconds": 3}
    return {"policy": text, "rule": text, "mode": "enforce", "keys": {text: text}, "counters": [counter]}


def top_report(text: str) -> dict[str, Any]:
    each = {
        "policy": text,
        "rule": text,
        "reason": text,
        "keys": {text: text},
        "rejected": 1,
        "too_high_by_at_most": 1,
    }
    return {"seconds": 60, "top": [each]}


def audit_line(text: str) -> bytes:
    line = {
        "time": text,
        "action": text,
        "reason": text,
        "policy": text,
        "rule": text,
        "key": {text: text},
        "more": text,
    }
    return json.dumps(line).encode()


def changed_line(text: str) -> dict[str, Any]:
    actor = {"kind": text, "name": text, "claimed": {text: text}}
    line = {"time": text, "action": text, "reason": text, "policy": text, "rule": text, "field": text}
    return {**line, "key": {text: text}, "old": text, "new": text, "actor": actor}


def verified_report(text: str) -> dict[str, Any]:
    file = {"file": text, "lines": 1, "first": text, "last": text, "wrong": 1}
    finding = {"kind": text, "file": text, "line": 1, "text": text}
    counts = {"lines": 1, "unchained": 1, "begins_at": 2, "lost": 1, "more": 1}
    return {"intact": False, "files": [file], "findings": [finding], "end_is_known": False, **counts}


def show_top(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Mock(ask=Mock(return_value=top_report(text)))
    monkeypatch.setattr(limits, "open_edge", lambda url: edge)
    assert main.run(["limits", "top"]) == 0


def fail(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.cli, "main", Mock(side_effect=error))
    assert main.run([]) != 0


RENDERERS: dict[str, Callable[[str, pytest.MonkeyPatch], object]] = {
    "limits show": lambda text, _: limits._print(limit_report(text)),
    "limits top": show_top,
    "breaker": lambda text, _: breaker._print(
        {"policy": text, "keys": {text: text}, "state": "open", "open_seconds": 1, "changed": False}
    ),
    "connect": lambda text, _: connect._print_pushed(
        text,
        {
            "changed": True,
            "version": text,
            "generation": 1,
            "durable": False,
            "lagging": [1],
            "warnings": [text],
        },
    ),
    "explain": lambda text, _: explain._print_report(explain_report(text)),
    "logs": lambda text, _: logs._show(audit_line(text)),
    "logs of others": lambda text, _: logs._show(text.encode("utf-8", "surrogatepass")),
    "logs --changes": lambda text, _: changed.print_change(changed_line(text)),
    "logs --verify": lambda text, _: verified._print(verified_report(text)),
    "logs --format json": lambda text, _: print_document(
        orjson.dumps({"key": text.encode("utf-8", "replace").decode()})
    ),
    "json": lambda text, _: print_json({"key": text.encode("utf-8", "replace").decode()}),
    "status": lambda text, _: status._print(status_report(text)),
    "test": lambda text, _: replayed.print_replay(replay_report(text)),
    "validate": lambda text, _: validate._print_invalid(text, (Problem(text, text),), "table"),
    "an error": lambda text, patch: fail(FairvisorError(text), patch),
    "a bundle's errors": lambda text, patch: fail(BundleInvalid([Problem(text, text)]), patch),
    "an edge's errors": lambda text, patch: fail(
        Refused(422, {"message": text, "problems": [{"path": text, "message": text}]}), patch
    ),
    "a file's error": lambda text, patch: fail(OSError(2, text, text), patch),
    "a usage error": lambda text, patch: fail(click.BadParameter(text), patch),
}


@pytest.mark.parametrize("name", RENDERERS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(text=texts)
def test_no_command_prints_what_a_terminal_acts_on(
    name: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = RENDERERS[name]
    with monkeypatch.context() as patch:
        usual = shows(lambda: show("plain", patch), capsys)
    with monkeypatch.context() as patch:
        printed = shows(lambda: show(text, patch), capsys)
    assert printed.count("\n") == usual.count("\n"), "no line is forged"
    if "json" not in name and "\ud800" not in text:
        assert visible(text) in printed, "nothing is left out"


@given(text=texts)
def test_no_log_line_holds_what_a_terminal_acts_on(text: str) -> None:
    record = logging.makeLogRecord({"msg": "peer %s", "args": (text,), "levelname": "INFO"})
    assert Console().format(record).isprintable()
    assert Json().format(record).isprintable()


def test_no_line_of_a_traceback_looks_like_a_record() -> None:
    try:
        raise ValueError("bad\n2026-11-28T00:00:00.000Z [1] [INFO] forged\x1b[2J")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.makeLogRecord({"msg": "it failed", "exc_info": info, "levelname": "ERROR"})
    first, *rest = Console().format(record).split("\n")
    assert first.endswith("it failed")
    assert rest
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_only_the_screen_prints() -> None:
    """Elsewhere `click.echo` is for help texts and for bytes that must come out as they are."""
    folder = Path(fairvisor.__file__).parent / "cli"
    found = {
        (path.name, ast.unparse(call.args[0]))
        for path in folder.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("click.echo", "print", "click.secho")
        if path.name != "screen.py"
    }
    assert found == {
        ("connect.py", "verify_signature(bundle, ()) if payload else bundle"),
        ("main.py", "context.get_help()"),
        ("main.py", "found.get_help(click.Context(found, group, command))"),
        ("main.py", "group.get_help()"),
        ("sign.py", "data"),
    }


def test_an_answer_in_json_holds_nothing_that_a_terminal_acts_on() -> None:
    """Operators read answers of the admin API with curl."""
    answer = json_answer(200, {"key": "\x1b\x9b\x7f\u202e"})
    assert answer.body.decode().isprintable()
    assert orjson.loads(answer.body) == {"key": "\x1b\x9b\x7f\u202e"}
