"""What must hold for an answer: what the file expects of it, and what is true of every answer of the edge.

`problems` lists everything that is wrong with one answer, as text; an empty list means that it is right. This module
knows answers as status, headers and body, wherever they came from.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from request_script import Expectation, filled_in

# Headers that say something happened: an answer must not carry one that its expectation does not name.
TELLING = (
    "x-fairvisor-reason",
    "x-should-retry",
    "x-fairvisor-warning",
    "x-fairvisor-loop-count",
    "x-fairvisor-reservation",
    "x-fairvisor-status",
    "x-fairvisor-body",
    "retry-after",
)
_DRAFT = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)";r=([0-9]+);t=([0-9]+)')
_DRAFT_POLICY = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)";q=([0-9]+);w=([1-9][0-9]*)')


@dataclass
class Received:
    """An answer as a client gets it; `held_ms` is how long it was held back."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    held_ms: int = 0

    def header(self, name: str) -> str | None:
        """The value of a header, repeated lines joined with ", "; None when it is absent."""
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        return ", ".join(values) if values else None


def problems(received: Received, expected: Expectation, names: dict[str, str]) -> list[str]:
    """Everything that is wrong with an answer; what the expectation keeps is put into `names`."""
    found = (
        [f"the status is {received.status}, not {expected.status}"]
        if received.status != expected.status
        else []
    )
    found += _wrong_headers(received, expected, names)
    if expected.held_ms is not None and received.held_ms != expected.held_ms:
        found.append(f"it was held {received.held_ms} ms, not {expected.held_ms} ms")
    body = received.body.decode("utf-8", "replace")
    if expected.body_exact is not None and body != expected.body_exact:
        found.append(f"the body is {body!r}, not {expected.body_exact!r}")
    found += [
        f"the body has no {text!r}" for text in expected.body_patterns if not re.search(text, body, re.M)
    ]
    for path, value in expected.body_members:
        actual = _member(body, path)
        if actual != value:
            found.append(f"the body's {path} is {actual!r}, not {value!r}")
    return found + always(received)


def _wrong_headers(received: Received, expected: Expectation, names: dict[str, str]) -> list[str]:
    found = []
    for name, value in expected.exact:
        value = filled_in(value, names)
        if received.header(name) != value:
            found.append(f"{name} is {received.header(name)!r}, not {value!r}")
    for name, pattern in expected.patterns:
        pattern = filled_in(pattern, names)
        if not re.fullmatch(pattern, received.header(name) or ""):
            found.append(f"{name} is {received.header(name)!r}, which is not like {pattern!r}")
    for name in expected.absent:
        if received.header(name) is not None:
            found.append(f"{name} must be absent, and is {received.header(name)!r}")
    for name, kept_as in expected.kept:
        value = received.header(name) or ""
        if not value:
            found.append(f"{name} is absent")
        names[kept_as] = value.partition(";")[0] if name.lower() == "set-cookie" else value
    for name in TELLING:
        if received.header(name) is not None and name not in expected.named():
            found.append(f"{name} is {received.header(name)!r}, which nothing here expects")
    return found


def _member(body: str, path: str) -> Any:
    """The member of a JSON body at a dotted path; numbers index arrays. A text when there is none."""
    try:
        value = json.loads(body)
        for name in path.split("."):
            value = value[int(name)] if isinstance(value, list) else value[name]
    except (ValueError, LookupError, TypeError) as error:
        return f"not there ({type(error).__name__})"
    return value


def always(received: Received) -> list[str]:
    """What is wrong with an answer whatever was asked."""
    found = _rate_limit_fields(received)
    reason = received.header("x-fairvisor-reason")
    retry_after = received.header("retry-after")
    if reason is not None:
        found += _refusal(received, reason, retry_after)
    elif retry_after is not None:
        found.append("Retry-After without a reason")
    if received.status == 204 and received.body:
        found.append("a 204 with a body")
    for name, value in received.headers:
        if not all(" " <= char <= "~" for char in value):
            found.append(f"{name} is not printable ASCII: {value!r}")
    return found


def _refusal(received: Received, reason: str, retry_after: str | None) -> list[str]:
    """A refusal says when to come back, and says the same in its headers and its body."""
    found = []
    if retry_after is None or not re.fullmatch("[1-9][0-9]*", retry_after):
        return [f"Retry-After is {retry_after!r}, not a number of at least 1"]
    reset = received.header("ratelimit-reset")
    if reset is not None and int(reset) > int(retry_after):
        found.append(f"Retry-After {retry_after} is before RateLimit-Reset {reset}")
    if received.body:
        told = (
            _member(received.body.decode(), "error.reason"),
            _member(received.body.decode(), "error.retry_after"),
        )
        if told != (reason, int(retry_after)):
            found.append(f"the body tells {told}, the headers {(reason, int(retry_after))}")
    carried = received.header("x-fairvisor-body")
    if carried is not None and carried != received.body.decode():
        found.append("X-Fairvisor-Body is not the body")
    return found


def _rate_limit_fields(received: Received) -> list[str]:
    """The draft's fields are well-formed and say what the older triplet says."""
    draft, policy = received.header("ratelimit"), received.header("ratelimit-policy")
    triplet = [received.header(f"ratelimit-{name}") for name in ("limit", "remaining", "reset")]
    if (draft is None) != (policy is None) or len({value is None for value in triplet}) > 1:
        return ["the RateLimit fields are not complete"]
    if draft is None or policy is None:
        return []
    now, quota = _DRAFT.fullmatch(draft), _DRAFT_POLICY.fullmatch(policy)
    if now is None or quota is None:
        return [f"RateLimit {draft!r} or RateLimit-Policy {policy!r} is malformed"]
    found = []
    if now[1] != quota[1]:
        found.append("RateLimit and RateLimit-Policy name different rules")
    if int(now[2]) > int(quota[2]):
        found.append("more remains than the quota")
    if triplet[0] is not None and triplet != [quota[2], now[2], now[3]]:
        found.append(f"the older triplet {triplet} says something else than {draft}, {policy}")
    return found
