"""What a request to a language model has reserved, settled when its response tells what was used.

An account is opened when the decision is made and closed exactly once, whichever way the exchange ends: with the usage
the provider told, with everything given back when the upstream failed, with the prompt and what was streamed when the
client left or a limit ended the stream. When no usage can be found the reservation stands, and is counted.

The account reads the response as it passes (`llm/stream.py` finds the usage) and may edit a stream (`events.py`). It
knows no connections and no framing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import orjson

from fairvisor.clock import Now
from fairvisor.codings import Decoder, decoder_of
from fairvisor.counters import Counters
from fairvisor.errors import RequestError
from fairvisor.llm.dialect import Dialect, dialect_of
from fairvisor.llm.estimate import simple_word
from fairvisor.llm.reservation import unseal
from fairvisor.llm.stream import UsageReader
from fairvisor.llm.usage import Usage, weigh
from fairvisor.metrics import Counter, TokenMeter
from fairvisor.proxy.endings import CODE
from fairvisor.proxy.events import Ending, Events
from fairvisor.proxy.rewrite import content_type
from fairvisor.rules.limit import Described, Limit
from fairvisor.rules.llm_tokens import LlmTokens, LlmVerdict, settle

if TYPE_CHECKING:
    from fairvisor.context import Context
    from fairvisor.decision import Decision
    from fairvisor.llm.request import LlmRequest
    from fairvisor.proxy.heads import ResponseHead

# An answer that decodes to more than this is not read on: of any size up to the first, then by how much came for it.
_ANY_RATIO_BYTES: Final = 4 << 20
_MOST_RATIO: Final = 64  # JSON and events shrink to a tenth, the most monotonous ones to a thirtieth
_MOST_BYTES: Final = 128 << 20
_ASK_USAGE: Final = b'{"stream_options":{"include_usage":true},'
_SPACE: Final = b" \t\r\n"

_log = logging.getLogger(__name__)


class Ledger:
    """Opens and settles the accounts of one process."""

    def __init__(
        self,
        counters: Counters,
        reservation_key: bytes,
        asks_usage: bool,
        read_now: Callable[[], Now],
        meter: TokenMeter,
        missing: Mapping[str, Counter],
        settlements: Mapping[str, Counter],
        ended: Mapping[str, Counter],
        note_ended: Callable[[Limit, Described, str, int], None] | None = None,
    ) -> None:
        """`note_ended` logs a stream that was ended: the limit, its key, the reason and the tokens."""
        self._counters = counters
        self._key = reservation_key
        self.asks_usage = asks_usage
        self._read_now = read_now
        self._meter = meter
        self._missing = missing
        self._settlements = settlements
        self._ended = ended
        self._note_ended = note_ended

    def open(self, token: str, context: Context, decision: Decision, *, whole: bool) -> Account:
        """The account of a request that has reserved (`token`); `whole`: its body is all there."""
        rule, ending = _ending(context, decision)
        described = rule.describe(context) if rule is not None else ()
        return Account(self, token, context, ending, rule, described, whole=whole)

    def stream_ended(self, ending: Ending, limit: Limit, described: Described, tokens: int) -> None:
        """Count a stream that was ended at its limit."""
        self._ended["graceful_close" if ending.graceful else "error_chunk"].add()
        if self._note_ended is not None:
            self._note_ended(limit, described, CODE, tokens)

    def settle(self, token: str, usage: Usage | None) -> None:
        """Replace what was reserved by `usage`; None gives it back.

        Nothing in the table says that it was done: the token never left this process, and an account closes once.
        """
        now = self._read_now()
        try:
            reservation = unseal(self._key, token, now.wall_ns)
        except RequestError as error:  # an hour has passed
            _log.debug("a reservation could not be settled: %s", error)
            self._missing["not_recorded"].add()
            return
        for each in settle(self._counters, reservation, usage, now, gives_back=True):
            self._meter.settled(*each)
        self._settlements["failed_upstream" if usage is None else "settled"].add()

    def settle_larger(self, token: str, usage: Usage) -> None:
        """Settle by `usage` where that is more than was reserved; elsewhere the reservation stands."""
        try:
            reservation = unseal(self._key, token, self._read_now().wall_ns)
        except RequestError as error:  # an hour has passed
            _log.debug("a reservation could not be settled: %s", error)
            return
        if any(weigh(usage, take.weights) > take.amount_u for take in reservation.takes):
            self.settle(token, usage)

    def stands(self, reason: str) -> None:
        """No usage can be found, so what was reserved stays taken."""
        self._missing[reason].add()


class Account:
    """The reservation of one request.

    `body` is what to send in place of the client's body, None to send that; `coding` what to ask for in
    Accept-Encoding; `stopped` becomes true when the stream has reached its limit and nothing more of it is wanted.
    While it is `behind`, `read_on` is to be called before anything else, with others served in between.
    """

    __slots__ = ("_decoder", "_described", "_edits", "_ending", "_events", "_failed", "_ledger", "_limit", "_llm",
                 "_path", "_reader", "_strips", "_token", "body", "coding", "stopped")  # fmt: skip

    def __init__(
        self,
        ledger: Ledger,
        token: str,
        context: Context,
        ending: Ending | None,
        limit: Limit | None,
        described: Described,
        *,
        whole: bool,
    ) -> None:
        """`ending` is when and how a stream ends, `limit` the rule that says so, `described` its key."""
        self._ledger = ledger
        self._token = token
        self._llm: LlmRequest | None = context.llm
        self._path = context.path
        self._ending = ending
        self._limit = limit
        self._described = described
        self.body: bytes | None = None
        streams = self._llm is not None and self._llm.stream
        whole = whole and self._llm is not None and not self._llm.unread
        if ledger.asks_usage and whole and streams and context.body is not None and self._llm is not None:
            self.body = asking_for_usage(self._path, self._llm, context.body)
        self._strips = self.body is not None
        takes_gzip = b"gzip" in context.headers.get("accept-encoding", b"").lower()
        self.coding = b"gzip" if takes_gzip and not streams else b"identity"
        self.stopped = False
        # per response
        self._reader: UsageReader | None = None
        self._decoder: Decoder | None = None
        self._events: Events | None = None
        self._edits = False
        self._failed = False

    def begun(self, head: ResponseHead) -> bool:
        """The head of the response; gives whether its body will be edited."""
        if not 200 <= head.status < 300:
            self._failed = True
            return False
        coding = head.special.get("content-encoding", b"").lower()
        if coding not in (b"", b"identity"):
            self._decoder = decoder_of(coding, _ANY_RATIO_BYTES, _MOST_RATIO)
            if self._decoder is None:
                return False
        kind = content_type(head)
        self._reader = UsageReader(kind)
        if kind.partition(";")[0].strip().lower() != "text/event-stream":
            return False
        asked = self._llm is not None and _asks_for_usage(self._llm)
        self._events = Events(dialect_of(self._path), self._ending, strips=self._strips, asked=asked)
        self._edits = self._strips or self._ending is not None
        return self._edits

    @property
    def behind(self) -> bool:
        """Whether a part of what came was not read yet."""
        decoder, reader = self._decoder, self._reader
        return (decoder is not None and decoder.waiting) or (reader is not None and reader.waiting)

    def content(self, data: bytes) -> bytes:
        """A piece of the response: what of it passes to the client."""
        reader, decoder = self._reader, self._decoder
        if reader is None:
            return data
        if decoder is None:
            passed = self._take_in(data, reader)
        else:
            decoder.feed(data)
            passed = self._decode(decoder, reader)
        return passed if self._edits else data

    def read_on(self) -> bytes:
        """Read one more slice of what came: what of it passes to the client, where that is edited."""
        reader, decoder = self._reader, self._decoder
        if reader is None:
            return b""
        if decoder is not None and decoder.waiting and not reader.waiting:
            passed = self._decode(decoder, reader)
            return passed if self._edits else b""  # what is not edited has passed as it came
        reader.read_on()
        return b""

    def _decode(self, decoder: Decoder, reader: UsageReader) -> bytes:
        """One slice as it was before it was encoded. One that is damaged or swells too much is not read on."""
        plain = decoder.step()
        if decoder.size_bytes > _MOST_BYTES:
            decoder.fail()
        if not decoder.failed or decoder.has_ended:
            return self._take_in(plain, reader)
        if (
            self._edits and self._events is not None
        ):  # what is edited cannot pass as it is: the stream ends here
            self._stop(self._events)
        else:
            self._reader = None
        return b""

    def _take_in(self, plain: bytes, reader: UsageReader) -> bytes:
        """Read a part of the response; gives what of it passes."""
        reader.feed(plain)
        events = self._events
        if events is None:
            return plain
        passed = events.feed(plain, reader.usage)
        if events.stopped:
            self._stop(events)
        return passed

    def _settle(self, usage: Usage | None) -> None:
        """Close the account: settle its reservation, if that was not done."""
        token, self._token = self._token, ""
        if token:
            self._ledger.settle(token, usage)

    def _stop(self, events: Events) -> None:
        """The stream ends here: what was used so far is all there will be."""
        self.stopped = True
        if self._ending is not None and self._limit is not None and events.stopped:
            self._ledger.stream_ended(self._ending, self._limit, self._described, events.tokens)
        self._settle(self._streamed(events))

    def ended(self) -> bytes:
        """The response is whole: what is still to be sent of it."""
        rest = b"" if self._events is None else self._events.rest()
        if self._failed:
            self._settle(None)
            return rest
        if self._reader is None:
            self._ledger.stands("encoding")
            return rest
        usage = self._reader.finish()
        if usage is not None:
            self._settle(usage)
        else:
            is_damaged = self._decoder is not None and not self._decoder.has_ended
            self._ledger.stands("encoding" if is_damaged else "no_usage")
            if self._events is not None and self._token:
                self._ledger.settle_larger(self._token, self._streamed(self._events))
            self._token = ""
        return rest if self._edits else b""

    def failed(self) -> None:
        """The upstream failed, or was not asked: everything is given back."""
        self._settle(None)

    def client_gone(self) -> None:
        """The client left. A stream costs its prompt and what was streamed; of a response that comes whole nothing
        is known before its end, so the reservation stands."""
        if self._failed:
            self._settle(None)
        elif self._events is None:
            self._ledger.stands("client_gone")
        else:
            self._settle(self._streamed(self._events))

    def _streamed(self, events: Events) -> Usage:
        """What a stream has used: what the provider told, and at least what came."""
        assert self._reader is not None, "a stream is read"
        told = self._reader.usage or Usage()
        generated = told.output + told.reasoning
        prompt = told.input + told.cached_input + told.cache_write
        if not prompt and self._llm is not None:
            told = told._replace(input=simple_word(self._llm))
        if events.tokens > generated:
            told = told._replace(output=told.output + events.tokens - generated)
        return told


def _ending(context: Context, decision: Decision) -> tuple[LlmTokens | None, Ending | None]:
    """Return the rule with the smallest limit for this stream, and how it ends there."""
    least: Ending | None = None
    found: LlmTokens | None = None
    for verdict in decision.passed:
        if isinstance(verdict, LlmVerdict):
            rule = verdict.limit
            assert isinstance(rule, LlmTokens), "only this limit reserves tokens"
            tokens = rule.stream_limit(context, verdict)
            if tokens is not None and (least is None or tokens < least.tokens):
                least = Ending(tokens, rule.streaming.graceful, rule.streaming.tells_usage)
                found = rule
    return found, least


def _asks_for_usage(llm: LlmRequest) -> bool:
    options = llm.document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def asking_for_usage(path: str, llm: LlmRequest, body: bytes) -> bytes | None:
    """The body with `stream_options.include_usage` added; None where that is not to be, or asked for already.

    Only OpenAI's completions know the option; a body without options keeps every byte it has.
    """
    completions = path.endswith("/completions") and dialect_of(path) is Dialect.OPENAI
    if not completions or _asks_for_usage(llm):
        return None
    start = body.lstrip(_SPACE)
    if not start.startswith(b"{") or start[1:].lstrip(_SPACE).startswith(b"}"):
        return None
    if "stream_options" not in llm.document:
        return _ASK_USAGE + start[1:]
    options = llm.document["stream_options"]
    more = {**options, "include_usage": True} if isinstance(options, dict) else {"include_usage": True}
    try:
        return orjson.dumps({**llm.document, "stream_options": more})
    except (TypeError, ValueError):  # numbers beyond 64 bits: the body passes as it is
        return None
