"""Secrets of the settings: how they are read, and whether what a client sent is one of them.

A secret is a tuple of one text, or of two while it is rotated: whatever is sealed or sent by the edge is made with the
first, and what is shown to it may be made with any. No secret is shown in a message. This module does not know which
secrets there are.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Final

Secret = tuple[str, ...]

MAX_AT_ONCE: Final = 2  # the one in use, and the one before or after it
DIFFERENT_CHARACTERS: Final = (
    5  # in a secret, at least: one of sixteen random hex digits has them but once in 10^6
)
MAX_SECRET_FILE: Final = 4096  # bytes
# RFC 9110 5.5, without bytes that programs encode differently: what every client and gateway sends unchanged.
_SENDABLE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_LINE_END: Final = "\r\n"


def secret(length: int) -> Callable[[str], Secret]:
    """Return the parser of a secret that has at least `length` characters and fits into a header."""

    def parse(value: str) -> Secret:
        return (_checked(value.rstrip(_LINE_END), length),)

    return parse


def rotating(parse: Callable[[str], Secret]) -> Callable[[str], Secret]:
    """Return the parser of a file's text: a secret that `parse` takes, or two of them, each on a line of its own."""

    def parse_lines(text: str) -> Secret:
        lines = [line.rstrip("\r") for line in text.rstrip(_LINE_END).split("\n")]
        if len(lines) > MAX_AT_ONCE:
            raise ValueError(
                f"it has {len(lines)} lines: allowed are one secret, and a second one while it is rotated"
            )
        return tuple(one for line in lines for one in parse(line))

    return parse_lines


def _checked(value: str, length: int) -> str:
    if not value:
        raise ValueError("it is empty")
    if not _SENDABLE.fullmatch(value):
        raise ValueError(
            "no header can carry it: allowed are printable ASCII characters, without a space around them or a line "
            "end within"
        )
    if len(value) < length or len(set(value)) < DIFFERENT_CHARACTERS:
        raise ValueError(
            f"it is too easy to guess: allowed are {length} characters or more, at least {DIFFERENT_CHARACTERS} "
            "different ones; `openssl rand -hex 32` makes a good one"
        )
    return value


def secret_file(value: str, most_bytes: int = MAX_SECRET_FILE) -> str:
    """Return the text of a file that only its owner, root and their group can read."""
    try:
        fd = os.open(value, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not keep us waiting
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if os.geteuid() not in (0, status.st_uid) and status.st_uid != 0:
                raise ValueError(
                    f"it belongs to user {status.st_uid}: allowed are root and the user of this process"
                )
            if status.st_mode & (stat.S_IWGRP | stat.S_IRWXO):
                mode = stat.S_IMODE(status.st_mode)
                raise ValueError(
                    f"others may read or change it (mode {mode:04o}): chmod it to 0400, 0600 or 0440"
                )
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return data.decode("utf-8", "replace")


def encoded(texts: Sequence[str]) -> tuple[bytes, ...]:
    """Return the bytes that clients send for each of the texts."""
    return tuple(text.encode() for text in texts)


def is_one_of(given: bytes, known: Iterable[bytes]) -> bool:
    """Return whether `given` is one of the known secrets, in a time that says nothing about them."""
    found = False
    for each in known:
        found |= hmac.compare_digest(given, each)
    return found
