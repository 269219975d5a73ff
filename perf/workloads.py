"""What `run` measures: each workload starts the contenders that belong beside each other and says how each is measured.

The first contender of a workload is what the others are compared with. A workload knows nothing of rounds: it hands out
one function for each contender, which measures it once, for so many seconds.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import bundles
import original
from contenders import Contender, edge, edges, envoy_limit, free_port, nginx, nginx_limit, running
from load import HERE, Numbers, at_rate, capacity, check, closed
from machine import BOTH_CORES, LOAD_CORE, SERVER_CORE, children, processor_ns, unique_bytes
from proxies import proxies, upstream

Once = Callable[[int], Numbers]
Begun = Iterator[dict[str, Once]]

LOADS = (0.1, 0.5, 0.8)  # of what a contender can do
PACED = 10_000  # requests per second, for the processor time of each
KEYS_PER_S = 50_000  # what any machine does: a pass over all keys is over by then
LARGE_TABLE = {"FAIRVISOR_SHARED_DICT_SIZE": "96m"}  # room for a million keys


class Workload(NamedTuple):
    """What it shows, how it begins, and the number of which shares of the first contender are told, if any."""

    title: str
    begin: Callable[[Path], AbstractContextManager[dict[str, Once]]]
    share: str = ""


@contextmanager
def started(contenders: Sequence[Contender], cores: str = SERVER_CORE) -> Iterator[dict[str, list[int]]]:
    """All of them, answering as they should; the processes of each that answer."""
    with ExitStack() as stack:
        pids = {each.name: stack.enter_context(running(each, cores)) for each in contenders}
        for each in contenders:
            check(each)
        yield {each.name: answering(each, pids[each.name]) for each in contenders}


def answering(contender: Contender, pid: int) -> list[int]:
    """The processes of a server that answer: the first one has started them, or is the only one."""
    workers = int(contender.environ.get("FAIRVISOR_WORKER_PROCESSES", 0))
    while len(children(pid)) < workers:
        time.sleep(0.1)
    return children(pid) or [pid]


@contextmanager
def in_turns(contenders: Sequence[Contender], cores: str = SERVER_CORE) -> Begun:
    """Requests per second of each."""
    with started(contenders, cores):
        for each in contenders:
            if each.many > KEYS_PER_S:
                closed(each, each.many // KEYS_PER_S)  # so that the keys are known
        yield {each.name: partial(closed, each) for each in contenders}


def decisions(folder: Path, beside: Path | None = None) -> AbstractContextManager[dict[str, Once]]:
    """`beside`: a checkout of the original, if it takes part."""
    older = original.decisions(folder, beside) if beside else []
    return in_turns([nginx(folder), nginx_limit(folder), envoy_limit(folder), *edges(folder), *older])


def worker_classes(folder: Path) -> AbstractContextManager[dict[str, Once]]:
    classes = ["edge", "gthread"] + ["meinheld"] * (importlib.util.find_spec("meinheld") is not None)
    return in_turns([nginx(folder)] + [
        edge(folder, each, bundles.one_limit(), environ={"FAIRVISOR_WORKER_CLASS": each}) for each in classes
    ])  # fmt: skip


def of_policies(folder: Path, count: int, asked: int, workers: int = 1) -> Contender:
    """So many policies, of which so many are asked for in turn."""
    name = f"{count:,} policies" if count > 1 else "1 policy"
    uri = {"X-Original-URI": "/svc{n}/orders/17" if asked > 1 else "/svc0/orders/17"}
    many = asked if asked > 1 else 0
    return edge(folder, name, bundles.many(count), workers=workers, headers=uri, many=many)


def policies(folder: Path) -> AbstractContextManager[dict[str, Once]]:
    return in_turns([
        of_policies(folder, count, asked)._replace(name=name)
        for name, count, asked in (
            ("1 policy", 1, 1),
            ("100 policies, one asked for", 100, 1),
            ("100 policies, all in turn", 100, 100),
            ("10,000 policies, one asked for", 10_000, 1),
            ("10,000 policies, all in turn", 10_000, 10_000),
        )
    ])  # fmt: skip


def keys(folder: Path) -> AbstractContextManager[dict[str, Once]]:
    return in_turns([
        edge(
            folder,
            f"{count:,} keys",
            bundles.one_limit(),
            headers={"X-Api-Key": "key-{n}"},
            environ=LARGE_TABLE,
            many=count,
        )
        for count in (1_000, 1_000_000)
    ])  # fmt: skip


def workers(folder: Path) -> AbstractContextManager[dict[str, Once]]:
    return in_turns([
        make(folder, count)._replace(name=f"{name}, {count} worker{'s' * (count > 1)}")
        for count in (1, 2)
        for name, make in (("nginx return 204", nginx), ("one limit", _one_limit))
    ], BOTH_CORES)  # fmt: skip


def _one_limit(folder: Path, workers: int = 1) -> Contender:
    return edge(folder, "one limit", bundles.one_limit(), workers=workers)


@contextmanager
def one_connection(folder: Path) -> Begun:
    contenders = [nginx(folder), envoy_limit(folder), _one_limit(folder)]
    with started(contenders):
        yield {each.name: partial(closed, each, connections=1) for each in contenders}


@contextmanager
def latency(folder: Path) -> Begun:
    contenders = [nginx(folder), envoy_limit(folder), _one_limit(folder)]
    with started(contenders):
        yield at_shares(contenders, LOADS)


def at_shares(contenders: Sequence[Contender], loads: Sequence[float]) -> dict[str, Once]:
    """Each contender at each share of what it can do, which is found out first."""
    most = {each.name: capacity(each) for each in contenders}
    return {
        f"{each.name} at {load:.0%}": partial(at_rate, each, round(load * most[each.name]))
        for load in loads
        for each in contenders
    }


@contextmanager
def processor_time(folder: Path) -> Begun:
    """Both on both cores, so that a worker more is the only difference."""
    contenders = [
        _one_limit(folder, count)._replace(name=f"{count} worker{'s' * (count > 1)}") for count in (1, 2)
    ]
    with started(contenders, BOTH_CORES) as processes:
        yield {each.name: partial(_paced, each, processes[each.name]) for each in contenders}


def _paced(contender: Contender, processes: list[int], seconds: int) -> Numbers:
    before_ns = processor_ns(processes)
    found = at_rate(contender, PACED, seconds)
    used_us = (processor_ns(processes) - before_ns) / 1e3
    return {"requests_per_s": found["requests_per_s"], "cpu_us": used_us / PACED / seconds}


@contextmanager
def memory(folder: Path) -> Begun:
    """After a second of requests for all policies."""
    contenders = [of_policies(folder, count, count, workers=2) for count in (1, 100, 1_000, 10_000)]
    with started(contenders) as processes:
        yield {each.name: partial(_memory, each, processes[each.name]) for each in contenders}


def _memory(contender: Contender, processes: list[int], seconds: int) -> Numbers:
    closed(contender, seconds)
    return {"unique_mb": max(unique_bytes(each) for each in processes) / 1e6}


@contextmanager
def proxy(folder: Path, beside: Path | None = None) -> Begun:
    """`beside`: a checkout of the original, if it takes part."""
    with upstream(folder) as behind, in_turns(proxies(folder, behind, beside=beside)) as measured:
        yield measured


@contextmanager
def proxy_large(folder: Path) -> Begun:
    with upstream(folder) as behind, in_turns(proxies(folder, behind, "/large")) as measured:
        yield measured


@contextmanager
def proxy_latency(folder: Path) -> Begun:
    with upstream(folder) as behind:
        contenders = proxies(folder, behind)
        with started(contenders):
            yield at_shares(contenders, (0.5,))


@contextmanager
def events(folder: Path) -> Begun:
    behind = free_port()
    with ExitStack() as stack:
        measured: dict[str, Once] = {}
        for each in proxies(folder, behind):
            pid = stack.enter_context(running(each))
            measured[each.name] = partial(_events, each.port, behind, answering(each, pid))
        yield measured


def _events(port: int, behind: int, processes: list[int], seconds: int) -> Numbers:
    argv = ["taskset", "-c", LOAD_CORE, sys.executable, str(HERE / "events.py")]
    argv += [str(each) for each in (port, behind, seconds, *processes)]
    found: Numbers = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    return found


RATE = "requests_per_s"
WORKLOADS = {
    "decisions": Workload("Decisions: one worker on one core, 32 connections", decisions, RATE),
    "classes": Workload("One limit under each worker class", worker_classes, RATE),
    "policies": Workload("One limit, found among many policies", policies, RATE),
    "keys": Workload("One limit, many keys in turn", keys, RATE),
    "workers": Workload("Two workers on two cores, of which the load needs most of one", workers, RATE),
    "one-connection": Workload("One connection, one request at a time", one_connection, "p50_us"),
    "latency": Workload(
        "Latency at a constant rate, as a share of what each can do, counted from when a request was due",
        latency,
    ),
    "processor-time": Workload(
        f"Processor time of a request at {PACED:,} requests/s", processor_time, "cpu_us"
    ),
    "memory": Workload("Memory of a worker that it shares with nobody (USS)", memory),
    "proxy": Workload("Reverse proxy: answers of 213 bytes", proxy, RATE),
    "proxy-large": Workload("Reverse proxy: answers of 1 MiB", proxy_large, RATE),
    "proxy-latency": Workload("Reverse proxy: latency at half of what each can do", proxy_latency),
    "events": Workload("Reverse proxy: a hundred streams with 100 events/s each", events, "cpu_us_per_event"),
}


def beside(checkout: Path) -> dict[str, Workload]:
    """The workloads, with the original in those that it can do."""
    joined = {"decisions": partial(decisions, beside=checkout), "proxy": partial(proxy, beside=checkout)}
    return WORKLOADS | {name: WORKLOADS[name]._replace(begin=begin) for name, begin in joined.items()}
