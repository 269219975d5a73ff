"""What outlives whom: workers, the leader, the master, the machine's memory. Each test has a server of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from edge_server import (
    Edge,
    StartEdge,
    ask,
    bundle_of,
    kill_quietly,
    memory_of,
    remove_shared_memory,
    token_bucket,
    wait_until,
)
from edge_server import attach as attach_to

from fairvisor.clock import read_now
from fairvisor.counters import objects
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.memory import SHM_DIR
from fairvisor.notes import Notes
from fairvisor.offered import Published
from fairvisor.reload import Publisher
from fairvisor.settings import Settings

DECIDED = 'fairvisor_decisions_total{action="allow",policy="all",reason="",rule="month"} %d.0'


def attach(edge: Edge) -> Segment:
    return attach_to(edge.instance)


def push(edge: Edge, bundle: dict[str, object]) -> Published:
    publisher = Publisher(Settings.load(edge.environ, {}), attach(edge), edge.environ)
    return publisher.publish(json.dumps(bundle).encode())


def budget(amount: int, version: int = 1) -> dict[str, object]:
    config = {"budget": amount, "period": "30d"}
    rule = {"name": "month", "limit_keys": [], "algorithm": "cost_based", "algorithm_config": config}
    policy = {"id": "all", "spec": {"selector": {"pathPrefix": "/"}, "rules": [rule]}}
    return bundle_of(policy, version=version)


def kill_everything(edge: Edge) -> None:
    """All processes at once, by SIGKILL: the master first, so that it replaces nobody."""
    workers = edge.workers()
    edge.signal(signal.SIGKILL)
    for pid in workers:
        kill_quietly(pid)
    edge.end()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def allows(edge: Edge, most: int) -> int:
    """How many of `most` requests pass."""
    return [edge.status(ask()) for _ in range(most)].count(204)


def metrics(edge: Edge) -> set[str]:
    """The lines of /metrics."""
    client = edge.connect()
    client.send(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
    return set(client.rest().decode().splitlines())


def snapshot_of(edge: Edge) -> Path:
    return Path(edge.environ["FAIRVISOR_STATE_DIR"]) / f"{edge.instance}.snapshot"


def wait_for_snapshot(edge: Edge) -> None:
    """Until one was begun after this moment."""
    table, begun_ns = attach(edge).table, read_now().wall_ns
    wait_until(lambda: table.word_get(Word.SNAPSHOT_WALL_NS) > begun_ns)


def kill_a_worker(edge: Edge) -> None:
    killed = edge.workers()[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in edge.workers() and len(edge.workers()) == 2)


def kill_the_leader(edge: Edge) -> None:
    table, leader = attach(edge).table, edge.leader()
    os.kill(leader, signal.SIGKILL)
    wait_until(lambda: table.word_get(Word.LEADER_PID) != leader)


def kill_the_master(edge: Edge) -> None:
    workers = edge.workers()
    edge.signal(signal.SIGKILL)
    edge.end()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    edge.start_again()


def kill_all(edge: Edge) -> None:
    kill_everything(edge)
    edge.start_again()


def restart(edge: Edge) -> None:
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    edge.start_again()


def hang_up(edge: Edge) -> None:
    before = set(edge.workers())
    edge.signal(signal.SIGHUP)
    wait_until(lambda: len(edge.workers()) == 2 and not before & set(edge.workers()))


@pytest.mark.parametrize(
    "happens", [kill_a_worker, kill_the_leader, kill_the_master, kill_all, restart, hang_up]
)
def test_counters_bundle_and_metrics_are_as_they_were_whatever_happens(
    start_edge: StartEdge, happens: Callable[[Edge], None]
) -> None:
    edge = start_edge(budget(10), workers=2)
    push(edge, budget(10, version=2))
    assert allows(edge, 4) == 4
    happens(edge)
    edge.wait_ready()
    assert {DECIDED % 4, "fairvisor_bundle_version 2.0"} <= metrics(edge)
    assert allows(edge, 10) == 6
    assert DECIDED % 10 in metrics(edge)
    assert attach(edge).table.word_get(Word.BUNDLE_GENERATION) == 2


def test_the_leader_killed_is_followed_by_another_within_its_lease(start_edge: StartEdge) -> None:
    edge = start_edge(budget(10), workers=2)
    table, leader = attach(edge).table, edge.leader()
    os.kill(leader, signal.SIGKILL)
    edge.write(budget(10, version=2))
    wait_until(lambda: table.word_get(Word.LEADER_PID) != leader)
    wait_until(lambda: table.word_get(Word.BUNDLE_GENERATION) == 2)


def test_a_stuck_leader_is_followed_by_another(start_edge: StartEdge) -> None:
    edge = start_edge(budget(10), workers=2)
    table, leader = attach(edge).table, edge.leader()
    os.kill(leader, signal.SIGSTOP)
    wait_until(lambda: table.word_get(Word.LEADER_PID) != leader)
    os.kill(leader, signal.SIGCONT)


def test_memory_lost_after_a_clean_stop_loses_nothing(start_edge: StartEdge) -> None:
    edge = start_edge(budget(10), workers=2)
    assert allows(edge, 4) == 4
    push(edge, budget(10, version=2))
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    remove_shared_memory(edge.instance)
    edge.start_again()
    assert allows(edge, 10) == 6
    wait_until(lambda: "restored" in edge.log.read_text())


def test_a_metric_never_falls_to_less_than_what_happened_since(start_edge: StartEdge) -> None:
    """A snapshot is older than the last scrape: Prometheus takes any fall for a reset, after which all is new."""
    edge = start_edge(budget(1000), workers=2)
    assert allows(edge, 5) == 5
    restart(edge)  # a snapshot of 5
    assert allows(edge, 20) == 20
    assert DECIDED % 25 in metrics(edge)
    kill_everything(edge)
    remove_shared_memory(edge.instance)
    edge.start_again()
    wait_until(lambda: "restored" in edge.log.read_text())
    assert allows(edge, 3) == 3
    assert DECIDED % 3 in metrics(edge), "what `increase` adds to the 25"


def test_memory_lost_without_a_stop_is_as_of_the_last_snapshot(start_edge: StartEdge) -> None:
    edge = start_edge(budget(10), workers=2)
    push(edge, budget(10, version=2))
    assert allows(edge, 4) == 4
    wait_for_snapshot(edge)
    kill_everything(edge)
    remove_shared_memory(edge.instance)
    edge.start_again()
    assert "fairvisor_bundle_version 2.0" in metrics(edge)
    assert allows(edge, 10) == 6


def test_a_damaged_snapshot_is_refused_whole(start_edge: StartEdge) -> None:
    edge = start_edge(budget(10))
    assert allows(edge, 4) == 4
    edge.signal(signal.SIGTERM)
    edge.end()
    data = bytearray(snapshot_of(edge).read_bytes())
    data[len(data) // 2] ^= 1
    snapshot_of(edge).write_bytes(data)
    remove_shared_memory(edge.instance)
    edge.start_again()
    wait_until(lambda: "is not restored" in edge.log.read_text())
    assert allows(edge, 12) == 10


def test_a_pushed_bundle_wins_over_a_lower_file_at_start_unless_told_otherwise(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(1))
    push(edge, budget(3, version=2))
    for shared_memory_lost in (False, True):
        kill_everything(edge)
        if shared_memory_lost:
            remove_shared_memory(edge.instance)
        edge.start_again()
        assert attach(edge).table.word_get(Word.BUNDLE_GENERATION) > 0
        note = Notes(memory_of(edge.instance)).get("reload")
        assert note is not None
        assert "lower" in note.text
    assert allows(edge, 4) == 3
    kill_everything(edge)
    edge.command = [*edge.command, "--accept-older"]
    edge.start_again()
    assert allows(edge, 4) == 1


def test_a_file_of_the_same_version_wins_at_start(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(1))
    kill_everything(edge)
    edge.write(token_bucket(2))
    edge.start_again()
    assert allows(edge, 4) == 2


def test_the_last_good_bundle_serves_when_the_file_is_broken_or_gone(start_edge: StartEdge) -> None:
    edge = start_edge(budget(5))
    kill_everything(edge)
    remove_shared_memory(edge.instance)
    edge.policy.write_text("{")
    edge.start_again()
    assert allows(edge, 1) == 1
    kill_everything(edge)
    remove_shared_memory(edge.instance)
    edge.policy.unlink()
    edge.start_again()
    assert allows(edge, 1) == 1


def test_upgrading_by_usr2_keeps_counters_and_bundle(start_edge: StartEdge) -> None:
    edge = start_edge(budget(10), workers=2)
    assert allows(edge, 4) == 4
    push(edge, budget(10, version=2))
    table = attach(edge).table
    decided = DECIDED % 4
    assert decided in metrics(edge)
    old = edge.process.pid
    edge.signal(signal.SIGUSR2)
    wait_until(lambda: table.word_get(Word.MASTER_PID) != old)
    new = table.word_get(Word.MASTER_PID)
    children = Path(f"/proc/{new}/task/{new}/children")
    wait_until(lambda: len(children.read_text().split()) == 2)
    edge.signal(signal.SIGTERM)
    edge.end()
    try:
        assert decided in metrics(edge)
        assert allows(edge, 10) == 6
        assert push(edge, budget(12, version=3)).lagging == ()
        assert allows(edge, 10) == 2
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{new}").exists())


def as_version_0_1_left_it(edge: Edge) -> None:
    """The same shared memory under the names of that version, a lock and a note among it."""
    directory, name = memory_of(edge.instance), f"fairvisor-{edge.instance}"
    (SHM_DIR / objects.find(directory)).rename(SHM_DIR / name)
    (bundle,) = [each for each in directory.names() if each.startswith("bundle")]
    (directory.path / bundle).rename(SHM_DIR / f"{name}+{bundle}")
    directory.remove_all()
    for left in ("lock", "note-snapshot", "bundle-0"):
        (SHM_DIR / f"{name}+{left}").touch(0o600)


def test_counters_and_bundle_of_version_0_1_are_taken_over(start_edge: StartEdge) -> None:
    """They come from shared memory: the state directory is empty."""
    edge = start_edge(budget(10))
    push(edge, budget(10, version=2))
    assert allows(edge, 4) == 4
    kill_everything(edge)
    as_version_0_1_left_it(edge)
    for path in snapshot_of(edge).parent.iterdir():
        path.unlink()
    edge.start_again()
    assert allows(edge, 10) == 6
    assert DECIDED % 10 in metrics(edge)
    assert attach(edge).table.word_get(Word.BUNDLE_GENERATION) == 2
    left = [path.name for path in SHM_DIR.glob(f"*{edge.instance}*")]
    assert sorted(left) == sorted(
        [memory_of(edge.instance).path.name, objects.find(memory_of(edge.instance))]
    )


def test_a_state_directory_that_breaks_and_heals(start_edge: StartEdge, tmp_path: Path) -> None:
    edge = start_edge(budget(1000))
    notes = Notes(memory_of(edge.instance))
    state = snapshot_of(edge).parent
    moved = tmp_path / "moved"
    state.rename(moved)
    state.write_text("in the way")
    wait_until(lambda: {"state_dir", "snapshot"} <= set(notes.faults()))
    assert {'fairvisor_fault{part="state_dir"} 1.0', 'fairvisor_fault{part="snapshot"} 1.0'} <= metrics(edge)
    assert allows(edge, 3) == 3
    state.unlink()
    wait_until(lambda: notes.faults() == {})
    assert {'fairvisor_fault{part="state_dir"} 0.0', 'fairvisor_fault{part="snapshot"} 0.0'} <= metrics(edge)
    assert snapshot_of(edge).exists()


def reset(edge: Edge, *options: str) -> subprocess.CompletedProcess[str]:
    program = [*edge.command[:-1], "reset", *options]
    return subprocess.run(program, env=edge.environ, capture_output=True, text=True, check=False)


def test_reset_forgets_the_counters_and_refuses_while_the_edge_runs(start_edge: StartEdge) -> None:
    edge = start_edge(budget(5))
    assert allows(edge, 4) == 4
    refused = reset(edge)
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    push(edge, budget(5, version=2))
    edge.signal(signal.SIGTERM)
    edge.end()
    assert reset(edge).returncode == 0
    edge.start_again()
    assert allows(edge, 10) == 5
    assert (
        json.loads((snapshot_of(edge).parent / f"{edge.instance}.bundle").read_text())["bundle_version"] == 2
    )
    edge.signal(signal.SIGTERM)
    edge.end()
    assert f"{edge.instance}.bundle" in reset(edge, "--state").stdout


def test_neighbours_are_left_alone(start_edge: StartEdge) -> None:
    """An instance whose name begins with the name of another one, and looks like an object of it, is not one."""
    edge = start_edge(budget(5))
    name = edge.instance + "-bundle-1"
    neighbour = start_edge(budget(5), FAIRVISOR_INSTANCE=name)
    assert allows(neighbour, 1) == 1
    push(edge, budget(5, version=2))
    edge.signal(signal.SIGTERM)
    edge.end()
    assert reset(edge, "--state").returncode == 0
    assert attach_to(name).table.word_get(Word.BUNDLE_GENERATION) == 1
