"""Text logs: a server's format string becomes a regular expression, a line becomes the values in it.

nginx and Apache write the bytes that would break a line as `\\xHH`, `\\"` and `\\n`, HAProxy as `#HH`. How formats are
written is the business of `dialects.py`, which line means which request that of `fields.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from fairvisor.replay.dialects import Field, dialect_of, split
from fairvisor.replay.fields import Logged, Maker, Plan, Value, meaning_of, normal_name

COMMON: Final = '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
COMBINED: Final = COMMON + ' "$http_referer" "$http_user_agent"'
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
# `option httplog`; that of `option httpsslog` goes on behind the request.
HAPROXY: Final = (
    "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %CC %CS %tsc %ac/%fc/%bc/%sc/%rc %sq/%bq %hr %hs "
    "%{+Q}r"
)
# Elastic Load Balancing, classic; an Application Load Balancer writes the type of the connection before it.
ELB: Final = (
    "$time_iso8601 $server_name $remote_addr:$remote_port $upstream_addr $request_time $upstream_response_time "
    '$response_time $status $upstream_status $request_length $bytes_sent "$request" "$http_user_agent"'
)
FORMATS: Final[Mapping[str, str]] = {
    "combined": COMBINED,
    "common": COMMON,
    "vhost-combined": "$vhost " + COMBINED,  # the name may have a port behind it
    "vhost-common": "$vhost " + COMMON,
    "envoy": ENVOY,
    "envoy-detailed": ENVOY_DETAILED,
    "haproxy": HAPROXY,
    "alb": "$scheme " + ELB,
    "elb": ELB,
}

_QUOTED: Final = r'([^"\\]*(?:\\.[^"\\]*)*)'
# Values without a space in them, whatever a client sends.
_ATOMS: Final = frozenset({
    "remote_user", "status", "body_bytes_sent", "bytes_sent", "request_time", "request_length", "msec",
    "time_iso8601", "request_method", "server_protocol", "host", "server_name", "server_port", "pid", "connection",
    "start_time", "protocol", "response_code", "response_flags", "bytes_received", "duration", "req(:method)",
    "req(:path)", "req(x_envoy_original_path?:path)", "req(:authority)", "request_uri", "uri",
    "downstream_remote_address", "downstream_remote_address_without_port", "resp(x_envoy_upstream_service_time)",
    "upstream_host", "ident", "sni", "upstream_addr", "upstream_status",
    "upstream_response_time", "response_time",
})  # fmt: skip
# And values of which more is known: a syslog priority is not a part of the address or name that begins a line.
_WORDS: Final = {
    "scheme": "([a-z0-9]+)",
    "remote_port": "([0-9]*)",
    **dict.fromkeys(("remote_addr", "client_addr", "vhost"), r"([^ <>\r\n]*)"),
}
_ATOM_FAMILIES: Final = ("haproxy_", "apache_", "connection_")  # other fields of servers that write atoms


class LineFormat:
    """One text format: `read` gives the request of a line.

    `mapping` says by the name of a field what it means, before what its name says. Raises ValueError when the format
    string names no time or no request, or when two of its fields stand side by side with nothing between them.
    """

    def __init__(
        self, format_string: str, mapping: Mapping[str, str], maker: Maker, *, open_end: bool
    ) -> None:
        dialect = dialect_of(format_string)
        literals, fields = split(format_string, dialect)
        mapped = {normal_name(field): meaning for field, meaning in mapping.items()}
        mapped_to = [mapped.get(normal_name(field.name)) or mapped.get(field.known) for field in fields]
        unknown = mapped.keys() - {
            name for field in fields for name in (normal_name(field.name), field.known)
        }
        if unknown:
            names = ", ".join(field.name for field in fields)
            raise ValueError(f"the log's format has no field {sorted(unknown)[0]!r}; it has {names}")
        meanings = _without_rivals(mapped_to, fields)
        self._escape = dialect.escape
        self._original = _ORIGINALS[dialect.escape]
        self._match = _expression(literals, fields, meanings, dialect.escape, open_end).match
        self._plan = Plan([meaning for meaning in meanings if meaning], maker)

    def read(self, line: bytes) -> Logged:
        """Return the request of a line. Raises ValueError or RequestError: it cannot be read, and why."""
        match = self._match(line)
        if match is None:
            raise ValueError("it does not have the log's format")
        values: tuple[Value, ...] = match.groups()
        if self._escape in line:
            values = tuple(self._original(value) if value else value for value in values)
        return self._plan.logged(values)


# Escapes

_BACKSLASH: Final = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_HASH: Final = re.compile(rb"#([0-9A-Fa-f]{2})")
_CONTROLS: Final = {b"b": b"\b", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def unescaped(value: bytes) -> bytes:
    """Return a value as it was before nginx or Apache escaped it."""
    return _BACKSLASH.sub(_backslashed, value)


def _backslashed(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 16)]) if match[1] else _CONTROLS.get(match[2], match[2])


def _unhashed(value: bytes) -> bytes:
    return _HASH.sub(lambda match: bytes([int(match[1], 16)]), value)


_ORIGINALS: Final = {b"\\": unescaped, b"#": _unhashed}


# Meanings and the expression


def _without_rivals(mapped_to: Sequence[str | None], fields: Sequence[Field]) -> list[str | None]:
    """Return the meaning of each field. Of fields that mean the same only the best has it: mapped, else by rank."""
    best: dict[str, tuple[int, int]] = {}
    for index, (mapped, field) in enumerate(zip(mapped_to, fields, strict=True)):
        meaning, rank = (mapped, -1) if mapped else meaning_of(field.known) or ("", 0)
        if meaning and (meaning not in best or rank < best[meaning][0]):
            best[meaning] = rank, index
    meanings: list[str | None] = [None] * len(fields)
    for meaning, (_, index) in best.items():
        meanings[index] = meaning
    return meanings


def _expression(
    literals: Sequence[str],
    fields: Sequence[Field],
    meanings: Sequence[str | None],
    escape: bytes,
    open_end: bool,
) -> re.Pattern[bytes]:
    """Return an expression that captures the fields with a meaning. `open_end`: more may follow on the line."""
    pattern = ""
    before = literals[0]
    for field, meaning, after in zip(fields, meanings, literals[1:], strict=True):
        value = _value(field.known, before, after, _QUOTED if escape == b"\\" else r'([^"]*)')
        group = value if meaning else value.replace("(", "(?:", 1)
        if field.optional:
            pattern += re.escape(before.removesuffix(field.before))
            pattern += f"(?:{re.escape(field.before)}{group}{re.escape(field.after)} )?"
            before = after.removeprefix(field.after).removeprefix(" ")
        else:
            pattern += re.escape(before) + group
            before = after
    pattern += re.escape(before)
    return re.compile((pattern + ("" if open_end else r"\r?\n?\Z")).encode(), re.DOTALL)


def _value(known: str, before: str, after: str, quoted: str) -> str:
    """Return the expression of a value between these two texts; `quoted` is that of one in quotes."""
    if after.startswith('"'):
        return quoted if before.endswith('"') else r'([^"]*)'
    if after[:1] in ("]", "|", "\t", ";", "}"):
        return f"([^{re.escape(after[0])}]*)"
    if known in _WORDS:
        return _WORDS[known]
    if not after:
        return r"([^\r\n]*)"
    if known in _ATOMS or known.startswith(_ATOM_FAMILIES):
        return r"([^ ]*)" if after[0] in " :" else f"([^ {re.escape(after[0])}]*)"
    return r"(.*?)"
