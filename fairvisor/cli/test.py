"""`fairvisor test`: what a bundle would have done with the requests of an access log, or with one for each policy.

This module reads the arguments, shows how far the replay has come, and prints. The requests are read and decided in
`fairvisor/replay/`, by the real engine on the log's own clock and in a segment of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from fairvisor.bundle.load import Parsed
from fairvisor.cli.files import read_bundle
from fairvisor.cli.replayed import print_replay
from fairvisor.cli.screen import format_option, print_json
from fairvisor.clock import read_now
from fairvisor.replay.clock import in_order
from fairvisor.replay.fields import Logged, Maker, read_mapping
from fairvisor.replay.files import LogError
from fairvisor.replay.reading import NAMES, RequestLog
from fairvisor.replay.report import report_of
from fairvisor.replay.run import Replay
from fairvisor.replay.synthetic import synthetic_requests, told_meanings
from fairvisor.settings import Settings, environment

_SHOWN_EVERY: Final = 5000  # requests between two looks at how far it has come
_COLLECT_AFTER: Final = 50_000  # objects: a replay makes many and leaves no cycles


def _zone(context: click.Context, option: click.Parameter, name: str | None) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if name is not None else None
    except (KeyError, ValueError, OSError):  # unknown, a path that escapes, a folder such as "Europe"
        raise click.BadParameter(f"{name!r} is not an IANA time zone such as Europe/Berlin") from None


@click.command()
@click.argument("file", required=False)
@click.option(
    "--requests", "log_name", metavar="LOG", help="An access log; - is standard input, gzip is read as it is."
)
@click.option(
    "--dry-run", is_flag=True, help="Treat every policy as a shadow policy, so that every rule reports."
)
@click.option(
    "--map", "assignments", multiple=True, metavar="NAME=FIELD",
    help="What a field of the log means: header:x-api-key=FIELD, jwt:sub=FIELD, ip:address=FIELD...; repeatable.",
)  # fmt: skip
@click.option(
    "--log-format", default="", metavar="FORMAT",
    help=f"{', '.join(NAMES)}, or the format string of nginx, Envoy, Apache or HAProxy. Default: found out.",
)  # fmt: skip
@click.option("--host", default="", help="The host of requests whose log names none.")
@click.option(
    "--time-zone", "zone", callback=_zone, metavar="ZONE",
    help="That of times without one, as HAProxy writes them: Europe/Berlin. Default: UTC.",
)  # fmt: skip
@click.option(
    "--top", type=click.IntRange(0, 1000), default=5, show_default=True, help="Keys named for each rule."
)
@format_option
def test(
    file: str | None,
    log_name: str | None,
    dry_run: bool,
    assignments: tuple[str, ...],
    log_format: str,
    host: str,
    zone: ZoneInfo | None,
    top: int,
    output_format: str,
) -> None:
    """Replay an access log through the policy bundle FILE (- is standard input).

    FILE defaults to the configured one. Requests are decided by the real engine on the log's own clock; a running edge
    and its counters are not touched. Without --requests, one made-up request for each policy is decided.
    """
    settings = Settings.load(environment(), {})
    name = file or (str(settings.config_file) if settings.config_file else "")
    if not name:
        raise click.UsageError("name a policy bundle, or set FAIRVISOR_CONFIG_FILE")
    try:
        mapping = read_mapping(assignments)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--map'") from None
    parsed = read_bundle(name)
    maker = Maker(settings.client_ip_header, host.lower(), zone)
    if log_name is None:
        report = _try_each_policy(parsed, settings, maker, dry_run=dry_run, top=top)
    else:
        replay = Replay(parsed, settings, environment(), dry_run=dry_run, told=mapping.values())
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        with RequestLog(log_name, log_format, mapping, maker) as log, _progress(log) as requests:
            replay.run(requests)
        report = report_of(replay, log, dry_run=dry_run, top=top)
    if output_format == "json":
        print_json(report)
    else:
        print_replay(report)
    if log_name is not None and log.cut_short:
        raise LogError(f"{log_name} ends early: {log.cut_short}")


def _try_each_policy(
    parsed: Parsed, settings: Settings, maker: Maker, *, dry_run: bool, top: int
) -> dict[str, object]:
    replay = Replay(parsed, settings, environment(), dry_run=dry_run, told=told_meanings(parsed.model))
    made_up = []
    for policy_id, logged in synthetic_requests(parsed.model, maker, read_now().wall_ns):
        decision = replay.decide(logged)
        action = decision.action.value if decision is not None else "unanswerable"
        made_up.append(
            {
                "policy": policy_id,
                "method": logged.method,
                "host": logged.host,
                "path": logged.target,
                "action": action,
            }
        )
    return {**report_of(replay, None, dry_run=dry_run, top=top), "made_up": made_up}


@contextmanager
def _progress(log: RequestLog) -> Iterator[Iterator[Logged]]:
    """The requests of a log in order, with a bar on standard error while somebody watches it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("replaying", total=log.size_bytes or None)

        def watched() -> Iterator[Logged]:
            for number, logged in enumerate(in_order(log.requests()), 1):
                if number % _SHOWN_EVERY == 0:
                    progress.update(task, completed=log.position_bytes(), description=f"{number:,} requests")
                yield logged

        yield watched()
