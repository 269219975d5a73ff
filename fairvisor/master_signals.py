"""What signals mean to the master and to its workers, where gunicorn means something else.

The master is who acts on HUP (read the policy again, replace the workers), USR2 (start another master) and the keys of
a terminal. `pkill -HUP fairvisor` and `systemctl kill` reach the workers too: they ignore those, so that no request in
flight is cut off. SIGTERM to the master is heeded FAIRVISOR_LAME_DUCK_S later: until then /readyz says no and decisions
go on; a second one is heeded at once, and so is the first one during an upgrade.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from fairvisor.http.worker import FOR_THE_MASTER, STOPS, stop_at_once
from fairvisor.lame_duck import LameDuck


def take_signals(take: Callable[[], None], queued: SimpleQueue[int]) -> None:
    """Let a new worker take its signals, and heed those that were queued before.

    Until then it queues them as the master does, and its copy of the queue is never read. A stop would be lost, and the
    master, which signals each worker once, would wait for the whole time of a graceful stop. One that comes before
    Python is ready in the child is still lost: Python clears there what was noted for the parent.
    """
    take()
    for number in FOR_THE_MASTER:
        signal.signal(number, signal.SIG_IGN)  # the workers of gunicorn would end
    if any(queued.get_nowait() in STOPS for _ in range(queued.qsize())):
        stop_at_once()


def be_lame_before_stopping(server: Any, lame_duck: LameDuck, seconds: int) -> None:
    """Make SIGTERM to gunicorn's master begin the lame duck, whose end, or a second SIGTERM, is the stop.

    During an upgrade (USR2) the other master goes on with the same sockets, so senders need not go elsewhere.
    """
    stop = server.handle_term

    def asked_to_stop() -> None:
        upgrades = server.reexec_pid or server.master_pid
        if not seconds or lame_duck.has_begun or upgrades:
            stop()
            return
        lame_duck.begin()
        server.log.info(
            "stopping in %d s: /readyz answers 503, decisions go on; a second SIGTERM stops now", seconds
        )
        # No thread, since new workers may be forked meanwhile: an alarm asks a second time.
        signal.signal(signal.SIGALRM, lambda *_: server.signal(signal.SIGTERM, None))
        signal.setitimer(signal.ITIMER_REAL, seconds)

    server.handle_term = asked_to_stop
