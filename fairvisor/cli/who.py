"""What a person says of themselves when a command changes something: `--reason`, `--as`, and who called sudo.

The edge knows the user or the token that asks; this comes on top, and the audit log marks the names as claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from fairvisor.actor import MAX_NAME, MAX_REASON
from fairvisor.settings import environment

Claims = list[tuple[str, str]]  # names and values, as parameters of the admin API


def who_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--reason` and `--as`; the command gets one parameter, `claims`."""

    @wraps(command)
    def with_claims(*arguments: Any, reason: str | None, name: str | None, **options: Any) -> Any:
        return command(*arguments, claims=_claims(reason, name), **options)

    for option in (
        click.option(
            "--as",
            "name",
            metavar="NAME",
            help=f"Who you are, for the audit log, which marks it as claimed: at most {MAX_NAME} characters.",
        ),
        click.option(
            "--reason", metavar="TEXT", help=f"Why, for the audit log: at most {MAX_REASON} characters."
        ),
    ):
        with_claims = option(with_claims)
    return with_claims


def _claims(reason: str | None, name: str | None) -> Claims:
    said = (("reason", reason), ("as", name), ("sudo_user", environment().get("SUDO_USER")))
    return [(key, value) for key, value in said if value]
