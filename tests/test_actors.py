"""Who did it: every change of a running instance leaves a record with its actor, the reason, the old and new value."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode

import pytest
from test_audit import Log
from test_follow import Instance, bundle, instance, policy

from fairvisor import actor
from fairvisor.actor import MAX_NAME, MAX_REASON, By, claiming
from fairvisor.audit import Audit, plain
from fairvisor.bundle import offer
from fairvisor.bundle.load import parse_policy
from fairvisor.bundle.model import Defaults, Policy
from fairvisor.cli.main import run
from fairvisor.errors import BundleInvalid, BundleRefused
from fairvisor.http.admin import Admin
from fairvisor.http.request import Peer, Request

__all__ = ["instance"]  # a fixture

ALICE = actor.token("alice", "127.0.0.1")


def records(instance: Instance) -> list[dict[str, Any]]:
    """What waits to be logged."""
    return [record for each in instance.publisher.records.take() for record in each]


class Operator:
    """Asks the admin API of an instance; `logged` is what its audit log gets."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.log = Log()
        self.audit = Audit(instance.segment, self.log, plain, 77, lambda: None)
        self.api = Admin("edge", instance.segment, instance.publisher, instance.active, self.audit)

    def ask(self, method: str, path: str, body: bytes | None = None, **parameters: str) -> tuple[int, Any]:
        target = f"/v1/admin/{path}?{urlencode(parameters)}"
        answer = self.api.answer(
            Request(method, target, {}, Peer("", trusted=True), body), ALICE, self.instance.now()
        )
        return answer.status, json.loads(answer.body)

    def logged(self) -> list[dict[str, Any]]:
        self.audit.log(records(self.instance))
        self.audit.flush(self.instance.now())
        lines, self.log.lines = self.log.lines, []
        return lines


