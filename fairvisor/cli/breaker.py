"""`fairvisor breaker`: a circuit breaker of a running edge: is it open, open it, close it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from fairvisor.cli.edge import edge_option, open_edge
from fairvisor.cli.screen import format_option, print_json, print_line
from fairvisor.cli.who import Claims, who_options


@click.group()
def breaker() -> None:
    """Look at, trip and reset the circuit breakers of a running edge."""


@breaker.command()
@click.argument("policy")
@click.argument("key", required=False, metavar="[DESCRIPTOR=VALUE]")
@edge_option
@format_option
def show(policy: str, key: str | None, edge_url: str | None, output_format: str) -> None:
    """Show whether the breaker of a policy is open."""
    _do("GET", "breaker", policy, key, edge_url, output_format)


@breaker.command()
@click.argument("policy")
@click.argument("key", required=False, metavar="[DESCRIPTOR=VALUE]")
@who_options
@edge_option
@format_option
def trip(policy: str, key: str | None, claims: Claims, edge_url: str | None, output_format: str) -> None:
    """Open it: everything that the policy applies to is rejected, as if it had spent too much."""
    _do("POST", "breaker/trip", policy, key, edge_url, output_format, claims)


@breaker.command()
@click.argument("policy")
@click.argument("key", required=False, metavar="[DESCRIPTOR=VALUE]")
@who_options
@edge_option
@format_option
def reset(policy: str, key: str | None, claims: Claims, edge_url: str | None, output_format: str) -> None:
    """Close it, and forget what was spent."""
    _do("POST", "breaker/reset", policy, key, edge_url, output_format, claims)


def _do(
    method: str,
    path: str,
    policy: str,
    key: str | None,
    edge_url: str | None,
    output_format: str,
    claims: Sequence[tuple[str, str]] = (),
) -> None:
    parameters = [("policy", policy), *([("key", key)] if key else []), *claims]
    report = open_edge(edge_url).ask(method, path, parameters)
    if output_format == "json":
        print_json(report)
    else:
        _print(report)


def _print(report: Mapping[str, Any]) -> None:
    who = "".join(f"  {name}={value}" for name, value in report["keys"].items())
    since = f", for {report['open_seconds']:,} s" if report["open_seconds"] is not None else ""
    state = ("open", "bold red") if report["state"] == "open" else ("closed", "green")
    as_before = " (as before)" if report.get("changed") is False else ""
    print_line((report["policy"], "bold"), f"{who}  ", state, f"{since}{as_before}")
