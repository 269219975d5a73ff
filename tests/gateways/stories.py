"""Plays the files of `requests/` and `spoofing/` through a gateway and says what is wrong with the answers.

The files follow the format of `tests/requests/`; `{{key}}` is an API key of their own, `{{token}}` a bearer token
whose subject is that key.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from gateway_servers import Gateway
from request_checks import problems
from request_script import Exchange, Expectation, Script, read_script, request_bytes

_HERE = Path(__file__).parent
ORDINARY = [read_script(path) for path in sorted((_HERE / "requests").glob("*.http"))]
SPOOFING = [read_script(path) for path in sorted((_HERE / "spoofing").glob("*.http"))]

# What the edge must be told for the stories: that it may believe the hints and request ids which no client must be
# able to send.
SETTINGS = {
    "FAIRVISOR_TRUSTED_HINTS": "x-country-code,x-asn,x-asn-type,x-tor-exit,x-token-estimate",
    "FAIRVISOR_REQUEST_ID": "true",
}

# What an answer tells of an allow; a gateway that cannot show it loses these lines and no others.
OF_AN_ALLOW = ("ratelimit", "x-fairvisor-warning", "x-fairvisor-loop-count")


def play(script: Script, gateway: Gateway) -> list[str]:
    """Send the requests of a file in order; everything that is wrong with the answers."""
    key = f"{script.path.parent.name}-{script.path.name[:3]}"
    claims = base64.urlsafe_b64encode(json.dumps({"sub": key}).encode()).rstrip(b"=").decode()
    names = {"key": key, "token": f"eyJhbGciOiJIUzI1NiJ9.{claims}.c2lnbmVk"}
    found = []
    for step in script.steps:
        assert isinstance(step, Exchange)
        expected = step.expected if gateway.kind.shows_allows else without_allows(step.expected)
        for _ in range(step.times):
            received = gateway.ask(request_bytes(step.lines, names))
            wrong = problems(received, expected, names)
            if wrong:
                found.append("\n    ".join([f"line {step.line}: {step.lines[0]}", *wrong, str(received)]))
    return found


def without_allows(expected: Expectation) -> Expectation:
    """What remains of an expectation where the client cannot see the headers of an allow."""
    if expected.status == 429:
        return expected
    exact, patterns = (
        [pair for pair in pairs if not pair[0].lower().startswith(OF_AN_ALLOW)]
        for pairs in (expected.exact, expected.patterns)
    )
    return Expectation(expected.status, exact, patterns, expected.absent, body_members=expected.body_members)
