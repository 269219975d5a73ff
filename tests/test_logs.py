"""The audit log as `fairvisor logs` follows it: from the end, filtered, through rotation of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.cli import logs
from fairvisor.cli.logs import FollowedLog, last_lines
from fairvisor.cli.main import run

Captured = pytest.CaptureFixture[str]


def anything(line: bytes) -> bool:
    return True


def followed(path: Path, before: int, *happenings: Callable[[], object]) -> list[bytes]:
    """What is shown when these things happen one after the other, each while the follower waits."""
    left = iter(happenings)

    def ended() -> bool:
        happening = next(left, None)
        if happening is not None:
            happening()
        return happening is None

    with FollowedLog(path, ended) as log:
        return list(log.lines(before, anything))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    return path


def test_it_begins_with_the_last_lines_and_goes_on_as_the_log_grows(log: Path) -> None:
    assert followed(log, 2, lambda: append(log, b"four\nfi"), lambda: append(log, b"ve\n")) == [
        b"two",
        b"three",
        b"four",
        b"five",
    ]


def test_a_line_that_is_not_whole_at_the_start_is_shown_when_it_is(log: Path) -> None:
    append(log, b"hal")
    assert followed(log, 1, lambda: append(log, b"f\n")) == [b"three", b"half"]


def test_a_renamed_log_is_read_to_its_end_and_the_new_one_from_its_start(log: Path) -> None:
    def rotate() -> None:
        append(log, b"last\n")
        log.rename(log.with_name("audit.log.1"))
        log.write_bytes(b"first\n")

    assert followed(log, 0, rotate, lambda: append(log, b"second\n")) == [b"last", b"first", b"second"]


def test_a_log_that_is_removed_is_waited_for(log: Path) -> None:
    assert followed(log, 0, log.unlink, lambda: None, lambda: append(log, b"new\n")) == [b"new"]


@pytest.mark.parametrize(
    "grown", [b"a\n", b"other lines, longer than all that stood there before\n", b"ONE\nTWO\nTHREE\n"]
)
def test_a_log_that_was_cut_short_is_read_from_its_start(log: Path, grown: bytes) -> None:
    assert followed(log, 0, lambda: log.write_bytes(grown)) == grown.splitlines()


def test_a_log_that_is_cut_short_while_a_line_is_shown_is_read_from_its_start(log: Path) -> None:
    """Whoever sees a line may cut the log at once, and what comes then may be as long as what was there."""
    left = iter([lambda: append(log, b"four\n"), lambda: log.write_bytes(b"ONE\nTWO\nTHREE\nFOUR\n")])

    def ended() -> bool:
        happening = next(left, None)
        if happening is not None:
            happening()
        return happening is None

    shown = []
    with FollowedLog(log, ended) as following:
        for line in following.lines(0, anything):
            shown.append(line)
            if line == b"four":
                log.write_bytes(b"")
    assert shown == [b"four", b"ONE", b"TWO", b"THREE", b"FOUR"]


def test_a_log_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    assert followed(path, 5, lambda: append(path, b"new\n"), lambda: None) == [b"new"]


@given(
    st.lists(st.sampled_from([b"", b"a", b"bb", b"x" * 50]), max_size=60),
    st.integers(0, 20),
    st.integers(1, 100),
    st.booleans(),
)
def test_the_last_lines_are_found_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], wanted: int, block: int, whole: bool
) -> None:
    path = tmp_path_factory.mktemp("logs") / "log"
    data = b"".join(line + b"\n" for line in lines) + (b"" if whole else b"half")
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(logs, "_READ_BYTES", block)
        found, whole_end = last_lines(file.fileno(), wanted, lambda line: line != b"a")
    assert whole_end == len(data) - (0 if whole else 4)
    passing = [line for line in lines if line not in (b"", b"a")]
    assert found == (passing[-wanted:] if wanted else [])


# the command


LINE = {
    "time": "2026-03-02T00:34:56.123Z",
    "action": "reject",
    "reason": "rate_limit_exceeded",
    "policy": "api",
    "rule": "per-key",
    "mode": "enforce",
    "key": {"header:x-api-key": "h:0011223344556677"},
    "count": 7,
    "worker": 12,
}


@pytest.fixture
def written(tmp_path: Path) -> str:
    lines = [
        LINE,
        {**LINE, "action": "would_reject", "policy": "trial", "count": 1},
        {"time": "t", "action": "bundle", "version": 2, "worker": 12},
    ]
    path = tmp_path / "audit.log"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not one of ours\n")
    return str(path)


def test_a_line_for_people_says_what_happened_to_whom(written: str, capsys: Captured) -> None:
    assert run(["logs", "--file", written, "--no-follow"]) == 0
    assert capsys.readouterr().out == (
        "2026-03-02T00:34:56.123Z reject × 7  rate_limit_exceeded  api/per-key  header:x-api-key=h:0011223344556677\n"
        "2026-03-02T00:34:56.123Z would_reject  rate_limit_exceeded  trial/per-key  "
        "header:x-api-key=h:0011223344556677\n"
        "t bundle  version=2\n"
        "not one of ours\n"
    )


@pytest.mark.parametrize(
    ("filters", "policies"),
    [
        (["--action", "reject"], ["api"]),
        (["--policy", "trial"], ["trial"]),
        (["--reason", "rate_limit_exceeded"], ["api", "trial"]),
        (["--reason", "rate_limit_exceeded", "--action", "bundle"], []),
        (["-n", "1", "--reason", "rate_limit_exceeded"], ["trial"]),
    ],
)
def test_filters_choose_lines(
    written: str, capsys: Captured, filters: list[str], policies: list[str]
) -> None:
    assert run(["logs", "--file", written, "--no-follow", "--format", "json", *filters]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["policy"] for line in shown] == policies


def test_a_log_that_is_not_there_or_goes_to_standard_output_is_an_error(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["logs", "--file", str(tmp_path / "none"), "--no-follow"]) == 1
    assert "there is no audit log at" in capsys.readouterr().err
    monkeypatch.setenv("FAIRVISOR_AUDIT_LOG", "-")
    assert run(["logs"]) == 1
    assert "standard output" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--changes"]])
@pytest.mark.parametrize(
    "name", ["time", "action", "reason", "policy", "rule", "key", "count", "actor", "claimed"]
)
@pytest.mark.parametrize("odd", [7, "x", None, [1], {"a": [1]}])
def test_a_line_of_another_program_is_shown_as_well_as_it_can_be(
    log: Path, capsys: Captured, flags: list[str], name: str, odd: object
) -> None:
    change = {
        **LINE,
        "action": "bundle",
        "actor": {"kind": "file", "name": "f", "claimed": odd},
        "previous": odd,
    }
    log.write_text("".join(json.dumps({**each, name: odd}) + "\n" for each in (LINE, change)))
    assert run(["logs", "--file", str(log), "--no-follow", *flags]) == 0
    assert "2026-03-02" in capsys.readouterr().out or name in ("time", "actor")


def test_a_line_is_shown_without_its_place_in_the_chain_and_a_change_with_who_made_it(
    log: Path, capsys: Captured
) -> None:
    chain = {"lost": 1, "torn": 2, "chain": "file-1", "seq": 7, "prev": "sha256:0", "mac": "hmac-sha256:0"}
    reject = {
        "time": "T",
        "action": "reject",
        "reason": "denied",
        "policy": "p",
        "rule": "r",
        "count": 1,
        **chain,
    }
    change = {
        "time": "T",
        "action": "limit_reset",
        "actor": {"kind": "token", "name": "ci"},
        "policy": "p",
        **chain,
    }
    log.write_text("".join(json.dumps(each) + "\n" for each in (reject, change)))
    assert run(["logs", "--no-follow", "--file", str(log)]) == 0
    assert capsys.readouterr().out == "T reject  denied  p/r\nT  token ci  limit_reset  p\n"
