"""The process that starts the workers, replaces those that die and stops them: gunicorn's master, configured.

It makes (or finds again) the shared-memory segment before it forks, so that every worker maps the same counters, and
gives each worker a seat on the board of connections. Everything else (loop, identity, bundle, service) is made in the
worker, after the fork. This module knows gunicorn's hooks; it knows nothing of requests.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gunicorn.app.base import BaseApplication

from fairvisor.clock import read_now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.errors import SegmentError, SettingsError
from fairvisor.http.accept import Board
from fairvisor.http.service import Service
from fairvisor.http.start import make_service, segment_name
from fairvisor.http.worker import EdgeWorker
from fairvisor.http.wsgi import Application
from fairvisor.settings import Settings, environment

EDGE: Final = "edge"
MEINHELD: Final = "meinheld.gmeinheld.MeinheldWorker"

# A throttled answer may wait 30 s; a stop lets it finish.
_GRACEFUL_TIMEOUT_S: Final = 35
_WORKER_TIMEOUT_S: Final = 30
_BACKLOG: Final = 2048
_SOCKET_UMASK: Final = 0o117  # whoever can connect to a unix socket is trusted: owner and group

_DESCRIPTORS_BESIDE_CONNECTIONS: Final = 64


def serve(settings: Settings) -> None:
    """Serve until stopped; does not return. Raises SettingsError or SegmentError when it cannot start."""
    _allow_descriptors(settings.max_connections)
    segment = Segment.open(segment_name(settings.instance), settings.shared_dict_size)
    claim(segment, replaces=environment().get("GUNICORN_PID", ""))
    Master(settings, segment).run()


class Master(BaseApplication):  # type: ignore[misc]
    """The gunicorn application. Workers read `settings` and `board`; `load` makes what they serve."""

    def __init__(self, settings: Settings, segment: Segment) -> None:
        self.settings = settings
        self.segment = segment
        self.board = Board()
        super().__init__()

    def load_config(self) -> None:
        """Everything gunicorn is told. Its own files and variables are not read: there is one list of settings."""
        settings = self.settings
        choices: Mapping[str, Any] = {
            "bind": [str(bind) for bind in settings.bind],
            "workers": settings.worker_processes or available_processors(),
            "worker_class": worker_class(settings.worker_class),
            "proc_name": f"fairvisor-{settings.instance}",
            "timeout": _WORKER_TIMEOUT_S,
            "graceful_timeout": _GRACEFUL_TIMEOUT_S,
            "backlog": _BACKLOG,
            "umask": _SOCKET_UMASK,
            "loglevel": settings.log_level,
            "control_socket_disable": True,
            "child_exit": _child_exit,
            "post_fork": _post_fork,
        }
        for name, value in choices.items():
            if name in self.cfg.settings:  # newer gunicorns have settings that older ones lack
                self.cfg.set(name, value)

    def load(self) -> Service | Application:
        """What a worker serves; called in each worker, after the fork."""
        settings = self.settings
        waits = settings.worker_class == EDGE
        service = make_service(settings, self.segment, can_wait=waits)
        return service if waits else Application(service, read_now)


def worker_class(name: str) -> type | str:
    """The gunicorn worker class of a setting."""
    if name == EDGE:
        return EdgeWorker
    return MEINHELD if name == "meinheld" else name


def available_processors() -> int:
    """The processors this process may run on."""
    return len(os.sched_getaffinity(0))


def claim(segment: Segment, replaces: str) -> None:
    """Become the master of this instance. Raises SegmentError when another one lives, unless it is the one that
    started this one in its place (`replaces`, its pid, on USR2)."""
    words = segment.table
    pid = words.word_get(Word.MASTER_PID)
    lives = pid and pid != os.getpid() and start_time(pid) == words.word_get(Word.MASTER_START)
    if lives and str(pid) != replaces:
        raise SegmentError(
            f"a master of this instance runs already (pid {pid}); FAIRVISOR_INSTANCE names instances"
        )
    words.word_set(Word.MASTER_START, start_time(os.getpid()))
    words.word_set(Word.MASTER_PID, os.getpid())


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); 0 when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def _allow_descriptors(connections: int) -> None:
    """Raise the limit of open files to what the connections need, as far as the system lets us."""
    wanted = connections + _DESCRIPTORS_BESIDE_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        raise SettingsError(
            f"FAIRVISOR_MAX_CONNECTIONS: {connections} is wrong: the limit of open files allows "
            f"{allowed - _DESCRIPTORS_BESIDE_CONNECTIONS} (ulimit -n {hard})"
        )


def _post_fork(server: Any, worker: Any) -> None:
    """Let the package's own log lines go where gunicorn's go."""
    package = logging.getLogger("fairvisor")
    package.handlers = worker.log.error_log.handlers
    package.setLevel(worker.log.error_log.level)
    package.propagate = False


def _child_exit(server: Any, worker: Any) -> None:
    """A worker is gone, by itself or killed: its seat is free."""
    if isinstance(worker, EdgeWorker):
        worker.board.give_back(worker.seat)
