"""What an operator does to a running edge: over the admin listener and with the commands, against real workers."""

from __future__ import annotations

import io
import json
import os
import pwd
import signal
import stat
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from edge_server import PROGRAM, ROOT, Edge, StartEdge, ask, bundle_of, stand_still, wait_until

from fairvisor.bundle.load import verify_signature
from fairvisor.cli import main
from fairvisor.cli.edge import Edge as Asked
from fairvisor.cli.edge import Refused, Reply
from fairvisor.cli.status import RECENT_S

COMMAND = [sys.executable, "-c", "from fairvisor.cli.main import main; main()"]
TOKEN = "an-admin-token-of-thirty-two-characters"
KEY = "X-Forwarded-For: 203.0.113.7"


def per_client(burst: float = 3, **more: Any) -> dict[str, Any]:
    """A policy of one bucket for each client, nearly without refill."""
    rule = {
        "name": "r",
        "limit_keys": ["ip:address"],
        "algorithm": "token_bucket",
        "algorithm_config": {"tokens_per_second": 0.001, "burst": burst},
    }
    return {"id": "api", "spec": {"selector": {"pathPrefix": "/"}, "rules": [rule], **more}}


def admin_of(edge: Edge) -> Asked:
    return Asked(f"unix:{edge.policy.parent}/state/{edge.instance}.admin", ())


class Ran(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


def run(edge: Edge, *arguments: str, stdin: str = "", **environ: str) -> Ran:
    """A command, in this process, with the environment of the server."""
    output, errors, given = (io.TextIOWrapper(io.BytesIO(data)) for data in (b"", b"", stdin.encode()))
    with (
        mock.patch.dict(os.environ, {**edge.environ, **environ}, clear=True),
        mock.patch.object(sys, "stdin", given),
        redirect_stdout(output),
        redirect_stderr(errors),
    ):
        code = main.run(arguments)
    return Ran(code, _written(output), _written(errors))


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def push(edge: Edge, version: int, *policies: dict[str, Any], **more: Any) -> Any:
    document = {**bundle_of(*policies, version=version), **more}
    return admin_of(edge).ask("PUT", "bundle", body=json.dumps(document).encode())


def exhaust(edge: Edge, *lines: str) -> int:
    """Ask until it is rejected; how many passed."""
    for passed in range(100):
        if edge.status(ask("/", "GET", *lines)) == 429:
            return passed
    raise AssertionError("nothing was rejected")


# what is not decided


def test_what_was_not_decided_lately_is_in_the_status(start_edge: StartEdge) -> None:
    """Behind nginx a 403 is a reject: with a token that does not match, all traffic is, and the edge seems well."""
    edge = start_edge(bundle_of(per_client(1000)), workers=2, FAIRVISOR_DECISION_TOKEN=TOKEN)
    assert "undecided" not in run(edge, "status").stdout
    assert [edge.status(ask("/")) for _ in range(4)] == [403] * 4
    shown = run(edge, "status").stdout
    assert "undecided 4 requests at /v1/decision: wrong_secret, the last " in shown
    (told,) = admin_of(edge).ask("GET", "status")["undecided"]
    assert told.pop("last_age_seconds") <= RECENT_S
    assert told == {"endpoint": "/v1/decision", "reason": "wrong_secret", "requests": 4}
    wait_until(lambda: "/v1/decision answered 403 without a decision" in edge.log.read_text())
    assert not isinstance(edge.bind, str)
    outside = run(edge, "status", "--edge-url", f"http://127.0.0.1:{edge.bind[1]}").stdout
    assert "undecided 4 requests at /v1/decision: wrong_secret" in outside


# the bundle


def test_a_pushed_kill_switch_is_in_force_on_every_worker_when_the_push_returns(
    start_edge: StartEdge,
) -> None:
    edge = start_edge(bundle_of(per_client(1000)), workers=3)
    clients = [edge.connect() for _ in range(12)]  # spread over the workers
    assert {client.status(ask("/")) for client in clients} == {204}
    switch = {"scope_key": "request:method", "scope_value": "GET", "reason": "an incident"}
    published = push(edge, 2, per_client(1000), kill_switches=[switch])
    assert {client.status(ask("/")) for client in clients} == {429}
    assert published["lagging"] == []
    assert (published["version"], published["generation"]) == (2, 2)
    assert published["changed"]
    assert published["durable"]


def test_what_was_pushed_is_what_is_given_back_and_survives_a_restart(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client()))
    document = b'{ "bundle_version": 5, "policies": [], "$comment": "as it was written" }'
    admin_of(edge).ask("PUT", "bundle", body=document)
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    edge.start_again()
    reply = admin_of(edge).send("GET", "/v1/admin/bundle")
    assert (reply.status, reply.body) == (200, document)
    assert reply.headers["x-fairvisor-bundle-version"] == "5"


