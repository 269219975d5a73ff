"""A stream of server-sent events as it passes: its tokens are counted, and it may be edited or ended.

Two edits exist. The chunk with the usage, which the client did not ask for, is taken out. A stream that passes its
limit is ended as the provider would end it, or with an error (`endings.py` knows the forms). Everything else passes
byte for byte. Events are cut at their blank lines; one that is not whole yet waits, up to a bound.

The module knows the events of OpenAI, Anthropic and Gemini; it must not know accounts or connections.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from fairvisor.llm._simple_word import count_tokens
from fairvisor.llm.dialect import Dialect
from fairvisor.llm.usage import Usage
from fairvisor.proxy.endings import Ending, closing_events

__all__ = ["Ending", "Events", "texts_of"]

MAX_EVENT_BYTES: Final = 1 << 20  # a longer event passes in pieces, unread
_BLANK: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE: Final = re.compile(rb"\r\n|\n|\r")


class Events:
    """The events of one response. `tokens` is how many were streamed, by our count."""

    __slots__ = ("_asked", "_dialect", "_ending", "_first", "_held", "_last", "_open_block", "_strips", "_unread",
                 "stopped", "tokens")  # fmt: skip

    def __init__(self, dialect: Dialect, ending: Ending | None, *, strips: bool, asked: bool) -> None:
        self._dialect = dialect
        self._ending = ending
        self._strips = strips
        self._asked = asked
        self._held = b""
        self._unread = False  # the event that is open is too long to be read
        self._first: dict[str, object] = {}  # what the closing events are modelled on
        self._last: dict[str, object] = {}
        self._open_block: object = None  # Anthropic: the index of the content block that is open
        self.tokens = 0
        self.stopped = False

    def feed(self, data: bytes, usage: Usage | None) -> bytes:
        """The next bytes; gives those that pass. `usage` is what the provider has told so far."""
        if self.stopped:
            return b""
        if self._held:
            data, self._held = self._held + data, b""
        passed: list[bytes] = []
        position = 0
        for blank in _BLANK.finditer(data):
            event = data[position : blank.end()]
            position = blank.end()
            if self._unread:
                self._unread = False
                passed.append(event)
            elif self._passes(event, usage):
                passed.append(event)
            if self.is_past_limit():
                passed.append(self._closing(usage))
                return b"".join(passed)
        rest = data[position:]
        if self._unread or len(rest) > MAX_EVENT_BYTES:
            self._unread = True
            passed.append(rest)
        else:
            self._held = rest
        return b"".join(passed)

    def is_past_limit(self) -> bool:
        """Whether the stream has ended at its limit."""
        return self.stopped

    def rest(self) -> bytes:
        """The stream is over: what was held of an event that nothing closed."""
        rest, self._held = self._held, b""
        return rest

    def _passes(self, event: bytes, usage: Usage | None) -> bool:
        """Count one event; whether it passes to the client."""
        data = b"\n".join(line[5:].strip() for line in _LINE.split(event) if line.startswith(b"data:"))
        if not data.startswith(b"{"):
            return True
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            return True
        if not isinstance(document, dict):
            return True
        if self._strips and document.get("choices") == [] and isinstance(document.get("usage"), dict):
            return False
        before = self.tokens
        self.tokens += sum(max(1, count_tokens(text.encode(errors="replace"))) for text in texts_of(document))
        self._remember(document)
        if self._ending is None:
            return True
        counted = max(self.tokens, usage.output + usage.reasoning if usage is not None else 0)
        if counted > self._ending.tokens and self.tokens > before:
            self.stopped = True
            return False
        return True

    def _remember(self, document: dict[str, object]) -> None:
        if self._ending is None:
            return
        kind = document.get("type")
        if kind == "content_block_start":
            self._open_block = document.get("index")
        elif kind == "content_block_stop":
            self._open_block = None
        if not self._first or kind == "response.created":
            self._first = document
        self._last = document

    def _closing(self, usage: Usage | None) -> bytes:
        assert self._ending is not None, "only a limit stops a stream"
        told = usage or Usage()
        if self.tokens > told.output + told.reasoning:
            told = told._replace(output=self.tokens - told.reasoning)
        return closing_events(
            self._dialect, self._ending, self._first, self._last, self._open_block, told, asked=self._asked
        )


def texts_of(document: dict[str, object]) -> list[str]:
    """The pieces of generated text in one event, of whichever provider: words, reasoning, arguments of tools."""
    found: list[str] = []
    kind = document.get("type")
    if isinstance(kind, str):
        delta = document.get("delta")
        if isinstance(delta, str):  # Responses
            found.append(delta)
        elif isinstance(delta, dict) and kind == "content_block_delta":  # Anthropic
            found += [
                v for k in ("text", "partial_json", "thinking") if isinstance(v := delta.get(k), str) and v
            ]
        return found
    for name in ("choices", "candidates"):
        entries = document.get(name)
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict):
                _from_choice(entry, found)
    return found


def _from_choice(choice: dict[str, object], found: list[str]) -> None:
    """Chat: `delta`; completions: `text`; Gemini: `content.parts`."""
    text, delta, content = choice.get("text"), choice.get("delta"), choice.get("content")
    if isinstance(text, str) and text:
        found.append(text)
    if isinstance(delta, dict):
        for name in ("content", "reasoning_content", "reasoning", "refusal"):
            piece = delta.get(name)
            if isinstance(piece, str) and piece:
                found.append(piece)
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str) and arguments:
                found.append(arguments)
    if isinstance(content, dict):
        parts = content.get("parts")
        for part in parts if isinstance(parts, list) else ():
            piece = part.get("text") if isinstance(part, dict) else None
            if isinstance(piece, str) and piece:
                found.append(piece)
