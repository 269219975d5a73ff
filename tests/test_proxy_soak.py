"""Streams that end in every way, together: each reservation is closed as it must be, and nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from itertools import product
from typing import Any

from edge import policy, tokens
from mixed_streams import LEAVING, USED, WAYS, Mixed, stream
from proxy_bench import Bench, bench, run

from fairvisor.proxy.account import Account
from fairvisor.proxy.exchange import Exchange
from fairvisor.proxy.front import Front
from fairvisor.proxy.link import Link
from fairvisor.proxy.pace import Timeouts

LIMITED = policy("llm", tokens("t", tpm=1_000_000))
TIMES = Timeouts(2_000, 2_000)  # what hangs; long enough for a machine that is busy
PATIENCE_S = 100
REASONS = ("no_usage", "encoding", "client_gone", "not_recorded")


def outcomes(proxy: Bench) -> Counter[str]:
    """What came of the reservations."""
    found = {how: proxy.metric("settlements_total", result=how) for how in ("settled", "failed_upstream")}
    found |= {reason: proxy.metric("usage_missing_total", reason=reason) for reason in REASONS}
    return Counter(found)


def alive() -> Counter[str]:
    """The objects of exchanges that nothing has freed."""
    gc.collect()
    kinds: tuple[type[Any], ...] = (Account, Exchange, Front, Link)
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in kinds)


def test_each_way_a_stream_can_end_closes_its_reservation_as_it_must() -> None:
    async def test() -> None:
        async with bench(LIMITED, handler=Mixed().serve, timeouts=TIMES) as proxy:
            await asyncio.gather(*[stream(proxy.port, way, "stays") for way in range(len(WAYS))])
            expected = Counter(outcome for _, outcome in WAYS.values())
            await proxy.until(lambda: outcomes(proxy).total() == len(WAYS))
            assert +outcomes(proxy) == expected
            assert proxy.metric("tokens_consumed_total") == USED * expected["settled"]

    run(test(), PATIENCE_S)


def test_streams_of_every_kind_and_clients_that_leave_at_any_time_leave_nothing_behind() -> None:
    mixed = Mixed()
    kinds = list(product(range(len(WAYS)), LEAVING)) * 3

    async def test() -> None:
        async with bench(LIMITED, handler=mixed.serve, timeouts=TIMES) as proxy:
            before = alive()
            await asyncio.gather(*[stream(proxy.port, way, leaving) for way, leaving in kinds])
            await proxy.until(lambda: not proxy.hub.connections)
            await proxy.until(lambda: outcomes(proxy).total() == len(kinds))
            backend = proxy.backends.choose(0, [])
            assert backend.active == 0
            await proxy.until(lambda: mixed.open == len(backend.idle))
            proxy.backends.close()
            await proxy.until(lambda: mixed.open == 0)
            assert alive() == before

    run(test(), PATIENCE_S)
