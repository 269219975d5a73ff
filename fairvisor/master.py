"""The process that starts the workers, replaces those that die and stops them: gunicorn's master, configured.

It makes (or finds again) the shared-memory segment before it forks, so that every worker maps the same counters, and
gives each worker a seat on the board of connections. Everything else (loop, identity, bundle, service) is made in the
worker, after the fork. This module knows gunicorn's hooks; it knows nothing of requests.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from gunicorn.app.base import BaseApplication
from gunicorn.util import load_class
from gunicorn.workers.base import Worker

from fairvisor import __version__, actor
from fairvisor.applog import Handler, Log, configure
from fairvisor.beside import Beside
from fairvisor.bundle.load import parse, verify_signature
from fairvisor.clock import read_now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.cpu_quota import usable_processors
from fairvisor.errors import BundleInvalid, SegmentError, SettingsError
from fairvisor.http.accept import Board
from fairvisor.http.admin import Admin
from fairvisor.http.admin_listener import AdminServer, AdminSocket
from fairvisor.http.admin_tokens import AdminTokens, check_tokens
from fairvisor.http.listeners import Handed, Listeners, from_systemd, handed_over, names_of, open_listeners
from fairvisor.http.operators import Operators, open_or_tell
from fairvisor.http.service import Service
from fairvisor.http.side import serve_in_thread
from fairvisor.http.start import check_environment, make_beside, make_proxy, make_service, open_segment
from fairvisor.http.worker import EdgeWorker, limits_of
from fairvisor.http.wsgi import Application
from fairvisor.lame_duck import LameDuck
from fairvisor.master_signals import be_lame_before_stopping, take_signals
from fairvisor.memory import SHM_DIR, InstanceMemory
from fairvisor.metrics import Counter
from fairvisor.metrics.families import LOG_LINES_LOST, THREAD_FAILURES, WORKER_RESTARTS
from fairvisor.processes import start_time
from fairvisor.proxy.start import Proxy
from fairvisor.reload import Publisher
from fairvisor.reporter import write_pending
from fairvisor.settings import PROXY, Settings, environment
from fairvisor.snapshots import Snapshots

EDGE: Final = "edge"
MEINHELD: Final = "meinheld.gmeinheld.MeinheldWorker"

# A throttled answer may wait 30 s; a stop lets it finish.
_GRACEFUL_TIMEOUT_S: Final = 35
_WORKER_TIMEOUT_S: Final = 30
_BOOT_AGAIN_S: Final = 1.0
_BACKLOG: Final = 2048
_SOCKET_UMASK: Final = 0o117  # whoever can connect to a unix socket is trusted: owner and group

# The longest request line that gunicorn's own parser can be asked to accept.
_MAX_REQUEST_LINE: Final = 8190

_GREEN: Final = ("gunicorn.workers.ggevent", "gunicorn.workers.geventlet")

_DESCRIPTORS_BESIDE_CONNECTIONS: Final = 64

_log = logging.getLogger(__name__)


def serve(read_settings: Callable[[], Settings], *, accept_older: bool = False) -> None:
    """Serve until stopped; does not return. Raises SettingsError or SegmentError when it cannot start.

    `read_settings` is called again on HUP, for the files of secrets. `accept_older`: take the bundle file even
    if its version is lower than that of the last good bundle.
    """
    settings = read_settings()
    # What cannot be is rejected before anything is claimed.
    check_environment(settings)
    handed = handed_over(environment(), settings)
    check_side(settings, worker_class(settings.worker_class), handed)
    check_tokens(settings.admin_tokens_file)
    log = configure(settings)
    # A proxied request has a connection on either side.
    _allow_descriptors(settings.max_connections * (2 if settings.mode == PROXY else 1))
    replaces = environment().get("GUNICORN_PID", "")
    refuse_second(InstanceMemory.find(settings.instance, os.geteuid()), replaces)
    segment = open_segment(settings)
    log.count_losses(Counter(segment, LOG_LINES_LOST).add)
    claim(segment, replaces)
    publisher = Publisher(settings, segment, environment(), serving=False)
    if not replaces:
        publisher.notes.drop_all()
    before = publisher.generation
    publisher.start(accept_older=accept_older)
    if publisher.generation == before:
        warn_again(publisher, environment())
    publisher.records.record(
        "start", actor.edge("start"), read_now(), release=__version__, counters=segment.origin.value
    )
    master = Master(settings, segment, publisher, handed, read_settings, log)
    master.open_admin()
    master.run()


class Master(BaseApplication):  # type: ignore[misc]
    """The gunicorn application. Workers read `settings` and `board`; `load` makes what they serve."""

    def __init__(
        self,
        settings: Settings,
        segment: Segment,
        publisher: Publisher,
        handed: Sequence[Handed],
        read_settings: Callable[[], Settings],
        log: Handler,
    ) -> None:
        self.settings = settings
        self._log = log
        self._read_settings = read_settings
        self.segment = segment
        self.publisher = publisher
        self.handed = handed
        self.listeners = Listeners([], [])
        self.admin: AdminSocket | None = None
        # in a worker
        self.beside: Beside | None = None
        self.operators: Operators | None = None
        self.side_sockets: list[socket.socket] = []
        self.board = Board()
        self.lame_duck = LameDuck()
        super().__init__()

    def load_config(self) -> None:
        """Everything gunicorn is told. Its own files and variables are not read: there is one list of settings."""
        settings = self.settings
        served_by = worker_class(settings.worker_class)
        choices: Mapping[str, Any] = {
            "bind": [str(bind) for bind in settings.bind],
            "workers": settings.worker_processes or usable_processors(),
            "worker_class": served_by,
            "proc_name": f"fairvisor-{settings.instance}",
            "timeout": _WORKER_TIMEOUT_S,
            "graceful_timeout": _GRACEFUL_TIMEOUT_S,
            "backlog": _BACKLOG,
            # For WSGI workers: a gateway's pool must not meet connections that closed a moment ago.
            "keepalive": max(1, settings.idle_timeout_ms // 1000),
            "worker_connections": settings.max_connections + _DESCRIPTORS_BESIDE_CONNECTIONS,
            "umask": _SOCKET_UMASK,
            "worker_tmp_dir": str(
                SHM_DIR
            ),  # the heartbeat: a file system that is slow or read-only must not stop it
            "loglevel": settings.log_level,
            "logger_class": Log,
            "control_socket_disable": True,
            **wsgi_limits(settings),
            "on_starting": _on_starting,
            "pre_exec": _pre_exec,
            "child_exit": _child_exit,
            "post_fork": _post_fork,
            "worker_exit": _worker_exit,
            "on_exit": _on_exit,
        }
        for name, value in choices.items():
            if name in self.cfg.settings:  # newer gunicorns have settings that older ones lack
                self.cfg.set(name, value)

    def load(self) -> Service | Application | Proxy:
        """What a worker serves; called in each worker, after the fork."""
        settings = self.settings
        waits = settings.worker_class == EDGE
        self.beside = make_beside(settings, self.segment)
        if settings.mode == PROXY:
            proxy = make_proxy(settings, self.segment, self.beside)
            proxy.health.lame_duck = self.lame_duck
            self._serve_admin(self.beside)
            return proxy
        service = make_service(settings, self.segment, self.beside, can_wait=waits)
        service.health.lame_duck = self.lame_duck
        self._serve_admin(self.beside)
        if waits:
            return service
        if self.side_sockets:
            serve_in_thread(self.side_sockets, service.health, limits_of(settings), read_now)
        return Application(service, read_now)

    def open_admin(self) -> None:
        """Open the operators' listener, or open it again when its file is gone. Decisions go on without it."""
        bind = self.settings.admin_address
        if bind is None or (self.admin is not None and self.admin.is_there):
            return
        opened = open_or_tell(bind, self.publisher.notes, read_now())
        if opened is not None and self.admin is not None:
            self.admin.socket.close()
        self.admin = opened or self.admin

    def _serve_admin(self, beside: Beside) -> None:
        """Answer operators, in a worker."""
        settings, bind = self.settings, self.settings.admin_address
        if bind is None:
            return
        api = Admin(settings.instance, self.segment, beside.publisher, beside.active, beside.audit)
        tokens = AdminTokens(settings.admin_token, settings.admin_tokens_file)
        self.operators = Operators(
            bind,
            self.admin,
            lambda listener: AdminServer(listener, api, tokens, read_now),
            lambda: beside.leads,
            beside.publisher.notes,
            read_now,
            Counter(self.segment, THREAD_FAILURES, "admin-keeper").add,
        )
        self.operators.start()

    def reload(self) -> None:
        """SIGHUP: read secrets and the bundle file again, then restart the workers."""
        super().reload()
        self.publisher.records.record("reload", actor.edge("HUP"), read_now())
        self._read_secrets()
        self.open_admin()
        self.publisher.read_file()

    def _read_secrets(self) -> None:
        """Take over what the files of secrets hold now: nothing else can have changed. A wrong one changes nothing."""
        try:
            self.settings = self._read_settings()
        except SettingsError as error:
            _log.error("the secrets stay as they are: %s", error)
            return
        self.publisher.use(self.settings)
        self._log.use(self.settings)  # no line shows the new ones either


