"""Whether an audit log is as it was written: every way to alter one is found, and no accident is taken for one."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_linefile import largest_file

from fairvisor.cli.main import run
from fairvisor.linefile import CHAIN_SUFFIX, LineFile, PartlyWritten, read_head

Captured = pytest.CaptureFixture[str]
KEY = "a-key-of-this-many-bytes-or-more-of-them"


class Log:
    """An audit log in a directory, and what `logs --verify` says of it."""

    def __init__(self, place: Path, captured: Captured, patch: pytest.MonkeyPatch) -> None:
        self.path = place / "audit.log"
        self._captured = captured
        self._patch = patch
        self.key = KEY
        self.number = 0

    def write(self, lines: int = 5) -> None:
        """Write some lines, each a tenth of a second after the one before."""
        made = []
        for _ in range(lines):
            time = f"2026-03-02T10:{self.number // 600:02}:{self.number // 10 % 60:02}.{self.number % 10}00Z"
            made.append(json.dumps({"time": time, "number": self.number}).encode() + b"\n")
            self.number += 1
        LineFile(self.path, self.key.encode()).append(made)

    def rotate(self, name: str) -> Path:
        return self.path.rename(self.path.with_name(name))

    @property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True)

    @lines.setter
    def lines(self, lines: Sequence[bytes]) -> None:
        self.path.write_bytes(b"".join(lines))

    def verify(self, *files: Path, key: str | None = None) -> dict[str, Any]:
        self._patch.setenv("FAIRVISOR_AUDIT_KEY", self.key if key is None else key)
        self._patch.setenv("FAIRVISOR_AUDIT_LOG", str(self.path))
        code = run(["logs", "--verify", "--format", "json", *map(str, files)])
        report: dict[str, Any] = json.loads(self._captured.readouterr().out)
        assert code == (0 if report["intact"] else 1)
        return report

    def found(self, *files: Path, key: str | None = None) -> list[tuple[str, int]]:
        """The kind and the line of what is found."""
        return [(each["kind"], each["line"]) for each in self.verify(*files, key=key)["findings"]]


@pytest.fixture
def log(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(tmp_path, capsys, monkeypatch)


def test_a_log_as_it_was_written_is_intact_over_all_its_files(log: Log) -> None:
    for name in ("audit.log.2", "audit.log.1", "audit.log-20260302"):
        log.write()
        log.rotate(name)
    log.write()
    with gzip.open(log.path.with_name("audit.log.2.gz"), "wb") as packed:
        packed.write(log.path.with_name("audit.log.2").read_bytes())
    log.path.with_name("audit.log.2").unlink()
    report = log.verify()
    assert report["findings"] == []
    assert report["end_is_known"]
    assert (report["lines"], report["begins_at"]) == (20, 1)
    assert [(Path(each["file"]).name, each["lines"]) for each in report["files"]] == [
        ("audit.log.2.gz", 5), ("audit.log.1", 5), ("audit.log-20260302", 5), ("audit.log", 5)
    ]  # fmt: skip
    assert report["files"][0]["first"] == "2026-03-02T10:00:00.000Z"
    assert report["files"][3]["last"] == "2026-03-02T10:00:01.900Z"


@pytest.mark.parametrize("key", [KEY, ""], ids=["with a key", "without"])
@given(st.data())
def test_a_change_of_any_byte_is_found(
    tmp_path_factory: pytest.TempPathFactory, key: str, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        log = tmp_path_factory.mktemp("log") / "audit.log"
        LineFile(log, key.encode()).append([json.dumps({"number": n}).encode() + b"\n" for n in range(3)])
        written = log.read_bytes()
        at = data.draw(st.integers(0, len(written) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda each: each != written[at]))
        log.write_bytes(written[:at] + bytes([byte]) + written[at + 1 :])
        patch.setenv("FAIRVISOR_AUDIT_KEY", key)
        assert run(["logs", "--verify", "--file", str(log), "--format", "json"]) == 1


@pytest.mark.parametrize("change", [(b"file-", b"fail-"), (b'"seq":1', b'"sea":1'), (b"{", b"")])
def test_a_first_line_that_is_no_longer_of_the_chain_is_found(log: Log, change: tuple[bytes, bytes]) -> None:
    log.write(3)
    log.lines = [log.lines[0].replace(*change), *log.lines[1:]]
    assert log.found()[-1] == ("altered", 2)


def test_an_altered_line_is_named(log: Log) -> None:
    log.write(6)
    log.lines = [each.replace(b'"number": 2', b'"number": 9') for each in log.lines]
    assert log.found() == [("altered", 3)]


def test_the_last_line_is_held_against_what_is_known_of_it(log: Log) -> None:
    log.write(3)
    log.lines = [each.replace(b'"number": 2', b'"number": 9') for each in log.lines]
    assert log.found() == [("altered", 3)]


def test_a_line_that_is_no_line_any_more_is_altered(log: Log) -> None:
    log.write(6)
    lines = log.lines
    lines[2] = b"nothing happened here\n"
    log.lines = lines
    assert log.found() == [("altered", 3)]


@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 4), (0, 3)])
def test_missing_lines_are_counted(log: Log, first: int, last: int) -> None:
    log.write(3)
    log.rotate("audit.log.1")
    log.write(6)
    lines = log.lines
    del lines[first : last + 1]
    log.lines = lines
    (finding,) = log.verify()["findings"]
    assert (finding["kind"], finding["line"]) == ("missing", first + 1)
    what = f"line {first + 4}" if first == last else f"lines {first + 4} to {last + 4}"
    assert finding["text"] == f"{what} of the chain should be before it"


def test_a_file_that_is_gone_from_the_middle_is_missing(log: Log) -> None:
    for number in range(3):
        log.write()
        log.rotate(f"audit.log.{3 - number}")
    log.path.with_name("audit.log.2").unlink()
    (finding,) = log.verify()["findings"]
    assert (finding["kind"], Path(finding["file"]).name, finding["line"]) == ("missing", "audit.log.1", 1)


def test_lines_that_are_gone_at_the_end_are_missing(log: Log) -> None:
    log.write(6)
    log.lines = log.lines[:4]
    (finding,) = log.verify()["findings"]
    assert (finding["kind"], finding["text"]) == ("missing", "lines 5 to 6 of the chain should follow it")
    log.path.unlink()
    log.path.touch()
    assert log.verify()["findings"][0]["text"] == "lines 1 to 6 of the chain should follow it"


@pytest.mark.parametrize("chain", [None, b"", b"{}", b'{"head":{},"sums":[""]}'])
def test_an_end_that_is_cut_off_with_what_says_where_it_is_is_not_taken_as_written(
    log: Log, chain: bytes | None
) -> None:
    log.write(6)
    log.lines = log.lines[:4]
    place = log.path.with_name("audit.log" + CHAIN_SUFFIX)
    place.unlink()
    if chain is not None:
        place.write_bytes(chain)
    assert log.found() == [("no_end", 4)]


def test_old_files_that_rotation_removed_are_no_fault(log: Log) -> None:
    log.write()
    log.rotate("audit.log.1").unlink()
    log.write()
    report = log.verify()
    assert (report["findings"], report["begins_at"]) == ([], 6)


def test_lines_in_another_order_are_reordered(log: Log) -> None:
    log.write(6)
    lines = log.lines
    lines[2], lines[3] = lines[3], lines[2]
    log.lines = lines
    assert log.found() == [("reordered", 3)]


def test_a_line_that_comes_again_is_found(log: Log) -> None:
    log.write(6)
    lines = log.lines
    log.lines = [*lines[:4], lines[2], *lines[4:]]
    assert log.found() == [("reordered", 5)]


@pytest.mark.parametrize("line", [b'{"time":"2026-03-02T10:00:00Z","action":"bundle"}\n', b"text\n", b"\n"])
@pytest.mark.parametrize("at", [3, 6])
def test_a_line_that_was_put_in_is_found(log: Log, line: bytes, at: int) -> None:
    log.write(6)
    lines = log.lines
    log.lines = [*lines[:at], line, *lines[at:]]
    found = log.found()
    assert found == [("inserted", at + 1)] or (at == 6 and found == [("torn", 7)])


def test_a_foreign_line_that_the_next_writer_met_is_no_torn_one(log: Log) -> None:
    log.write(2)
    with log.path.open("ab") as file:
        file.write(b'{"time":"2026-03-02T10:00:00Z","action":"limit_reset"}\n')
    log.write(2)
    assert log.found() == [("inserted", 3)]


@pytest.mark.parametrize(("mac", "kind"), [("", "unkeyed"), ("hmac-sha256:" + "0" * 64, "altered")])
def test_a_line_that_continues_the_chain_without_the_key_is_found(log: Log, mac: str, kind: str) -> None:
    log.write(3)
    head = read_head(log.path, KEY.encode())  # whoever can write the log can read it, too
    assert head is not None
    forged = {
        "number": 3,
        "chain": head.chain,
        "seq": 4,
        "prev": head.digest,
        **({"mac": mac} if mac else {}),
    }
    with log.path.open("ab") as file:
        file.write(json.dumps(forged).encode() + b"\n")
    assert log.found() == [(kind, 4)]
    log.write(2)
    assert log.found()[0] == (kind, 4)  # the next writer does not vouch for it


def test_a_line_in_the_place_of_one_that_was_cut_off_is_found_also_with_the_older_head(log: Log) -> None:
    log.write(3)
    older = log.path.with_name("audit.log" + CHAIN_SUFFIX).read_bytes()
    log.write(1)
    log.lines = [each.replace(b'"number": 3', b'"number": 9') for each in log.lines]
    log.path.with_name("audit.log" + CHAIN_SUFFIX).write_bytes(older)
    log.write(1)
    assert log.found()[0] == ("altered", 4)


@pytest.mark.parametrize("key", [KEY, ""], ids=["with a key", "without"])
@pytest.mark.parametrize("at", [2, 4])
def test_a_line_of_a_process_does_not_belong_into_a_file_with_a_chain(log: Log, key: str, at: int) -> None:
    log.key = key
    log.write(4)
    forged = b'{"action":"limit_reset","chain":"process-0123456789ab","seq":1,"prev":null}\n'
    log.lines = [*log.lines[:at], forged, *log.lines[at:]]
    assert log.found() == [("inserted", at + 1)]


def test_a_chain_that_was_made_anew_without_the_key_is_found(log: Log) -> None:
    log.write()
    log.path.unlink()
    log.path.with_name("audit.log" + CHAIN_SUFFIX).unlink()
    log.key = ""
    log.write()
    log.key = KEY
    assert {kind for kind, _ in log.found()} == {"unkeyed"}


def test_a_chain_that_begins_anew_in_the_middle_is_found(log: Log) -> None:
    log.write(3)
    log.path.with_name("audit.log" + CHAIN_SUFFIX).unlink()
    log.write(3)
    assert log.found() == [("new_chain", 4)]


def test_without_the_key_or_with_another_one_nothing_is_said_to_be_intact(log: Log) -> None:
    log.write()
    assert {kind for kind, _ in log.found(key="")} == {"no_key"}
    report = log.verify(key="another-key-of-this-many-bytes-or-more")
    assert report["findings"][0]["kind"] == "altered"
    assert "the key is another one" in report["findings"][0]["text"]


def test_a_chain_goes_on_while_its_key_is_replaced(
    log: Log, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = "another-key-of-this-many-bytes-or-more"
    log.write(3)
    LineFile(log.path, new.encode(), KEY.encode()).append([b'{"number":4}\n', b'{"number":5}\n'])
    keys = tmp_path / "keys"
    keys.write_text(f"{new}\n{KEY}\n")
    keys.chmod(0o600)
    monkeypatch.setenv("FAIRVISOR_AUDIT_LOG", str(log.path))
    monkeypatch.setenv("FAIRVISOR_AUDIT_KEY_FILE", str(keys))
    assert run(["logs", "--verify"]) == 0
    log.lines = [each.replace(b'"number": 2', b'"number": 9') for each in log.lines]
    assert run(["logs", "--verify"]) == 1
    assert "altered" in capsys.readouterr().out


def test_a_chain_goes_on_while_writers_with_the_old_and_the_new_key_run_together(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a HUP: the workers before it know the old key alone until they end."""
    new = "another-key-of-this-many-bytes-or-more"
    before = LineFile(log.path, KEY.encode())
    between = LineFile(log.path, new.encode(), KEY.encode())
    after = LineFile(log.path, new.encode())
    for writer in (before, between, before, between, after, between, after):
        writer.append([b'{"number":1}\n', b'{"number":2}\n'])
    keys = tmp_path / "keys"
    keys.write_text(f"{new}\n{KEY}\n")
    keys.chmod(0o600)
    monkeypatch.setenv("FAIRVISOR_AUDIT_KEY_FILE", str(keys))
    assert run(["logs", "--verify", "--file", str(log.path)]) == 0
    assert [json.loads(line)["seq"] for line in log.lines] == list(range(1, 15))


