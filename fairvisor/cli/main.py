"""The `fairvisor` command: its subcommands, and the one place where an error becomes a message and an exit code.

Users never see a traceback for what they can mend: a FairvisorError, a file that cannot be written, an interrupt or a
closed pipe ends in one line on stderr or in silence. A traceback means a defect of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from fairvisor import __version__
from fairvisor.cli.breaker import breaker
from fairvisor.cli.connect import connect
from fairvisor.cli.edge import Unreachable
from fairvisor.cli.exits import FAILED, INTERRUPTED, UNREACHABLE, USAGE
from fairvisor.cli.explain import explain
from fairvisor.cli.init import init
from fairvisor.cli.limits import limits
from fairvisor.cli.logs import logs
from fairvisor.cli.reset import reset
from fairvisor.cli.schema import schema
from fairvisor.cli.screen import print_errors
from fairvisor.cli.serve import serve
from fairvisor.cli.sign import sign
from fairvisor.cli.status import status
from fairvisor.cli.test import test
from fairvisor.cli.validate import validate
from fairvisor.cli.version import version
from fairvisor.errors import FairvisorError
from fairvisor.visible import visible


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fairvisor", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Enforce rate limits, budgets and LLM token limits beside an API gateway.

    Start with `fairvisor init`, which writes a policy to edit and says what to do next.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("help")
@click.argument("command", required=False)
@click.pass_context
def show_help(context: click.Context, command: str | None) -> None:
    """Show the commands, or the options of one."""
    group = context.parent
    assert group is not None, "help is a subcommand"
    if command is None:
        click.echo(group.get_help())
        return
    found = cli.get_command(group, command)
    if found is None:
        raise click.UsageError(f"No such command '{command}'.", group)
    click.echo(found.get_help(click.Context(found, group, command)))


for _command in (
    breaker,
    connect,
    explain,
    init,
    limits,
    logs,
    reset,
    schema,
    serve,
    sign,
    status,
    test,
    validate,
    version,
):
    cli.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and gives its exit code."""
    try:
        return cli.main(list(arguments), prog_name="fairvisor", standalone_mode=False) or 0
    except click.UsageError as error:
        click.UsageError(visible(error.format_message()), error.ctx).show()  # it may repeat an argument
        return USAGE
    except click.ClickException as error:
        return _failed(error.format_message())
    except click.Abort:
        return INTERRUPTED
    except Unreachable as error:
        return _failed(*error.lines, code=UNREACHABLE)
    except FairvisorError as error:
        return _failed(*error.lines)
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))


def _failed(*lines: str, code: int = FAILED) -> int:
    print_errors(*lines)
    return code


def main() -> None:
    """The entry point of the console script."""
    sys.exit(run(sys.argv[1:]))
