"""An exchange whose sides have agreed on another protocol: from then on bytes pass as they are.

Each direction ends by itself; when both have, or one cannot be ended alone, so has the tunnel. It knows two connections
and nothing of what passes between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairvisor.proxy.front import Front
    from fairvisor.proxy.link import Link


class Tunnel:
    """Between `front` and `link`. `moved_ms` is when bytes passed last, by the hub's tick."""

    __slots__ = ("_front", "_half_closed", "_link", "moved_ms")

    def __init__(self, front: Front, link: Link) -> None:
        self._front = front
        self._link = link
        self._half_closed = False  # one side has said all it will say
        self.moved_ms = front.hub.tick_ms

    def from_upstream(self, data: bytes) -> None:
        """Bytes for the client."""
        self.moved_ms = self._front.hub.tick_ms
        self._front.write(data)

    def from_client(self, data: bytes) -> None:
        """Bytes for the upstream."""
        self.moved_ms = self._front.hub.tick_ms
        self._link.write(data)

    def upstream_eof(self) -> bool:
        """The upstream says no more; gives whether the client may."""
        if self._half_closed or not self._front.write_eof():
            return False
        self._half_closed = True
        return True

    def client_eof(self) -> bool:
        """The client says no more; gives whether the upstream may."""
        if self._half_closed or not self._link.transport.can_write_eof():
            return False
        self._half_closed = True
        self._link.transport.write_eof()
        return True
