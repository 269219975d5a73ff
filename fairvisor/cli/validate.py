"""`fairvisor validate`: every problem of a policy bundle, found by the function that the edge itself loads it with."""

from __future__ import annotations

import click

from fairvisor.bundle.load import Parsed, parse
from fairvisor.cli.exits import FAILED
from fairvisor.cli.files import read_file, shown_name
from fairvisor.cli.screen import count_of, format_option, print_json, print_line
from fairvisor.clock import read_now
from fairvisor.errors import BundleInvalid, Problem
from fairvisor.settings import environment


@click.command()
@click.argument("file")
@click.option("--strict", is_flag=True, help="Unknown fields are errors everywhere.")
@format_option
@click.pass_context
def validate(context: click.Context, file: str, strict: bool, output_format: str) -> None:
    """Check the policy bundle FILE (- is standard input) and print every problem in it."""
    errors, parsed = _check(read_file(file), strict=strict)
    warnings = parsed.warnings if parsed else ()
    if output_format == "json":
        print_json(_report(errors, warnings, parsed))
    else:
        _print_report(shown_name(file), errors, warnings, parsed)
    if errors:
        context.exit(FAILED)


def _check(data: bytes, *, strict: bool) -> tuple[tuple[Problem, ...], Parsed | None]:
    try:
        parsed = parse(data, wall_ns=read_now().wall_ns, environ=environment(), strict=strict)
    except BundleInvalid as invalid:
        return invalid.problems, None
    return (), parsed


def _report(
    errors: tuple[Problem, ...], warnings: tuple[Problem, ...], parsed: Parsed | None
) -> dict[str, object]:
    report: dict[str, object] = {
        "valid": not errors,
        "errors": [problem._asdict() for problem in errors],
        "warnings": [problem._asdict() for problem in warnings],
    }
    if parsed:
        report |= {"bundle_version": int(parsed.model.bundle_version), "sha256": parsed.sha256}
    return report


def _print_report(
    name: str, errors: tuple[Problem, ...], warnings: tuple[Problem, ...], parsed: Parsed | None
) -> None:
    for problem in warnings:
        print_line(("warning", "yellow"), f"  {problem}")
    for problem in errors:
        print_line(("error", "bold red"), f"  {problem}")
    if parsed:
        policies = count_of(len(parsed.model.policies), "policy", "policies")
        found = f" with {count_of(len(warnings), 'warning', 'warnings')}" if warnings else ""
        print_line(("valid", "green"), f"  {name}: version {parsed.model.bundle_version}, {policies}{found}")
    else:
        found = count_of(len(errors), "error", "errors")
        click.echo(f"Error: {name} is not a valid bundle: {found}", err=True)
