"""`fairvisor limits`: what is left to somebody, a fresh start for them, and who is rejected most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fairvisor.cli.edge import edge_option, open_edge
from fairvisor.cli.screen import count_of, format_option, print_json, print_line
from fairvisor.cli.who import Claims, who_options

Report = Mapping[str, Any]


@click.group()
def limits() -> None:
    """Look up and reset the counters of a running edge."""


@limits.command()
@click.argument("policy")
@click.argument("rule")
@click.argument("keys", nargs=-1, metavar="[DESCRIPTOR=VALUE]...")
@edge_option
@format_option
def show(policy: str, rule: str, keys: tuple[str, ...], edge_url: str | None, output_format: str) -> None:
    """Show what is left of a limit for one key, such as: api per-key header:x-api-key=k1."""
    report = open_edge(edge_url).ask("GET", "limits", _parameters(policy, rule, keys))
    if output_format == "json":
        print_json(report)
    else:
        _print(report)


@limits.command()
@click.argument("policy")
@click.argument("rule")
@click.argument("keys", nargs=-1, metavar="[DESCRIPTOR=VALUE]...")
@who_options
@edge_option
@format_option
def reset(
    policy: str,
    rule: str,
    keys: tuple[str, ...],
    claims: Claims,
    edge_url: str | None,
    output_format: str,
) -> None:
    """Forget what a limit has counted for one key, on all workers at once."""
    parameters = [*_parameters(policy, rule, keys), *claims]
    report = open_edge(edge_url).ask("DELETE", "limits", parameters)
    if output_format == "json":
        print_json(report)
    else:
        had = report["forgotten"]
        print_line("forgotten" if had else "nothing had been counted")
        _print(report)


@limits.command()
@click.option("--policy", help="Only rejects by this policy.")
@click.option("--rule", help="Only rejects by this rule.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many.")
@edge_option
@format_option
def top(policy: str | None, rule: str | None, limit: int, edge_url: str | None, output_format: str) -> None:
    """Show who was rejected most in the last 15 to 30 minutes."""
    parameters = [("limit", str(limit))]
    parameters += [(name, value) for name, value in (("policy", policy), ("rule", rule)) if value]
    report = open_edge(edge_url).ask("GET", "top", parameters)
    if output_format == "json":
        print_json(report)
        return
    print_line(f"rejected within {report['seconds'] // 60} minutes")
    for each in report["top"]:
        place = f"{each['policy']}/{each['rule']}" if each["policy"] else each["rule"]
        about = f", at most {each['too_high_by_at_most']:,} too many" if each["too_high_by_at_most"] else ""
        print_line(f"{each['rejected']:>12,}  {_who(each['keys'])}  ({place}, {each['reason']}{about})")


def _parameters(policy: str, rule: str, keys: tuple[str, ...]) -> list[tuple[str, str]]:
    return [("policy", policy), ("rule", rule), *(("key", key) for key in keys)]


def _print(report: Report) -> None:
    shadow = " (shadow)" if report["mode"] == "shadow" else ""
    print_line((f"{report['policy']}/{report['rule']}", "bold"), f"{shadow}  {_who(report['keys'])}")
    for counter in report["counters"]:
        left = f"{counter['remaining']:,.10g} of {counter['limit']:,.10g} left"
        again = count_of(counter["reset_seconds"], "second", "seconds")
        when = f"full again in {again}" if counter["counter"] in ("bucket", "minute") else f"ends in {again}"
        print_line(f"  {counter['counter']:8} {left}, {when}")


def _who(keys: Mapping[str, str | None]) -> str:
    return (
        ", ".join(f"{name}={'(missing)' if value is None else value}" for name, value in keys.items())
        or "all"
    )
