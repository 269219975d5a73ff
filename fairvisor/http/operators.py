"""The admin listener in one worker: serves what the master opened, and opens it again when nobody can reach it.

The master opens the listener before it forks, and again at HUP. When that failed, or somebody removed the socket, the
worker that leads tries once a second: the fault heals by itself, and one worker that answers is enough, since each
answers for all. Nothing here knows what operators ask.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from fairvisor import notes
from fairvisor.clock import Now
from fairvisor.http.admin_listener import AdminServer, AdminSocket, short_path
from fairvisor.notes import Notes
from fairvisor.periodic import Periodic
from fairvisor.settings import Bind

LOOK_EVERY_S: Final = 1.0
_ANSWERED_WITHIN_S: Final = 1.0

_log = logging.getLogger(__name__)


class Operators:
    """Serves from `start` to `stop`. `inherited` is what the master opened, None when it could not.

    `make_server` makes what serves a listening socket, `leads` says whether this worker acts for all, `failed` counts
    a look that did not succeed.
    """

    def __init__(
        self,
        bind: Bind,
        inherited: AdminSocket | None,
        make_server: Callable[[socket.socket], AdminServer],
        leads: Callable[[], bool],
        board: Notes,
        read_now: Callable[[], Now],
        failed: Callable[[], object],
    ) -> None:
        self._bind = bind
        self._inherited = inherited
        self._make_server = make_server
        self._leads = leads
        self._board = board
        self._read_now = read_now
        self._periodic = Periodic("admin-keeper", LOOK_EVERY_S, self.step, failed)
        # what changes
        self._own: AdminSocket | None = None
        self._servers: list[AdminServer] = []

    def start(self) -> None:
        """Begin."""
        if self._inherited is not None:
            self._serve(self._inherited)
        self._periodic.start()

    def stop(self) -> None:
        """Take no more connections, and let the requests that are under way end."""
        self._periodic.stop()
        for server in self._servers:
            server.stop()
        if self._own is not None:
            self._own.close()

    def step(self) -> None:
        """See to it that operators reach somebody, if this worker leads."""
        if not self._leads():
            return
        if self._is_reachable():
            self._board.drop(notes.ADMIN)
            return
        opened = open_or_tell(self._bind, self._board, self._read_now())
        if opened is not None:
            _log.info("the admin listener %s is open again", self._bind)
            if self._own is not None:  # it was removed, too
                self._servers.pop().stop()
                self._own.close()
            self._own = opened
            self._serve(opened)

    def _is_reachable(self) -> bool:
        return any(
            each is not None and each.is_there for each in (self._inherited, self._own)
        ) or is_answered(self._bind)

    def _serve(self, opened: AdminSocket) -> None:
        server = self._make_server(opened.socket)
        self._servers.append(server)
        server.start()


def open_or_tell(bind: Bind, board: Notes, now: Now) -> AdminSocket | None:
    """The listening socket; None when it cannot be had, which is told to everybody and, once, in the log."""
    try:
        opened = AdminSocket(bind)
    except OSError as error:
        why = f"the admin listener {bind} cannot be opened: {error.strerror}; it is tried again"
        if board.put(notes.ADMIN, why, now):
            _log.error("%s", why)
        return None
    board.drop(notes.ADMIN)
    return opened


def is_answered(bind: Bind) -> bool:
    """Whether somebody takes connections there: another master, during an upgrade."""
    with suppress(OSError):
        if not bind.path:
            socket.create_connection((bind.host, bind.port), _ANSWERED_WITHIN_S).close()
            return True
        with socket.socket(socket.AF_UNIX) as probe, short_path(Path(bind.path)) as address:
            probe.settimeout(_ANSWERED_WITHIN_S)
            probe.connect(address)
            return True
    return False
