"""Decision -> status, headers, body: the only place where the names of answer headers are spelled.

An `Answer` carries its headers as ready lines; the transport adds the status line, Date, Connection and
Content-Length. Amounts are rounded down and times up, so that what a client reads is never more generous than what is
enforced. RateLimit fields follow draft-ietf-httpapi-ratelimit-headers-11 (strings of RFC 9651) and the older triplet;
what the SDKs of LLM providers read is added in their spelling (developers.openai.com, "Rate limits in headers";
docs.claude.com, "Rate limits: Response headers"). A gRPC call is answered in the terms of gRPC (grpc/grpc,
doc/PROTOCOL-HTTP2.md, "Responses").
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import orjson

from fairvisor.clock import NS_PER_S
from fairvisor.context import Context
from fairvisor.decision import HOPELESS, NEVER_NS, UNIT_U, Decision, Quota, Reason, Unmet, Verdict
from fairvisor.errors import AmbiguousValue, RequestError
from fairvisor.llm.dialect import MESSAGES, Dialect, dialect_of, error_body
from fairvisor.rules.keys import MAX_REMEMBERED, REMEMBERED_KEYS, hash64, joined
from fairvisor.rules.llm_tokens import LlmTokens
from fairvisor.visible import visible_json

NO_END_S: Final = 60  # Retry-After where nothing says when a retry could help
UNAVAILABLE_RETRY_S: Final = 1
MAX_JITTER_S: Final = 60
JSON: Final = "Content-Type: application/json\r\n"

# Ready, because reading the value off the enum costs a call.
_REASON_LINES: Final = {reason: f"X-Fairvisor-Reason: {reason.value}\r\n" for reason in Reason}

HEAD_FORMS: Final = ("both", "draft", "legacy", "off")

_GRPC_TYPE: Final = b"application/grpc"  # also +proto, +json, -web
# A client that finds no grpc-status maps the HTTP status itself: 429 to UNAVAILABLE, which it retries, and 400 to
# INTERNAL, which blames the server (grpc/grpc, doc/http-grpc-status-mapping.md).
_RESOURCE_EXHAUSTED: Final = 8  # of 413 too, as gRPC itself answers a message that is too large
_GRPC_STATUSES: Final = {
    400: 3,  # INVALID_ARGUMENT
    401: 16,  # UNAUTHENTICATED
    403: 7,  # PERMISSION_DENIED
    503: 14,  # UNAVAILABLE
}
# What a grpc-message holds as it is; all else is percent-encoded.
_GRPC_PLAIN: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Answer:
    """An HTTP answer: `head` holds complete header lines, `delay_ms` how long the transport holds it back."""

    __slots__ = ("body", "delay_ms", "head", "status")

    def __init__(self, status: int, head: str = "", body: bytes = b"", delay_ms: int = 0) -> None:
        self.status = status
        self.head = head
        self.body = body
        self.delay_ms = delay_ms


def json_answer(status: int, document: object, head: str = "") -> Answer:
    """An answer whose body is `document` as JSON."""
    return Answer(status, JSON + head, visible_json(orjson.dumps(document)))


def error_answer(error: RequestError) -> Answer:
    """What a client is told about a request that cannot be answered as asked, in ASCII: it may travel in a header."""
    message = str(error).encode("ascii", "backslashreplace").decode("ascii")
    document = {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": error.status}
    }
    return json_answer(error.status, document, error.head)


def rejection(error: RequestError, headers: Mapping[str, bytes]) -> Answer:
    """Return the answer to a request that cannot be decided on; a gRPC client reads nothing that it sent itself."""
    answer = error_answer(error)
    return grpc_answer(answer, "The request is malformed.") if is_grpc(headers) else answer


def is_grpc(headers: Mapping[str, bytes]) -> bool:
    """Return whether a request is a gRPC call."""
    return headers.get("content-type", b"")[: len(_GRPC_TYPE)].lower() == _GRPC_TYPE


def grpc_answer(answer: Answer, message: str) -> Answer:
    """Return a reject as gRPC clients read it: the code and a message in the head, and no body."""
    code = _GRPC_STATUSES.get(answer.status, _RESOURCE_EXHAUSTED)
    head = answer.head.replace(JSON, "Content-Type: application/grpc\r\n", 1)
    return Answer(
        answer.status, f"{head}grpc-status: {code}\r\ngrpc-message: {quote(message, _GRPC_PLAIN)}\r\n"
    )


def carried(answer: Answer) -> Answer:
    """Return a reject in the form for gateways that pass on nothing but a 403: its status and body in headers."""
    body = answer.body.decode("ascii")
    head = f"{answer.head}X-Fairvisor-Status: {answer.status}\r\nX-Fairvisor-Body: {body}\r\n"
    return Answer(403, head, answer.body)


def unavailable_answer(reason: Reason, path: str = "") -> Answer:
    """503: the edge cannot decide; the gateway's own fail-open or fail-closed setting takes over."""
    head = f"{JSON}{_REASON_LINES[reason]}Retry-After: {UNAVAILABLE_RETRY_S}\r\n"
    return Answer(503, head, error_body(dialect_of(path), reason, UNAVAILABLE_RETRY_S))


