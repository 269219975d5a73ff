"""JSON logs: a document a line (Caddy, Envoy, nginx with escape=json, Traefik, and the plain form below), and HAR.

    {"time": "2026-03-02T12:00:00Z", "method": "GET", "path": "/v1/x?a=1", "host": "api.example.com",
     "ip": "203.0.113.7", "headers": {"X-API-Key": "k1"}, "body": "..."}

Objects called `request`, `req` or `httpRequest` are looked into, and `headers` wherever it stands. Which fields a line
has repeats from line to line, so where its request stands is worked out once for each set of keys. HAR (HTTP Archive
1.2) is one document for a whole session; it knows no client addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson

from fairvisor.reading import read_fields
from fairvisor.replay.fields import BODY, TIME, Logged, Maker, Plan, Value, meaning_of

_INSIDE: Final = frozenset({"request", "req", "httpRequest"})
_HEADERS: Final = "headers"
_PLANS: Final = 256  # kept; a log whose every line has other keys empties them and goes on

Document = dict[str, Any]
Path = tuple[str, ...]


class DocumentFormat:
    """JSON lines. `mapping` says what a field, named by its dotted path, means, before what its name says."""

    def __init__(self, mapping: Mapping[str, str], maker: Maker) -> None:
        self._mapping = dict(mapping)
        self._maker = maker
        self._plans: dict[tuple[str, ...], DocumentPlan] = {}

    def read(self, line: bytes) -> Logged:
        """The request of a line. Raises ValueError or RequestError: it cannot be read, and why."""
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
        return self.logged(document)

    def logged(self, document: Document) -> Logged:
        """The request of a document. Raises as `read` does."""
        keys = tuple(document)
        plan = self._plans.get(keys)
        if plan is None or not plan.fits(document):
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[keys] = DocumentPlan(document, self._mapping, self._maker)
        return plan.logged(document)


class DocumentPlan:
    """Where the parts of a request stand in documents with the keys of `document`. Raises ValueError: nowhere."""

    def __init__(self, document: Document, mapping: Mapping[str, str], maker: Maker) -> None:
        self._inside = tuple((name, tuple(inner)) for name, inner in _objects(document))
        ranked: dict[str, tuple[int, Path]] = {}
        for path in _paths(document):
            known = meaning_of(path[-1])
            if known and (known[0] not in ranked or known[1] < ranked[known[0]][0]):
                ranked[known[0]] = (known[1], path)
        chosen = {meaning: path for meaning, (_, path) in ranked.items()}
        for field, meaning in mapping.items():
            chosen[meaning] = (field,) if field in document else tuple(field.split("."))
        self._getters = tuple(_getter(path) for path in chosen.values())
        self._headers = [_getter((_HEADERS,)), *(_getter((name, _HEADERS)) for name, _ in self._inside)]
        self._plan = Plan(list(chosen), maker)

    def fits(self, document: Document) -> bool:
        """Whether the objects that are looked into have the same keys, too."""
        return all(
            isinstance(inner := document[name], dict) and tuple(inner) == keys for name, keys in self._inside
        )

    def logged(self, document: Document) -> Logged:
        pairs: list[tuple[str, bytes]] = []
        for get in self._headers:
            found = get(document)
            if isinstance(found, dict):
                pairs = [(name, value) for name, value in pairs if name not in found]
                pairs += _header_lines(found)
        headers, repeated = read_fields(pairs)
        values = [_value(get(document)) for get in self._getters]
        return self._plan.logged(values, headers, repeated)


def _objects(document: Document) -> Iterator[tuple[str, Document]]:
    for name, value in document.items():
        if name in _INSIDE and isinstance(value, dict):
            yield name, value


def _paths(document: Document) -> Iterator[Path]:
    """The fields of a document, those of objects that are looked into first: there a name can only mean one thing."""
    for name, inner in _objects(document):
        for field, value in inner.items():
            if field != _HEADERS and not isinstance(value, dict):
                yield name, field
    for field, value in document.items():
        if field != _HEADERS and not isinstance(value, dict):
            yield (field,)


def _getter(path: Path) -> Callable[[Document], Any]:
    """What stands at a path; None where there is nothing. Names of headers are found in any spelling."""
    if len(path) == 1:
        (name,) = path
        return lambda document: document.get(name)

    def get(document: Document) -> Any:
        found: Any = document
        for name in path:
            if not isinstance(found, dict):
                return None
            found = found[name] if name in found else _any_case(found, name)
        return found

    return get


def _any_case(document: Document, name: str) -> Any:
    lower = name.lower()
    return next((value for field, value in document.items() if field.lower() == lower), None)


def _value(found: Any) -> Value:
    """A JSON value as the bytes of a field; objects are none."""
    if isinstance(found, str):
        return found.encode("utf-8", "surrogatepass")
    if isinstance(found, bool) or found is None or isinstance(found, dict):
        return None if not isinstance(found, bool) else str(found).lower().encode()
    if isinstance(found, list):
        return b", ".join(value for item in found if (value := _value(item)) is not None)
    if isinstance(found, float):
        return f"{found:.9f}".encode()  # never with an exponent
    return str(found).encode()


def _header_lines(found: Document) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of headers that are an object of texts or lists of texts, names in lower case."""
    for name, value in found.items():
        for line in value if isinstance(value, list) else (value,):
            text = _value(line)
            if text is not None and not name.startswith(":"):
                yield name.lower(), text


# HAR


def archived(document: Any) -> list[Document]:
    """The entries of an HTTP Archive in the form of JSON lines, in order of time. Raises ValueError: it is none."""
    log = document.get("log") if isinstance(document, dict) else None
    entries = log.get("entries") if isinstance(log, dict) else None
    if not isinstance(entries, list):
        raise ValueError("it has no log.entries")
    return [_entry(entry) for entry in entries]


def _entry(entry: Any) -> Document:
    """One entry; what is not there is missing in the result, and complained about when the request is made."""
    request = entry.get("request") if isinstance(entry, dict) else None
    if not isinstance(request, dict):
        return {}
    flat: Document = {_HEADERS: _listed(request.get("headers"))}
    for name, value in (
        (TIME, entry.get("startedDateTime")),
        ("method", request.get("method")),
        ("url", request.get("url")),
        (BODY, (request.get("postData") or {}).get("text")),
    ):
        if isinstance(value, str):
            flat[name] = value
    return flat


def _listed(pairs: Any) -> Document:
    """HAR's list of {name, value}; repeated names are joined."""
    found: dict[str, Any] = {}
    for pair in pairs if isinstance(pairs, list) else ():
        if (
            isinstance(pair, dict)
            and isinstance(pair.get("name"), str)
            and isinstance(pair.get("value"), str)
        ):
            found.setdefault(pair["name"].lower(), []).append(pair["value"])
    return found
