"""What signals do to real servers: what is in flight is answered, whichever process gets them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from edge_server import Client, Edge, StartEdge, ask, attach, throttle, token_bucket, wait_until

from fairvisor.counters.registry import Registry

OLD, NEW = "0123456789abcdef-of-yesterday", "fedcba9876543210-of-tomorrow"
READY = b"GET /readyz HTTP/1.1\r\n\r\n"


def held(edge: Edge, number: int) -> list[Client]:
    """Clients whose answers the workers are holding."""
    clients = [edge.connect() for _ in range(number)]
    for client in clients:
        client.send(ask("/slow"))
    registry = Registry(attach(edge.instance).table)
    wait_until(lambda: sum(worker.waiting for worker in registry.workers()) == number)
    return clients


def readiness(edge: Edge) -> tuple[int, dict[str, str]]:
    client = edge.connect()
    client.send(READY)
    status, _, body = client.answer()
    client.close()
    return status, json.loads(body)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_for_the_master_that_reaches_workers_cuts_nobody_off(
    start_edge: StartEdge, number: int
) -> None:
    """`pkill -HUP fairvisor` and `systemctl kill -s HUP fairvisor` send it to each process."""
    edge = start_edge(throttle(3000), workers=2)
    workers = edge.workers()
    clients = held(edge, 6)
    for pid in workers:
        os.kill(pid, number)
    if number == signal.SIGHUP:
        edge.signal(number)
    assert [client.answer()[0] for client in clients] == [204] * 6
    if number != signal.SIGHUP:
        assert edge.workers() == workers
    assert edge.status(ask("/fast")) == 204


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_workers_of_gunicorn_ignore_it_too(start_edge: StartEdge, worker_class: str) -> None:
    edge = start_edge(token_bucket(100), workers=2, FAIRVISOR_WORKER_CLASS=worker_class)
    workers = edge.workers()
    for pid in workers:
        os.kill(pid, signal.SIGHUP)
    assert {edge.status(ask()) for _ in range(8)} == {204}
    assert edge.workers() == workers


def test_before_a_stop_readiness_says_no_and_decisions_go_on(start_edge: StartEdge) -> None:
    edge = start_edge(throttle(3000), workers=2, FAIRVISOR_LAME_DUCK_S="60")
    assert readiness(edge)[0] == 200
    edge.signal(signal.SIGTERM)
    wait_until(lambda: readiness(edge)[0] == 503)
    assert {readiness(edge)[0] for _ in range(6)} == {503}, "on every worker"
    assert readiness(edge)[1]["reason"] == "stopping"
    assert {edge.status(ask("/fast")) for _ in range(6)} == {204}, "on new connections too"
    os.kill(edge.workers()[0], signal.SIGKILL)
    wait_until(lambda: len(edge.workers()) == 2)
    wait_until(lambda: edge.registered() == 2)
    assert {readiness(edge)[0] for _ in range(6)} == {503}, "on a worker that came later"
    clients = held(edge, 4)
    edge.signal(signal.SIGTERM)
    assert [client.answer()[0] for client in clients] == [204] * 4
    assert edge.end() == 0


def test_the_lame_duck_ends_by_itself(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(100), FAIRVISOR_LAME_DUCK_S="1")
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    assert "decisions go on; a second SIGTERM stops now" in edge.log.read_text()


def test_a_quick_stop_waits_for_no_lame_duck(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(100), FAIRVISOR_LAME_DUCK_S="60")
    edge.signal(signal.SIGTERM)
    edge.signal(signal.SIGQUIT)
    assert edge.end() == 0


def with_token(token: str) -> bytes:
    return ask("/", "GET", f"X-Fairvisor-Token: {token}")


def test_a_token_is_rotated_by_its_file_without_a_request_that_fails(
    start_edge: StartEdge, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(OLD + "\n")
    file.chmod(0o600)
    edge = start_edge(token_bucket(1000), workers=2, FAIRVISOR_DECISION_TOKEN_FILE=str(file))

    def answers_after_hangup(text: str) -> tuple[set[int], set[int]]:
        before = edge.workers()
        file.write_text(text)
        edge.signal(signal.SIGHUP)
        wait_until(lambda: not set(before) & set(edge.workers()) and edge.registered() == 2)
        old, new = ({edge.status(with_token(token)) for _ in range(4)} for token in (OLD, NEW))
        return old, new

    assert edge.status(with_token(NEW)) == 403
    assert answers_after_hangup(f"{NEW}\n{OLD}\n") == ({204}, {204})
    assert answers_after_hangup(f"{NEW}\n") == ({403}, {204})
    assert answers_after_hangup("short\n") == ({403}, {204}), "a wrong one changes nothing"
    assert "the secrets stay as they are: FAIRVISOR_DECISION_TOKEN_FILE" in edge.log.read_text()


def test_a_misspelt_setting_stops_the_start(start_edge: StartEdge) -> None:
    edge = start_edge(token_bucket(1), ready=False, FAIRVISOR_DECISION_TOKN="0123456789abcdef")
    assert edge.end() == 1
    assert edge.log.read_text() == (
        "Error: FAIRVISOR_DECISION_TOKN: is not a setting; did you mean FAIRVISOR_DECISION_TOKEN? Rename or unset it\n"
    )


def test_secrets_that_the_bundle_names_are_no_settings_and_may_look_like_them(start_edge: StartEdge) -> None:
    bundle = token_bucket(5) | {"jwt_keys": [{"secret_env": "FAIRVISOR_ORG_SECRET"}]}
    edge = start_edge(bundle, FAIRVISOR_ORG_SECRET="s" * 32 + "0123456789")
    edge.signal(signal.SIGTERM)
    assert edge.end() == 0
    edge.policy.unlink()
    edge.start_again()  # the last good bundle names it as well
    assert edge.status(ask()) == 204