def test_a_bundle_that_is_refused_changes_nothing_and_says_why(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client(), version=3))
    with pytest.raises(Refused, match=r"2 errors; bundle_version: .*; policies: is required") as invalid:
        admin_of(edge).ask("PUT", "bundle", body=b'{"bundle_version": 0}')
    assert invalid.value.status == 422
    with pytest.raises(Refused, match="HMAC") as unsigned:
        signed = start_edge(bundle_of(), ready=False, FAIRVISOR_BUNDLE_SIGNING_KEY=TOKEN)
        wait_until(signed.is_answering)
        push(signed, 4)
    assert unsigned.value.error["code"] == "invalid_signature"
    with pytest.raises(Refused, match="is not greater than that of the active bundle, 3") as older:
        push(edge, 2, per_client())
    assert (older.value.status, older.value.error["code"]) == (409, "version_not_monotonic")
    report = admin_of(edge).ask("GET", "status")
    assert report["bundle"]["version"] == 3
    assert "version_not_monotonic" in report["reload_error"]["text"]


def test_reload_reads_the_file_now(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client(1000)))
    edge.write(bundle_of(per_client(1), version=2))
    assert admin_of(edge).ask("POST", "reload")["version"] == 2
    assert exhaust(edge) == 1
    edge.policy.unlink()
    with pytest.raises(Refused, match="No such file"):
        admin_of(edge).ask("POST", "reload")


def test_a_push_while_a_worker_is_stopped_says_who_lags(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client()), workers=2)
    assert push(edge, 2, per_client())["lagging"] == []
    stopped = edge.follower()
    stand_still(stopped)
    try:
        published = push(edge, 3, per_client())
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert published["lagging"] == [stopped]


def test_a_large_push_holds_no_decision_up_for_long(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(), FAIRVISOR_SHARED_DICT_SIZE="16m")
    policies = [{**per_client(), "id": f"p{number}"} for number in range(3000)]
    for number, policy in enumerate(policies):
        policy["spec"]["selector"] = {"pathPrefix": f"/{number}"}
    document = json.dumps(bundle_of(*policies, version=2))
    with subprocess.Popen(
        [*COMMAND, "connect", "--push", "-"],
        env=edge.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as pushing:
        assert pushing.stdin is not None
        pushing.stdin.write(document)
        pushing.stdin.close()
        client, asked = edge.connect(), 0
        while pushing.poll() is None:
            assert client.status(ask("/")) == 204
            asked += 1
    assert pushing.returncode == 0
    assert asked > 100, "decisions went on while the bundle was validated"


# counters


def test_a_counter_is_shown_and_reset_on_all_workers(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client(5)), workers=2)
    where = [("policy", "api"), ("rule", "r"), ("key", "ip:address=203.0.113.7")]
    edge.status(ask("/", "GET", KEY))
    (counter,) = admin_of(edge).ask("GET", "limits", where)["counters"]
    assert (counter["limit"], int(counter["remaining"])) == (5, 4)
    assert exhaust(edge, KEY) == 4
    assert admin_of(edge).ask("DELETE", "limits", where)["forgotten"] == 1
    assert exhaust(edge, KEY) == 5
    with pytest.raises(Refused, match="it has r") as unknown:
        admin_of(edge).ask("GET", "limits", [("policy", "api"), ("rule", "nope")])
    assert unknown.value.status == 404


