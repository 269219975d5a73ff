"""The `fairvisor` command as a process of its own: pipes that close, interrupts, full disks."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

from edge_server import wait_until

COMMAND = [sys.executable, "-c", "from fairvisor.cli.main import main; main()"]


def fairvisor(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, timeout=60, check=False)


def unread_bytes(pipe: int) -> int:
    """How much of what was written into a pipe its reader has not taken yet."""
    count: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]
    return count


def is_asleep(pid: int) -> bool:
    """Whether a process waits for something (proc(5), the state in `stat`)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "schema"], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_full_disk_is_one_line_on_stderr() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "schema"], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"Error: No space left on device\n")


def test_an_interrupt_ends_the_command_without_a_traceback() -> None:
    with subprocess.Popen(
        [*COMMAND, "validate", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"{")
        process.stdin.flush()
        pipe = process.stdin.fileno()
        wait_until(lambda: not unread_bytes(pipe) and is_asleep(process.pid))  # it waits for more
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, b"", b"\n")


def test_a_bundle_is_read_from_standard_input() -> None:
    done = fairvisor("validate", "-", data=json.dumps({"bundle_version": 3, "policies": []}).encode())
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\nvalid  standard input: version 3, 0 policies" in done.stdout


def test_input_that_is_not_text_is_a_problem_of_the_bundle() -> None:
    done = fairvisor("validate", "-", data=bytes(range(256)))
    assert done.returncode == 1
    assert b"Traceback" not in done.stdout + done.stderr
    assert done.stderr == b"Error: standard input is not a valid bundle: 1 error\n"


def test_long_lines_are_not_wrapped_when_piped() -> None:
    done = fairvisor(
        "validate", "-", data=json.dumps({"bundle_version": 1, "policies": [], "x" * 200: 1}).encode()
    )
    assert b"x" * 200 in done.stdout
