"""The exceptions of Fairvisor Edge: one small tree.

Each class says what it means for the caller: a request error carries the HTTP status that answers it, the others stop
a command or leave the active bundle in place. They are raised where the fault is found and translated once, at the
edge (HTTP or command line). A message names the field, the value and what is allowed; it is shown to people as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final, NamedTuple

MAX_PROBLEMS: Final = 100  # of one bundle that are listed; whoever makes a list may stop once it has one more
_MAX_PATH: Final = 300  # characters; a bundle chooses its names, and so how long a path is
_MAX_MESSAGE: Final = 500


class FairvisorError(Exception):
    """Anything that Fairvisor Edge itself reports to its user: a line, or several."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines

    def __str__(self) -> str:
        return "; ".join(self.lines)


class RequestError(FairvisorError):
    """A request that cannot be answered as asked; `status` is the HTTP status, the message is for the client.

    Attributes:
        reason: its label in `fairvisor_undecided_requests_total`, "" where it is counted by a metric of its own.
        quotes: whether the message may quote what a client sent, which no line of the log does.
        head: header lines that the answer carries.

    """

    status = 400
    reason = "malformed"
    quotes = True
    head = ""


class AmbiguousValue(RequestError):
    """A value that names a counter or an amount came more than once, with different contents; `name` says which."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the value of {name} came more than once, with different contents: send it once")
        self.name = name


class MissingHeader(RequestError):
    """A header by which the gateway describes the request is missing."""

    reason = "header_missing"
    quotes = False


class Forbidden(RequestError):
    """The peer may not ask this."""

    status = 403
    quotes = False


class UntrustedPeer(Forbidden):
    """The peer's address is not in FAIRVISOR_TRUSTED_PEERS."""

    reason = "untrusted_peer"


class WrongSecret(Forbidden):
    """A token or secret is missing or wrong."""

    reason = "wrong_secret"


class NotFound(RequestError):
    """There is nothing at this path."""

    status = 404
    reason = "not_found"


class MethodNotAllowed(RequestError):
    """The path exists, for another method. The answer lists those that it takes (RFC 9110 15.5.6)."""

    status = 405
    reason = "method_not_allowed"

    def __init__(self, message: str, allowed: Iterable[str]) -> None:
        super().__init__(message)
        self.head = f"Allow: {', '.join(allowed)}\r\n"


class MethodNotProxied(MethodNotAllowed):
    """The proxy passes this method on to no upstream."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class RequestTimeout(RequestError):
    """The rest of the request did not come in time."""

    status = 408
    reason = "timeout"
    quotes = False


class Conflict(RequestError):
    """It was done already: a reservation settled twice."""

    status = 409
    reason = ""


class Gone(RequestError):
    """It is no longer there: an expired reservation."""

    status = 410
    reason = ""


class BodyTooLarge(RequestError):
    """The body exceeds what the endpoint reads."""

    status = 413
    reason = "body_too_large"
    quotes = False


class TooManyGuesses(RequestError):
    """A secret was given wrong too often just now."""

    status = 429
    reason = ""


class HeadTooLarge(RequestError):
    """The request head exceeds FAIRVISOR_MAX_HEAD."""

    status = 431
    reason = "head_too_large"
    quotes = False


class BadGateway(RequestError):
    """No upstream could be reached, or what it sent is no response."""

    status = 502
    reason = ""


class Busy(RequestError):
    """There is no room for it now."""

    status = 503
    reason = "busy"
    quotes = False
    head = "Retry-After: 1\r\n"


class GatewayTimeout(RequestError):
    """The upstream did not answer in time."""

    status = 504
    reason = ""


class LoopDetected(RequestError):
    """The request has passed this proxy before (RFC 5842 7.2)."""

    status = 508
    reason = "proxy_loop"
    quotes = False


class SettingsError(FairvisorError):
    """A setting with a wrong value: names the variable, the value and what is allowed."""


class SegmentError(FairvisorError):
    """The shared-memory segment cannot be created, attached or trusted."""


class EstimatorUnavailable(FairvisorError):
    """A token estimator that is not known, not installed, or whose vocabulary cannot be loaded."""


class Problem(NamedTuple):
    """One thing wrong with a bundle: its JSON path (`policies[0].spec.rules[1].name`) and what is the matter."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    @property
    def shortened(self) -> Problem:
        """The same, cut to a length that fits a log."""
        return Problem(_cut(self.path, _MAX_PATH), _cut(self.message, _MAX_MESSAGE))


def listed(problems: Iterable[Problem], kind: str) -> tuple[Problem, ...]:
    """The first MAX_PROBLEMS problems, and one more that says so where there are others; `kind`: errors, warnings."""
    first = tuple(problem.shortened for problem in islice(problems, MAX_PROBLEMS + 1))
    if len(first) <= MAX_PROBLEMS:
        return first
    return (
        *first[:MAX_PROBLEMS],
        Problem("", f"there are more {kind}: only the first {MAX_PROBLEMS} are listed"),
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


class BundleInvalid(FairvisorError):
    """A bundle with errors: refused whole, the active one stays. `problems` are its errors, as `listed` gives them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = listed(problems, "errors")
        super().__init__(*map(str, self.problems))


class BundleRefused(FairvisorError):
    """A well-formed bundle that may not replace the active one; `code` is stable (`version_not_monotonic`...)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