def test_a_line_that_a_full_disk_cut_short_is_torn_and_no_fault(log: Log) -> None:
    log.write(5)
    with largest_file(log.path.stat().st_size + 40), pytest.raises(PartlyWritten):
        log.write(2)
    log.write(2)
    report = log.verify()
    assert report["intact"]
    assert [(each["kind"], each["line"]) for each in report["findings"]] == [("torn", 6)]


def test_a_line_that_is_cut_short_at_the_end_of_the_log_is_torn(log: Log) -> None:
    log.write(5)
    with log.path.open("ab") as file:
        file.write(b'{"time":"2026')
    assert log.found() == [("torn", 6)]
    assert log.verify()["intact"]


def test_a_line_that_is_cut_short_at_the_end_of_a_rotated_file_is_torn(log: Log) -> None:
    log.write(5)
    with log.path.open("ab") as file:
        file.write(b'{"time":"2026')
    log.rotate("audit.log.1")
    log.write(2)
    assert log.found() == [("torn", 6)]
    assert log.verify()["intact"]


def test_what_was_torn_cannot_be_altered_either(log: Log) -> None:
    log.write(5)
    with log.path.open("ab") as file:
        file.write(b'{"time":"2026')
    log.write(2)
    assert log.verify()["intact"]
    log.lines = [each.replace(b'{"time":"2026\n', b'{"time":"2027\n') for each in log.lines]
    assert log.found() == [("altered", 5)]