def warn_again(publisher: Publisher, environ: Mapping[str, str]) -> None:
    """Log what is odd about the active bundle under the settings of this start: it was published under others."""
    active = publisher.current()
    if active is None:
        return
    version, data = active.about.version, verify_signature(active.original(), ())
    active.close()
    try:
        warnings = parse(data, wall_ns=read_now().wall_ns, environ=environ).warnings
    except BundleInvalid as invalid:
        _log.error("the active bundle %s is not valid under these settings: %s", version, invalid)
        return
    for warning in warnings:
        _log.warning("bundle %s: %s", version, warning)


def wsgi_limits(settings: Settings) -> Mapping[str, int]:
    """Return what gunicorn's own parser accepts. Its defaults are smaller than a gateway's: a long token or path would
    not pass."""
    return {"limit_request_line": _MAX_REQUEST_LINE, "limit_request_field_size": settings.max_head}


def check_side(settings: Settings, served_by: type[Worker], handed: Sequence[Handed] = ()) -> None:
    """Raise SettingsError where there is a socket for probes, and the worker class leaves no thread for it."""
    wanted = [str(settings.health_bind)] if settings.health_bind is not None else []
    wanted += [f"fd://{each.descriptor}" for each in handed if each.is_health]
    if wanted and any(base.__module__ in _GREEN for base in served_by.__mro__):
        raise SettingsError(
            f"FAIRVISOR_HEALTH_BIND: {wanted[0]} is wrong: not with FAIRVISOR_WORKER_CLASS="
            f"{settings.worker_class}, which has no threads"
        )