def test_the_keys_that_all_workers_rejected_are_told_together(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client(1)), workers=2)
    clients = [edge.connect() for _ in range(8)]
    rejected = sum(client.status(ask("/", "GET", KEY)) == 429 for client in clients for _ in range(5))
    assert rejected == 39

    def told() -> Any:
        return [(each["keys"], each["rejected"]) for each in admin_of(edge).ask("GET", "top")["top"]]

    wait_until(lambda: told() == [({"ip:address": "203.0.113.7"}, 39)])
    assert admin_of(edge).ask("GET", "top", [("rule", "other")])["top"] == []


def test_a_breaker_is_tripped_and_reset_for_all_workers(start_edge: StartEdge) -> None:
    breaker = {
        "enabled": True,
        "spend_rate_threshold_per_minute": 1000,
        "action": "reject",
        "auto_reset_after_minutes": 0,
        "scope": "policy",
    }
    edge = start_edge(bundle_of(per_client(1000, circuit_breaker=breaker)), workers=2)
    clients = [edge.connect() for _ in range(8)]
    assert run(edge, "breaker", "trip", "api").stdout.startswith("api  open")
    assert {client.status(ask("/")) for client in clients} == {429}
    assert json.loads(run(edge, "breaker", "show", "api", "--format", "json").stdout)["state"] == "open"
    assert run(edge, "breaker", "reset", "api").stdout == "api  closed\n"
    assert {client.status(ask("/")) for client in clients} == {204}


# the listener


def test_the_socket_is_the_owners_alone_and_goes_with_the_server(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client()))
    path = Path(admin_of(edge).url.removeprefix("unix:"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    assert not path.exists()


def test_over_tcp_the_token_is_needed(start_edge: StartEdge) -> None:
    spare = start_edge(bundle_of(per_client()))
    port = spare.bind[1] if not isinstance(spare.bind, str) else 0
    spare.signal(signal.SIGTERM)
    assert spare.end() == 0
    refused = start_edge(bundle_of(), ready=False, FAIRVISOR_ADMIN_BIND=f"127.0.0.1:{port}")
    assert refused.end() == 1
    assert "FAIRVISOR_ADMIN_TOKEN" in refused.log.read_text()
    edge = start_edge(
        bundle_of(per_client()), FAIRVISOR_ADMIN_BIND=f"127.0.0.1:{port}", FAIRVISOR_ADMIN_TOKEN=TOKEN
    )
    with pytest.raises(Refused) as forbidden:
        Asked(f"http://127.0.0.1:{port}", ("x" * 32,)).ask("GET", "status")
    assert forbidden.value.status == 403
    assert Asked(f"http://127.0.0.1:{port}", (TOKEN,)).ask("GET", "status")["ready"]
    assert run(edge, "status").returncode == 0


def test_a_socket_that_was_removed_is_there_again_soon_and_after_a_reload(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client()))
    path = Path(admin_of(edge).url.removeprefix("unix:"))
    path.unlink()
    wait_until(path.exists)
    assert run(edge, "status").returncode == 0
    old = edge.workers()
    edge.signal(signal.SIGHUP)
    wait_until(lambda: not set(old) & set(edge.workers()))
    wait_until(lambda: run(edge, "status").returncode == 0)
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    assert not path.exists()


def test_decisions_go_on_without_a_place_for_the_socket_and_the_fault_is_told(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    edge = start_edge(bundle_of(per_client()), FAIRVISOR_ADMIN_BIND=f"unix:{tmp_path}/file")
    assert edge.status(ask("/")) == 204
    assert 'fairvisor_fault{part="admin"} 1' in outside(edge, "/metrics").body.decode()
    assert (tmp_path / "file").read_text() == "in the way"
    (tmp_path / "file").unlink()
    wait_until(lambda: 'fairvisor_fault{part="admin"} 0' in outside(edge, "/metrics").body.decode())


def outside(edge: Edge, path: str) -> Reply:
    """What the listener for decisions says."""
    assert not isinstance(edge.bind, str), "it listens on TCP"
    return Asked(f"http://127.0.0.1:{edge.bind[1]}", ()).send("GET", path)


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_it_works_with_wsgi_workers_too(start_edge: StartEdge, worker_class: str) -> None:
    edge = start_edge(bundle_of(per_client(2)), FAIRVISOR_WORKER_CLASS=worker_class)
    assert exhaust(edge) == 2
    push(edge, 2, per_client(5))
    assert run(edge, "limits", "reset", "api", "r", "ip:address=127.0.0.1").returncode == 0
    assert exhaust(edge) == 5
    assert len(admin_of(edge).ask("GET", "status")["workers"]) == 1


# the commands


def test_status_tells_people_and_programs_what_is_going_on(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client(2)), workers=2)
    assert exhaust(edge) == 2
    edge.write({"bundle_version": 9})
    wait_until(lambda: bool(admin_of(edge).ask("GET", "status")["reload_error"]))
    wait_until(lambda: admin_of(edge).ask("GET", "status")["decisions"]["by_action"].get("reject") == 1)
    report = json.loads(run(edge, "status", "--format", "json").stdout)
    assert report["ready"]
    assert sorted(worker["pid"] for worker in report["workers"]) == sorted(edge.workers())
    assert sum(worker["leader"] for worker in report["workers"]) == 1
    assert report["master"] == edge.process.pid
    assert report["decisions"]["by_reason"] == {"rate_limit_exceeded": 1}
    shown = run(edge, "status")
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"ready  {edge.instance}, version ")
    assert "policies: is required" in shown.stdout
    assert "decisions allow 2, reject 1\n" in shown.stdout


