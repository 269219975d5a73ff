"""What a person on call sees of real workers: metrics, probes, the audit log, log lines."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from edge_server import Client, Edge, StartEdge, ask, bundle_of, free_port, token_bucket, wait_until
from prometheus_client.parser import text_string_to_metric_families
from test_operating import run

AUDIT_KEY = "0123456789abcdef" * 4
PAGES = ("/livez", "/readyz", "/metrics")
REJECT_ALL = token_bucket(1, rate=0.000001)
NOTHING_LEFT = bundle_of(
    {
        "id": "all",
        "spec": {
            "selector": {"pathPrefix": "/"},
            "rules": [
                {
                    "name": "budget",
                    "limit_keys": ["header:x-key"],
                    "algorithm": "cost_based",
                    "algorithm_config": {"budget": 0.5, "period": "1d"},
                }
            ],
        },
    }
)

# The full flood is a million rejects; this many by default.
FLOOD = int(os.environ.get("FAIRVISOR_FLOOD", "20000"))


def get(client: Client, page: str) -> tuple[int, str]:
    client.send(f"GET {page} HTTP/1.1\r\nHost: edge\r\n\r\n".encode())
    status, _, body = client.answer()
    return status, body.decode()


def metrics(edge: Edge) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels in the order of their names."""
    client = edge.connect()
    status, text = get(client, "/metrics")
    client.close()
    assert status == 200
    return parsed(text)