class TestBundles:
    def test_a_push_is_logged_with_who_why_and_what_it_changes(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a", burst=5)))
        records(instance)
        operator = Operator(instance)
        status, _ = operator.ask(
            "PUT", "bundle", bundle(2, policy("a", burst=7)), reason="more room", **{"as": "bob"}
        )
        assert status == 200
        who = {**ALICE.actor, "claimed": {"as": "bob"}}
        first, change = records(instance)
        assert (first["action"], first["version"], first["previous"]["version"], first["changes"]) == (
            "bundle",
            2,
            1,
            1,
        )
        assert (change["action"], change["policy"], change["rule"]) == ("bundle_change", "a", "bucket")
        assert (change["field"], change["old"], change["new"]) == ("algorithm_config.burst", 5, 7)
        for record in (first, change):
            assert (record["actor"], record["reason"], record["generation"]) == (who, "more room", 2)
            assert record["time"] == "2027-01-15T08:00:00.000Z"

    def test_the_same_bundle_again_changes_nothing(self, instance: Instance) -> None:
        for _ in range(2):
            instance.publisher.publish(bundle(1, policy("a")))
        assert [each["action"] for each in records(instance)] == ["bundle"]

    def test_the_first_bundle_is_one_line(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a"), policy("b")))
        (record,) = records(instance)
        assert (record["previous"], record["changes"]) == (None, None)

    def test_of_very_many_changes_the_first_are_listed_and_all_counted(self, instance: Instance) -> None:
        for version in (1, 2):
            instance.publisher.publish(bundle(version, *(policy(f"p{n}", burst=version) for n in range(300))))
        first, second, *listed = records(instance)
        assert (first["version"], second["version"], second["changes"]) == (1, 2, 300)
        assert len(listed) == 200

    def test_a_policy_that_stayed_the_same_is_not_read_again(
        self, instance: Instance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        instance.publisher.publish(bundle(1, policy("a"), policy("b")))
        read = []

        def noted(raw: dict[str, Any], defaults: Defaults) -> Policy:
            read.append(raw["id"])
            return parse_policy(raw, defaults)

        monkeypatch.setattr(offer, "parse_policy", noted)
        instance.publisher.publish(bundle(2, policy("a"), policy("b", burst=9)))
        assert read == ["b"]

    def test_a_file_is_named_by_its_owner_and_what_it_holds(self, instance: Instance) -> None:
        file = instance.place / "policy.json"
        file.write_bytes(bundle(1, policy("a")))
        os.utime(file, (1_700_000_000, 1_700_000_000))
        instance.publisher.read_file()
        (record,) = records(instance)
        assert record["actor"] == {
            "kind": "file",
            "name": str(file),
            "sha256": record["sha256"],
            "uid": os.getuid(),
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "modified": "2023-11-14T22:13:20Z",
        }

    def test_the_last_good_bundle_is_taken_by_the_edge_itself(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        records(instance)
        instance.publisher.restore()
        for each in records(instance):
            assert each["actor"] == {"kind": "edge", "name": "last good bundle"}

    @pytest.mark.parametrize("data", [b"{}", bundle(1, policy("b"))], ids=["not valid", "an old version"])
    def test_a_bundle_that_is_rejected_is_logged_too(self, instance: Instance, data: bytes) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        records(instance)
        with pytest.raises((BundleInvalid, BundleRefused)):
            instance.publisher.publish(data, by=By(ALICE.actor, "why not"))
        (record,) = records(instance)
        assert (record["action"], record["actor"], record["reason"]) == (
            "bundle_rejected",
            ALICE.actor,
            "why not",
        )
        assert record["error"]

    def test_whom_a_kill_switch_stops_is_written_as_keys_are(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        records(instance)
        instance.publisher.publish(
            bundle(2, policy("a"), kill_switches=[{"scope_key": "header:x", "scope_value": "me"}])
        )
        _, change = records(instance)
        assert (change["field"], change["old"], change["new"]) == ("kill_switches", None, "on")
        assert change["key"]["header:x"].startswith("h:")


class TestCounters:
    def test_a_reset_is_logged_with_what_was_left_and_is(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a", burst=5)))
        records(instance)
        operator = Operator(instance)
        assert operator.ask("DELETE", "limits", policy="a", rule="bucket", reason="asked")[0] == 200
        (line,) = operator.logged()
        assert {name: line[name] for name in ("action", "policy", "rule", "actor", "reason", "old", "new")} == {
            "action": "limit_reset", "policy": "a", "rule": "bucket", "actor": ALICE.actor, "reason": "asked",
            "old": {"bucket": 5.0}, "new": {"bucket": 5.0},
        }  # fmt: skip

    def test_a_breaker_is_logged_with_its_states(self, instance: Instance) -> None:
        breaker = {"enabled": True, "spend_rate_threshold_per_minute": 5, "scope": "policy"}
        instance.publisher.publish(bundle(1, policy("a", circuit_breaker=breaker)))
        records(instance)
        operator = Operator(instance)
        for action in ("trip", "trip", "reset"):
            assert operator.ask("POST", f"breaker/{action}", policy="a")[0] == 200
        assert [(line["action"], line["old"], line["new"]) for line in operator.logged()] == [
            ("breaker_trip", "closed", "open"),
            ("breaker_trip", "open", "open"),
            ("breaker_reset", "open", "closed"),
        ]

    def test_a_change_is_logged_also_when_the_worker_that_made_it_is_killed(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        records(instance)
        assert Operator(instance).ask("DELETE", "limits", policy="a", rule="bucket")[0] == 200
        assert [line["action"] for line in Operator(instance).logged()] == ["limit_reset"]

    def test_who_only_looks_leaves_nothing(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        records(instance)
        operator = Operator(instance)
        assert operator.ask("GET", "limits", policy="a", rule="bucket", reason="curious")[0] == 200
        assert operator.logged() == []


class TestWhatIsClaimed:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("reason", "x" * (MAX_REASON + 1)),
            ("as", "x" * (MAX_NAME + 1)),
            ("as", "a\x1b[2J"),
            ("sudo_user", "a\nb"),
        ],
    )
    def test_it_is_bounded_and_changes_nothing_where_it_is_not(
        self, instance: Instance, name: str, value: str
    ) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        records(instance)
        operator = Operator(instance)
        status, answer = operator.ask("DELETE", "limits", policy="a", rule="bucket", **{name: value})
        assert status == 400
        assert name in answer["error"]["message"]
        assert operator.logged() == []

    def test_a_reason_reaches_no_terminal_unescaped(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        operator = Operator(instance)
        raw: list[bytes] = []
        append = operator.log.append
        operator.log.append = lambda lines: (raw.extend(lines), append(lines))[1]  # type: ignore[method-assign]
        operator.ask("DELETE", "limits", policy="a", rule="bucket", reason="\x1b]0;x\x07\u202e")
        operator.logged()
        assert raw[0].endswith(b"\n")
        assert raw[0].decode().rstrip("\n").isprintable()

    def test_a_claim_never_replaces_what_is_known(self) -> None:
        by = claiming(ALICE, {"as": "root", "sudo_user": "eve", "kind": "user", "name": "root", "reason": ""})
        assert by.actor == {**ALICE.actor, "claimed": {"as": "root", "sudo_user": "eve"}}
        assert by.fields() == {"actor": by.actor}

    def test_a_user_without_a_name_is_its_number(self) -> None:
        assert actor.user(4_000_000_000).actor["name"] == "4000000000"


class TestWhoChangedThisLimit:
    """The auditor's question, asked of the lines that the records become."""

    @pytest.fixture
    def log(self, tmp_path: Path, instance: Instance) -> Path:
        instance.publisher.publish(bundle(1, policy("api", burst=5), policy("other")))
        instance.publisher.publish(
            bundle(2, policy("api", burst=7), policy("other", burst=9)),
            by=claiming(ALICE, {"reason": "more room"}),
        )
        operator = Operator(instance)
        operator.audit.log(records(instance))
        operator.ask("DELETE", "limits", policy="api", rule="bucket", reason="asked")
        log = tmp_path / "audit.log"
        log.write_text(
            "".join(json.dumps(line) + "\n" for line in operator.logged()) + '{"action":"reject"}\nno JSON\n'
        )
        return log

    def test_one_command_answers_it(self, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["logs", "--file", str(log), "--changes", "api/bucket"]) == 0
        when = "2027-01-15T08:00:00.000Z"
        assert capsys.readouterr().out.splitlines() == [
            f"{when}  token alice  bundle_change  api/bucket  algorithm_config.burst  5 -> 7  (more room)",
            f'{when}  token alice  limit_reset  api/bucket  {{"bucket":7.0}} -> {{"bucket":7.0}}  (asked)',
        ]

    def test_a_policy_is_asked_for_by_its_name(self, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["logs", "--file", str(log), "--changes", "other"]) == 0
        assert "5 -> 9" in capsys.readouterr().out

    def test_without_a_name_all_changes_are_shown(
        self, log: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["logs", "--file", str(log), "--changes"]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) == 5
        assert "edge program  bundle  version none -> 1" in shown[0]

    def test_programs_get_the_lines(self, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["logs", "--changes", "api/bucket", "--format", "json", str(log)]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["action"] for line in lines] == ["bundle_change", "limit_reset"]


def test_a_reset_of_an_instance_is_logged_by_the_command_itself(
    tmp_path: Path, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIRVISOR_INSTANCE", instance.segment.directory.instance)
    monkeypatch.setenv("FAIRVISOR_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("SUDO_USER", "eve")
    (tmp_path / "state").mkdir()
    assert instance.entry is not None
    instance.publisher.registry.release(instance.entry)
    assert run(["reset", "--reason", "x" * 501]) == 3
    assert run(["reset", "--reason", "a fresh start", "--as", "bob"]) == 0
    (line,) = [json.loads(each) for each in (tmp_path / "state" / "audit.log").read_text().splitlines()]
    assert (line["action"], line["reason"], line["actor"]["uid"]) == ("reset", "a fresh start", os.getuid())
    assert line["actor"]["claimed"] == {"as": "bob", "sudo_user": "eve"}
    assert line["removed"]
    assert run(["logs", "--verify"]) == 0


@pytest.fixture
def state_of_another() -> Iterator[Path]:
    """A state directory of another user, in a place that they can enter."""
    with TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        state = Path(place, "state")
        state.mkdir()
        os.chown(state, 60_002, 60_002)
        yield state


@pytest.mark.needs("root")
@pytest.mark.parametrize(
    "names", [("audit.log", "audit.log.chain"), ()], ids=["a log of theirs", "no log yet"]
)
def test_a_reset_by_root_leaves_the_log_to_the_user_of_the_edge(
    state_of_another: Path, instance: Instance, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]
) -> None:
    for name in names:
        (state_of_another / name).touch()
        os.chown(state_of_another / name, 60_002, 60_002)
    monkeypatch.setenv("FAIRVISOR_INSTANCE", instance.segment.directory.instance)
    monkeypatch.setenv("FAIRVISOR_STATE_DIR", str(state_of_another))
    assert instance.entry is not None
    instance.publisher.registry.release(instance.entry)
    assert run(["reset"]) == 0
    assert {(each.name, each.stat().st_uid) for each in state_of_another.iterdir()} == {
        ("audit.log", 60_002), ("audit.log.chain", 60_002)
    }  # fmt: skip
    assert (os.geteuid(), run(["logs", "--verify"])) == (0, 0)
