"""Debug sessions: who knows the secret gets a cookie, and requests that carry it are explained in their headers.

The cookie says until when it holds and of which epoch it is, sealed with a key of the segment, so no session is kept
anywhere and no cookie tells whether a guess of the secret was right. A logout begins a new epoch: every session of the
instance is over, on all workers. Wrong secrets are counted and limited for all workers together.
Beside `response.py` this is the only place that spells answer headers: those of the explanation.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from fairvisor import actor
from fairvisor.audit import Audit
from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.decision import Decision
from fairvisor.errors import NotFound, TooManyGuesses, WrongSecret
from fairvisor.http.request import Request
from fairvisor.metrics import Counter
from fairvisor.metrics.families import DEBUG_SESSIONS
from fairvisor.reading import parse_cookies
from fairvisor.response import Answer
from fairvisor.rules.budget import Budget
from fairvisor.rules.llm_tokens import LlmTokens
from fairvisor.rules.token_bucket import TokenBucket
from fairvisor.secret_values import Secret, encoded, is_one_of

COOKIE: Final = "fv_dbg"
LIFETIME_S: Final = 15 * 60
MAX_DESCRIPTORS: Final = 16
MAX_VALUE: Final = 256  # characters of one header value

_COOKIE_START: Final = b"fv_dbg="
GUESSES_PER_S: Final = 10  # wrong secrets; then no secret is looked at until the next second

_TERMS: Final = struct.Struct(">QQ")  # the second it ends in (wall clock), the epoch
_COUNT_BITS: Final = 16
_ATTRIBUTES: Final = "Path=/; HttpOnly; Secure; SameSite=Strict"
_OFF: Final = "debug sessions are off: FAIRVISOR_DEBUG_SESSION_SECRET is not set"
_READABLE: Final = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ "


class DebugSessions:
    """Opens, closes and recognises debug sessions. Without a secret there are none."""

    def __init__(self, secret: Secret, segment: Segment, audit: Audit | None = None) -> None:
        self._secrets = encoded(secret)
        self._keys = [
            hmac.digest(segment.reservation_key, b"fairvisor debug session\0" + each, "sha256")
            for each in self._secrets
        ]
        self._table = segment.table
        self._results = {result: Counter(segment, DEBUG_SESSIONS, result) for result in DEBUG_SESSIONS.known}
        self._audit = audit

    def open(self, request: Request, now: Now) -> Answer:
        """POST /v1/debug/session: 204 and the cookie.

        Raises NotFound without a secret, WrongSecret on a wrong one, TooManyGuesses after too many of those.
        """
        if not self._secrets:
            raise NotFound(_OFF)
        second, guesses = self._guesses(now)
        if guesses >= GUESSES_PER_S:
            self._results["throttled"].add()
            raise TooManyGuesses("too many wrong secrets were given: wait a second")
        given = request.headers.get("x-fairvisor-debug-secret", b"")
        if not is_one_of(given, self._secrets):
            # Two workers at once may count one: a few more guesses are no harm.
            self._table.word_set(Word.DEBUG_GUESSES, second << _COUNT_BITS | guesses + 1)
            self._results["wrong_secret"].add()
            raise WrongSecret("the header X-Fairvisor-Debug-Secret is missing or wrong")
        self._results["opened"].add()
        self._record("debug_open", request, now)
        terms = _TERMS.pack(now.wall_ns // NS_PER_S + LIFETIME_S, self._epoch)
        token = base64.urlsafe_b64encode(terms + self._seals(terms)[0]).decode("ascii").rstrip("=")
        return Answer(204, f"Set-Cookie: {COOKIE}={token}; Max-Age={LIFETIME_S}; {_ATTRIBUTES}\r\n")

    def close(self, request: Request, now: Now) -> Answer:
        """POST /v1/debug/logout: 204, and the cookie is cleared; if it was good, every session is over."""
        if not self._secrets:
            raise NotFound(_OFF)
        cookies = parse_cookies(request.headers.get("cookie", b""), joined=False)
        if self._is_open(cookies.first.get(COOKIE, ""), now):
            self._table.word_add(Word.DEBUG_EPOCH, 1)
            self._results["closed"].add()
            self._record("debug_close", request, now)
        return Answer(204, f"Set-Cookie: {COOKIE}=; Max-Age=0; {_ATTRIBUTES}\r\n")

    def wanted(self, context: Context) -> bool:
        """Whether this request carries a cookie of a session that is still open."""
        if not self._secrets or _COOKIE_START not in context.headers.get("cookie", b""):
            return False
        return self._is_open(context.cookies.first.get(COOKIE, ""), context.now)

    def _is_open(self, token: str, now: Now) -> bool:
        try:
            sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            return False
        terms, seal = sealed[: _TERMS.size], sealed[_TERMS.size :]
        if not is_one_of(seal, self._seals(terms)) or len(terms) != _TERMS.size:
            return False
        end_s, epoch = _TERMS.unpack(terms)
        return now.wall_ns < int(end_s) * NS_PER_S and epoch == self._epoch

    def _record(self, action: str, request: Request, now: Now) -> None:
        if self._audit is not None:
            self._audit.record(action, actor.secret("debug", request.peer.address).fields(), now)

    @property
    def _epoch(self) -> int:
        return self._table.word_get(Word.DEBUG_EPOCH)

    def _guesses(self, now: Now) -> tuple[int, int]:
        """This second, and how many wrong secrets there were in it."""
        word = self._table.word_get(Word.DEBUG_GUESSES)
        second = now.wall_ns // NS_PER_S
        return second, word & ((1 << _COUNT_BITS) - 1) if word >> _COUNT_BITS == second else 0

    def _seals(self, terms: bytes) -> list[bytes]:
        return [hmac.digest(key, terms, "sha256") for key in self._keys]


def explanation(decision: Decision, context: Context, latency_ns: int) -> str:
    """The header lines that explain a decision: what, by whom, how fast, and who the request was taken for."""
    verdict = decision.verdict
    lines = [
        ("Decision", decision.action.value),
        ("Mode", verdict.limit.tally.mode if verdict else ""),
        ("Reason", verdict.reason.value if verdict and verdict.reason else ""),
        ("Policy", verdict.limit.tally.policy_id if verdict else ""),
        ("Rule", verdict.limit.tally.rule if verdict else ""),
        ("Latency-Us", str(-(-latency_ns // 1000))),
        ("Matched-Policies", ",".join(policy.id for policy in decision.policies)),
    ]
    for number, (name, value) in enumerate(_descriptors(decision, context), start=1):
        lines += [(f"Descriptor-{number}-Key", name), (f"Descriptor-{number}-Value", value)]
    return "".join(f"X-Fairvisor-Debug-{name}: {_safe(value)}\r\n" for name, value in lines if value)


def _descriptors(decision: Decision, context: Context) -> Iterator[tuple[str, str]]:
    """The limit keys of the matched policies with their values, each once."""
    found: dict[str, str] = {}
    for policy in decision.policies:
        for rule in policy.rules:
            assert isinstance(rule, TokenBucket | Budget | LlmTokens), "the kinds of rules"
            for name, value in rule.scope.describe(context):
                if len(found) < MAX_DESCRIPTORS:
                    found.setdefault(name, value or "")
    yield from found.items()


def _safe(value: str) -> str:
    """A value that may come from a client, as visible ASCII on one line (RFC 9110 5.5)."""
    return quote(value[:MAX_VALUE], safe=_READABLE, encoding="utf-8", errors="replace")
