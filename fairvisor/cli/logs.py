"""`fairvisor logs`: the audit log as it grows, filtered.

The file is followed by its path: when it is renamed, removed or cut short by log rotation, the rest of the old one is
read and the new one is begun at its start. Lines are those of `fairvisor/audit.py`; one that is none of them is passed
on as it is, when nothing is filtered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import orjson

from fairvisor.cli.screen import print_line
from fairvisor.errors import FairvisorError
from fairvisor.settings import Settings, environment

POLL_S: Final = 0.2
_BACK_BYTES: Final = 1 << 16  # read from the end at a time, to find the last lines
COLOURS: Final = {"reject": "bold red", "throttle": "yellow", "warn": "yellow", "would_reject": "magenta"}


@click.command()
@click.option("--action", help="Only this action: reject, would_reject, warn, throttle, trip, bundle...")
@click.option("--reason", help="Only this reason, such as rate_limit_exceeded.")
@click.option("--policy", help="Only this policy.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="Lines from before now."
)
@click.option("--follow/--no-follow", default=True, help="Go on as the log grows (default), or end.")
@click.option(
    "--file", metavar="PATH", help="The audit log. Default: that of the settings.  [FAIRVISOR_AUDIT_LOG]"
)
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json"]), default="table",
    help="table for people (default), json: the lines as they are.",
)  # fmt: skip
def logs(
    action: str | None,
    reason: str | None,
    policy: str | None,
    lines: int,
    follow: bool,
    file: str | None,
    output_format: str,
) -> None:
    """Follow the audit log."""
    path = Path(file) if file else Settings.load(environment(), {}).audit_path
    if path is None:
        raise FairvisorError(
            "the audit log goes to standard output of the server: there is no file to follow"
        )
    wanted = {
        name: value for name, value in (("action", action), ("reason", reason), ("policy", policy)) if value
    }
    show = _show_json if output_format == "json" else _show
    pause = threading.Event()
    log = FollowedLog(path, lambda: not follow or pause.wait(POLL_S))
    for line in log.lines(lines, lambda line: _passes(line, wanted)):
        show(line)


def _passes(line: bytes, wanted: Mapping[str, str]) -> bool:
    document = _document(line)
    return all(document.get(name) == value for name, value in wanted.items())


def _document(line: bytes) -> Mapping[str, Any]:
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


class FollowedLog:
    """A log by its path. `ended` waits a moment, and says whether nobody wants to wait any longer."""

    def __init__(self, path: Path, ended: Callable[[], bool]) -> None:
        self._path = path
        self._ended = ended

    def lines(self, before: int, passes: Callable[[bytes], bool]) -> Iterator[bytes]:
        """The last `before` lines that pass, then every one that is written and passes."""
        file = self._open()
        if file is None and self._ended():
            raise FairvisorError(f"there is no audit log at {self._path}")
        if file is not None:
            yield from last_lines(file, before, passes)
        while True:
            if file is None:
                file = self._open()
            if file is not None:
                yield from filter(passes, _whole_lines(file))
                if self._was_replaced(file):
                    yield from filter(
                        passes, _whole_lines(file)
                    )  # what came between the last look and this one
                    file.close()
                    file = self._open()
                    continue
            if self._ended():
                return

    def _open(self) -> BinaryIO | None:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            return None

    def _was_replaced(self, file: BinaryIO) -> bool:
        """Whether another file stands there, or none, or the same one was cut short."""
        ours = os.fstat(file.fileno())
        try:
            theirs = self._path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(ours, theirs) or theirs.st_size < file.tell()


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines up to the end that are whole; of one that is just being written nothing."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(start)
            return
        if line.strip():
            yield line.rstrip(b"\n")


def last_lines(file: BinaryIO, wanted: int, passes: Callable[[bytes], bool]) -> list[bytes]:
    """The last lines that pass, read from the end; the file then stands behind its last whole line."""
    whole_end = end = _end_of_last_line(file)
    found: list[bytes] = []
    rest = b""  # of a line whose beginning was not read yet
    while end and len(found) < wanted:
        start = max(0, end - _BACK_BYTES)
        file.seek(start)
        rest, *lines = (file.read(end - start) + rest).split(b"\n")
        if start == 0:
            lines.insert(0, rest)
        found[:0] = [line for line in lines if line.strip() and passes(line)]
        end = start
    file.seek(whole_end)
    return found[-wanted:] if wanted else []


def _end_of_last_line(file: BinaryIO) -> int:
    """Where the last newline ends, 0 when there is none."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BACK_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _show_json(line: bytes) -> None:
    click.echo(line)


def _show(line: bytes) -> None:
    document = _document(line)
    if "action" not in document:
        print_line(line.decode("utf-8", "replace"))
        return
    action = document["action"]
    place = "/".join(document[name] for name in ("policy", "rule") if document.get(name))
    count = document.get("count", 1)
    key = document.get("key") or {}
    who = ", ".join(f"{name}={value}" for name, value in key.items())
    known = {"time", "action", "reason", "policy", "rule", "mode", "key", "count", "worker"}
    more = ", ".join(f"{name}={value}" for name, value in document.items() if name not in known)
    parts = [part for part in (document.get("reason", ""), place, who, more) if part]
    times = f" × {count:,}" if count != 1 else ""
    print_line(
        f"{document.get('time', '')} ", (action, COLOURS.get(action, "")), f"{times}  {'  '.join(parts)}"
    )
