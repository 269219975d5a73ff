"""Who asks: wrk as fast as it gets answers, or `steady.c` at a constant rate whatever the answers do.

The first finds out how much a server can do; of the second the latencies are true. Both run on a core of their own.
"""

from __future__ import annotations

import random
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from contenders import Contender
from machine import LOAD_CORE

Numbers = dict[str, float]
HERE = Path(__file__).parent
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}
LOST_NS = 10_000_000_000  # as long as `steady.c` waits for what is left at the end
QUANTILES = {"50": 500, "99": 990, "999": 999}  # of a thousand
# wrk prepares one request; this puts another number into each, in a scattered order: 7,368,787 is prime.
NUMBERED = """
local number, before, after = {start}, "", ""
init = function()
  local text = wrk.format()
  local from, to = text:find("{{n}}", 1, true)
  before, after = text:sub(1, from - 1), text:sub(to + 1)
end
request = function()
  number = (number + 7368787) % {many}
  return before .. number .. after
end
"""


def check(contender: Contender) -> None:
    """Ask twice and see that the answer is the one that is meant to be measured."""
    headers = {name: value.format(n=1) for name, value in contender.headers.items()}
    for _ in range(2):
        url = f"http://127.0.0.1:{contender.port}{contender.path}"
        request = urllib.request.Request(url, contender.body or None, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                status, told, body = answer.status, answer.headers, b""
        except urllib.error.HTTPError as refused:
            status, told, body = refused.code, refused.headers, refused.read()
    if status != contender.expect:
        sys.exit(f"{contender.name}: answered {status} instead of {contender.expect}: {body[:300]!r}")
    if contender.tells and contender.tells not in told:
        sys.exit(f"{contender.name}: answered without {contender.tells}")


def closed(contender: Contender, seconds: int, connections: int = 32) -> Numbers:
    """As many requests as there are answers: requests per second, latencies in µs."""
    argv = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    for name, value in contender.headers.items():
        argv += ["-H", f"{name}: {value}"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if contender.body:
            script.write(f'wrk.method = "POST"\nwrk.body = [==[{contender.body.decode()}]==]\n')
        if contender.many:
            script.write(NUMBERED.format(start=random.randrange(contender.many), many=contender.many))
        script.flush()
        argv += ["-s", script.name, f"http://127.0.0.1:{contender.port}{contender.path}"]
        out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", out)
    quantiles = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s))$", out, re.M))
    assert rate is not None, out
    return {
        "requests_per_s": float(rate[1]),
        "p50_us": _microseconds(quantiles["50"]),
        "p99_us": _microseconds(quantiles["99"]),
    }


def _microseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s)", text)
    assert match is not None, text
    return float(match[1]) * UNITS[match[2]]


def capacity(contender: Contender, connections: int = 32) -> float:
    """Requests per second that it can do: the median of three seconds."""
    return statistics.median(closed(contender, 1, connections)["requests_per_s"] for _ in range(3))


@cache
def built(source: str) -> Path:
    """A C program of this folder, compiled."""
    program = HERE.parent / "build" / "perf" / Path(source).stem
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-pthread", "-o", str(program), str(HERE / source)], check=True)
    return program


class Steady:
    """A client that asks at a constant rate, from now on."""

    def __init__(
        self,
        contender: Contender,
        rate: float,
        seconds: float = 0,
        connections: int = 32,
        before: Sequence[str] = (),
    ) -> None:
        """For so many seconds; 0: until `finish`. `before` is a command that runs the client, such as chrt(1)."""
        numbers = (contender.port, rate, connections, seconds, contender.expect)
        self._endless = not seconds
        self._process = subprocess.Popen(
            ["taskset", "-c", LOAD_CORE, *before, built("steady.c"), *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(_request(contender))
        self._process.stdin.close()

    def finish(self) -> list[tuple[int, int]]:
        """When each request was due (monotonic ns), and its delay in ns: -1 where it got no or another answer."""
        if self._endless:
            self._process.terminate()
        assert self._process.stdout is not None
        found = array("q", self._process.stdout.read())
        if self._process.wait(10):
            sys.exit("the client at a constant rate failed")
        return list(zip(found[::2], found[1::2], strict=True))


def _request(contender: Contender) -> bytes:
    method = "POST" if contender.body else "GET"
    length = {"Content-Length": str(len(contender.body))} if contender.body else {}
    headers = {"Host": f"127.0.0.1:{contender.port}", **contender.headers, **length}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {contender.path} HTTP/1.1\r\n{lines}\r\n".encode() + contender.body


def at_rate(contender: Contender, rate: float, seconds: int) -> Numbers:
    """Latencies at a constant rate, in µs from when each request was due; one without its answer counts as LOST_NS."""
    answers = Steady(contender, rate, seconds).finish()
    delays = sorted(delay if delay >= 0 else LOST_NS for _, delay in answers)
    found = {f"p{name}_us": delays[len(delays) * part // 1000] / 1e3 for name, part in QUANTILES.items()}
    return {"requests_per_s": len(delays) / seconds, **found}
