"""Processor instructions that a decision takes: counted, so that a change can be held to them on any machine.

    python perf/instructions.py [--record] [--format table|json]

valgrind's callgrind counts every instruction of the worker's own code, from the bytes that arrived to the bytes that
leave, without kernel and event loop. The same build takes the same number every time, within a few in a thousand, so
more than 5 % above what `instructions.json` holds is a change of the code, and the exit status is 1. `--record` writes
that file: on Debian 12 with its own Python and the compiled decision path, as CI has them. Another Python takes up to
14 % more or less for the same work, so the file names the one it holds for, and no other is compared with it. It needs
valgrind and a C compiler. Source: https://valgrind.org/docs/manual/cl-manual.html
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from bundles import one_limit
from contenders import Contender, edge, edges, forget, scratch
from terminal import show

from fairvisor.clock import read_now
from fairvisor.counters.segment import Segment
from fairvisor.http.connection import Connection
from fairvisor.http.hub import Hub, Limits
from fairvisor.http.start import make_beside, make_service
from fairvisor.memory import InstanceMemory
from fairvisor.reload import Publisher
from fairvisor.settings import Settings

RECORDED = Path(__file__).with_suffix(".json")
ALLOWED = 1.05
WARM_UP = 300  # requests before counting: memos are filled, adaptive bytecode has settled
COUNTED = 500
COUNT_INTO = (
    "FAIRVISOR_PERF_COUNT_INTO"  # set: this process runs under callgrind, with its switch in that folder
)

SWITCH = """
#include <valgrind/callgrind.h>
void count(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void stop(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


class Client(asyncio.Transport):
    """The other end of a connection, which reads everything and keeps the last answer."""

    answer = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.answer = bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: nothing waits here."""

    def is_closing(self) -> bool:
        return False


def paths(folder: Path) -> list[Contender]:
    """What is counted: the paths that `perf/run` measures, and requests that never came before."""
    new = {"X-Original-URI": "/svc1/orders/{n}"}
    return [
        *edges(folder),
        edge(folder, "one limit, a new path each time", one_limit(), headers=new, many=WARM_UP + COUNTED),
    ]


def decide_again(contender: Contender) -> Callable[[], bytes]:
    """A worker's path without a socket: every call is a request, its answer is returned."""
    os.environ.update(contender.environ)
    settings = Settings.load(contender.environ, {})
    segment = Segment.open(InstanceMemory.make(settings.instance), settings.shared_dict_size)
    Publisher(settings, segment, contender.environ).start()
    beside = make_beside(settings, segment)
    service = make_service(settings, segment, beside, can_wait=True)
    beside.stop()  # its threads would be counted
    client, connection = Client(), Connection(Hub(service, Limits(10_000, 10_000, 100), read_now))
    connection.connection_made(client)
    lines = {"Host": "127.0.0.1:8080"} | contender.headers
    if contender.body:
        lines["Content-Length"] = str(len(contender.body))
    head = "".join(f"{field}: {value}\r\n" for field, value in lines.items())
    request = (
        f"{'POST' if contender.body else 'GET'} {contender.path} HTTP/1.1\r\n{head}\r\n".encode()
        + contender.body
    )
    next_request = cycle([request.replace(b"{n}", b"%d" % n) for n in range(contender.many or 1)]).__next__

    def ask() -> bytes:
        connection.data_received(next_request())
        return client.answer

    return ask


def count(folder: Path) -> None:
    """The process under callgrind: a dump for each path."""
    switch = ctypes.CDLL(str(folder / "switch.so"))
    contenders = paths(folder)
    try:
        for contender in contenders:
            ask = decide_again(contender)
            for _ in range(WARM_UP):
                answer = ask()
            if not answer.startswith(f"HTTP/1.1 {contender.expect} ".encode()):
                sys.exit(f"{contender.name}: answered {answer[:300]!r}")
            gc.collect()
            gc.freeze()
            gc.disable()
            switch.count()
            for _ in range(COUNTED):
                ask()
            switch.stop(contender.name.encode())
            gc.enable()
    finally:
        for contender in contenders:
            forget(contender)


def counted() -> dict[str, int]:
    """Instructions per request of each path."""
    with scratch() as folder:
        (folder / "switch.c").write_text(SWITCH)
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        try:
            subprocess.run(
                [compiler, "-O2", "-shared", "-fPIC", "-o", folder / "switch.so", folder / "switch.c"],
                check=True,
            )
            dumps = folder / "callgrind"
            argv = [
                "valgrind",
                "--quiet",
                "--tool=callgrind",
                "--instr-atstart=no",
                f"--callgrind-out-file={dumps}",
            ]
            subprocess.run(
                [*argv, sys.executable, __file__],
                env=os.environ | {COUNT_INTO: str(folder), "PYTHONHASHSEED": "0"},
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"counting failed: {error}")
        return dict(read_dump(dump.read_text()) for dump in folder.glob("callgrind.*"))


def read_dump(text: str) -> tuple[str, int]:
    """The path that a dump of callgrind is about, and its instructions per request."""
    name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.M)
    total = re.search(r"^(?:summary|totals): (\d+)", text, re.M)
    if name is None or total is None:
        raise ValueError(f"no dump of callgrind: {text[:300]!r}")
    return name[1], round(int(total[1]) / COUNTED)


def compare(now: dict[str, int], recorded: dict[str, int]) -> list[dict[str, Any]]:
    """A row for each path; `too_many` says that it takes more than 5 % above what was recorded, or is not known."""
    rows = []
    for name in sorted(now | recorded):
        one, other = now.get(name), recorded.get(name)
        share = one / other if one is not None and other else None
        rows.append({
            "path": name,
            "instructions": one,
            "recorded": other,
            "share": None if share is None else round(share, 3),
            "too_many": share is None or share > ALLOWED,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.name}")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    python = platform.python_version()
    recorded = json.loads(RECORDED.read_text())
    if not options.record and python != recorded["python"]:
        sys.exit(
            f"{RECORDED.name} holds for Python {recorded['python']}, this is {python}: choose with make PYTHON="
        )
    now = counted()
    if options.record:
        recorded = {"python": python, "instructions": now}
        RECORDED.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    rows = compare(now, recorded["instructions"])
    show(rows, options.format)
    if any(row["too_many"] for row in rows):
        sys.exit(
            f"more than {ALLOWED:.2f} of what was recorded; if that is meant: perf/instructions.py --record"
        )


if __name__ == "__main__":
    if COUNT_INTO in os.environ:
        count(Path(os.environ[COUNT_INTO]))
    else:
        main()
