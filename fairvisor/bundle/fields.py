"""The kinds of values that the fields of a bundle hold: amounts, instants, names, paths, hosts, descriptors.

Each kind is an annotated type: a check that turns the JSON value into what the compiler reads, and the JSON Schema that
says the same to editors. A failed check names the value and what is allowed; where the value stood is added by
`problems.py`. This module knows single values; what they mean together is said in `model.py` and `model_limits.py`.

Amounts are `Decimal`, made from the shortest decimal that the JSON number stands for, so 0.1 is exactly a tenth.
Instants are whole nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import zoneinfo
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Annotated, Any, Final, TypeVar

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fairvisor.clock import NS_PER_S
from fairvisor.errors import RequestError
from fairvisor.identity.networks import parse_network
from fairvisor.route import read_path

MAX_AMOUNT: Final = Decimal("9.2e12")  # in millionths it still fits a signed 64-bit counter
MIN_AMOUNT: Final = Decimal("0.000001")  # counters count millionths

# Descriptors with a name of the user's choice, with an example of one.
NAMED_DESCRIPTORS: Final = {"jwt": "sub", "header": "x-api-key", "query": "api_key", "cookie": "session"}
FIXED_DESCRIPTORS: Final = (
    "ip:address",
    "ip:country",
    "ip:asn",
    "ip:type",
    "ip:tor",
    "ua:bot",
    "ua:bot_category",
    "request:method",
    "request:host",
    "request:path",
    "llm:model",
)

NO_ZONES: Final = frozenset(
    {"localtime", "posixrules"}
)  # files beside the zones: what this machine is set to

_SHOWN = 60  # characters of a wrong value that a message repeats
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_PRINTABLE = re.compile(r"[ -~]{1,128}")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_INSTANT = re.compile(
    r"(\d{4}-\d{2}-\d{2})T(\d{2}:\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?(?:Z|[+]00(?::?00)?)", re.ASCII
)

_T = TypeVar("_T")


def fault(message: str) -> PydanticCustomError:
    """The error that a check raises: `message` is shown as it is, after the field's path."""
    return PydanticCustomError("bundle", message)  # type: ignore[arg-type, unused-ignore]


