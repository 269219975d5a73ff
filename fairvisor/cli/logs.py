"""`fairvisor logs`: the audit log as it grows, filtered; who changed what; and whether it is as it was written.

The file is followed by its path: when it is renamed, removed or cut short by log rotation, the rest of the old one is
read and the new one is begun at its start. Lines are those of `fairvisor/audit.py`; one that is none of them is passed
on as it is, when nothing is filtered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from fairvisor.chain import Link, keys_of
from fairvisor.cli.changed import EVERYTHING, print_change, show_changes
from fairvisor.cli.exits import FAILED
from fairvisor.cli.logfiles import document_of, files_of, in_order, key_of, place_of
from fairvisor.cli.screen import print_document, print_line
from fairvisor.cli.verified import show_verified
from fairvisor.errors import FairvisorError
from fairvisor.settings import Settings, environment

POLL_S: Final = 0.2
_MARK_BYTES: Final = 256
_READ_BYTES: Final = 1 << 16
_KNOWN: Final = frozenset(
    {"time", "action", "reason", "policy", "rule", "mode", "key", "count", "worker", *Link._fields}
)
COLOURS: Final = {"reject": "bold red", "throttle": "yellow", "warn": "yellow", "would_reject": "magenta"}


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option("--action", help="Only this action: reject, would_reject, warn, throttle, trip, bundle...")
@click.option("--reason", help="Only this reason, such as rate_limit_exceeded.")
@click.option("--policy", help="Only this policy.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="Lines from before now."
)
@click.option("--follow/--no-follow", default=True, help="Go on as the log grows (default), or end.")
@click.option(
    "--changes",
    is_flag=False,
    flag_value=EVERYTHING,
    metavar="[POLICY[/RULE]]",
    help="Show who changed what, when and why, in the log and its rotated files: all of it, or only this.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Say whether the log and its rotated files are as they were written; exits with 1 if they are not.",
)
@click.option(
    "--file", metavar="PATH", help="The audit log. Default: that of the settings.  [FAIRVISOR_AUDIT_LOG]"
)
@click.option(
    "--format", "output_format", type=click.Choice(["table", "json"]), default="table",
    help="table for people (default), json: the lines as they are.",
)  # fmt: skip
@click.pass_context
def logs(
    context: click.Context,
    files: tuple[str, ...],
    action: str | None,
    reason: str | None,
    policy: str | None,
    lines: int,
    follow: bool,
    changes: str | None,
    verify: bool,
    file: str | None,
    output_format: str,
) -> None:
    """Follow the audit log, or look into it and its rotated files.

    With --changes and --verify, FILEs are looked at instead of the log of the settings; .gz files are decompressed.
    """
    settings = Settings.load(environment(), {})
    path = Path(file) if file else settings.audit_path
    if files and not (verify or changes is not None):
        raise click.UsageError("FILEs belong to --verify and --changes; --file names the log to follow")
    if verify and changes is not None:
        raise click.UsageError("one of --verify and --changes")
    if path is None and not files:
        raise FairvisorError(
            "the audit log goes to standard output of the server: there is no file to follow"
        )
    if verify or changes is not None:
        found = in_order([Path(name) for name in files]) if files or path is None else files_of(path)
        if changes is not None:
            show_changes(found, changes, output_format)
        elif not show_verified(found, None if files else path, keys_of(settings.audit_key), output_format):
            context.exit(FAILED)
        return
    assert path is not None, "there is a file to follow"
    wanted = {
        name: value for name, value in (("action", action), ("reason", reason), ("policy", policy)) if value
    }
    show = print_document if output_format == "json" else _show
    pause = threading.Event()
    with FollowedLog(path, lambda: not follow or pause.wait(POLL_S)) as log:
        for line in log.lines(lines, lambda line: _passes(line, wanted)):
            show(line)


def _passes(line: bytes, wanted: Mapping[str, str]) -> bool:
    document = document_of(line)
    return all(document.get(name) == value for name, value in wanted.items())


class FollowedLog:
    """A log by its path. `ended` waits a moment, and says whether nobody wants to wait any longer.

    A context manager: nothing stays open afterwards.
    """

    def __init__(self, path: Path, ended: Callable[[], bool]) -> None:
        self._path = path
        self._ended = ended
        # what changes
        self._fd = -1
        self._place = 0  # up to here the file was read
        self._mark = b""  # what stands before that, to know whether it is still the same file

    def __enter__(self) -> FollowedLog:
        return self

    def __exit__(self, *unused: object) -> None:
        self._close()

    def lines(self, before: int, passes: Callable[[bytes], bool]) -> Iterator[bytes]:
        """The last `before` lines that pass, then every one that is written and passes."""
        if self._open():
            found, self._place = last_lines(self._fd, before, passes)
            length = min(self._place, _MARK_BYTES)
            self._mark = os.pread(self._fd, length, self._place - length)
            yield from found
        elif self._ended():
            raise FairvisorError(f"there is no audit log at {self._path}")
        while True:
            yield from filter(passes, self._new_lines())
            if self._was_replaced():
                yield from filter(passes, self._new_lines())  # what came between the last two looks
                self._close()
                if self._open():
                    continue
            if self._ended():
                return

    def _open(self) -> bool:
        with suppress(FileNotFoundError):
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd >= 0

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._place, self._mark = -1, 0, b""

    def _was_replaced(self) -> bool:
        """Whether another file stands there, or none, or none was open."""
        try:
            return self._fd < 0 or not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except FileNotFoundError:
            return True

    def _new_lines(self) -> Iterator[bytes]:
        """The whole lines after our place; from the start if the file was cut short, whatever it has grown to."""
        if self._fd < 0:
            return
        mark = os.pread(self._fd, len(self._mark), self._place - len(self._mark))
        if not mark or mark != self._mark:
            self._place, self._mark = 0, b""
        begun = b""
        while data := os.pread(self._fd, _READ_BYTES, self._place + len(begun)):
            *lines, begun = (begun + data).split(b"\n")
            for line in lines:
                self._place += len(line) + 1
                # Of what was read, not of what stands there now: it may be cut short at any moment.
                self._mark = (self._mark + line + b"\n")[-_MARK_BYTES:]
                if line.strip():
                    yield line


def last_lines(fd: int, wanted: int, passes: Callable[[bytes], bool]) -> tuple[list[bytes], int]:
    """The last lines that pass, read from the end, and where the last whole line ends."""
    whole_end = end = _end_of_last_line(fd)
    found: list[bytes] = []
    rest = b""  # of a line whose beginning was not read yet
    while end and len(found) < wanted:
        start = max(0, end - _READ_BYTES)
        rest, *lines = (os.pread(fd, end - start, start) + rest).split(b"\n")
        if start == 0:
            lines.insert(0, rest)
        found[:0] = [line for line in lines if line.strip() and passes(line)]
        end = start
    return found[-wanted:] if wanted else [], whole_end


def _end_of_last_line(fd: int) -> int:
    """Where the last newline ends, 0 when there is none."""
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - _READ_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _show(line: bytes) -> None:
    document = document_of(line)
    if "action" not in document:
        print_line(line.decode("utf-8", "replace"))
        return
    if isinstance(document.get("actor"), dict):
        print_change(document)
        return
    action, count = str(document["action"]), document.get("count", 1)
    more = ", ".join(f"{name}={value}" for name, value in document.items() if name not in _KNOWN)
    said = (document.get("reason"), place_of(document), key_of(document), more)
    parts = [str(part) for part in said if part]
    times = f" × {count:,}" if isinstance(count, int) and count != 1 else ""
    print_line(
        f"{document.get('time', '')} ", (action, COLOURS.get(action, "")), f"{times}  {'  '.join(parts)}"
    )
