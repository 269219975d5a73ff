"""The servers that `perf/` measures: each is started on a port of its own and pinned to one core.

A contender says how it is started and which request it is asked; the harness in `decisions.py` does the rest. What
they are compared with is run beside them, on the same core, in the same minutes: numbers from another day mean nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jwt

from fairvisor.counters.segment import SHM_DIR
from fairvisor.http.start import segment_name

SERVER_CORE = 0
LOAD_CORE = 1
HS_SECRET = "perf-only-secret-of-sufficient-length-0123456789"
GENEROUS = {"tokens_per_second": 1e9, "burst": 1e9}


class Contender(NamedTuple):
    """A server and the request it is asked. `argv` gets the port; `environ` is added to ours."""

    name: str
    argv: list[str]
    environ: dict[str, str]
    path: str
    headers: dict[str, str]
    expect: int


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(contender: Contender, port: int) -> Iterator[None]:
    """The server, pinned and answering."""
    process = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), *contender.argv],
        env=os.environ | contender.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _await(port, process)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
        for path in SHM_DIR.glob(f"{segment_name(contender.environ.get('FAIRVISOR_INSTANCE', 'none'))}*"):
            path.unlink()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{process.args!r} does not listen")


def nginx(folder: Path, port: int) -> Contender:
    """nginx answering 204: what one core can do."""
    path = folder / "nginx.conf"
    path.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log /dev/null;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000;
server {{ listen 127.0.0.1:{port}; location / {{ return 204; }} }} }}
"""
    )
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or sys.exit(
        "nginx is missing"
    )
    return Contender("nginx return 204", [program, "-c", str(path)], {}, "/v1/decision", REQUEST, 204)


REQUEST = {
    "X-Original-Method": "GET",
    "X-Original-URI": "/v1/orders/17",
    "X-Original-Host": "api.example.com",
    "X-Api-Key": "key-1",
}


def edge(folder: Path, port: int, name: str, bundle: dict[str, Any], **more: Any) -> Contender:
    """One edge worker with `bundle`; `more` may give headers, environ, expect."""
    path = folder / f"{name.replace(' ', '-')}.json"
    path.write_text(json.dumps(bundle))
    environ = {
        "FAIRVISOR_CONFIG_FILE": str(path),
        "FAIRVISOR_BIND": f"127.0.0.1:{port}",
        "FAIRVISOR_WORKER_PROCESSES": "1",
        "FAIRVISOR_INSTANCE": f"perf-{port}",
        "FAIRVISOR_STATE_DIR": str(folder),
        "FAIRVISOR_LOG_LEVEL": "error",
    } | more.get("environ", {})
    headers = REQUEST | more.get("headers", {})
    argv = [sys.executable, "-c", "from fairvisor.cli.main import main; main()", "serve"]
    return Contender(name, argv, environ, "/v1/decision", headers, more.get("expect", 204))


def bucket(name: str, *keys: str, **config: float) -> dict[str, Any]:
    """A token bucket rule that never refuses, unless `config` says otherwise."""
    return {
        "name": name,
        "limit_keys": list(keys),
        "algorithm": "token_bucket",
        "algorithm_config": GENEROUS | config,
    }


def policy(policy_id: str, *rules: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A policy for every path."""
    return {"id": policy_id, "spec": {"selector": {"pathPrefix": "/"}, "rules": list(rules)} | spec}


def one_limit() -> dict[str, Any]:
    """The smallest bundle: one bucket per API key."""
    return {"bundle_version": 1, "policies": [policy("orders", bucket("per-key", "header:x-api-key"))]}


def all_rejected() -> dict[str, Any]:
    """One bucket that is empty after its first request."""
    rule = bucket("per-key", "header:x-api-key", tokens_per_second=0.0001, burst=1)
    return {"bundle_version": 1, "policies": [policy("orders", rule)]}


def five_limits() -> dict[str, Any]:
    """Five limits over verified claims, header and address, with loop detection and a circuit breaker."""
    budget = {
        "name": "spend",
        "limit_keys": ["jwt:org_id"],
        "algorithm": "cost_based",
        "algorithm_config": {"budget": 9e12, "period": "1d"},
    }
    rules = [
        bucket("per-user", "jwt:sub"),
        bucket("per-org", "jwt:org_id"),
        bucket("per-plan", "jwt:plan", "header:x-api-key"),
        bucket("per-address", "ip:address"),
        budget,
    ]
    guards = {
        "loop_detection": {"enabled": True, "window_seconds": 1, "threshold_identical_requests": 1_000_000},
        "circuit_breaker": {"enabled": True, "spend_rate_threshold_per_minute": 9e11, "scope": "policy"},
    }
    return {
        "bundle_version": 1,
        "policies": [policy("orders", *rules, **guards)],
        "jwt_keys": [{"secret_env": "FAIRVISOR_PERF_SECRET", "algorithm": "HS256", "kid": "perf"}],
    }


def bearer() -> dict[str, str]:
    """The Authorization header of a token that outlives the run."""
    claims = {"sub": "user-17", "org_id": "org-4", "plan": "pro", "exp": int(time.time()) + 86_400}
    return {"Authorization": "Bearer " + jwt.encode(claims, HS_SECRET, "HS256", headers={"kid": "perf"})}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for configurations, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fairvisor-perf-") as name:
        yield Path(name)


def line_up(folder: Path) -> list[tuple[Contender, int]]:
    """Every contender with its port, the ceiling first."""
    ports = [free_port() for _ in range(4)]
    secret = {"FAIRVISOR_PERF_SECRET": HS_SECRET}
    contenders = [
        nginx(folder, ports[0]),
        edge(folder, ports[1], "one limit", one_limit()),
        edge(folder, ports[2], "five limits", five_limits(), headers=bearer(), environ=secret),
        edge(folder, ports[3], "all rejected", all_rejected(), expect=429),
    ]
    return list(zip(contenders, ports, strict=True))
