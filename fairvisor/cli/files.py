"""Files named on the command line: read whole, with an error that says what is the matter instead of a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

from fairvisor.errors import FairvisorError


class Unreadable(FairvisorError):
    """A file of the command line that cannot be read."""


def read_file(name: str) -> bytes:
    """The bytes of the file `name`; `-` is standard input.

    Raises:
        Unreadable: it is missing, a directory, not permitted, or reading it fails.

    """
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unreadable(f"cannot read {shown_name(name)}: {reason}") from None


def shown_name(name: str) -> str:
    """How messages call the file `name`."""
    return "standard input" if name == "-" else name
