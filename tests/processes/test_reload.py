"""Bundles that change under running workers. Each test has a server of its own, and a publisher beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from edge_server import (
    ROOT,
    Client,
    Edge,
    StartEdge,
    ask,
    attach,
    bundle_of,
    memory_of,
    open_files,
    stand_still,
    token_bucket,
    wait_until,
)

from fairvisor.bundle.shared import object_name
from fairvisor.errors import BundleInvalid, BundleRefused
from fairvisor.offered import Published
from fairvisor.reload import IN_THREAD_BYTES, Publisher
from fairvisor.settings import Settings


def publisher(edge: Edge) -> Publisher:
    """What the admin listener has, in the process of the test."""
    segment = attach(edge.instance)
    return Publisher(Settings.load(edge.environ, {}), segment, edge.environ)


def push(edge: Edge, bundle: dict[str, Any], **changes: object) -> Published:
    return publisher(edge).publish(json.dumps(bundle | changes).encode())


def marked(version: int) -> dict[str, Any]:
    """A bundle whose answers name its version twice: in the rules of two policies, and in a limit of each."""
    policies = []
    for name in ("one", "two"):
        config = {"tokens_per_second": 1_000_000 + version, "burst": 1_000_000_000 + version}
        rules = [
            {
                "name": f"{name}-{version}",
                "limit_keys": [],
                "algorithm": "token_bucket",
                "algorithm_config": config,
            }
        ]
        policies.append({"id": name, "spec": {"selector": {"pathPrefix": "/"}, "rules": rules}})
    stopped = {"scope_key": "header:x-version", "scope_value": str(version), "reason": "not any more"}
    return bundle_of(*policies, version=version) | {"kill_switches": [stopped]}


def version_of(headers: dict[str, str]) -> int:
    """Which bundle gave this answer: its rule's name and its burst say the same."""
    name, _, quota = headers["ratelimit-policy"].partition(";q=")
    version = int(name.strip('"').partition("-")[2])
    assert int(quota.partition(";")[0]) == 1_000_000_000 + version, f"a mixture: {headers}"
    return version


class Asking:
    """Clients that ask all the time; every answer must be an allow by a whole bundle."""

    def __init__(self, edge: Edge, clients: int) -> None:
        self.versions: Counter[int] = Counter()
        self.faults: list[str] = []
        self._edge = edge
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        client = self._edge.connect()
        while not self._stop.is_set():
            try:
                client.send(ask())
                status, headers, _ = client.answer()
                assert status == 204, headers
                self.versions[version_of(headers)] += 1
            except (OSError, AssertionError, KeyError, ValueError) as error:
                self.faults.append(repr(error))
                return

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class EachWorker:
    """A connection to every worker."""

    def __init__(self, edge: Edge, workers: int) -> None:
        wait_until(lambda: len(edge.workers()) == workers)
        self._edge = edge
        self._clients = {pid: self._connect(pid) for pid in edge.workers()}

    def answers(self, data: bytes) -> list[tuple[int, dict[str, str]]]:
        """What each worker answers: status and headers."""
        for client in self._clients.values():
            client.send(data)
        found = {pid: client.answer() for pid, client in self._clients.items()}
        for pid, (_, headers, _) in found.items():
            if headers.get("connection") == "close":  # to spread connections evenly
                self._clients[pid] = self._connect(pid)
        return [(status, headers) for status, headers, _ in found.values()]

    def _connect(self, pid: int) -> Client:
        while True:
            client = self._edge.connect()
            client.send(b"GET /livez HTTP/1.1\r\n\r\n")
            status, headers, _ = client.answer()
            assert status == 200
            if headers.get("connection") != "close" and worker_of(self._edge, client) == pid:
                return client
            client.close()


def worker_of(edge: Edge, client: Client) -> int:
    """The pid that has the other end of a TCP connection."""
    port = client.socket.getsockname()[1]
    for pid in edge.workers():
        with open(f"/proc/{pid}/net/tcp") as table:
            rows = [line.split() for line in table][1:]
        inodes = {row[9] for row in rows if row[2].endswith(f":{port:04X}")}
        if {f"socket:[{inode}]" for inode in inodes} & open_files(pid):
            return pid
    raise AssertionError("nobody has this connection")


def test_a_hundred_reloads_under_load_fail_no_request_and_mix_nothing(start_edge: StartEdge) -> None:
    """After each acknowledgement the very next decision of every worker is by the new bundle."""
    edge = start_edge(marked(1), workers=2)
    each = EachWorker(edge, 2)
    publish = publisher(edge).publish
    with Asking(edge, clients=3) as others:
        for version in range(2, 102):
            published = publish(json.dumps(marked(version)).encode())
            assert (published.version, published.lagging) == (version, ())
            answers = each.answers(ask("/", "GET", f"X-Version: {version - 1}"))
            assert [(status, version_of(headers)) for status, headers in answers] == [(204, version)] * 2
            answers = each.answers(ask("/", "GET", f"X-Version: {version}"))
            assert [status for status, _ in answers] == [429, 429]
    assert others.faults == []
    assert len(others.versions) > 50