def test_status_from_outside_asks_the_listener_for_decisions(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client(1)))
    assert exhaust(edge) == 1
    assert not isinstance(edge.bind, str)
    url = f"http://127.0.0.1:{edge.bind[1]}"
    shown = run(edge, "status", "--edge-url", url)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "bundle    version 1, 1 policy\n" in shown.stdout
    assert "decisions allow 1, reject 1\n" in shown.stdout
    assert json.loads(run(edge, "status", "--format", "json", FAIRVISOR_EDGE_URL=url).stdout)["ready"]


def test_an_edge_without_a_bundle_is_not_ready_and_one_that_is_gone_unreachable(
    start_edge: StartEdge,
) -> None:
    edge = start_edge(None)
    shown = run(edge, "status")
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (
        1,
        f"not ready  {edge.instance}, version 0.1.0",
    )
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    gone = run(edge, "status")
    assert (gone.returncode, gone.stdout) == (2, "")
    assert gone.stderr.startswith("Error: no edge answers at unix:")


def test_the_only_socket_in_the_state_directory_is_the_one_that_is_meant(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client()))
    assert run(edge, "status", FAIRVISOR_INSTANCE="").returncode == 0


def test_connect_pushes_a_file(start_edge: StartEdge, tmp_path: Path) -> None:
    edge = start_edge(bundle_of(per_client(1)))
    new = tmp_path / "new.json"
    new.write_text(json.dumps(bundle_of(per_client(7), version=2)))
    pushed = run(edge, "connect", "--push", str(new))
    assert (pushed.returncode, pushed.stdout) == (0, f"in force  {new}: version 2, generation 2\n")
    again = run(edge, "connect", "--push", str(new), "--format", "json")
    assert not json.loads(again.stdout)["changed"]
    assert json.loads(run(edge, "connect", "--pull").stdout)["bundle_version"] == 2
    older = run(edge, "connect", "--push", "-", stdin=json.dumps(bundle_of(version=1)))
    assert (older.returncode, older.stdout) == (1, "")
    assert older.stderr == "Error: bundle_version 1 is not greater than that of the active bundle, 2\n"
    assert run(edge, "connect").returncode == 3


