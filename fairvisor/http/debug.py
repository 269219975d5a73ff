"""Debug sessions: who knows the secret gets a cookie, and requests that carry it are explained in their headers.

The cookie says until when it holds, signed with the secret, so no session is kept anywhere. Beside `response.py` this
is the only place that spells answer headers: those of the explanation.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import struct
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

from fairvisor.clock import NS_PER_S, Now
from fairvisor.context import Context
from fairvisor.decision import Decision
from fairvisor.errors import Forbidden, NotFound
from fairvisor.http.request import Request
from fairvisor.response import Answer
from fairvisor.rules.budget import Budget
from fairvisor.rules.llm_tokens import LlmTokens
from fairvisor.rules.token_bucket import TokenBucket

COOKIE: Final = "fv_dbg"
LIFETIME_S: Final = 15 * 60
MAX_DESCRIPTORS: Final = 16
MAX_VALUE: Final = 256  # characters of one header value

_COOKIE_START: Final = b"fv_dbg="
_EXPIRY: Final = struct.Struct(">Q")
_ATTRIBUTES: Final = "Path=/; HttpOnly; Secure; SameSite=Strict"
_READABLE: Final = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~ "


class DebugSessions:
    """Opens, closes and recognises debug sessions. Without a secret there are none."""

    def __init__(self, secret: str | None) -> None:
        self._secret = secret.encode() if secret else b""

    def open(self, request: Request, now: Now) -> Answer:
        """POST /v1/debug/session: 204 and the cookie. Raises NotFound without a secret, Forbidden on a wrong one."""
        if not self._secret:
            raise NotFound("debug sessions are off: FAIRVISOR_DEBUG_SESSION_SECRET is not set")
        given = request.headers.get("x-fairvisor-debug-secret", b"")
        if not hmac.compare_digest(given, self._secret):
            raise Forbidden("the header X-Fairvisor-Debug-Secret is missing or wrong")
        expiry = _EXPIRY.pack(now.wall_ns // NS_PER_S + LIFETIME_S)
        token = base64.urlsafe_b64encode(expiry + self._seal(expiry)).decode("ascii").rstrip("=")
        return Answer(204, f"Set-Cookie: {COOKIE}={token}; Max-Age={LIFETIME_S}; {_ATTRIBUTES}\r\n")

    def close(self) -> Answer:
        """POST /v1/debug/logout: 204, and the cookie is cleared."""
        if not self._secret:
            raise NotFound("debug sessions are off: FAIRVISOR_DEBUG_SESSION_SECRET is not set")
        return Answer(204, f"Set-Cookie: {COOKIE}=; Max-Age=0; {_ATTRIBUTES}\r\n")

    def wanted(self, context: Context) -> bool:
        """Whether this request carries a cookie of a session that is still open."""
        if not self._secret or _COOKIE_START not in context.headers.get("cookie", b""):
            return False
        token = context.cookies.first.get(COOKIE, "")
        try:
            sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            return False
        expiry, seal = sealed[: _EXPIRY.size], sealed[_EXPIRY.size :]
        if not hmac.compare_digest(seal, self._seal(expiry)) or len(expiry) != _EXPIRY.size:
            return False
        return context.now.wall_ns < int(_EXPIRY.unpack(expiry)[0]) * NS_PER_S

    def _seal(self, expiry: bytes) -> bytes:
        return hmac.digest(self._secret, COOKIE.encode() + expiry, "sha256")


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
