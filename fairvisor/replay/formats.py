"""Text logs: a format string of nginx or Envoy becomes a regular expression, a line becomes the values in it.

nginx writes variables as `$name` or `${name}`, Envoy commands as `%NAME%`, `%NAME(ARGUMENT):LENGTH%`. Whatever stands
between them is literal. nginx and Apache write the bytes that would break a line as `\\xHH` (`\\"` in older Apaches).
Which line means which request is the business of `fields.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from fairvisor.replay.fields import Logged, Maker, Plan, Value, meaning_of, normal_name

COMBINED: Final = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
    '"$http_referer" "$http_user_agent"'
)
COMMON: Final = '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
# Envoy's default, as its documentation gives it.
ENVOY: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% '
    "%RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "
    '"%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"'
)
# With what came between the codes in newer Envoys: their default has RESPONSE_CODE_DETAILS and more in quotes.
ENVOY_DETAILED: Final = ENVOY.replace(
    "%RESPONSE_FLAGS% ",
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "
    '"%UPSTREAM_TRANSPORT_FAILURE_REASON%" ',
)
FORMATS: Final[Mapping[str, str]] = {
    "combined": COMBINED,
    "common": COMMON,
    "envoy": ENVOY,
    "envoy-detailed": ENVOY_DETAILED,
}

_NGINX: Final = re.compile(r"\$(?:\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))")
_ENVOY: Final = re.compile(r"%([A-Z0-9_]+(?:\([^()%]*\))?)(?::[0-9]+)?%")
_TIME_IN_ENVOY: Final = re.compile(r"start_time\(.*\)")
_ESCAPED: Final = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)

_QUOTED: Final = r'([^"\\]*(?:\\.[^"\\]*)*)'
# Values without a space in them, whatever a client sends.
_ATOMS: Final = frozenset({
    "remote_addr", "remote_user", "status", "body_bytes_sent", "bytes_sent", "request_time", "request_length", "msec",
    "time_iso8601", "request_method", "server_protocol", "host", "server_name", "server_port", "pid", "connection",
    "start_time", "protocol", "response_code", "response_flags", "bytes_received", "duration", "req(:method)",
    "req(:path)", "req(x_envoy_original_path?:path)", "request_uri", "uri",
    "resp(x_envoy_upstream_service_time)", "upstream_host", "scheme",
})  # fmt: skip


class LineFormat:
    """One text format: `read` gives the request of a line.

    `mapping` says by the name of a field what it means, before what its name says. Raises ValueError when the format
    string names no time or no request, or when two of its fields stand side by side with nothing between them.
    """

    def __init__(
        self, format_string: str, mapping: Mapping[str, str], maker: Maker, *, open_end: bool
    ) -> None:
        literals, names = _split(format_string)
        known = {normal_name(field): meaning for field, meaning in mapping.items()}
        unknown = known.keys() - {normal_name(name) for name in names}
        if unknown:
            raise ValueError(
                f"the log's format has no field {sorted(unknown)[0]!r}; it has {', '.join(names)}"
            )
        meanings = [known.get(normal_name(name)) or _meaning(name) for name in names]
        best = _without_rivals(meanings, [name in mapping for name in names], names)
        self._match = _expression(literals, names, best, open_end).match
        self._plan = Plan([meaning for meaning in best if meaning], maker)

    def read(self, line: bytes) -> Logged:
        """The request of a line. Raises ValueError or RequestError: it cannot be read, and why."""
        match = self._match(line)
        if match is None:
            raise ValueError("it does not have the log's format")
        values: tuple[Value, ...] = match.groups()
        if b"\\" in line:
            values = tuple(unescaped(value) if value else value for value in values)
        return self._plan.logged(values)


def unescaped(value: bytes) -> bytes:
    """A value as it was before it was escaped for the log."""
    return _ESCAPED.sub(_original, value)


def _original(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 16)]) if match[1] else match[2]


def _split(format_string: str) -> tuple[list[str], list[str]]:
    """The literal texts around the fields (one more than fields), and the fields' names."""
    if "$" not in format_string and "%" not in format_string:
        raise ValueError(
            "allowed are nginx's $variables and Envoy's %COMMANDS%, as the server's configuration has them"
        )
    form = _NGINX if "$" in format_string else _ENVOY
    literals, names, end = [], [], 0
    for match in form.finditer(format_string):
        literals.append(format_string[end : match.start()])
        names.append(next(group for group in match.groups() if group))
        end = match.end()
    literals.append(format_string[end:].rstrip("\r\n"))
    for left, right, literal in zip(names, names[1:], literals[1:-1], strict=False):
        if not literal:
            raise ValueError(f"nothing stands between {left} and {right}")
    if form is _ENVOY:
        literals = [literal.replace("%%", "%") for literal in literals]
    return literals, names


def _meaning(name: str) -> str | None:
    if _TIME_IN_ENVOY.fullmatch(normal_name(name)):
        return "time"
    known = meaning_of(name)
    return known[0] if known else None


def _without_rivals(meanings: list[str | None], told: list[bool], names: list[str]) -> list[str | None]:
    """Of fields that mean the same only the best one keeps its meaning: one that was mapped, else by its rank."""
    best: dict[str, int] = {}
    for index, meaning in enumerate(meanings):
        if meaning and (meaning not in best or _rank(index, told, names) < _rank(best[meaning], told, names)):
            best[meaning] = index
    return [meaning if meaning and best[meaning] == index else None for index, meaning in enumerate(meanings)]


def _rank(index: int, told: list[bool], names: list[str]) -> int:
    known = meaning_of(names[index])
    return -1 if told[index] or known is None else known[1]


def _expression(
    literals: list[str], names: list[str], meanings: list[str | None], open_end: bool
) -> re.Pattern[bytes]:
    """Captures the fields that mean something. `open_end`: more may follow on the line."""
    pattern = re.escape(literals[0])
    for name, meaning, before, after in zip(names, meanings, literals, literals[1:], strict=False):
        value = _value(normal_name(name), before, after)
        pattern += (value if meaning else value.replace("(", "(?:", 1)) + re.escape(after)
    return re.compile((pattern + ("" if open_end else r"\r?\n?\Z")).encode(), re.DOTALL)


def _value(name: str, before: str, after: str) -> str:
    """The expression of a value that stands between these two texts."""
    if after.startswith('"'):
        return _QUOTED if before.endswith('"') else r'([^"]*)'
    if after[:1] in ("]", "|", "\t", ";"):
        return f"([^{re.escape(after[0])}]*)"
    if not after:
        return r"([^\r\n]*)"
    if name in _ATOMS and after[0] == " ":
        return r"([^ ]*)"
    return r"(.*?)"
