"""How servers write the format of their text logs: nginx, Envoy, Apache and HAProxy.

A format is literal text with fields between. Each dialect finds the fields and gives them the names that nginx has for
the same things, by which `fields.py` knows what they mean; a field of no such name keeps its own. What a value may hold
follows from its name and from the text around it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from fairvisor.replay.fields import normal_name


class Field(NamedTuple):
    """`name` as the format writes it, without its sign; `known` as nginx would name it.

    `before` and `after` are literal text that comes with the value. `optional` says that the field may be missing, with
    the space that follows it.
    """

    name: str
    known: str
    before: str = ""
    after: str = ""
    optional: bool = False


class Dialect(NamedTuple):
    """`finds` has the fields in a format, `field` makes one of a match, `bare` the literal text between."""

    finds: re.Pattern[str]
    field: Callable[[re.Match[str]], Field]
    bare: Callable[[str], str]
    escape: bytes  # what begins an escaped byte in a value


# nginx: $name and ${name}


def _nginx_field(match: re.Match[str]) -> Field:
    name = match[1] or match[2]
    return Field(name, normal_name(name))


NGINX: Final = Dialect(
    re.compile(r"\$(?:\{([A-Za-z0-9_]+)\}|([A-Za-z0-9_]+))"), _nginx_field, lambda literal: literal, b"\\"
)

# Envoy: %NAME%, %NAME(ARGUMENT)%, %NAME(ARGUMENT):LENGTH%


def _envoy_field(match: re.Match[str]) -> Field:
    known = normal_name(match[1])
    return Field(match[1], "time_local" if known.startswith("start_time(") else known)


ENVOY: Final = Dialect(
    re.compile(r"%([A-Z0-9_]+(?:\([^()]*\))?)(?::[0-9]+)?%"),
    _envoy_field,
    lambda literal: literal.replace("%%", "%"),
    b"\\",
)

# Apache: %h, %>s, %400,501{User-Agent}i; https://httpd.apache.org/docs/2.4/mod/mod_log_config.html

_APACHE_NAMES: Final[Mapping[str, str]] = {
    "a": "remote_addr", "h": "client_addr", "u": "remote_user", "t": "time_local", "r": "request", "s": "status",
    "b": "body_bytes_sent", "B": "body_bytes_sent", "O": "bytes_sent", "I": "request_length", "m": "request_method",
    "U": "uri", "q": "args", "v": "vhost", "V": "host", "H": "server_protocol", "p": "server_port", "P": "pid",
    "l": "ident", "D": "request_time", "T": "request_time", "X": "connection", "k": "connection_requests",
}  # fmt: skip
_APACHE_SOURCES: Final[Mapping[str, str]] = {"i": "http_", "C": "cookie_", "o": "sent_http_"}
# A time in several fields is one: %{%d/%b/%Y %T}t.%{msec_frac}t %{%z}t
_APACHE_TIME: Final = r"%\{[^}]*\}t"


def _apache_field(match: re.Match[str]) -> Field:
    times, argument, letter = match.groups()
    if times:
        return Field(times.replace("%", ""), "time_local")
    name = f"{{{argument}}}{letter}" if argument else letter
    if letter == "t":
        return Field(name, "time_local", "[", "]")
    if argument and letter in _APACHE_SOURCES:
        known = _APACHE_SOURCES[letter] + argument
        return Field(name, known if letter == "C" else normal_name(known))
    if argument == "c":  # of the connection, which may be a proxy's
        return Field(name, f"connection_{letter}")
    return Field(name, "" if letter in "enL" else _APACHE_NAMES.get(letter, f"apache_{letter}"))


def _unquoted(literal: str) -> str:
    """Return a literal without the escapes that it has in a server's configuration."""
    text = re.sub(
        r"\\(.)", lambda match: {"t": "\t", "n": ""}.get(match[1], match[1]), literal, flags=re.DOTALL
    )
    return text.replace("%%", "%")


