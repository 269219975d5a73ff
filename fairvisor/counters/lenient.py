"""Counters that show what is there, charge nothing and refuse nothing.

For a request that was allowed a moment ago and that its gateway asks about again (nginx repeats `auth_request` on
every internal redirect): it must get the same answer without being charged twice.
"""

from __future__ import annotations

from fairvisor.counters import ALLOWED, Counters


class Lenient:
    """A view of `counters`. Every operation answers as if it had been allowed."""

    __slots__ = ("_counters",)

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def take(self, key: int, now_ns: int, cost_u: int, burst_u: int, per: int, /) -> tuple[int, int, int]:
        remaining_u, reset_ns = self._counters.peek_bucket(key, now_ns, burst_u, per)
        return ALLOWED, remaining_u, reset_ns

    def add(self, key: int, now_ns: int, amount_u: int, limit_u: int, ttl_ns: int, /) -> tuple[int, int]:
        return ALLOWED, self._counters.peek_total(key, now_ns)

    def peek_bucket(self, key: int, now_ns: int, burst_u: int, per: int, /) -> tuple[int, int]:
        return self._counters.peek_bucket(key, now_ns, burst_u, per)

    def peek_total(self, key: int, now_ns: int, /) -> int:
        """Nothing: what an open breaker reads must not stop a request that was allowed before it opened."""
        return 0

    def count(self, key: int, now_ns: int, window_ns: int, /) -> int:
        return 1

    def peek_count(self, key: int, now_ns: int, /) -> int:
        return self._counters.peek_count(key, now_ns)

    def once(self, key: int, now_ns: int, ttl_ns: int, stamp: int, /) -> tuple[int, int]:
        return ALLOWED, 0

    def give(self, key: int, now_ns: int, cost_u: int, per: int, /) -> None: ...

    def overdraw(self, key: int, now_ns: int, cost_u: int, burst_u: int, per: int, /) -> None: ...

    def sub(self, key: int, now_ns: int, amount_u: int, /) -> None: ...

    def charge(self, key: int, now_ns: int, amount_u: int, /) -> None: ...

    def delete(self, key: int, now_ns: int, /) -> bool:
        return False
