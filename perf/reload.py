"""What a large bundle costs: per decision, and while it takes the place of another one.

    python perf/reload.py [--policies 10000] [--rate 2000] [--workers 2] [--part decisions|delays] [--format table|json]

Decisions: the same request decided by a bundle with one policy (or kill switch) and by one with ten thousand, in turns
in one process; a share is computed within a round and its median is reported.

Delays: a client sends requests at a constant rate, whatever the answers do, and measures each from the moment at which
it was due. Reported are the requests that were due between the start of a reload and its acknowledgement, beside those
of quiet seconds before. Bundles are pushed to the admin listener, as `fairvisor connect --push` does it. `elsewhere`
is the share of the machine that processes outside this measurement had meanwhile, `stolen` what its host did not give
it: where they are not small, they are what was measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from typing import Any, NamedTuple

from bundles import bucket
from contenders import edge, running, scratch
from load import Steady
from machine import BOTH_CORES, Disturbed, Machine
from terminal import show

from fairvisor.bundle.compile import compile_bundle
from fairvisor.bundle.load import parse
from fairvisor.cli.edge import Edge
from fairvisor.clock import read_now
from fairvisor.context import Context
from fairvisor.counters.segment import Segment
from fairvisor.engine import Bundle, decide
from fairvisor.identity import Identity
from fairvisor.settings import Settings

QUIET_S = 4.0
ROUNDS = 15
DECISIONS = 20_000
TARGET = "/svc7/orders/17"
CONNECTIONS = 8


def bundle(version: int, policies: int, switches: int = 0, rate: float = 1e9, wrong: str = "") -> bytes:
    """Policies on paths of their own with two rules each; the one for TARGET is always among them."""
    found = []
    for index in range(7, 7 + policies):
        budget = {
            "name": "day",
            "limit_keys": ["header:x-api-key"],
            "algorithm": "cost_based",
            "algorithm_config": {"budget": 9e12, "period": "1d"},
        }
        rules = [bucket("per-key", "header:x-api-key", tokens_per_second=rate), budget]
        selector = {"pathPrefix": f"/svc{index}/", "methods": ["GET", "POST"]}
        found.append({"id": f"policy-{index}", "spec": {"selector": selector, "rules": rules}})
    stopped = [
        {"scope_key": "header:x-api-key", "scope_value": f"{wrong}bad-{index}"} for index in range(switches)
    ]
    return json.dumps({"bundle_version": version, "policies": found, "kill_switches": stopped}).encode()


# Decisions


def decision_costs(policies: int) -> list[dict[str, Any]]:
    """Each large bundle's cost as a share of the small one's."""
    segment = Segment.private(48 << 20)
    identity = Identity.from_settings(Settings.load({}, {}))

    def load(*shape: int) -> Bundle:
        parsed = parse(bundle(1, *shape), wall_ns=time.time_ns(), environ={})
        return compile_bundle(parsed.model, parsed.sha256, segment)

    pairs = {
        f"{policies:,} policies : 1": (load(policies), load(1)),
        f"{policies:,} kill switches : 1": (load(1, policies), load(1, 1)),
    }
    gc.collect()
    gc.freeze()
    rows = []
    for name, (large, small) in pairs.items():
        times = [(spent(large, segment, identity), spent(small, segment, identity)) for _ in range(ROUNDS)]
        share = statistics.median(many / one for many, one in times)
        rows.append({
            "what": name,
            "large_ns": round(statistics.median(many for many, _ in times)),
            "small_ns": round(statistics.median(one for _, one in times)),
            "share": round(share, 3),
        })  # fmt: skip
    return rows


def spent(loaded: Bundle, segment: Segment, identity: Identity) -> float:
    """Nanoseconds of processor time for one decision."""
    headers = {"x-api-key": b"key-1"}
    began = time.process_time_ns()
    for _ in range(DECISIONS):
        now = read_now()
        context = Context("GET", "api.example.com", TARGET, headers, "127.0.0.1", identity, now)
        decide(loaded, segment.table, context, now)
    return (time.process_time_ns() - began) / DECISIONS


# Delays


class Window(NamedTuple):
    """A reload: when it began and was acknowledged (monotonic ns), who lagged, and what the machine did meanwhile."""

    name: str
    begin_ns: int
    end_ns: int
    lagging: int
    disturbed: Disturbed


def delays(policies: int, rate: int, workers: int) -> list[dict[str, Any]]:
    """The delays of quiet seconds and of each kind of reload."""
    one = bundle(1, 1)
    steps = [
        ("a small bundle", bundle(2, 2)),
        (f"{policies:,} new policies", bundle(3, policies)),
        ("one policy more", bundle(4, policies + 1)),
        ("every policy changed", bundle(5, policies, rate=1e8)),
        (f"{policies:,} new kill switches", bundle(6, policies, policies, rate=1e8)),
        ("every kill switch changed", bundle(7, policies, policies, rate=1e8, wrong="very-")),
        ("back to a small bundle", bundle(8, 1)),
    ]
    with scratch() as folder:
        asked = {"X-Original-URI": TARGET}
        contender = edge(folder, "reload", json.loads(one), workers=workers, headers=asked)
        with running(contender, BOTH_CORES):
            time.sleep(1.5)
            admin = Edge(f"unix:{folder}/{contender.environ['FAIRVISOR_INSTANCE']}.admin", None)
            client = Steady(contender, rate, connections=CONNECTIONS)
            time.sleep(2)
            machine, begin_ns = Machine(), time.monotonic_ns()
            time.sleep(QUIET_S)
            windows = [Window("quiet", begin_ns, time.monotonic_ns(), 0, machine.disturbed())]
            for name, data in steps:
                windows.append(reloaded(admin, name, data))
                time.sleep(1.5)
            seen = client.finish()
    failed = sum(delay_ns < 0 for _, delay_ns in seen)
    if failed:
        sys.exit(f"{failed} requests were not allowed")
    return [summary(window, seen) for window in windows]


def reloaded(admin: Edge, name: str, data: bytes) -> Window:
    """Push a bundle; what the time until its acknowledgement was like."""
    machine, begin_ns = Machine(), time.monotonic_ns()
    published = admin.ask("PUT", "bundle", body=data)
    return Window(name, begin_ns, time.monotonic_ns(), len(published["lagging"]), machine.disturbed())


def summary(window: Window, seen: list[tuple[int, int]]) -> dict[str, Any]:
    found = sorted(delay_ns for due_ns, delay_ns in seen if window.begin_ns <= due_ns <= window.end_ns)
    p50, p99, most = (
        found[min(len(found) - 1, len(found) * part // 1000)] / 1e6 for part in (500, 990, 1000)
    )
    return {
        "what": window.name,
        "took_ms": round((window.end_ns - window.begin_ns) / 1e6),
        "lagging": window.lagging,
        "requests": len(found),
        "p50_ms": round(p50, 3),
        "p99_ms": round(p99, 3),
        "max_ms": round(most, 3),
        **window.disturbed._asdict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--policies", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--part", choices=["decisions", "delays"])
    parser.add_argument("--format", choices=["table", "json"], default="table")
    chosen = parser.parse_args()
    results = {}
    if chosen.part != "delays":
        results["decisions"] = decision_costs(chosen.policies)
    if chosen.part != "decisions":
        results["delays"] = delays(chosen.policies, chosen.rate, chosen.workers)
    if chosen.format == "json":
        print(json.dumps(results))
    else:
        for title, rows in results.items():
            show(rows, "table", title)


if __name__ == "__main__":
    main()
