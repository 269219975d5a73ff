"""`fairvisor connect`: give a running edge another bundle, in force on all workers when this returns, or get its own.

The file goes over as it is, a signature included; one without a signature is signed first where the settings hold the
key, so that what was pulled can be changed and pushed. The edge validates it and says no without changing anything. A
control plane to connect to does not exist yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from fairvisor.bundle.load import is_signed, sign, verify_signature
from fairvisor.cli.edge import edge_option, open_edge
from fairvisor.cli.exits import FAILED
from fairvisor.cli.files import read_file, shown_name, signing_key
from fairvisor.cli.screen import count_of, format_option, print_json, print_line
from fairvisor.cli.who import Claims, who_options


@click.command()
@click.option("--push", "file", metavar="FILE", help="Push this bundle; - is standard input.")
@click.option("--pull", is_flag=True, help="Write the active bundle to standard output, as it was offered.")
@click.option(
    "--payload", is_flag=True, help="With --pull: the JSON alone, without the line of its signature."
)
@click.option(
    "--take-over",
    is_flag=True,
    help="With --push: also where the bundle file decides (FAIRVISOR_BUNDLE_ORDER=file), until it changes.",
)
@who_options
@edge_option
@format_option
@click.pass_context
def connect(
    context: click.Context,
    file: str | None,
    pull: bool,
    payload: bool,
    take_over: bool,
    claims: Claims,
    edge_url: str | None,
    output_format: str,
) -> None:
    """Push a policy bundle to the running edge, or pull the active one.

    A push returns when every worker decides by the bundle, at most after 5 seconds; it exits with 1 when one of them
    does not yet.
    """
    if pull == (file is not None):
        raise click.UsageError("one of --push FILE and --pull is needed")
    if (payload and not pull) or (take_over and pull):
        raise click.UsageError("--payload goes with --pull, --take-over with --push FILE")
    edge = open_edge(edge_url)
    if file is None:
        bundle = edge.fetch("bundle")
        click.echo(verify_signature(bundle, ()) if payload else bundle, nl=False)
        return
    parameters = [*claims, *([("take_over", "true")] if take_over else [])]
    report = edge.ask("PUT", "bundle", parameters, body=_signed(read_file(file)))
    if output_format == "json":
        print_json(report)
    else:
        _print_pushed(shown_name(file), report)
    if report["lagging"]:
        context.exit(FAILED)


def _signed(data: bytes) -> bytes:
    """The bundle as it is pushed: signed here, if it is not and there is a key."""
    key = signing_key()
    return data if key is None or is_signed(data) else sign(data, key)


def _print_pushed(name: str, report: Mapping[str, Any]) -> None:
    done = "in force" if report["changed"] else "in force already"
    print_line((done, "green"), f"  {name}: version {report['version']}, generation {report['generation']}")
    if not report["durable"]:
        print_line(("warning", "yellow"), "  the state directory cannot be written: it is lost with a reboot")
    if report["lagging"]:
        lagging = count_of(len(report["lagging"]), "worker has", "workers have")
        pids = ", ".join(map(str, report["lagging"]))
        print_line(("warning", "bold red"), f"  {lagging} not switched after 5 s: pid {pids}")
    for warning in report["warnings"]:
        print_line(("warning", "yellow"), f"  {warning}")