def worker_class(name: str) -> type[Worker]:
    """The gunicorn worker class of a setting. Raises SettingsError when there is none, or it cannot be imported."""
    if name == EDGE:
        return EdgeWorker
    try:
        found = load_class(MEINHELD if name == "meinheld" else name)
    except Exception as error:  # whatever importing somebody else's module raises
        raise _no_worker_class(name, _last_line(error)) from None
    if not (isinstance(found, type) and issubclass(found, Worker)):
        raise _no_worker_class(name, "it is not a gunicorn worker class")
    return found


def _no_worker_class(name: str, why: str) -> SettingsError:
    return SettingsError(
        f"FAIRVISOR_WORKER_CLASS: {name!r} is wrong: allowed are edge, meinheld (where it is installed) and what "
        f"gunicorn can load ({why})"
    )


def _last_line(error: Exception) -> str:
    """What an exception says, without the traceback that gunicorn puts into its message."""
    return str(error).rstrip("]\n ").rpartition("\n")[2]


def claim(segment: Segment, replaces: str) -> None:
    """Become the master of this instance. Raises SegmentError when another one lives, unless it is the one that
    started this one in its place (`replaces`, its pid, on USR2)."""
    _refuse_second(segment, replaces)
    words = segment.table
    words.word_set(Word.MASTER_START, start_time(os.getpid()))
    words.word_set(Word.MASTER_PID, os.getpid())


def refuse_second(directory: InstanceMemory, replaces: str) -> None:
    """Raises SegmentError when a master of this instance lives: asked before anything of it is touched."""
    try:
        segment = Segment.attach(directory)
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


def _on_starting(server: Any) -> None:
    """Open the sockets, in gunicorn's place, which knows no names of them."""
    master = server.app
    master.listeners = open_listeners(server.cfg, server.log, master.settings, master.handed)
    server.LISTENERS = [*master.listeners.requests, *master.listeners.health]
    be_lame_before_stopping(server, master.lame_duck, master.settings.lame_duck_s)
    server.systemd = from_systemd(environment()) > 0  # whose unix sockets are not removed at the end


def _pre_exec(server: Any) -> None:
    """Hand the sockets to the master that is started in this one's place (USR2), by name."""
    server.cfg.env_orig.update(names_of(server.app.listeners, server.app.settings))


def _post_fork(server: Any, worker: Any) -> None:
    """Part the sockets: those for requests, which the worker knows, and those for probes."""
    listeners = worker.app.listeners
    worker.sockets = listeners.requests
    worker.app.side_sockets = [listener.sock for listener in listeners.health]
    worker.init_signals = partial(take_signals, worker.init_signals, server.SIG_QUEUE)
    if worker.age > server.cfg.workers:
        worker.init_process = partial(_boot_or_leave, worker, worker.init_process)


def _boot_or_leave(worker: Any, boot: Callable[[], None]) -> None:
    """Boot a worker that takes another one's place.

    gunicorn stops everything when a worker does not boot. At the start that is right; later the machine is short of
    descriptors or memory, the other workers serve, and the master tries again.
    """
    try:
        boot()
    except (OSError, MemoryError) as error:
        if worker.booted:
            raise
        _log.error("a new worker cannot start, another one is tried: %s", error)
        threading.Event().wait(_BOOT_AGAIN_S)
        sys.exit(1)


def _worker_exit(server: Any, worker: Any) -> None:
    """A worker is about to end. gunicorn also calls this in the master, for a worker that it could not signal."""
    operators, beside = worker.app.operators, worker.app.beside
    if operators is not None:
        operators.stop()
    if beside is not None:
        beside.stop()


def _on_exit(server: Any) -> None:
    """Every worker is gone: what they counted last is saved as well."""
    master = server.app
    if master.admin is not None:
        master.admin.close()
    Snapshots(master.segment.directory, master.publisher.state).save(master.segment)
    master.publisher.records.record("stop", actor.edge("stop"), read_now())
    write_pending(master.settings, master.segment, master.publisher.records, read_now())


def _child_exit(server: Any, worker: Any) -> None:
    """A worker is gone, by itself or killed: its seat is free."""
    if isinstance(worker, EdgeWorker):
        worker.board.give_back(worker.seat)
    if server.LISTENERS and len(server.WORKERS) < server.num_workers:  # neither a stop nor one too many
        Counter(worker.app.segment, WORKER_RESTARTS).add()
