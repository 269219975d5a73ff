"""`fairvisor status`: what an edge is doing, and whether something is wrong.

Asked of the admin listener, which knows everything. Where `--edge-url` leads to a listener for decisions or probes
instead, its /readyz says whether it is ready and by which bundle it decides, and /metrics how it decided and what it
could not decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import click
import orjson
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from fairvisor.cli.edge import Edge, Refused, edge_option, open_edge
from fairvisor.cli.exits import FAILED
from fairvisor.cli.screen import count_of, format_option, print_json, print_line
from fairvisor.clock import NS_PER_S, read_now
from fairvisor.metrics import DECISIONS
from fairvisor.metrics.families import UNDECIDED, UNDECIDED_LAST

Report = Mapping[str, Any]

RECENT_S: Final = 600  # an error instead of a decision is shown for so long


@click.command()
@edge_option
@format_option
@click.pass_context
def status(context: click.Context, edge_url: str | None, output_format: str) -> None:
    """Show what the running edge is doing.

    Exits with 1 when it is not ready, with 2 when it does not answer.
    """
    edge = open_edge(edge_url)
    report = _ask(edge)
    if output_format == "json":
        print_json(report)
    else:
        _print(report)
    if not report["ready"]:
        context.exit(FAILED)


def _ask(edge: Edge) -> Report:
    try:
        report: Report = edge.ask("GET", "status")
    except Refused as refused:
        if refused.status != 404:
            raise
        return _from_outside(edge)
    return report


def _from_outside(edge: Edge) -> Report:
    """What a listener without the admin API tells. Raises Refused when it is none of an edge's."""
    reply = edge.send("GET", "/readyz")
    try:
        readiness = orjson.loads(reply.body)
        told = readiness["status"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = f"{edge.url} answered with HTTP {reply.status}: is that an edge?"
        raise Refused(reply.status, {"message": message}) from None
    ready = told == "ok"
    bundle = {"version": readiness["policy_version"], "sha256": readiness["policy_hash"]} if ready else None
    if bundle is not None:
        bundle |= {"policies": readiness["policies"], "expired": readiness["expired"]}
    why = [readiness[name] for name in ("reason", "detail") if name in readiness]
    reason = None if ready else {"text": ": ".join(why), "since": None}
    return {"ready": ready, "bundle": bundle, "reload_error": reason, **_from_metrics(edge)}


def _from_metrics(edge: Edge) -> Report:
    reply = edge.send("GET", "/metrics")
    if reply.status != 200:
        return {"decisions": None, "undecided": []}
    samples = [
        sample for family in text_string_to_metric_families(reply.body.decode()) for sample in family.samples
    ]
    return {"decisions": _decisions(samples), "undecided": _undecided(samples)}


def _decisions(samples: Sequence[Sample]) -> Report:
    actions: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for sample in samples:
        if sample.name == DECISIONS.name:
            count = int(sample.value)
            actions[sample.labels["action"]] = actions.get(sample.labels["action"], 0) + count
            if reason := sample.labels["reason"]:
                reasons[reason] = reasons.get(reason, 0) + count
    return {"by_action": actions, "by_reason": reasons, "would_reject": {}}


def _undecided(samples: Sequence[Sample]) -> list[Report]:
    """Return what the admin listener says of it, with the age by the clock of this machine."""
    counts = {tuple(each.labels.values()): int(each.value) for each in samples if each.name == UNDECIDED.name}
    now_s = read_now().wall_ns // NS_PER_S
    found = [
        {
            **each.labels,
            "requests": counts[tuple(each.labels.values())],
            "last_age_seconds": max(0, now_s - int(each.value)),
        }
        for each in samples
        if each.name == UNDECIDED_LAST.name
    ]
    return sorted((each for each in found if each["requests"]), key=itemgetter("last_age_seconds"))


# for people


def _print(report: Report) -> None:
    ready = ("ready", "green") if report["ready"] else ("not ready", "bold red")
    name = f"  {report['instance']}, version {report['version']}" if "instance" in report else ""
    print_line(ready, name)
    _print_problems(report)
    if report["bundle"]:
        _print_bundle(report["bundle"])
    if "workers" in report:
        _print_workers(report)
        _print_segment(report)
    if report["decisions"]:
        _print_decisions(report["decisions"])
    _print_undecided(report.get("undecided", ()))


def _print_problems(report: Report) -> None:
    if report["reload_error"]:
        error = report["reload_error"]
        since = f"since {error['since']}: " if error["since"] else ""
        print_line(("refused", "bold red"), f"   {since}{error['text']}")
    for part, fault in report.get("faults", {}).items():
        print_line(("fault", "bold red"), f"    {part}, since {fault['since']}: {fault['text']}")
    who = report.get("identity", {"problems": (), "warnings": ()})
    for problem in who["problems"]:
        print_line(("identity", "bold red"), f" {problem}")
    for warning in who["warnings"]:
        print_line(("identity", "yellow"), f" {warning}")


def _print_bundle(bundle: Report) -> None:
    line = f"version {bundle['version']}, {count_of(bundle['policies'], 'policy', 'policies')}"
    if "source" in bundle:
        line += f", published {bundle['published']} from {bundle['source']}"
    print_line("bundle    ", line)
    if bundle["expired"]:
        print_line("          ", ("expired; it stays in force until another one comes", "yellow"))
    for active, text in (
        (bundle.get("global_shadow"), "global shadow: nothing is rejected but by kill switches"),
        (bundle.get("kill_switch_override"), "kill switches are overridden"),
        (
            bundle.get("kill_switches_in_force"),
            f"kill switches in force: {bundle.get('kill_switches_in_force')}",
        ),
    ):
        if active:
            print_line("          ", (text, "yellow"))
    for warning in bundle.get("warnings", ()):
        print_line("          ", ("warning", "yellow"), f" {warning}")


def _print_workers(report: Report) -> None:
    generation = report["bundle"]["generation"] if report["bundle"] else 0
    for number, worker in enumerate(report["workers"]):
        marks = [f"pid {worker['pid']}", count_of(worker["connections"], "connection", "connections")]
        marks += [f"{worker['waiting']} waiting"] if worker["waiting"] else []
        marks += ["leader"] if worker["leader"] else []
        late = worker["generation"] < generation
        silent = worker["heartbeat_age_seconds"] > 3
        trouble = ["decides by an older bundle"] if late else []
        trouble += [f"silent for {worker['heartbeat_age_seconds']:.0f} s"] if silent else []
        label = "workers   " if number == 0 else "          "
        print_line(label, ", ".join(marks), (f"  {', '.join(trouble)}" if trouble else "", "bold red"))
    if not report["workers"]:
        print_line("workers   ", ("none", "bold red"))


def _print_segment(report: Report) -> None:
    segment = report["segment"]
    live = segment["times"] + segment["totals"]
    print_line(
        f"counters  {live:,} of {segment['slots']:,} slots ({100 * live / segment['slots']:.1f} %), "
        f"{segment['evictions']:,} evicted, {segment['full']:,} found no room"
    )
    print_line(f"snapshot  {report['snapshot'] or 'none yet'}")


def _print_decisions(decisions: Report) -> None:
    by_action = ", ".join(f"{name} {count:,}" for name, count in decisions["by_action"].items())
    print_line(f"decisions {by_action or 'none yet'}")
    for title, by_reason in (("", decisions["by_reason"]), ("would be ", decisions["would_reject"])):
        for reason, count in by_reason.items():
            print_line(f"          {count:>12,}  {title}{reason}")


def _print_undecided(undecided: Iterable[Report]) -> None:
    """Print what got an error instead of a decision within the last minutes."""
    for each in undecided:
        if each["last_age_seconds"] <= RECENT_S:
            number = count_of(each["requests"], "request", "requests")
            text = (
                f"{number} at {each['endpoint']}: {each['reason']}, the last {each['last_age_seconds']} s ago"
            )
            print_line(("undecided", "yellow"), f" {text}")
