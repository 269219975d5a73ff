"""What a worker remembers of clients that make every value long and new: how much its memory grows.

    python perf/long_values.py [--requests 20000] [--format table|json]

One client sends, for each kind, so many requests to a worker of the decision service; every one has another value of
the length that fits into a head. The policies count by address, claim and header, and reject, so all that is read of a
request is read, remembered and reported. Exits with 1 when the worker's own memory grew by more than 64 MiB in all.
"""

from __future__ import annotations

import argparse
import base64
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from contenders import edge, running, scratch
from rich.console import Console
from rich.progress import track
from streams import memory_kib, worker_of
from terminal import show

MOST_KIB: Final = 64 << 10
KEYS: Final = ["ip:address", "jwt:sub", "header:x-key"]
BUNDLE: Final[dict[str, Any]] = {
    "bundle_version": 1,
    "policies": [
        {
            "id": f"{number}-{key.replace(':', '-')}",
            "spec": {
                "selector": {"pathPrefix": "/"},
                "mode": "enforce" if key == KEYS[-1] else "shadow",
                "rules": [
                    {
                        "name": "r",
                        "limit_keys": [key],
                        "on_missing": "shared",
                        "algorithm": "token_bucket",
                        "algorithm_config": {"tokens_per_second": 0.00001, "burst": 1},
                    }
                ],
            },
        }
        for number, key in enumerate(
            KEYS
        )  # the one that enforces comes last: the others are asked before it rejects
    ],
}


def _token(number: int) -> str:
    claims = json.dumps({"sub": f"{number:04400}"}).encode()
    return f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


KINDS: Final[dict[str, Callable[[int], str]]] = {
    "X-Forwarded-For": lambda number: f"X-Forwarded-For: {number:014000}, 203.0.113.7",
    "bearer tokens": lambda number: f"Authorization: Bearer {_token(number)}",
    "header names": lambda number: f"X{number:014000}: x",
    "limit keys": lambda number: f"X-Key: {number:014000}",
    "user agents": lambda number: f"User-Agent: {number:014000}",
    "hosts": lambda number: f"X-Original-Host: a.test:{number:014000}",
    "cookies": lambda number: f"Cookie: fv_dbg={number:014000}",
}


def flood(port: int, worker: Path, kind: str, requests: int) -> dict[str, Any]:
    """So many requests of one kind over one connection, and what the worker has grown by."""
    before_kib = memory_kib(worker)
    head = "GET /v1/auth-request HTTP/1.1\r\nHost: edge\r\nX-Original-Method: GET\r\nX-Original-URI: /\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), 60) as connection,
        connection.makefile("rb") as answers,
    ):
        for number in track(range(requests), kind, console=Console(stderr=True), transient=True):
            connection.sendall(f"{head}{KINDS[kind](number)}\r\n\r\n".encode())
            length = 0
            while (line := answers.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            answers.read(length)
    return {"kind": kind, "requests": requests, "grown_kib": memory_kib(worker) - before_kib}


def main() -> int:
    """Send every kind to one worker, and print what each left behind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    with scratch() as folder:
        contender = edge(folder, "long-values", BUNDLE)
        with running(contender):
            flood(contender.port, Path("/proc/self"), "limit keys", 1)  # answered: the worker is there
            worker = worker_of(contender.port)
            rows = [flood(contender.port, worker, kind, options.requests) for kind in KINDS]
    grown_kib = sum(row["grown_kib"] for row in rows)
    rows.append({"kind": "all", "requests": options.requests * len(KINDS), "grown_kib": grown_kib})
    show(rows, options.format)
    return 0 if grown_kib <= MOST_KIB else 1


if __name__ == "__main__":
    sys.exit(main())