def test_what_a_bundle_that_stays_counted_is_kept(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(3), workers=2)
    assert edge.status(ask()) == 204
    push(edge, token_bucket(3), bundle_version=2)
    assert [edge.status(ask()) for _ in range(3)] == [204, 204, 429]


def test_a_large_bundle_is_validated_elsewhere_and_only_what_changed_is_compiled(
    start_edge: StartEdge,
) -> None:
    edge = start_edge(token_bucket(1000), workers=2)
    policies = [
        {"id": f"p{index}", "spec": {"selector": {"pathPrefix": f"/p{index}"}, "rules": []}}
        for index in range(1000)
    ]
    large = bundle_of(*policies, token_bucket(2)["policies"][0])
    assert len(json.dumps(large)) > IN_THREAD_BYTES
    assert push(edge, large, bundle_version=2).lagging == ()
    assert [edge.status(ask("/p7")) for _ in range(3)] == [204, 204, 429]
    assert push(edge, large, bundle_version=3, kill_switches=[
        {"scope_key": "header:x", "scope_value": "bad"}
    ]).lagging == ()  # fmt: skip
    large["policies"][500]["spec"]["rules"] = "none"
    with pytest.raises(BundleInvalid, match=r"policies\[500\].spec.rules"):
        push(edge, large, bundle_version=4)


def test_a_bundle_that_is_refused_changes_nothing_and_says_why(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(1000))
    publish = publisher(edge)
    with pytest.raises(BundleInvalid, match="bundle_version"):
        publish.publish(b'{"policies": []}')
    note = publish.notes.get("reload")
    assert note is not None
    assert "bundle_version: " in note.text
    with pytest.raises(BundleRefused, match="version_not_monotonic"):
        push(edge, token_bucket(5), bundle_version=1)
    with pytest.raises(BundleRefused, match="bundle_expired"):
        push(edge, token_bucket(5), bundle_version=2, expires_at="2020-01-01T00:00:00Z")
    assert edge.status(ask()) == 204
    assert publish.generation == 1
    published = publish.publish(json.dumps(token_bucket(1000)).encode())
    assert (published.changed, published.generation) == (False, 1)
    assert publish.notes.get("reload") is None


def test_a_stopped_worker_makes_a_push_answer_after_five_seconds_with_who_lags(start_edge: StartEdge) -> None:
    edge = start_edge(marked(1), workers=2)
    stopped = edge.follower()
    stand_still(stopped)
    assert push(edge, marked(2)).lagging == (stopped,)
    os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: not publisher(edge).registry.lagging(2))


def test_a_killed_worker_is_not_waited_for(start_edge: StartEdge) -> None:
    edge = start_edge(marked(1), workers=2)
    os.kill(edge.workers()[0], signal.SIGKILL)
    assert push(edge, marked(2)).lagging == ()


def test_a_worker_that_comes_later_loads_the_active_bundle_and_never_the_file(start_edge: StartEdge) -> None:
    edge = start_edge(marked(1), workers=1)
    push(edge, marked(2))
    edge.policy.write_text("{")
    (worker,) = edge.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: edge.workers() not in ([], [worker]))
    edge.wait_ready()
    client = edge.connect()
    client.send(ask())
    assert version_of(client.answer()[1]) == 2


def test_a_file_that_is_replaced_is_taken_over(start_edge: StartEdge) -> None:
    edge = start_edge(marked(1), workers=2)
    new = edge.policy.with_suffix(".new")
    new.write_text(json.dumps(marked(2)))
    new.rename(edge.policy)
    publish = publisher(edge)
    wait_until(lambda: publish.generation == 2 and not publish.registry.lagging(2))
    edge.policy.write_text("{")
    wait_until(lambda: publish.notes.get("reload") is not None)
    edge.policy.unlink()
    wait_until(lambda: "bundle_file" in publish.notes.faults())
    assert {edge.status(ask()) for _ in range(4)} == {204}
    edge.write(marked(3))
    wait_until(lambda: publish.generation == 3 and not publish.registry.lagging(3))
    wait_until(lambda: publish.notes.all() == {})


def test_a_config_map_is_followed(start_edge: StartEdge, tmp_path: Path) -> None:
    """Kubernetes swaps a link to a directory (`..data`); the path that is configured leads through it."""
    mount = tmp_path / "mount"
    for version in (1, 2):
        (mount / f"..{version}").mkdir(parents=True)
        (mount / f"..{version}" / "policy.json").write_text(json.dumps(marked(version)))
    (mount / "..data").symlink_to("..1")
    (mount / "policy.json").symlink_to("..data/policy.json")
    edge = start_edge(FAIRVISOR_CONFIG_FILE=str(mount / "policy.json"))
    assert edge.status(ask()) == 204
    (mount / "..data_tmp").symlink_to("..2")
    (mount / "..data_tmp").rename(mount / "..data")
    wait_until(lambda: publisher(edge).generation == 2)