def parsed(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def decided(samples: dict[tuple[str, ...], float]) -> float:
    return sum(value for name, value in samples.items() if name[0] == "fairvisor_decisions_total")


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; a last one may be on its way."""
    written = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in written[: written.rfind(b"\n") + 1].splitlines()]


def rejects(*paths: Path) -> int:
    return sum(line["count"] for path in paths for line in lines(path) if line["action"] == "reject")


def flood(edge: Edge, requests: int, keys: int, clients: int = 4) -> Counter[int]:
    """Ask as fast as it goes: `requests` in all over `keys` keys; the statuses.

    A server may ask a client to come again (workers share connections): what was not answered is asked again.
    """
    statuses: Counter[int] = Counter()
    connections = [edge.connect() for _ in range(clients)]
    asked = 0
    while asked < requests:
        sent = []
        for client in connections:
            numbers = range(asked, min(asked + 250, requests))
            client.send(b"".join(ask("/", "GET", f"X-Key: {number % keys}") for number in numbers))
            sent.append(len(numbers))
            asked += len(numbers)
        for place, expected in enumerate(sent):
            for answered in range(expected):
                status, headers, _ = connections[place].answer()
                statuses[status] += 1
                if headers.get("connection") == "close":
                    asked -= expected - answered - 1
                    connections[place] = edge.connect()
                    break
    return statuses


def test_every_worker_tells_the_same_numbers(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(30), workers=3)
    wait_until(lambda: metrics(edge)["fairvisor_workers",] == 3)
    clients = [edge.connect() for _ in range(9)]
    for client in clients:
        for _ in range(10):
            client.status(ask())
    told = {get(client, "/metrics")[1] for client in clients}
    counts = {(decided(parsed(text)), text.count("# TYPE")) for text in told}
    assert len(counts) == 1
    assert counts.pop()[0] == 90


def test_the_numbers_outlive_killed_workers_which_are_counted(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(30), workers=2)
    for _ in range(40):
        edge.status(ask())
    killed = edge.workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(set(edge.workers()) - set(killed)) == 2)
    samples = metrics(edge)
    assert samples["fairvisor_decisions_total", "allow", "all", "", "bucket"] == 30
    assert samples["fairvisor_decisions_total", "reject", "all", "rate_limit_exceeded", "bucket"] == 10
    assert samples["fairvisor_worker_restarts_total",] == 2
    wait_until(lambda: metrics(edge)["fairvisor_workers",] == 2)


def test_a_reload_of_the_workers_is_no_restart_by_accident(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(30), workers=2)
    before = edge.workers()
    edge.signal(signal.SIGHUP)
    wait_until(lambda: len(edge.workers()) == 2 and not set(edge.workers()) & set(before))
    assert metrics(edge)["fairvisor_worker_restarts_total",] == 0


def test_the_workers_tell_their_connections(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(30), workers=2)
    clients = [edge.connect() for _ in range(12)]

    def are_told() -> bool:
        for client in clients:
            client.status(ask())  # on a new connection, if it was told to close
        return metrics(edge)["fairvisor_connections",] >= 12

    wait_until(are_told)


def test_what_is_left_is_the_least_of_any_key(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(30, limit_keys=["header:x-key"]), workers=2)
    for key, times in (("a", 3), ("b", 11), ("c", 1)):
        for _ in range(times):
            edge.status(ask("/", "GET", f"X-Key: {key}"))
    name = ("fairvisor_ratelimit_remaining", "enforce", "all", "bucket")
    wait_until(lambda: metrics(edge).get(name) == 19)


@pytest.mark.needs("promtool")
def test_promtool_has_nothing_to_say_about_the_exposition(start_edge: StartEdge) -> None:
    edge = start_edge(REJECT_ALL)
    for _ in range(3):
        edge.status(ask())
    text = get(edge.connect(), "/metrics")[1]
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (checked.stdout, checked.stderr, checked.returncode) == ("", "", 0)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def status_at(port: int, data: bytes) -> int:
    """One question to a port, on a connection of its own."""
    client = Client(socket.create_connection(("127.0.0.1", port), timeout=30))
    try:
        return client.status(data)
    finally:
        client.close()


@pytest.mark.parametrize("worker_class", ["edge", "sync", "gthread"])
def test_probes_and_metrics_have_a_listener_of_their_own(start_edge: StartEdge, worker_class: str) -> None:
    port = free_port()
    settings = {
        "FAIRVISOR_HEALTH_BIND": f"127.0.0.1:{port}",
        "FAIRVISOR_WORKER_CLASS": worker_class,
    }
    edge = start_edge(token_bucket(30), workers=2, ready=False, **settings)
    wait_until(lambda: is_open(port))
    for page in PAGES:
        question = f"GET {page} HTTP/1.1\r\nHost: edge\r\n\r\n".encode()
        assert status_at(port, question) == 200
        assert edge.status(question) == 404
    assert status_at(port, ask()) == 404
    assert edge.status(ask()) == 204


@pytest.mark.parametrize("worker_class", ["edge", "sync"])
def test_probes_and_metrics_stand_beside_the_decisions_by_default(
    start_edge: StartEdge, worker_class: str
) -> None:
    edge = start_edge(token_bucket(30), FAIRVISOR_WORKER_CLASS=worker_class)
    for page in PAGES:
        client = edge.connect()
        assert get(client, page)[0] == 200
        client.close()


def test_every_reject_of_every_worker_is_in_the_audit_log(start_edge: StartEdge, tmp_path: Path) -> None:
    log = tmp_path / "audit"
    edge = start_edge(REJECT_ALL, workers=3, FAIRVISOR_AUDIT_LOG=str(log))
    wait_until(lambda: metrics(edge)["fairvisor_workers",] == 3)
    statuses = flood(edge, 3000, keys=1, clients=6)
    assert statuses == {204: 1, 429: 2999}
    wait_until(lambda: rejects(log) == 2999)
    assert len({line["worker"] for line in lines(log)}) > 1
    assert len(lines(log)) < 100


def test_a_stopping_worker_writes_what_it_has(start_edge: StartEdge, tmp_path: Path) -> None:
    log = tmp_path / "audit"
    edge = start_edge(REJECT_ALL, workers=2, FAIRVISOR_AUDIT_LOG=str(log))
    flood(edge, 500, keys=1)
    edge.signal(signal.SIGTERM)
    edge.end()
    assert rejects(log) == 499


@pytest.mark.parametrize("keys", [1, FLOOD], ids=["one key", "a key each"])
def test_a_flood_of_rejects_leaves_a_small_log_whose_counts_are_the_rejects(
    start_edge: StartEdge, tmp_path: Path, keys: int
) -> None:
    """Less than 10 MB for a million; the share of that for fewer, and what a quiet worker may write at once."""
    log = tmp_path / "audit"
    edge = start_edge(NOTHING_LEFT, workers=2, FAIRVISOR_AUDIT_LOG=str(log))
    statuses = flood(edge, FLOOD, keys)
    assert statuses == {429: FLOOD}
    wait_until(lambda: rejects(log) == FLOOD)
    assert log.stat().st_size < max(10_000_000 * FLOOD // 1_000_000, 2_000_000)

    def is_counted() -> bool:
        samples = metrics(edge)
        events, written = (samples.get((f"fairvisor_audit_{name}_total",)) for name in ("events", "lines"))
        return events == FLOOD and written == len(lines(log))

    wait_until(is_counted)


def test_rotation_loses_nothing(start_edge: StartEdge, tmp_path: Path) -> None:
    log = tmp_path / "audit"
    edge = start_edge(REJECT_ALL, workers=2, FAIRVISOR_AUDIT_LOG=str(log))
    old = []
    for number in range(5):
        flood(edge, 400, keys=1)
        old.append(tmp_path / f"audit.{number}")
        wait_until(log.exists)
        log.rename(old[-1])
    wait_until(lambda: rejects(log, *old) == 5 * 400 - 1)
    edge.signal(signal.SIGTERM)
    edge.end()
    assert run(edge, "logs", "--verify").returncode == 0


def test_workers_that_are_killed_while_they_write_leave_a_chain_that_holds(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    log = tmp_path / "audit"
    edge = start_edge(NOTHING_LEFT, workers=2, FAIRVISOR_AUDIT_LOG=str(log), FAIRVISOR_AUDIT_KEY=AUDIT_KEY)
    wait_until(log.exists)
    for _ in range(5):
        before = log.stat().st_size
        flood(edge, 500, keys=500)
        wait_until(lambda before=before: log.stat().st_size > before)
        victim = lines(log)[-1]["worker"]
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(edge.workers()) == 2)
    edge.signal(signal.SIGTERM)
    edge.end()
    report = json.loads(run(edge, "logs", "--verify", "--format", "json").stdout)
    assert report["intact"], report["findings"]
    assert report["lines"] > 100
    log.write_bytes(log.read_bytes().replace(b'"action":"reject"', b'"action":"allow!"', 1))
    assert run(edge, "logs", "--verify").returncode == 1


def test_a_chain_goes_on_when_the_disk_has_room_again(start_edge: StartEdge, tmp_path: Path) -> None:
    """A file that cannot grow takes a part of a line, as a full disk does."""
    log = tmp_path / "audit"
    edge = start_edge(NOTHING_LEFT, workers=2, FAIRVISOR_AUDIT_LOG=str(log))
    flood(edge, 100, keys=100)
    wait_until(lambda: rejects(log) == 100)
    for pid in edge.workers():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size + 1000, resource.RLIM_INFINITY))
    flood(edge, 100, keys=100)
    wait_until(lambda: metrics(edge)["fairvisor_fault", "audit_log"] == 1)
    for pid in edge.workers():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    counts = re.compile(rb'"action":"reject".*"count":([0-9]+),')
    wait_until(lambda: sum(map(int, counts.findall(log.read_bytes()))) == 200)
    report = json.loads(run(edge, "logs", "--verify", "--format", "json").stdout)
    assert report["intact"], report["findings"]


def test_a_log_that_cannot_be_written_is_told_and_written_again_when_it_can(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = folder / "audit"
    edge = start_edge(REJECT_ALL, workers=2, FAIRVISOR_AUDIT_LOG=str(log))
    flood(edge, 100, keys=1)
    wait_until(lambda: rejects(log) == 99)
    shutil.rmtree(folder)
    assert flood(edge, 100, keys=1) == {429: 100}
    fault = ("fairvisor_fault", "audit_log")
    wait_until(lambda: metrics(edge)[fault] == 1)
    wait_until(lambda: "audit log cannot be written" in edge.log.read_text())
    folder.mkdir()
    wait_until(lambda: rejects(log) == 100)
    wait_until(lambda: metrics(edge)[fault] == 0)


def test_a_full_disk_stops_no_decision(start_edge: StartEdge) -> None:
    edge = start_edge(REJECT_ALL, FAIRVISOR_AUDIT_LOG="/dev/full")
    assert flood(edge, 100, keys=1) == {204: 1, 429: 99}
    wait_until(lambda: metrics(edge)["fairvisor_fault", "audit_log"] == 1)
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0


def test_log_lines_can_be_json_and_never_hold_a_secret(start_edge: StartEdge, tmp_path: Path) -> None:
    secrets = {
        "FAIRVISOR_DECISION_TOKEN": "the-decision-token",
        "FAIRVISOR_DEBUG_SESSION_SECRET": "the-debug-secret",
    }
    edge = start_edge(REJECT_ALL, FAIRVISOR_LOG_FORMAT="json", FAIRVISOR_LOG_LEVEL="debug", **secrets)
    edge.status(ask("/", "GET", "X-Fairvisor-Token: the-decision-token", "Authorization: Bearer abc.def.ghi"))
    edge.status(ask("/", "GET", "X-Fairvisor-Token: wrong"))
    edge.write({"bundle_version": "the-debug-secret", "policies": []})
    edge.signal(signal.SIGHUP)
    wait_until(lambda: "bundle_version" in edge.log.read_text())
    edge.signal(signal.SIGTERM)
    edge.end()
    text = edge.log.read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    assert {"time", "level", "logger", "pid", "message"} <= set.intersection(*map(set, entries))
    assert {entry["logger"].split(".")[0] for entry in entries} == {"fairvisor", "gunicorn"}
    assert not [secret for secret in (*secrets.values(), "abc.def.ghi") if secret in text]