def show(value: object) -> str:
    """A value as it stood in the JSON, cut to a length that fits a line."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array" if value else "an empty array"
    text = str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def did_you_mean(word: object, known: Iterable[str], likeness: float = 0.6) -> str:
    """The tail of a message that names the nearest known word; nothing when none is as like (0 to 1) as that."""
    if not isinstance(word, str) or len(word) > _SHOWN:
        return ""
    names = {name.lower(): name for name in sorted(known)}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=likeness)
    return f'; did you mean "{names[near[0]]}"?' if near else ""


class Checked:
    """The annotation of a type: `check` turns the JSON value into it or raises a `fault`."""

    def __init__(self, check: Callable[[Any], object], **json_schema: object) -> None:
        self.check = check
        self.json_schema = json_schema

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.json_schema)


# Numbers


def plain(number: Decimal | int) -> str:
    """A number as people write it: digits in groups of three, no exponent."""
    return f"{number.normalize():,f}" if isinstance(number, Decimal) else f"{number:,}"


def between(low: str, high: str) -> Checked:
    """JSON numbers from `low` to `high`, read as decimals."""
    least, most = Decimal(low), Decimal(high)
    wanted = f"must be a number from {plain(least)} to {plain(most)}"

    def check(value: object) -> Decimal:
        if type(value) is not int and type(value) is not float:
            raise fault(f"{wanted}, not {show(value)}")
        amount = Decimal(repr(value))
        if not least <= amount <= most:
            raise fault(f"{wanted}, not {show(value)}")
        return amount

    return Checked(check, type="number", minimum=_json_number(least), maximum=_json_number(most))


def whole_between(low: int, high: int) -> Checked:
    """Whole JSON numbers from `low` to `high`."""
    wanted = f"must be a whole number from {plain(low)} to {plain(high)}"

    def check(value: object) -> int:
        if (type(value) is int or (type(value) is float and value.is_integer())) and low <= value <= high:
            return int(value)
        raise fault(f"{wanted}, not {show(value)}")

    return Checked(check, type="integer", minimum=low, maximum=high)


def _json_number(number: Decimal) -> int | float:
    return int(number) if number == number.to_integral_value() else float(number)


def _version(value: object) -> float:
    if (type(value) is int or type(value) is float) and 0 < value <= 2**53:
        return int(value) if value == int(value) else value
    raise fault(f"must be a number above 0, at most 2^53 (9,007,199,254,740,992), not {show(value)}")


Version = Annotated[float, Checked(_version, type="number", exclusiveMinimum=0, maximum=2**53)]
Amount = Annotated[Decimal, between(str(MIN_AMOUNT), str(MAX_AMOUNT))]
Cost = Amount
Rate = Annotated[Decimal, between("0.000001", "1e9")]
Percent = Annotated[Decimal, between("0", "100")]


# Time


def _instant(value: object) -> int:
    found = _INSTANT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise fault(f'must be a UTC time such as "2026-01-31T12:00:00Z", not {show(value)}')
    date, minutes, seconds, fraction = found.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{minutes}:{seconds or '00'}").replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise fault(f"{show(value)} is not a time: {error}") from None
    return int(moment.timestamp()) * NS_PER_S + int((fraction or "0").ljust(9, "0"))


def _zone(value: object) -> str:
    try:
        if isinstance(value, str) and value not in NO_ZONES:
            return zoneinfo.ZoneInfo(value).key
    except (KeyError, ValueError, OSError):  # unknown, a path that escapes, a folder such as "Europe"
        pass
    hint = did_you_mean(value, zoneinfo.available_timezones() - NO_ZONES, 0.75)
    raise fault(f'must be an IANA time zone such as "Europe/Berlin", not {show(value)}{hint}')


InstantNs = Annotated[
    int,
    Checked(
        _instant,
        type="string",
        pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?(Z|[+]00(:?00)?)$",
    ),
]
Zone = Annotated[str, Checked(_zone, type="string", minLength=1)]


# Text


def read_text(value: object, most: int = 256) -> str:
    """A text of 1 to `most` characters."""
    if isinstance(value, str) and 1 <= len(value) <= most:
        return value
    raise fault(f"must be a text of 1 to {most} characters, not {show(value)}")


def _name(value: object) -> str:
    if isinstance(value, str) and _PRINTABLE.fullmatch(value):
        return value
    raise fault(f"must be 1 to 128 printable ASCII characters, not {show(value)}")


def scalar_text(value: object) -> str:
    """A JSON string, number or boolean as the text that descriptors are compared with."""
    if isinstance(value, str):
        if not value:
            raise fault("must not be empty: an empty value counts as missing and never matches")
        return value
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    raise fault(f"must be a string, a number or a boolean, not {show(value)}")


def _accepted(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return (scalar_text(value),)
    if not value:
        raise fault("must not be an empty array: no value would match")
    return tuple(scalar_text(item) for item in value)


_SCALAR = {"type": ["string", "number", "boolean"], "minLength": 1}
Name = Annotated[str, Checked(_name, type="string", pattern="^[ -~]{1,128}$")]
Text = Annotated[str, Checked(read_text, type="string", minLength=1, maxLength=256)]
ScalarText = Annotated[str, Checked(scalar_text, **_SCALAR)]
Accepted = Annotated[
    tuple[str, ...], Checked(_accepted, anyOf=[_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}])
]


# Where a policy applies


def _path(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise fault(f'must be a path that starts with "/", not {show(value)}')
    if "?" in value or "#" in value:
        raise fault(f'must be a path without "?" or "#", not {show(value)}')
    try:
        read_path(value.encode().decode("latin-1"))
    except RequestError as error:
        raise fault(f"{show(value)} can never match: {error}") from None
    return value


def _method(value: object) -> str:
    if isinstance(value, str) and _TOKEN.fullmatch(value):
        return value.upper()
    raise fault(f'must be an HTTP method such as "GET", not {show(value)}')


def _host(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise fault(f'must be a host name such as "api.example.com", not {show(value)}')
    host = _without_port(value.lower())
    if host.startswith("[") and host.endswith("]"):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise fault(f"{show(value)} is not an IPv6 address in brackets") from None
    if not host.isascii():
        raise fault(f"must be written with A-labels{_a_label(host)}, not {show(value)}")
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise fault(f'must be a host name such as "api.example.com" or "*.example.com", not {show(value)}')
    return host


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and port.isascii() and (":" not in name or name.endswith("]")):
        host = name
    return host[:-1] if host.endswith(".") else host


def _a_label(host: str) -> str:
    """How the internationalised name is written in a Host header, when that can be told."""
    try:
        return f' ("{host.encode("idna").decode()}")'
    except UnicodeError:
        return ""


def _route(value: object) -> str:
    path = value[:-1] if isinstance(value, str) and value.startswith("/") and value.endswith("*") else value
    if "*" in _path(path):
        raise fault(f'may have "*" at its end only, not {show(value)}')
    return str(value)


Path = Annotated[str, Checked(_path, type="string", pattern="^/[^?#]*$")]
Route = Annotated[str, Checked(_route, type="string", pattern="^/[^?#]*$")]
Method = Annotated[str, Checked(_method, type="string", pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
Host = Annotated[str, Checked(_host, type="string", minLength=1)]


def address_or_network(value: str, wanted: str) -> str:
    """An IP address or a network (CIDR) in its canonical spelling.

    `wanted` is the sentence that says what is allowed; `{network}` in it becomes an example.
    """
    try:
        network = parse_network(value)
    except ValueError:
        raise fault(f"{wanted.format(network=_probable_network(value))}, not {show(value)}") from None
    return str(network if "/" in value else network.network_address)


def _probable_network(value: str) -> str:
    """The network that was meant where host bits are set, or else an example."""
    try:
        return f'"{ipaddress.ip_network(value, strict=False)}"'
    except ValueError:
        return '"203.0.113.0/24"'


# Descriptors


def _descriptor(value: object) -> str:
    if not isinstance(value, str):
        raise fault(f'must be a descriptor such as "header:x-api-key", not {show(value)}')
    source, colon, name = value.partition(":")
    if colon and source in NAMED_DESCRIPTORS:
        return f"{source}:{_descriptor_name(source, name, value)}"
    if value == "ip:addr":
        return "ip:address"
    if value in FIXED_DESCRIPTORS:
        return value
    if not colon and source in NAMED_DESCRIPTORS:
        raise fault(f'{show(value)} needs a name, such as "{source}:{NAMED_DESCRIPTORS[source]}"')
    hint = did_you_mean(value, FIXED_DESCRIPTORS) or _nearest_source(source, name)
    raise fault(f"unknown descriptor {show(value)}{hint or '; known: ' + _KNOWN_DESCRIPTORS}")


def _descriptor_name(source: str, name: str, whole: str) -> str:
    if source in ("header", "cookie") and not _TOKEN.fullmatch(name):
        raise fault(f"{show(whole)} does not name a {source} (letters, digits and !#$%&'*+-.^_`|~)")
    if not name or not name.isprintable():
        what = "claim" if source == "jwt" else f"{source} parameter"
        raise fault(f"{show(whole)} does not name a {what}")
    return name.lower() if source == "header" else name


def _nearest_source(source: str, name: str) -> str:
    near = difflib.get_close_matches(source.lower(), NAMED_DESCRIPTORS, n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}:{name}"?' if near and name else ""


def _cost_source(value: object) -> str:
    if isinstance(value, str):
        source, colon, name = value.partition(":")
        if value == "fixed":
            return value
        if colon and source in ("header", "query"):
            return f"{source}:{_descriptor_name(source, name, value)}"
    hint = did_you_mean(value, ("fixed",))
    raise fault(f'must be "fixed", "header:<name>" or "query:<name>", not {show(value)}{hint}')


_KNOWN_DESCRIPTORS = ", ".join([f"{source}:<name>" for source in NAMED_DESCRIPTORS] + list(FIXED_DESCRIPTORS))
_DESCRIPTOR_PATTERN = (
    r"^(jwt:.+|query:.+|(header|cookie):[!#$%&'*+.^_`|~0-9A-Za-z-]+|ip:addr|"
    + "|".join(FIXED_DESCRIPTORS)
    + ")$"
)
Descriptor = Annotated[str, Checked(_descriptor, type="string", pattern=_DESCRIPTOR_PATTERN)]
CostSource = Annotated[
    str,
    Checked(_cost_source, type="string", pattern=r"^(fixed|query:.+|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+)$"),
]