APACHE: Final = Dialect(
    re.compile(
        rf"({_APACHE_TIME}(?:[ .,:T]?{_APACHE_TIME})*)"
        r"|%(?:!?[0-9]{3}(?:,[0-9]{3})*)?[<>]?(?:\{([^}]*)\})?(\^?[A-Za-z])"
    ),
    _apache_field,
    _unquoted,
    b"\\",
)

# HAProxy: %ci, %{+Q}r, %[req.hdr(host)]; configuration manual 8.2.6

_HAPROXY_NAMES: Final[Mapping[str, str]] = {
    "ci": "remote_addr", "src": "remote_addr", "cp": "remote_port", "r": "request", "ST": "status",
    "B": "bytes_sent", "U": "request_length", "HM": "request_method", "method": "request_method",
    "HU": "request_uri", "url": "request_uri", "pathq": "request_uri", "HP": "uri", "HPO": "uri", "path": "uri",
    "HQ": "args", "query": "args", "CC": "http_cookie", "ID": "request_id", "ssl_fc_sni": "sni",
    "capture.req.method": "request_method", "capture.req.uri": "request_uri",
    **dict.fromkeys(("t", "tr", "trg", "trl", "T", "Tl", "Ts", "accept_date", "request_date"), "time_local"),
}  # fmt: skip
_HAPROXY_HEADER: Final = re.compile(r"(?:capture\.)?(?:req\.)?f?hdr\(([A-Za-z][A-Za-z0-9_-]*)(?:,[^)]*)?\)")
_HAPROXY_CAPTURES: Final = frozenset({"hr", "hs"})


def _haproxy_field(match: re.Match[str]) -> Field:
    flags, expression, letters = match.groups()
    name = expression or letters
    quote = '"' if flags and "+Q" in flags else ""
    header = _HAPROXY_HEADER.match(name)
    known = (
        normal_name(f"http_{header[1]}")
        if header
        else _HAPROXY_NAMES.get(name.partition(",")[0], f"haproxy_{name}")
    )
    if name in _HAPROXY_CAPTURES and not quote:
        return Field(name, known, "{", "}", optional=True)
    return Field(name, known, quote, quote)


HAPROXY: Final = Dialect(
    re.compile(r"%(?:\{([^}]*)\})?(?:\[((?:[^\[\]\"]|\"[^\"]*\")*)\]|([A-Za-z]+))"),
    _haproxy_field,
    _unquoted,
    b"#",
)
_HAPROXY_SIGN: Final = re.compile(r"%(?:\{[^}]*\})?\[|%\{[+-][QEX]|%(?:ci|cp|tr|trg|trl|ST|HM|HU|HP|hr)\b")


def dialect_of(format_string: str) -> Dialect:
    """Return whose format this is. Raises ValueError: it has no fields."""
    if "$" in format_string:
        return NGINX
    if ENVOY.finds.search(format_string):
        return ENVOY
    if _HAPROXY_SIGN.search(format_string):
        return HAPROXY
    if APACHE.finds.search(format_string):
        return APACHE
    raise ValueError(
        "allowed are nginx's $variables, Envoy's %COMMANDS%, Apache's and HAProxy's %directives, as the server's "
        "configuration has them"
    )


def split(format_string: str, dialect: Dialect) -> tuple[list[str], list[Field]]:
    """Return the literal texts around the fields (one more than fields), and the fields."""
    parts = list(_parts(format_string, dialect))
    literals, fields = [parts[0][0]], []
    for (_, field), (text, _) in pairwise(parts):
        assert field is not None, "only the last part has none"
        fields.append(field)
        literals[-1] += field.before
        literals.append(field.after + text)
    for (left, right), literal in zip(pairwise(fields), literals[1:-1], strict=True):
        if not literal:
            raise ValueError(f"nothing is between {left.name} and {right.name}")
    return literals, fields


def _parts(format_string: str, dialect: Dialect) -> Iterator[tuple[str, Field | None]]:
    """Yield each literal text with the field that follows it."""
    end = 0
    for match in dialect.finds.finditer(format_string):
        yield dialect.bare(format_string[end : match.start()]), dialect.field(match)
        end = match.end()
    yield dialect.bare(format_string[end:].rstrip("\r\n")), None
