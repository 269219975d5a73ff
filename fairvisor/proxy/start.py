"""The proxy of one worker, put together: the gate, the upstreams, and a front for each client that connects.

It knows settings and how the parts fit; it knows nothing of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fairvisor.beside import Beside
from fairvisor.clock import Now
from fairvisor.counters.segment import Segment
from fairvisor.http.health import Health
from fairvisor.http.hub import Hub
from fairvisor.http.pieces import Pieces
from fairvisor.proxy.backends import Address, Backends, tls_context
from fairvisor.proxy.front import Front
from fairvisor.proxy.gate import Gate
from fairvisor.proxy.pace import Timeouts
from fairvisor.settings import Settings


class Proxy:
    """What a worker serves in proxy mode; `gate` is the service of its hub, `health` that of the side listener."""

    def __init__(
        self, settings: Settings, segment: Segment, beside: Beside, read_now: Callable[[], Now]
    ) -> None:
        addresses = tuple(Address.parse(text) for text in settings.backend_url or ())
        self.health = Health(segment, beside.active, beside.identity.trusted_peer)
        self.gate = Gate(
            settings, segment, beside.identity, beside.active, read_now, beside.audit, beside.top_keys
        )
        self._timeouts = Timeouts(
            settings.backend_timeout_ms, settings.backend_idle_timeout_ms, settings.backend_total_timeout_ms
        )
        authorities = str(settings.backend_ca) if settings.backend_ca is not None else None
        self.backends = Backends(
            addresses,
            segment,
            tls_context(authorities) if any(address.tls for address in addresses) else None,
            settings.backend_connect_timeout_ms,
            settings.backend_keep_ms,
        )

    def connections(self, hub: Hub) -> Callable[[], asyncio.BaseProtocol]:
        """What makes the protocol of each client's connection."""
        hub.on_tick = lambda: self.backends.sweep(hub.tick_ms)
        front = partial(Front, hub, self.gate, self.backends, self._timeouts)
        return lambda: Pieces(front(), hub.piece)
