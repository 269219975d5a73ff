"""Where log lines go, and how they look: for people, or as JSON, one object a line.

The only place that configures logging. Everything goes to standard error through one outlet that nothing waits for:
the lines of this program, of gunicorn and other libraries, warnings, and what is printed there. Allowed requests are
never logged. Whatever a line says, the values of secret settings are taken out of it.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any, Final, TextIO, cast

import orjson
from gunicorn.glogging import Logger as GunicornLogger

from fairvisor.linefile import STDERR, LineFile
from fairvisor.outlet import Outlet
from fairvisor.secret_values import Secret
from fairvisor.settings import Settings, declared
from fairvisor.visible import visible, visible_json

SHOWN_INSTEAD: Final = "(a secret)"
_LEAST_SECRET: Final = 4  # characters; shorter ones would be found in any text
_LOGGERS: Final = ("fairvisor", "gunicorn.error")
_WRITTEN_WITHIN_S: Final = 1.0  # what is left when the process ends; a supervisor waits for that


class Console(logging.Formatter):
    """`2026-11-22T11:34:47.504Z [4711] [INFO] the message`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s [%(process)d] [%(levelname)s] %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """The traceback, indented: an exception may quote what a client sent, and no line of it is a record."""
        return "\n".join(f"    {visible(line)}" for line in super().formatException(ei).split("\n"))


class Json(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "pid": ..., "message": ...}`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return visible_json(orjson.dumps(_readable(line))).decode()


class Discreet(logging.Formatter):
    """Another formatter's lines without the secrets."""

    def __init__(self, formatter: logging.Formatter, secrets: Iterable[str]) -> None:
        super().__init__()
        self._formatter = formatter
        forms = {form for secret in secrets for form in (secret, visible(secret), _in_json(secret))}
        self._secrets = sorted(forms, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        return self.cleaned(self._formatter.format(record))

    def cleaned(self, text: str) -> str:
        """Return a text without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, SHOWN_INSTEAD)
        return text


class Handler(logging.Handler):
    """Gives lines to an outlet, so that no caller waits for a reader."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.use(settings)
        self._outlet = Outlet(LineFile(None, descriptor=STDERR), self._lost_line)
        self.count_losses = self._outlet.count_losses

    def use(self, settings: Settings) -> None:
        """Write lines in the format of these settings and without their secrets, from now on."""
        self._discreet = Discreet(
            Json() if settings.log_format == "json" else Console(), secrets_of(settings)
        )
        self.setFormatter(self._discreet)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._put(self.format(record))
        except Exception:  # the caller must not fail for want of a line, as with every handler of the library
            self.handleError(record)

    def flush(self) -> None:
        """Wait a moment until everything is written: what logging asks for when the process ends."""
        self._outlet.flush(_WRITTEN_WITHIN_S)

    def print_line(self, line: str) -> None:
        """Write what is printed to standard error, a traceback say, without a head of its own."""
        self._put(visible(self._discreet.cleaned(line)))

    def _put(self, line: str) -> None:
        self._outlet.put(f"{line}\n".encode("utf-8", "backslashreplace"))

    def _lost_line(self, lines: int) -> bytes:
        text = f"log lines lost: {lines} (standard error took none for a while)"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        return f"{self.format(record)}\n".encode()


class Printed(io.TextIOBase):
    """Standard error as a file: whole lines go to `print_line`."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, print_line: Callable[[str], None]) -> None:
        super().__init__()
        self._print_line = print_line
        self._begun = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STDERR

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._print_line(line)
        return len(text)


class Log(GunicornLogger):  # type: ignore[misc]
    """gunicorn's logger, which leaves to `configure` where lines go."""

    def _set_handler(self, *_: Any, **__: Any) -> None:
        """Nothing: the handlers are there."""


def configure(settings: Settings) -> Handler:
    """Send every line of this process and its children to standard error."""
    handler = Handler(settings)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(settings.log_level.upper())
        logger.propagate = False
    others = logging.getLogger()
    others.handlers = [handler]
    others.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.stderr = cast(TextIO, Printed(handler.print_line))
    return handler


def secrets_of(settings: Settings) -> frozenset[str]:
    """The values that no line may show."""
    secrets: list[Secret] = [getattr(settings, setting.name) for setting in declared() if setting.secret]
    return frozenset(text for texts in secrets for text in texts if len(text) >= _LEAST_SECRET)


def _in_json(text: str) -> str:
    return visible_json(orjson.dumps(text)).decode()[1:-1]


def _readable(line: dict[str, object]) -> dict[str, object]:
    """Text that JSON can hold: a message may quote bytes of a request as lone surrogates."""
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in line.items()
    }


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
