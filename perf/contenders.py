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
from collections.abc import Iterator, Sequence
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
    """A server and the request it is asked: a GET, or a POST when there is a `body`. `environ` is added to ours."""

    name: str
    argv: list[str]
    environ: dict[str, str]
    path: str
    headers: dict[str, str]
    expect: int
    body: bytes = b""


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


def nginx(folder: Path, port: int, name: str = "nginx return 204", limit: str = "") -> Contender:
    """nginx answering 204: what one core can do. `limit` goes into the http block, and limits the location."""
    path = folder / f"{name.replace(' ', '-')}.conf"
    # `return` answers before a limit is looked at; try_files comes after it.
    place = "limit_req zone=keys burst=1000000 nodelay; try_files /none =204;" if limit else "return 204;"
    path.write_text(
        f"""daemon off; worker_processes 1; pid {path}.pid; error_log /dev/null;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; {limit}
server {{ listen 127.0.0.1:{port}; location / {{ {place} }} }} }}
"""
    )
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") or sys.exit(
        "nginx is missing"
    )
    return Contender(name, [program, "-c", str(path)], {}, "/v1/decision", REQUEST, 204)


def nginx_limit(folder: Path, port: int) -> Contender:
    """nginx with `limit_req` per API key, which never refuses here."""
    zone = "limit_req_zone $http_x_api_key zone=keys:10m rate=1000000r/s;"
    return nginx(folder, port, "nginx limit_req", zone)


def envoy(
    folder: Path,
    port: int,
    action: dict[str, Any],
    filters: Sequence[dict[str, Any]] = (),
    clusters: Sequence[dict[str, Any]] = (),
) -> list[str] | None:
    """How to start Envoy with one worker thread, `action` on every path behind `filters`; None where there is none."""
    program = shutil.which("envoy")
    if program is None:
        return None
    router = {"@type": f"{ENVOY_FILTERS}.http.router.v3.Router"}
    routes = [{"match": {"prefix": "/"}, **action}]
    manager = {
        "@type": f"{ENVOY_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "p",
        "http_filters": [*filters, {"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {"address": envoy_address(port), "filter_chains": [{"filters": [network]}]}
    path = folder / "envoy.json"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": list(clusters)}}))
    return [program, "-c", str(path), "--concurrency", "1", "-l", "critical", "--disable-hot-restart"]


def envoy_address(port: int) -> dict[str, Any]:
    """A port of this machine, as Envoy writes it."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def envoy_limit(folder: Path, port: int) -> Contender | None:
    """Envoy answering 204 behind its local rate limit, which never refuses here; None where it is not installed."""
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    limit = {
        "@type": f"{ENVOY_FILTERS}.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "l",
        "token_bucket": {
            "max_tokens": 1_000_000_000,
            "tokens_per_fill": 1_000_000_000,
            "fill_interval": "1s",
        },
        "filter_enabled": always,
        "filter_enforced": always,
    }
    filters = [{"name": "envoy.filters.http.local_ratelimit", "typed_config": limit}]
    argv = envoy(folder, port, {"direct_response": {"status": 204}}, filters)
    if argv is None:
        return None
    return Contender("Envoy local_ratelimit", argv, {}, "/v1/decision", REQUEST, 204)


ENVOY_FILTERS = "type.googleapis.com/envoy.extensions.filters"
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
    return Contender(
        name, argv, environ, "/v1/decision", headers, more.get("expect", 204), more.get("body", b"")
    )


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


def llm_tokens() -> dict[str, Any]:
    """Tokens per minute and day by API key, reserved from the body of the request."""
    config = {"tokens_per_minute": 1e9, "tokens_per_day": 1e12, "burst_tokens": 1e9}
    rule = {"name": "tokens", "limit_keys": ["header:x-api-key"], "algorithm": "token_bucket_llm"}
    return {"bundle_version": 1, "policies": [policy("llm", rule | {"algorithm_config": config})]}


def chat() -> bytes:
    """The body of a chat completion request, of 2 KB."""
    words = "Summarise the following support conversation for the team that will take it over. " * 23
    return json.dumps(
        {"model": "gpt-4o", "max_tokens": 16, "messages": [{"role": "user", "content": words}]}
    ).encode()


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
    """Every contender with its port, the ceiling first; without Envoy where it is not installed."""
    ports = [free_port() for _ in range(7)]
    secret = {"FAIRVISOR_PERF_SECRET": HS_SECRET}
    asked = {"X-Original-Method": "POST", "X-Original-URI": "/v1/chat/completions"}
    contenders = [
        nginx(folder, ports[0]),
        edge(folder, ports[1], "one limit", one_limit()),
        edge(folder, ports[2], "five limits", five_limits(), headers=bearer(), environ=secret),
        edge(folder, ports[3], "LLM tokens", llm_tokens(), headers=asked, body=chat()),
        edge(folder, ports[4], "all rejected", all_rejected(), expect=429),
        nginx_limit(folder, ports[5]),
        envoy_limit(folder, ports[6]),
    ]
    return [(each, port) for each, port in zip(contenders, ports, strict=True) if each is not None]
