"""A response that swells when it is decoded, read on a slice in each turn of the loop, with others served in between.

The upstream is not read from meanwhile, so that no more than one piece waits; the client gets what passes, and the end
of the response when all of it was read. The module knows accounts and exchanges, neither codings nor framing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fairvisor.http.hub import Hub
    from fairvisor.proxy.account import Account
    from fairvisor.proxy.returning import Returning

_SLICES: Final = 32  # in one turn of the loop, where they are quickly read
_TURN_NS: Final = 1_000_000


class Lag:
    """What of the response of `exchange` has come and was not read by its account yet."""

    __slots__ = ("_account", "_exchange", "_hub", "_is_dropped", "_trailers")

    def __init__(self, exchange: Returning, account: Account, hub: Hub) -> None:
        self._exchange: Returning | None = exchange
        self._account = account
        self._hub = hub
        self._trailers: bytes | None = None
        self._is_dropped = False
        hub.work(self._advance, self._caught_up)

    def end(self, trailers: bytes) -> None:
        """The response is whole; it is over when it was read."""
        self._trailers = trailers

    def drop(self) -> None:
        """Read no more."""
        self._is_dropped = True

    def client_gone(self) -> None:
        """Read what has come to its end, so that it is paid, and close the account; nothing passes any more."""
        self._exchange = None

    def _advance(self) -> bool:
        """Read some slices, as many as take about as long as a few requests."""
        account, read_now = self._account, self._hub.read_now
        end_ns = read_now().mono_ns + _TURN_NS
        for _ in range(_SLICES):
            if self._is_dropped:
                return True
            passed = account.read_on()
            if passed and self._exchange is not None:
                self._exchange.pass_on(passed)
            if account.stopped or not account.behind:
                return True
            if read_now().mono_ns > end_ns:
                break
        return False

    def _caught_up(self) -> None:
        if self._is_dropped:
            return
        if self._exchange is not None:
            self._exchange.caught_up(self._trailers)
        elif self._account.stopped:
            return
        elif self._trailers is not None:
            self._account.ended()
        else:
            self._account.client_gone()
