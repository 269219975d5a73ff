"""JSON logs: Caddy, Envoy, Kong, nginx with escape=json, Traefik, Cloudflare and others, the plain form below, and HAR.

    {"time": "2026-03-02T12:00:00Z", "method": "GET", "path": "/v1/x?a=1", "host": "api.example.com",
     "ip": "203.0.113.7", "headers": {"X-API-Key": "k1"}, "body": "..."}

Objects called `request`, `req`, `httpRequest` or `properties` are looked into, and `headers` in them or outside: an
object, or a list of names and values. Which fields a line has repeats from line to line, so where its request is found
is worked out once for each set of keys. An entry of HAR (HTTP Archive 1.2) is such a document, without a client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson

from fairvisor.reading import read_fields
from fairvisor.replay.fields import BODY, Logged, Maker, Plan, Value, meaning_of, normal_name

_INSIDE: Final = frozenset({"request", "req", "httpRequest", "properties"})
_HEADERS: Final = frozenset({"headers", "requestheaders", "request_headers"})  # as `normal_name` spells them
_HAR_BODY: Final = "postData"
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
        """Return the request of a line. Raises ValueError or RequestError: it cannot be read, and why."""
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
        return self.logged(document)

    def logged(self, document: Document) -> Logged:
        """Return the request of a document. Raises as `read` does."""
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
        for name, inner in _objects(document):
            if _HAR_BODY in inner:
                chosen[BODY] = (name, _HAR_BODY, "text")
        for field, meaning in mapping.items():
            chosen[meaning] = (field,) if field in document else tuple(field.split("."))
        self._getters = tuple(_getter(path) for path in chosen.values())
        self._headers = [_getter(path) for path in _header_paths(document)]
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
            if isinstance(found, list):
                found = _listed(found)
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
            if not isinstance(value, dict):
                yield name, field
    for field, value in document.items():
        if not isinstance(value, dict):
            yield (field,)


def _header_paths(document: Document) -> Iterator[Path]:
    """Yield the paths of headers; those in an object that is looked into come last, and win."""
    for field in document:
        if normal_name(field) in _HEADERS:
            yield (field,)
    for name, inner in _objects(document):
        for field in inner:
            if normal_name(field) in _HEADERS:
                yield name, field


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
        text = repr(found)  # the shortest text that means this number
        return (f"{found:.9f}" if "e" in text else text).encode()
    return str(found).encode()


def _header_lines(found: Document) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of headers that are an object of texts or lists of texts, names in lower case."""
    for name, value in found.items():
        for line in value if isinstance(value, list) else (value,):
            text = _value(line)
            if text is not None and not name.startswith(":"):
                yield name.lower(), text


def _listed(pairs: list[Any]) -> Document:
    """Return a list of objects with a name and a value (HAR, AWS WAF) as one object, names in lower case."""
    found: dict[str, list[Any]] = {}
    for pair in pairs:
        if isinstance(pair, dict) and isinstance(name := pair.get("name"), str):
            found.setdefault(name.lower(), []).append(pair.get("value"))
    return found