def test_a_config_map_that_is_put_back_is_in_force_again_where_the_file_decides(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    """As `helm rollback` and `git revert` do it: the older version comes back, and a push between them is undone."""
    mount = tmp_path / "mount"

    def swap(number: int, version: int) -> None:
        """As the kubelet does it: a new directory each time, and a link to it that is renamed."""
        (mount / f"..{number}").mkdir(parents=True)
        (mount / f"..{number}" / "policy.json").write_text(json.dumps(marked(version)))
        (mount / "..data_tmp").symlink_to(f"..{number}")
        (mount / "..data_tmp").rename(mount / "..data")

    swap(1, version=7)
    (mount / "policy.json").symlink_to("..data/policy.json")
    edge = start_edge(
        workers=2, FAIRVISOR_CONFIG_FILE=str(mount / "policy.json"), FAIRVISOR_BUNDLE_ORDER="file"
    )
    publish = publisher(edge)

    def decides_by(version: int) -> bool:
        client = edge.connect()
        client.send(ask())
        found = version_of(client.answer()[1])
        client.close()
        return found == version and not publish.registry.lagging(publish.generation)

    for number, version in ((2, 8), (3, 7), (4, 8)):
        swap(number, version)
        wait_until(lambda version=version: decides_by(version))  # type: ignore[misc]
    publisher(edge).push(json.dumps(marked(3)).encode(), take_over=True)
    assert decides_by(3)
    edge.signal(signal.SIGHUP)
    wait_until(lambda: edge.log.read_text().count("Hang up") == 1 and edge.registered() == 2)
    assert decides_by(3)
    swap(5, version=7)
    wait_until(lambda: decides_by(7))


def test_hangup_reads_the_file_and_new_workers_decide_by_it(start_edge: StartEdge) -> None:
    edge = start_edge(marked(1), workers=2)
    before = edge.workers()
    edge.write(marked(2))
    edge.signal(signal.SIGHUP)
    publish = publisher(edge)
    wait_until(lambda: publish.generation == 2 and not set(before) & set(edge.workers()))
    wait_until(lambda: len(publish.registry.workers()) == 2 and not publish.registry.lagging(2))
    client = edge.connect()
    client.send(ask())
    assert version_of(client.answer()[1]) == 2


@pytest.mark.parametrize(
    "worker_class", ["sync", "gthread", pytest.param("meinheld", marks=pytest.mark.needs("meinheld"))]
)
def test_wsgi_workers_follow_as_well(start_edge: StartEdge, worker_class: str) -> None:
    edge = start_edge(marked(1), workers=2, FAIRVISOR_WORKER_CLASS=worker_class)
    for version in (2, 3):
        assert push(edge, marked(version)).lagging == ()
        client = edge.connect()
        client.send(ask())
        assert version_of(client.answer()[1]) == version


def test_a_bundle_that_was_signed_as_the_page_says_is_accepted_and_no_other(start_edge: StartEdge) -> None:
    """With the command line of the documentation."""
    page = (ROOT / "docs" / "reload.md").read_text()
    line = next(line for line in page.splitlines() if "hmac.digest" in line)
    edge = start_edge(FAIRVISOR_BUNDLE_SIGNING_KEY="a key with $ and spaces, and 32 characters")
    edge.policy.with_name("policy.json").write_text(json.dumps(marked(1)))
    subprocess.run(["sh", "-c", line], cwd=edge.policy.parent, env=edge.environ, check=True)
    edge.policy.with_name("signed.json").rename(edge.policy)
    wait_until(lambda: publisher(edge).generation == 1)
    with pytest.raises(BundleRefused, match="invalid_signature"):
        push(edge, marked(2))


def test_removed_shared_memory_is_put_back_for_workers_to_come(start_edge: StartEdge) -> None:
    edge = start_edge(marked(1), workers=1)
    path = memory_of(edge.instance).path / object_name(1)
    path.unlink()
    wait_until(path.exists)
    assert publisher(edge).current() is not None


def test_a_removed_directory_is_put_back_too_and_a_push_works(start_edge: StartEdge) -> None:
    edge = start_edge(marked(1), workers=1)
    publish = publisher(edge)
    shutil.rmtree(memory_of(edge.instance).path)
    wait_until(lambda: publish.current() is not None)
    assert publish.publish(json.dumps(marked(2)).encode()).lagging == ()
    assert edge.status(ask()) == 204


def test_a_push_while_the_state_directory_is_broken_is_applied_and_not_durable(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    state = tmp_path / "file" / "state"
    edge = start_edge(marked(1), FAIRVISOR_STATE_DIR=str(state))
    publish = publisher(edge)
    assert "state_dir" in publish.notes.faults()
    assert push(edge, marked(2)).durable is False
    assert edge.status(ask()) == 204
    (tmp_path / "file").unlink()
    wait_until(lambda: "state_dir" not in publish.notes.faults())
    assert json.loads((state / f"{edge.instance}.bundle").read_text())["bundle_version"] == 2
