"""Ten thousand LLM streams that end in every way, through one proxying worker: does anything stay behind?

    python perf/streams.py [--streams 10000] [--together 100] [--format table|json]

The provider answers, refuses, resets, hangs, sends nonsense, single bytes, no usage or a negative one; the client
stays, or leaves before, at or after the first byte; which of it is drawn with a fixed seed (`tests/mixed_streams.py`).
Reported are the worker's memory and open files after each thousand, and at the end what came of the reservations: as
many outcomes as requests, and no connection to the provider beside the idle ones. Ends with 1 when that is not so, or
when memory at the end is more than a tenth above that after the first thousand.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

from contenders import Contender, edge, free_port, running, scratch
from rich.console import Console
from rich.progress import Progress
from terminal import show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mixed_streams import LEAVING, WAYS, Mixed, stream

SAMPLES = 10
OUTCOME = re.compile(r'^fairvisor_(?:settlements|usage_missing)_total\{[a-z]+="(\w+)"\} (\d+)', re.M)
RULE = {
    "name": "tokens",
    "limit_keys": [],
    "algorithm": "token_bucket_llm",
    "algorithm_config": {"tokens_per_minute": 1e9},
}
BUNDLE = {
    "bundle_version": 1,
    "policies": [{"id": "llm", "spec": {"selector": {"pathPrefix": "/"}, "rules": [RULE]}}],
}


def proxy(folder: Path, behind: int, health: int, **more: str) -> Contender:
    """One proxying worker before the provider, with short time limits."""
    environ = {
        "FAIRVISOR_MODE": "reverse_proxy",
        "FAIRVISOR_BACKEND_URL": f"http://127.0.0.1:{behind}",
        "FAIRVISOR_HEALTH_BIND": f"127.0.0.1:{health}",
        "FAIRVISOR_BACKEND_TIMEOUT_MS": "1000",
        "FAIRVISOR_BACKEND_IDLE_TIMEOUT_MS": "1000",
        "FAIRVISOR_HEADER_TIMEOUT_MS": "1000",
        "FAIRVISOR_STATE_DIR": str(folder / "state"),
    }
    return edge(folder, "proxy", BUNDLE, environ=environ | more)


def page(health: int, path: str) -> str:
    """A page of the health listener."""
    with urllib.request.urlopen(f"http://127.0.0.1:{health}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def worker_of(port: int) -> Path:
    """The /proc folder of the worker of the edge that serves on this port: the youngest process with its settings."""
    wanted = f"FAIRVISOR_BIND=127.0.0.1:{port}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return Path("/proc") / str(max(found))


def memory_kib(worker: Path) -> int:
    """Its own memory: without the counters, which all workers share, and pages of programs."""
    return int(re.findall(r"^RssAnon:\s+(\d+)", (worker / "status").read_text(), re.M)[0])


def sample(worker: Path, done: int) -> dict[str, int]:
    """What the worker holds now."""
    files = sum(1 for _ in (worker / "fd").iterdir())
    return {"streams": done, "memory_kib": memory_kib(worker), "open_files": files}


async def soak(
    port: int, behind: int, streams: int, together: int, progress: Progress
) -> list[dict[str, int]]:
    """Run the streams; what the worker holds after each tenth of them."""
    draw = random.Random(1)
    mixed = Mixed()
    server = await asyncio.start_server(mixed.serve, "127.0.0.1", behind, backlog=1024)
    worker, samples = worker_of(port), []
    seats = asyncio.Semaphore(together)
    task = progress.add_task("streams", total=streams)

    async def one() -> None:
        async with seats:
            await stream(port, draw.randrange(len(WAYS)), draw.choice(LEAVING))
        progress.advance(task)

    for number in range(SAMPLES):
        await asyncio.gather(*[one() for _ in range(streams // SAMPLES)])
        await asyncio.sleep(2)  # what hangs runs into its time limit
        samples.append(sample(worker, (number + 1) * (streams // SAMPLES)) | {"provider_sees": mixed.open})
    server.close()
    return samples


def verdict(samples: list[dict[str, int]], outcomes: dict[str, int]) -> list[str]:
    """What is not as it should be."""
    wrong = []
    first, last = samples[0], samples[-1]
    if sum(outcomes.values()) != last["streams"]:
        wrong.append(f"{last['streams']} streams, {sum(outcomes.values())} outcomes")
    if last["memory_kib"] > 1.1 * first["memory_kib"]:
        wrong.append(f"memory grew from {first['memory_kib']} to {last['memory_kib']} KiB")
    if last["open_files"] > 1.5 * first["open_files"] + 20:
        wrong.append(f"open files grew from {first['open_files']} to {last['open_files']}")
    return wrong


def report(samples: list[dict[str, int]], outcomes: dict[str, int], wrong: list[str], form: str) -> None:
    """Print it."""
    if form == "json":
        found: dict[str, Any] = {"samples": samples, "outcomes": outcomes, "wrong": wrong}
        print(json.dumps(found, indent=2))
        return
    show(samples, "table")
    print("reservations:", ", ".join(f"{name} {count}" for name, count in outcomes.items() if count))
    print("\n".join(wrong) or "nothing stays behind")


def main() -> None:
    """Run the streams and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--together", type=int, default=100)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    behind, health = free_port(), free_port()
    with scratch() as folder:
        contender = proxy(folder, behind, health)
        with running(contender):
            with Progress(console=Console(stderr=True)) as progress:
                samples = asyncio.run(
                    soak(contender.port, behind, options.streams, options.together, progress)
                )
            outcomes = {name: int(count) for name, count in OUTCOME.findall(page(health, "/metrics"))}
    wrong = verdict(samples, outcomes)
    report(samples, outcomes, wrong, options.format)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
