"""The transport of one client: when it is read, in which order answers are written to it, how it is closed.

What was read and cannot go on yet is kept, and nothing more is read meanwhile: while the client does not take its
answers, while too many of them wait, and after much was read at once, until others had their turn. The module knows
neither requests nor how they are framed (`connection.py`).
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from fairvisor.http.hub import HIGH_WATER_BYTES, LINGER_S, Hub, Making
from fairvisor.http.outbox import Outbox
from fairvisor.http.pieces import read_in_pieces
from fairvisor.http.request import Peer
from fairvisor.http.wire import encode
from fairvisor.response import Answer

MAX_QUEUED: Final = 64  # answers behind one that waits; then nothing more is read from this client


class Channel(asyncio.Protocol):
    """A connection of a worker's hub, without its requests: a subclass reads them."""

    __slots__ = ("_closing", "_eof", "_hub", "_outbox", "_peer", "_queue", "_reading_paused", "_ready", "_rest",
                 "_seen_ms", "_transport", "_turn_asked", "_unread", "_write_blocked")  # fmt: skip

    _transport: asyncio.Transport
    _peer: Peer

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._outbox = Outbox(hub, self._waited)
        self._ready = self._outbox.ready
        self._queue = self._outbox.queue
        self._closing = False
        self._eof = False
        self._rest = b""  # what is read on when the client reads again, or in another turn of the loop
        self._turn_asked = False
        self._unread = False
        self._write_blocked = False
        self._reading_paused = False
        self._seen_ms = hub.tick_ms

    # a subclass does these

    def check(self) -> None:
        """Act on a time limit that passed."""
        raise NotImplementedError

    def _go_on(self) -> None:
        """Read on from what is kept, if it can."""
        raise NotImplementedError

    def _is_idle(self) -> bool:
        """Return whether no part of a request is here and no answer is owed."""
        raise NotImplementedError

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class: one by its methods only
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        name = transport.get_extra_info("peername")
        self._peer = self._hub.service.peer(name[0] if isinstance(name, tuple) else "")
        self._hub.connections.add(self)

    def eof_received(self) -> bool:
        self._eof = True
        return bool(self._queue)  # a half-closed client still gets the answers that wait

    def pause_writing(self) -> None:
        self._write_blocked = self._outbox.blocked = True
        self._update_reading()

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._seen_ms = self._hub.tick_ms
        self._outbox.unblock()
        self._go_on()

    # the hub calls these

    def finish(self) -> None:
        """The worker stops: an unused connection gets one more moment to ask, then it is closed."""
        self._hub.linger(self._close_if_idle)

    def abort(self) -> None:
        """Drop the connection as it is."""
        self._transport.abort()

    # reading

    def _ask_turn(self) -> None:
        """Read no more before others had their turn."""
        if not self._turn_asked:
            self._turn_asked = True
            self._hub.next_turn(self._take_turn)

    def _await_turn(self) -> None:
        """Read nothing before others had their turn, and then in pieces."""
        self._ask_turn()
        self._update_reading()
        if self._reading_paused:
            read_in_pieces(self._transport, self, self._hub.piece)

    def _is_full(self) -> bool:
        """Whether the client does not read its answers, too many of them wait, or one that takes long to make."""
        return self._write_blocked or len(self._queue) >= MAX_QUEUED or self._outbox.unmade > 0

    def _update_reading(self) -> None:
        """Read on, unless what was read cannot go on yet."""
        pause = self._turn_asked or bool(self._rest) or self._is_full()
        if pause == self._reading_paused or self._transport.is_closing():
            return
        self._reading_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _take_turn(self) -> None:
        self._turn_asked = False
        self._update_reading() if self._closing else self._go_on()

    # answering

    def _put(self, answer: Answer | Making, connection: str, *, last: bool, head_only: bool) -> None:
        """The next answer; one that is not made yet takes its place."""
        self._closing = self._closing or last
        lines = self._hub.lines
        if isinstance(answer, Answer):
            payload = encode(lines[answer.status], answer, connection, head_only=head_only)
            self._outbox.put(payload, answer.delay_ms)
        else:
            making = answer
            self._outbox.make(
                making.advance,
                lambda: encode(lines[making.whole().status], making.whole(), connection, head_only=head_only),
                lambda: making.whole().delay_ms,
            )
        self._update_reading()

    def _waited(self) -> None:
        """Answers that waited are ready."""
        self._flush()
        self._go_on()
        if self._hub.stopping:
            self._close_if_idle()

    def _flush(self) -> None:
        if self._ready:
            self._transport.write(self._outbox.take())
        if not self._queue and (self._closing or self._eof):
            self._shut()

    # closing

    def _shut(self) -> None:
        """Every answer is written. Closing with unread input would reset the connection and could destroy the last
        answer on its way (RFC 9112 9.6), so a client that may be sending still gets a moment."""
        self._closing = True
        self._seen_ms = self._hub.tick_ms
        transport = self._transport
        if self._unread and not self._eof and transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
            self._hub.later(LINGER_S, transport.close)
        else:
            transport.close()

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self._transport.close()
