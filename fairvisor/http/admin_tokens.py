"""The tokens that operators send over TCP, and whose they are.

One token may be in the settings: its holder is called `admin`. Several are in a file, each with the name of its
holder, so that the audit log says who did something and one of them can be withdrawn alone:

    # name token
    alice  3f0c…
    ci     91be…

A name may be there twice, while its token is replaced by another. The file is looked at with every request and read
again when it changed. One that cannot be used admits no one, and the log says so once: a token that was to be withdrawn
does not stay valid because of a typing error. This module knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import Final

from fairvisor.errors import SettingsError
from fairvisor.secret_values import Secret, encoded, is_one_of, secret, secret_file

ADMIN: Final = "admin"  # the holder of the token in the settings
LEAST_CHARACTERS: Final = 32
MAX_BYTES: Final = 1 << 20
_VARIABLE: Final = "FAIRVISOR_ADMIN_TOKENS_FILE"
_LINE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})[ \t]+(\S+)")

_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]
_NOT_READ: Final = (-1, -1, -1, -1)


class AdminTokens:
    """The tokens of one process. `name_of` may be called from several threads."""

    def __init__(self, own: Secret, file: Path | None) -> None:
        self._own = [(ADMIN, token) for token in encoded(own)]
        self._file = file
        self._lock = threading.Lock()
        # what changes
        self._stamp: Stamp | None = _NOT_READ
        self._named: list[tuple[str, bytes]] = []

    def name_of(self, given: bytes) -> str:
        """Return the name of the holder of a token, or "". The time that it takes does not depend on the token."""
        found = ""
        for name, token in [*self._own, *self._current()]:
            if is_one_of(given, (token,)):
                found = name
        return found

    def _current(self) -> list[tuple[str, bytes]]:
        if self._file is None:
            return []
        with self._lock:
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._stamp = stamp
                self._named = self._read(self._file)
            return self._named

    def _read(self, file: Path) -> list[tuple[str, bytes]]:
        try:
            return read_tokens(file)
        except ValueError as error:
            _log.error("%s: '%s' admits no one: %s", _VARIABLE, file, error)
            return []


def check_tokens(file: Path | None) -> None:
    """Raise SettingsError unless the file of tokens, if there is one, can be used."""
    try:
        if file is not None:
            read_tokens(file)
    except ValueError as error:
        raise SettingsError(f"{_VARIABLE}: '{file}' is wrong: {error}") from None


def read_tokens(file: Path) -> list[tuple[str, bytes]]:
    """Return the names and tokens in a file. Raises ValueError, which shows no token."""
    found: list[tuple[str, bytes]] = []
    check = secret(LEAST_CHARACTERS)
    for number, line in enumerate(secret_file(str(file), MAX_BYTES).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"line {number}: allowed is a name (letters, digits, . _ -), a space and a token"
            )
        name, token = match[1], match[2]
        try:
            check(token)
        except ValueError as error:
            raise ValueError(f"line {number}: the token of {name} is wrong: {error}") from None
        if name == ADMIN or token.encode() in {other for _, other in found}:
            raise ValueError(
                f"line {number}: {name} is wrong: admin is the holder of FAIRVISOR_ADMIN_TOKEN, and each token is of "
                "one holder"
            )
        found.append((name, token.encode()))
    if not found:
        raise ValueError("it holds no token")
    return found


def _stamp(file: Path) -> Stamp | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns  # which a chmod moves as well
