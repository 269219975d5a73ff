"""Loop detection: the same request again and again.

A fingerprint of method, path, sorted query, body and the policy's descriptor values is counted within a window that
starts at the first arrival; the N-th identical one triggers. Arrivals are counted, so a later refusal does not take the
count back. Most gateways send no body. A request that may have had one then cannot be told apart from others like it,
so it is not counted, unless the policy says that the body does not matter.
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_128_hexdigest

from fairvisor.clock import Now
from fairvisor.context import Context
from fairvisor.counters import Counters
from fairvisor.decision import Action, Marked, Reason, Refusal, Verdict
from fairvisor.descriptors import Descriptor
from fairvisor.metrics import LOOPS, LOOPS_SKIPPED, TABLE_FULL, Tally
from fairvisor.rules.keys import Keyring, Keys
from fairvisor.rules.limit import Described, Limit

# Methods of which a body has no meaning (RFC 9110 9.3), so that one without the fields of a body has none. Every other
# method may have one; QUERY and REPORT live by it.
WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_NO_LENGTH: Final = b"0"
THROTTLE_STEP_MS: Final = 100
MAX_THROTTLE_MS: Final = 30_000


class Loop(Limit):
    """A compiled `loop_detection`."""

    __slots__ = (
        "_action",
        "_described",
        "_ignore_body",
        "_keys",
        "_readers",
        "_threshold",
        "_window_ns",
    )

    def __init__(
        self,
        tally: Tally,
        identity: str,
        keyring: Keyring,
        described: tuple[tuple[str, Descriptor], ...],
        window_ns: int,
        threshold: int,
        action: Action,
        ignore_body: bool,
    ) -> None:
        super().__init__(tally)
        self._keys = Keys(keyring, identity)
        self._described = described
        self._readers = tuple(reader for _, reader in described)
        self._window_ns = window_ns
        self._threshold = threshold
        self._action = action
        self._ignore_body = ignore_body

    def take(self, counters: Counters, context: Context, now: Now) -> Verdict | None:
        """Count this arrival."""
        body = b"" if self._ignore_body else context.body
        if body is None and _may_have_body(context):
            self.tally.add(LOOPS_SKIPPED)
            return None
        key = self._keys.key(self._fingerprint(context, body or b""))
        arrivals = counters.count(key, now.mono_ns, self._window_ns)
        if arrivals == 0:
            self.tally.add(TABLE_FULL)
        if arrivals < self._threshold:
            return None
        self.tally.add(LOOPS, self._action.value)
        if self._action is Action.REJECT:
            return Refusal(self, Reason.LOOP_DETECTED, None, 0, self._window_ns, arrivals)
        delay_ms = min(THROTTLE_STEP_MS * arrivals, MAX_THROTTLE_MS) if self._action is Action.THROTTLE else 0
        return Marked(Verdict(self, None, 0, 0, 0, 0), self._action, delay_ms, arrivals)

    def _fingerprint(self, context: Context, body: bytes) -> tuple[str | None, ...]:
        target = context.target
        query = target.partition("#")[0].partition("?")[2] if "?" in target else ""
        if "&" in query:
            query = "&".join(sorted(query.split("&")))
        digest = xxh3_128_hexdigest(body) if body else ""
        if body and context.cut_bytes:  # turns of a long conversation begin alike, and differ in their length
            digest += f"+{context.cut_bytes}"
        parts: list[str | None] = [context.method, context.path, query, digest]
        parts.extend([reader.read(context) for reader in self._readers])
        return tuple(parts)

    def describe(self, context: Context) -> Described:
        """The values of the policy's descriptors; what was asked is not told."""
        return tuple((name, reader.shown(context)) for name, reader in self._described)

    def give(self, counters: Counters, verdict: Verdict, now: Now) -> None:
        """Arrivals stay counted."""


def _may_have_body(context: Context) -> bool:
    """Whether the request may have a body that the gateway did not send along."""
    if context.method not in WITHOUT_BODY:
        return True
    headers = context.headers
    return (
        "content-type" in headers
        or headers.get("content-length", _NO_LENGTH) != _NO_LENGTH
        or "content-encoding" in headers
        or "transfer-encoding" in headers
    )
