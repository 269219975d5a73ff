"""`fairvisor validate`: every problem of a policy bundle, found by the function that the edge itself loads it with, and
the request headers that it reads."""

from __future__ import annotations

import click

from fairvisor.bundle.headers_read import headers_read
from fairvisor.bundle.load import Parsed
from fairvisor.bundle.reach import unreachable
from fairvisor.cli.exits import FAILED
from fairvisor.cli.files import read_bundle, shown_name
from fairvisor.cli.screen import count_of, format_option, print_errors, print_json, print_line, print_warnings
from fairvisor.errors import BundleInvalid, Problem, listed
from fairvisor.identity import Identity
from fairvisor.settings import Settings, environment

Problems = tuple[Problem, ...]


@click.command()
@click.argument("file")
@click.option("--strict", is_flag=True, help="Unknown fields are errors everywhere.")
@format_option
@click.pass_context
def validate(context: click.Context, file: str, strict: bool, output_format: str) -> None:
    """Check the policy bundle FILE (- is standard input): print every problem, and the request headers it reads."""
    try:
        parsed = read_bundle(file, strict=strict)
    except BundleInvalid as invalid:
        _print_invalid(shown_name(file), invalid.problems, output_format)
        context.exit(FAILED)
    sources = Identity.from_settings(Settings.load(environment(), {})).sources()
    warnings = listed((*parsed.warnings, *unreachable(parsed.model, sources)), "warnings")
    _print_valid(shown_name(file), parsed, warnings, output_format)


def _print_invalid(name: str, errors: Problems, output_format: str) -> None:
    if output_format == "json":
        print_json({"valid": False, "errors": [problem._asdict() for problem in errors]})
        return
    for problem in errors:
        print_line(("error", "bold red"), f"  {problem}")
    print_errors(f"{name} is not a valid bundle: {count_of(len(errors), 'error', 'errors')}")


def _print_valid(name: str, parsed: Parsed, warnings: Problems, output_format: str) -> None:
    model = parsed.model
    if output_format == "json":
        print_json(
            {
                "valid": True,
                "bundle_version": model.bundle_version,
                "sha256": parsed.sha256,
                "policies": len(model.policies),
                "headers_read": headers_read(model),
                "warnings": [problem._asdict() for problem in warnings],
            }
        )
        return
    print_warnings(str(problem) for problem in warnings)
    policies = count_of(len(model.policies), "policy", "policies")
    found = f", {count_of(len(warnings), 'warning', 'warnings')}" if warnings else ""
    print_line(("valid", "green"), f"  {name}: version {model.bundle_version}, {policies}{found}")
    read = headers_read(model)
    if read:
        print_line(f"reads  the request headers {', '.join(read)}")