def test_where_the_file_decides_a_push_takes_over_until_the_file_changes(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    edge = start_edge(bundle_of(per_client(1), version=5), workers=2, FAIRVISOR_BUNDLE_ORDER="file")
    pushed = tmp_path / "pushed.json"
    pushed.write_text(json.dumps(bundle_of(per_client(2), version=2)))
    refused = run(edge, "connect", "--push", str(pushed))
    assert (refused.returncode, "--take-over" in refused.stderr) == (1, True)
    assert run(edge, "connect", "--push", str(pushed), "--take-over").stdout.startswith("in force  ")
    assert exhaust(edge) == 2
    with pytest.raises(Refused, match="take_over is true or false"):
        admin_of(edge).ask("PUT", "bundle", [("take_over", "yes")], body=pushed.read_bytes())
    assert admin_of(edge).ask("POST", "reload")["version"] == 5, "the way back to the file"


SIGNING_KEY = "a signing key with $ and spaces, of yesterday"


def test_what_was_signed_and_pulled_is_changed_and_pushed(start_edge: StartEdge, tmp_path: Path) -> None:
    edge = start_edge(ready=False, FAIRVISOR_BUNDLE_SIGNING_KEY=SIGNING_KEY)
    wait_until(edge.is_answering)
    plain, out = tmp_path / "plain.json", tmp_path / "out.json"
    plain.write_text(json.dumps(bundle_of(per_client(), version=2)))
    signed = run(edge, "sign", str(plain))
    assert verify_signature(signed.stdout.encode(), (SIGNING_KEY.encode(),)) == plain.read_bytes()
    assert run(edge, "sign", "-", "-o", str(out), stdin=signed.stdout) == (0, "", "")
    assert out.read_text() == signed.stdout, "signed once"
    assert run(edge, "connect", "--push", str(out)).returncode == 0
    assert run(edge, "connect", "--pull").stdout == signed.stdout
    assert run(edge, "connect", "--pull", "--payload").stdout == plain.read_text()
    plain.write_text(json.dumps(bundle_of(per_client(), version=3)))
    assert run(edge, "connect", "--push", str(plain)).returncode == 0, "signed on the way"
    out.write_bytes(out.read_bytes().replace(b'"bundle_version": 2', b'"bundle_version": 4'))
    forged = run(edge, "connect", "--push", str(out))
    assert (forged.returncode, "HMAC" in forged.stderr) == (1, True)


def test_without_a_key_nothing_is_signed(start_edge: StartEdge, tmp_path: Path) -> None:
    edge = start_edge(bundle_of(per_client()))
    missing = run(edge, "sign", str(edge.policy))
    assert missing.returncode == 1
    assert "FAIRVISOR_BUNDLE_SIGNING_KEY is not set" in missing.stderr
    assert run(edge, "connect", "--pull", "--payload").stdout == edge.policy.read_text()
    for arguments in (["--payload", "--push", "x"], ["--take-over", "--pull"]):
        assert run(edge, "connect", *arguments).returncode == 3


@pytest.mark.parametrize(("order", "signed"), [("version", False), ("file", True)])
def test_the_snippet_of_the_page_stops_who_does_damage(
    start_edge: StartEdge, tmp_path: Path, order: str, signed: bool
) -> None:
    """Pasted as it is printed, into a shell that stops at the first failure."""
    page = (ROOT / "docs" / "operations.md").read_text()
    snippet = page.partition("fairvisor connect --pull --payload")
    snippet = snippet[1] + snippet[2].partition("```")[0]
    environ = {"FAIRVISOR_BUNDLE_SIGNING_KEY": SIGNING_KEY} if signed else {}
    edge = start_edge(ready=False, workers=2, FAIRVISOR_BUNDLE_ORDER=order, **environ)
    wait_until(edge.is_answering)
    edge.write(bundle_of(per_client(1000)))
    if signed:
        run(edge, "sign", str(edge.policy), "-o", str(edge.policy))
    wait_until(lambda: edge.status(ask()) == 204)
    program = tmp_path / "bin" / "fairvisor"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(PROGRAM[1:-1])} "$@"\n')
    program.chmod(0o755)
    environ = {**edge.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"in force  " in done.stdout
    assert {edge.status(ask("/", "GET", "X-Tenant: acme")) for _ in range(4)} == {429}
    assert edge.status(ask("/", "GET", "X-Tenant: globex")) == 204


def test_limits_are_shown_reset_and_listed(start_edge: StartEdge) -> None:
    edge = start_edge(bundle_of(per_client(2)))
    assert exhaust(edge, KEY) == 2
    shown = run(edge, "limits", "show", "api", "r", "ip:address=203.0.113.7")
    assert shown.stdout.splitlines()[0] == "api/r  ip:address=203.0.113.7"
    assert run(edge, "limits", "reset", "api", "r", "ip:address=203.0.113.7").stdout.startswith("forgotten\n")
    assert exhaust(edge, KEY) == 2
    wait_until(
        lambda: "ip:address=203.0.113.7  (api/r, rate_limit_exceeded)" in run(edge, "limits", "top").stdout
    )
    wrong = run(edge, "limits", "show", "api", "r")
    assert (wrong.returncode, wrong.stderr) == (1, "Error: the limit keys of api/r are ip:address\n")


def test_logs_are_followed_through_rotation_and_filtered(start_edge: StartEdge, tmp_path: Path) -> None:
    edge = start_edge(bundle_of(per_client(1)), FAIRVISOR_AUDIT_KEYS="plain")
    log = tmp_path / "state" / "audit.log"
    assert exhaust(edge, KEY) == 1
    wait_until(lambda: log.exists() and b"rate_limit_exceeded" in log.read_bytes())
    with (tmp_path / "followed").open("wb") as output:
        following = subprocess.Popen(
            [*COMMAND, "logs", "--action", "reject", "--policy", "api"],
            env=edge.environ,
            stdout=output,
            cwd=ROOT,
        )
    try:
        followed = tmp_path / "followed"
        wait_until(lambda: followed.read_text().count("203.0.113.7") == 1)
        log.rename(tmp_path / "state" / "audit.log.1")
        exhaust(edge, "X-Forwarded-For: 203.0.113.8")
        wait_until(lambda: followed.read_text().count("203.0.113.8") == 1)
        log.write_bytes(b"")
        exhaust(edge, "X-Forwarded-For: 203.0.113.9")
        wait_until(lambda: followed.read_text().count("203.0.113.9") == 1)
    finally:
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 130
    assert "bundle" not in followed.read_text()
    assert run(edge, "logs", "--no-follow", "--reason", "nope").stdout == ""
    as_json = run(edge, "logs", "--no-follow", "--format", "json", "-n", "1").stdout
    assert json.loads(as_json)["key"] == {"ip:address": "203.0.113.9"}


def test_what_operators_do_is_in_the_audit_log(start_edge: StartEdge, tmp_path: Path) -> None:
    edge = start_edge(bundle_of(per_client(1)))
    exhaust(edge)
    run(edge, "limits", "reset", "api", "r", "ip:address=127.0.0.1")
    log = tmp_path / "state" / "audit.log"
    line = b'"action":"limit_reset","policy":"api","rule":"r"'
    wait_until(lambda: log.is_file() and line in log.read_bytes())


def test_each_question_of_an_auditor_is_answered_by_one_command(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    """Who changed this limit, when, why, from what to what; was the log altered."""
    edge = start_edge(bundle_of(per_client(1)), workers=2, FAIRVISOR_AUDIT_KEY="0123456789abcdef" * 4)
    pushed = tmp_path / "pushed.json"
    pushed.write_text(json.dumps(bundle_of(per_client(7), version=2)))
    assert (
        run(edge, "connect", "--push", str(pushed), "--reason", "ACME grows", "--as", "bob").returncode == 0
    )
    log = tmp_path / "state" / "audit.log"
    wait_until(lambda: log.exists() and b'"bundle_change"' in log.read_bytes())
    edge.write(bundle_of(per_client(9), version=3))
    wait_until(lambda: log.read_bytes().count(b'"bundle_change"') == 2)
    edge.signal(signal.SIGHUP)
    wait_until(lambda: b'"action":"reload"' in log.read_bytes())
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    by_push, by_file = run(edge, "logs", "--changes", "api/r").stdout.splitlines()
    me = pwd.getpwuid(os.getuid()).pw_name
    assert by_push.split("  ", 1)[1] == (
        f"user {me} [claims as bob]  bundle_change  api/r  algorithm_config.burst  1 -> 7  (ACME grows)"
    )
    assert by_file.split("  ", 1)[1] == (
        f"file {edge.policy} of {me}  bundle_change  api/r  algorithm_config.burst  7 -> 9"
    )
    actions = [json.loads(line)["action"] for line in log.read_text().splitlines()]
    assert actions == [
        "bundle",
        "start",
        "bundle",
        "bundle_change",
        "bundle",
        "bundle_change",
        "reload",
        "stop",
    ]
    assert run(edge, "logs", "--verify").returncode == 0
    log.write_text(log.read_text().replace('"new":7', '"new":6'))
    altered = run(edge, "logs", "--verify")
    assert altered.returncode == 1
    assert "altered" in altered.stdout