class Renderer:
    """Turns decisions into answers. `form` is FAIRVISOR_RATELIMIT_HEADERS: both, draft, legacy or off; `llm_headers`
    adds what clients of LLM providers know to answers about tokens (FAIRVISOR_LLM_HEADERS)."""

    __slots__ = ("_draft", "_legacy", "_llm")

    def __init__(self, form: str = "both", llm_headers: bool = False) -> None:
        assert form in HEAD_FORMS, "the settings accept no other"
        self._draft = form in ("both", "draft")
        self._legacy = form in ("both", "legacy")
        self._llm = llm_headers

    def answer(
        self, decision: Decision, context: Context, allow_status: int, carrier: bool = False
    ) -> Answer:
        """The answer to a decided request. With `carrier` a deny is 403 and tells its real status in a header."""
        verdict = decision.verdict
        if verdict is None:
            return Answer(allow_status, self._passed(decision), b"", decision.delay_ms)
        if verdict.reason is None:
            head = self._limit_head(verdict)
            if self._llm:
                head += token_head(verdict, context)
            if decision.marked or decision.reservation:
                head += self._passed(decision)
            return Answer(allow_status, head, b"", decision.delay_ms)
        return self._refused(verdict, verdict.reason, context, carrier)

    def _limit_head(self, verdict: Verdict) -> str:
        quota = verdict.quota
        if quota is None:
            return ""
        parts = quota.rendered or self._render(quota)
        remaining = str(verdict.remaining_u // UNIT_U)
        reset = str(reset_s(verdict, quota))
        if self._draft and self._legacy:
            return f"{parts[0]}{remaining};t={reset}{parts[1]}{remaining}{parts[2]}{reset}\r\n"
        if self._draft:
            return f"{parts[0]}{remaining};t={reset}{parts[1]}"
        if self._legacy:
            return f"{parts[1]}{remaining}{parts[2]}{reset}\r\n"
        return ""

    def _render(self, quota: Quota) -> tuple[str, str, str]:
        """The parts of the head around the remaining amount and the reset time; kept on the quota."""
        amount = quota.amount_u // UNIT_U
        name = quota.name.replace("\\", "\\\\").replace('"', '\\"')
        policy = f'\r\nRateLimit-Policy: "{name}";q={amount};w={quota.window_s}\r\n' if self._draft else ""
        legacy = f"RateLimit-Limit: {amount}\r\nRateLimit-Remaining: " if self._legacy else ""
        quota.rendered = parts = (f'RateLimit: "{name}";r=', policy + legacy, "\r\nRateLimit-Reset: ")
        return parts

    def _passed(self, decision: Decision) -> str:
        """What an allow tells besides its limit."""
        head = ""
        if decision.marked:
            warnings = dict.fromkeys(_warning(verdict) for verdict in decision.marked)
            head = f"X-Fairvisor-Warning: {', '.join(warnings)}\r\n"
            loops = max(verdict.loop_count for verdict in decision.marked)
            if loops:
                head += f"X-Fairvisor-Loop-Count: {loops}\r\n"
        if decision.reservation:
            head += f"X-Fairvisor-Reservation: {decision.reservation}\r\n"
        return head

    def _refused(self, verdict: Verdict, reason: Reason, context: Context, carrier: bool) -> Answer:
        retry_s = retry_after(verdict, reason, context)
        head = f"{JSON}{self._limit_head(verdict)}{_REASON_LINES[reason]}Retry-After: {retry_s}\r\n"
        if self._llm:
            head += token_head(verdict, context)
        if reason in HOPELESS or verdict.reset_ns == NEVER_NS:
            head += "X-Should-Retry: false\r\n"
        if verdict.loop_count:
            head += f"X-Fairvisor-Loop-Count: {verdict.loop_count}\r\n"
        status = verdict.status
        name = ""
        if isinstance(verdict, Unmet):
            head += _challenge(verdict)
            name = verdict.name
            message = MESSAGES[reason].format(name)
            body = error_body(dialect_of(context.path), reason, retry_s, message, status)
        else:
            body = error_body(dialect_of(context.path), reason, retry_s)
        answer = Answer(status, head, body)
        if "content-type" in context.headers and is_grpc(context.headers):
            answer = grpc_answer(answer, MESSAGES[reason].format(name))
        return carried(answer) if carrier and status < 500 else answer


def _challenge(verdict: Unmet) -> str:
    """Return the line that a 401 must have (RFC 9110 11.6.1, RFC 6750 3)."""
    if verdict.status != 401:
        return ""
    if verdict.reason is Reason.INVALID_TOKEN:
        return 'WWW-Authenticate: Bearer error="invalid_token"\r\n'
    scheme = "Bearer" if verdict.name.startswith("jwt:") else "ApiKey"
    return f"WWW-Authenticate: {scheme}\r\n"


def reset_s(verdict: Verdict, quota: Quota) -> int:
    """Seconds until the limit is full again, its window ends, or a refused request fits."""
    return -(-verdict.reset_ns // NS_PER_S) if verdict.reset_ns >= 0 else quota.window_s


def token_head(verdict: Verdict, context: Context) -> str:
    """What is left of a limit on tokens, as the provider whose API is called would say it; "" for other limits."""
    quota = verdict.quota
    if quota is None or not isinstance(verdict.limit, LlmTokens):
        return ""
    dialect = dialect_of(context.path)
    amount, remaining = quota.amount_u // UNIT_U, verdict.remaining_u // UNIT_U
    seconds = reset_s(verdict, quota)
    if dialect is Dialect.OPENAI:
        name = "x-ratelimit-{}-tokens"
        reset = go_duration(seconds)
    elif dialect is Dialect.ANTHROPIC:
        name = "anthropic-ratelimit-tokens-{}"
        reset = rfc3339(-(-context.now.wall_ns // NS_PER_S) + seconds)
    else:  # Gemini's answers tell no remaining amounts
        return ""
    values = (("limit", amount), ("remaining", remaining), ("reset", reset))
    return "".join(f"{name.format(what)}: {value}\r\n" for what, value in values)


def go_duration(seconds: int) -> str:
    """Seconds as Go writes a duration, which is how OpenAI tells a reset: `1s`, `6m0s`, `1h0m0s`."""
    minutes, rest = divmod(seconds, 60)
    if not minutes:
        return f"{rest}s"
    return f"{minutes // 60}h{minutes % 60}m{rest}s" if minutes >= 60 else f"{minutes}m{rest}s"


def rfc3339(wall_s: int) -> str:
    """A moment in seconds since the Unix epoch as text (RFC 3339), in UTC."""
    return datetime.fromtimestamp(wall_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _warning(verdict: Verdict) -> str:
    """The value of X-Fairvisor-Warning: `budget_warn`, `budget_throttle`, `loop_warn` or `loop_throttle`."""
    return f"{'loop' if verdict.loop_count else 'budget'}_{verdict.action.value}"


def retry_after(verdict: Verdict, reason: Reason, context: Context) -> int:
    """Seconds until a retry makes sense, at least 1, with up to half as much (at most 60 s) added.

    What is added depends on the client, the policy, the rule and the reason alone: one client always reads the same,
    different clients spread out instead of coming back together.
    """
    if verdict.reset_ns >= 0:
        wait_s = max(1, -(-verdict.reset_ns // NS_PER_S))
    else:
        wait_s = NO_END_S if verdict.quota is None else max(NO_END_S, verdict.quota.window_s)
    spread = min(wait_s // 2, MAX_JITTER_S)
    if spread == 0:
        return wait_s
    tally = verdict.limit.tally
    who = _who(context)
    hashed = _known_spread if len(who) <= MAX_REMEMBERED else _spread
    return wait_s + hashed(who, tally.policy_id, tally.rule, reason) % (spread + 1)


def _spread(who: str, policy_id: str, rule: str, reason: Reason) -> int:
    """What spreads retries: the same in every process."""
    return hash64(joined((who, policy_id, rule, reason.value)), 0)


_known_spread: Final = lru_cache(maxsize=REMEMBERED_KEYS)(_spread)


def _who(context: Context) -> str:
    """The client as Retry-After knows it: the subject, verified or as limits read it, else the address."""
    try:
        subject = context.subject
    except AmbiguousValue:
        subject = None
    return context.client.text if subject is None else "sub:" + subject