def test_lines_from_before_the_chain_are_counted_and_no_fault(log: Log) -> None:
    log.path.write_bytes(b'{"time":"2026-01-01T00:00:00Z"}\n' * 3)
    log.write(2)
    report = log.verify()
    assert (report["findings"], report["unchained"], report["lines"]) == ([], 3, 2)


def test_lines_of_a_process_from_before_the_chain_are_counted_as_such(log: Log) -> None:
    log.key = ""
    log.path.write_bytes(b'{"action":"bundle","chain":"process-0123456789ab","seq":1,"prev":null}\n')
    log.write(2)
    report = log.verify()
    assert (report["findings"], report["unchained"], report["lines"]) == ([], 1, 2)


def test_events_that_were_lost_are_added_up(log: Log) -> None:
    for lost in (2, 3):
        lines = LineFile(log.path, KEY.encode())
        lines.lose(lost)
        lines.append([b'{"a":1}\n'])
    assert log.verify()["lost"] == 5


def test_the_chains_of_processes_are_followed_side_by_side(log: Log, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writers = [LineFile(tmp_path / "pipe", KEY.encode()) for _ in range(2)]
    for number in range(6):
        writers[number % 2].append([json.dumps({"number": number}).encode() + b"\n"])
    collected = os.read(reader, 1 << 16)
    os.close(reader)
    file = tmp_path / "collected"
    file.write_bytes(b"a line of another program\n" + collected)
    assert log.verify(file)["intact"]
    file.write_bytes(collected.replace(b'"number": 3', b'"number": 9'))
    assert log.found(file) == [("altered", 4)]


def test_files_that_are_named_are_put_in_order_and_their_end_is_not_known(log: Log) -> None:
    log.write()
    first = log.rotate("b")
    log.write()
    second = log.rotate("a")
    report = log.verify(second, first)
    assert (report["intact"], report["end_is_known"]) == (True, False)
    assert [Path(each["file"]).name for each in report["files"]] == ["b", "a"]


def test_a_table_tells_people_the_same(log: Log, capsys: Captured) -> None:
    log.write(3)
    log.rotate("audit.log.1")
    log.write(3)
    log.lines = [each.replace(b'"number": 4', b'"number": 9') for each in log.lines]
    log.verify()
    assert run(["logs", "--verify"]) == 1
    head, first, second, finding = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "lines", "first", "last", "result"]
    assert first.endswith("2026-03-02T10:00:00.200Z  as written")
    assert second.endswith("1 wrong")
    assert finding == f"altered  {log.path} line 2: it is not as it was written"


def test_very_many_faults_are_counted_and_the_first_are_shown(log: Log) -> None:
    log.write(1000)
    log.lines = [each.replace(b'"number"', b'"nvmber"') for each in log.lines]
    report = log.verify()
    assert (len(report["findings"]), report["more"]) == (100, 900)


def test_a_log_that_cannot_be_read_is_an_error(log: Log, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"line\n" * 1000)[:30])
    for name in ("none", "cut.gz"):
        assert run(["logs", "--verify", str(tmp_path / name)]) == 1
        assert f"Error: {tmp_path / name}: " in capsys.readouterr().err
    assert run(["logs", "--verify", "--file", str(tmp_path / "nothing")]) == 1
    assert run(["logs", "x.log"]) == 3
    assert run(["logs", "--verify", "--changes", "x"]) == 3
