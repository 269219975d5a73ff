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
from typing import Any, Final

from gunicorn.app.base import BaseApplication

from fairvisor.beside import Beside
from fairvisor.clock import read_now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.errors import SegmentError, SettingsError
from fairvisor.http.accept import Board
from fairvisor.http.service import Service
from fairvisor.http.start import make_beside, make_service, open_segment, segment_name
from fairvisor.http.worker import EdgeWorker
from fairvisor.http.wsgi import Application
from fairvisor.processes import start_time
from fairvisor.reload import Publisher
from fairvisor.settings import Settings, environment
from fairvisor.snapshots import Snapshots

EDGE: Final = "edge"
MEINHELD: Final = "meinheld.gmeinheld.MeinheldWorker"

# A throttled answer may wait 30 s; a stop lets it finish.
_GRACEFUL_TIMEOUT_S: Final = 35
_WORKER_TIMEOUT_S: Final = 30
_BACKLOG: Final = 2048
_SOCKET_UMASK: Final = 0o117  # whoever can connect to a unix socket is trusted: owner and group

_DESCRIPTORS_BESIDE_CONNECTIONS: Final = 64


def serve(settings: Settings, *, accept_older: bool = False) -> None:
    """Serve until stopped; does not return. Raises SettingsError or SegmentError when it cannot start.

    `accept_older`: take the bundle file even if its version is lower than that of the last good bundle.
    """
    _log_to_stderr(settings.log_level)
    _allow_descriptors(settings.max_connections)
    replaces = environment().get("GUNICORN_PID", "")
    refuse_second(segment_name(settings.instance), replaces)
    segment = open_segment(settings)
    claim(segment, replaces)
    publisher = Publisher(settings, segment, environment(), serving=False)
    if not replaces:
        publisher.notes.drop_all()
    publisher.start(accept_older=accept_older)
    Master(settings, segment, publisher).run()


class Master(BaseApplication):  # type: ignore[misc]
    """The gunicorn application. Workers read `settings` and `board`; `load` makes what they serve."""

    def __init__(self, settings: Settings, segment: Segment, publisher: Publisher) -> None:
        self.settings = settings
        self.segment = segment
        self.publisher = publisher
        self.beside: Beside | None = None  # in a worker
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
            "worker_exit": _worker_exit,
            "on_exit": _on_exit,
        }
        for name, value in choices.items():
            if name in self.cfg.settings:  # newer gunicorns have settings that older ones lack
                self.cfg.set(name, value)

    def load(self) -> Service | Application:
        """What a worker serves; called in each worker, after the fork."""
        settings = self.settings
        waits = settings.worker_class == EDGE
        self.beside = make_beside(settings, self.segment)
        service = make_service(settings, self.segment, self.beside, can_wait=waits)
        return service if waits else Application(service, read_now)

    def reload(self) -> None:
        """SIGHUP: read the bundle file again, then restart the workers."""
        super().reload()
        self.publisher.read_file()


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
    _refuse_second(segment, replaces)
    words = segment.table
    words.word_set(Word.MASTER_START, start_time(os.getpid()))
    words.word_set(Word.MASTER_PID, os.getpid())


def refuse_second(name: str, replaces: str) -> None:
    """Raises SegmentError when a master of this instance lives: asked before anything of it is touched."""
    try:
        segment = Segment.attach(name)
    except (FileNotFoundError, SegmentError):
        return  # none, or one that will be replaced
    _refuse_second(segment, replaces)


def _refuse_second(segment: Segment, replaces: str) -> None:
    words = segment.table
    pid = words.word_get(Word.MASTER_PID)
    lives = pid and pid != os.getpid() and start_time(pid) == words.word_get(Word.MASTER_START)
    if lives and str(pid) != replaces:
        raise SegmentError(
            f"a master of this instance runs already (pid {pid}); FAIRVISOR_INSTANCE names instances"
        )


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


def _log_to_stderr(level: str) -> None:
    """Let the lines of the start go somewhere, before gunicorn's log exists."""
    package = logging.getLogger("fairvisor")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s [%(process)d] [%(levelname)s] %(message)s"))
    package.handlers = [handler]
    package.setLevel(level.upper())
    package.propagate = False


def _post_fork(server: Any, worker: Any) -> None:
    """Let the package's own log lines go where gunicorn's go."""
    package = logging.getLogger("fairvisor")
    package.handlers = worker.log.error_log.handlers
    package.setLevel(worker.log.error_log.level)
    package.propagate = False


def _worker_exit(server: Any, worker: Any) -> None:
    """A worker is about to end. gunicorn also calls this in the master, for a worker that it could not signal."""
    beside = worker.app.beside
    if beside is not None:
        beside.stop()


def _on_exit(server: Any) -> None:
    """Every worker is gone: what they counted last is saved as well."""
    master = server.app
    Snapshots(master.segment.name, master.publisher.state).save(master.segment)


def _child_exit(server: Any, worker: Any) -> None:
    """A worker is gone, by itself or killed: its seat is free."""
    if isinstance(worker, EdgeWorker):
        worker.board.give_back(worker.seat)
