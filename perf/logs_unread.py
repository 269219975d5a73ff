"""What a log that is not read costs decisions: standard error full, the disk of the audit log full, and both.

    python perf/logs_unread.py [--rate 10000] [--seconds 10] [--format table|json] [--output FILE]

One worker rejects every request, each an audit event, at a constant rate; meanwhile ten bundles a second are offered
that are not valid, each a line of some 30 KB in the log. In each situation an edge of its own: where nothing is wrong,
where standard error is a pipe without room, where the audit log is on a device that is full (full(4)), and where both
are so. Reported are the 50th and 99th percentile, requests without their answer, log lines lost, audit lines written,
and how long the edge took to end after SIGTERM. Ends with 1 when a request got no answer, a log line was lost where
standard error is read, or SIGTERM took longer than the grace that a supervisor gives (10 s).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bundles import all_rejected
from contenders import Contender, edge, scratch
from hostile import come_first, first, shorten
from load import LOST_NS, Steady
from machine import SERVER_CORE
from rich.progress import track
from terminal import show

from fairvisor.cli.edge import Edge as Admin
from fairvisor.cli.edge import Refused
from fairvisor.counters.segment import Segment
from fairvisor.memory import InstanceMemory

SITUATIONS = ("all is read", "standard error full", "audit disk full", "both full")
OFFER_EVERY_S = 0.1
GRACE_S = 10.0  # docker stop


@contextmanager
def standard_error(is_full: bool) -> Iterator[int]:
    """A descriptor that takes everything, or nothing."""
    if not is_full:
        yield subprocess.DEVNULL
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while os.write(writer, b"." * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


def unknown(number: int) -> dict[str, Any]:
    """A policy with as many errors as a report lists, each as long as one may be."""
    rule = {
        "name": "r",
        "limit_keys": ["x" * 500],
        "algorithm": f"{number}{'x' * 500}",
        "algorithm_config": {},
    }
    return {"id": "p", "spec": {"selector": {"pathPrefix": "/"}, "rules": [rule] * 100}}


class Offers:
    """Bundles that are not valid, offered again and again from a thread."""

    def __init__(self, address: str) -> None:
        self._admin = Admin(address, None)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(OFFER_EVERY_S):
            number += 1
            document = json.dumps({"bundle_version": 1, "policies": [unknown(number)]}).encode()
            try:
                self._admin.ask("PUT", "bundle", body=document)
            except Refused:
                continue
            sys.exit("a bundle that is not valid was taken")

    def stop(self) -> None:
        """Offer no more."""
        self._stopped.set()
        self._thread.join()


def counted(contender: Contender, name: str) -> int:
    """The value of a metric without labels."""
    directory = InstanceMemory.find(contender.environ["FAIRVISOR_INSTANCE"], os.geteuid())
    return sum(value for series, _, value in Segment.attach(directory).series_values() if series == name)


def end(master: int) -> float:
    """Seconds from SIGTERM to the end."""
    began = time.monotonic()
    os.kill(master, signal.SIGTERM)
    os.waitid(os.P_PID, master, os.WEXITED | os.WNOWAIT)
    return time.monotonic() - began


def measure(situation: str, rate: float, seconds: float, command: list[str]) -> dict[str, Any]:
    """One row."""
    error_full = situation in ("standard error full", "both full")
    audit_full = situation in ("audit disk full", "both full")
    with scratch() as folder, standard_error(error_full) as stderr:
        bind = f"unix:{folder}/admin"
        environ = {
            "FAIRVISOR_ADMIN_BIND": bind,
            "FAIRVISOR_AUDIT_LOG": "/dev/full" if audit_full else f"{folder}/audit.log",
        }
        contender = edge(folder, situation, all_rejected(), environ=environ, expect=429)
        with first(contender, SERVER_CORE, stderr=stderr) as master:
            shorten(contender)
            Steady(contender, rate, 1, connections=8, before=command).finish()  # warm
            offers = Offers(bind)
            answers = Steady(contender, rate, seconds, connections=8, before=command).finish()
            offers.stop()
            lost = counted(contender, "fairvisor_log_lines_lost_total")
            audited = counted(contender, "fairvisor_audit_lines_total")
            ended_s = end(master)
    delays = sorted(delay if delay >= 0 else LOST_NS for _, delay in answers)
    return {
        "situation": situation,
        "p50, us": round(delays[len(delays) // 2] / 1e3),
        "p99, us": round(delays[len(delays) * 99 // 100] / 1e3),
        "unanswered": sum(delay < 0 for _, delay in answers),
        "log lines lost": lost,
        "audit lines": audited,
        "ended after, s": round(ended_s, 2),
    }


def is_fine(row: dict[str, Any]) -> bool:
    """Whether what is promised held."""
    may_lose = row["situation"] in ("standard error full", "both full")
    lost = 0 if may_lose else row["log lines lost"]
    return not row["unanswered"] and not lost and row["ended after, s"] <= GRACE_S


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=10_000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--output", type=Path, help="where the rows go as JSON as well")
    arguments = parser.parse_args()
    command = come_first()
    found = [
        measure(each, arguments.rate, arguments.seconds, command) for each in track(SITUATIONS, "situations")
    ]
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    show(found, arguments.format)
    sys.exit(not all(map(is_fine, found)))


if __name__ == "__main__":
    main()
