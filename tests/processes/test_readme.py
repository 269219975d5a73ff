"""The README's session, word for word against a server that was started as `make run` starts it.

Only the Date is allowed to differ. The session is quick: its six requests must come within the second that the numbers
shown allow; on a machine that was too busy for that it is run again, on fresh counters.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from edge_server import remove_shared_memory

from fairvisor.clock import NS_PER_S, read_now

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}
START_S = 30
COMMAND = f"{sys.executable} -c 'from fairvisor.cli.main import main; main()'"
ADDRESS = "127.0.0.1:8080"


def session(at: int) -> list[tuple[str, str]]:
    """The commands of the README's `at`-th console block, each with the output shown."""
    block = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)[at]
    entries = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (entry.partition("\n") for entry in entries)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_ready(address: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the server ended"
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server of the sample policy on a free port, with counters of its own."""
    port = free_port()
    address, instance = f"127.0.0.1:{port}", f"readme-{port}"
    output_of(f"{COMMAND} init --force", folder)
    arguments = f"serve --config-file policy.json --bind {address} --instance {instance} --worker-processes 2"
    arguments += f" --state-dir state-{port}"
    process = subprocess.Popen(
        f"exec {COMMAND} {arguments}", shell=True, cwd=folder, env=ENVIRON, stderr=subprocess.DEVNULL
    )
    try:
        deadline_ns = read_now().mono_ns + START_S * NS_PER_S
        while not is_ready(address, process):
            assert read_now().mono_ns < deadline_ns, "the server does not get ready"
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        remove_shared_memory(instance)


def output_of(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=ENVIRON, capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode().replace("\r\n", "\n")


def comparable(text: str) -> str:
    return re.sub(r"^Date: .*$", "Date: …", text, flags=re.MULTILINE).strip()


@pytest.mark.needs("curl")
def test_the_curl_lines_print_what_the_readme_shows(tmp_path: Path) -> None:
    for _ in range(20):
        with served(tmp_path) as address:
            start_ns = read_now().mono_ns
            printed = [output_of(command.replace(ADDRESS, address), tmp_path) for command, _ in session(0)]
            took_ns = read_now().mono_ns - start_ns
        if took_ns < NS_PER_S:
            break
    assert [comparable(text) for text in printed] == [comparable(shown) for _, shown in session(0)]


def test_the_explanation_is_what_the_readme_shows(tmp_path: Path) -> None:
    output_of(f"{COMMAND} init", tmp_path)
    for command, shown in session(1):
        assert output_of(command.replace("fairvisor", COMMAND, 1), tmp_path) == shown
