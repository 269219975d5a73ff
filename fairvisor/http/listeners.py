"""The sockets that the edge listens on, and which of them is for what: known by name, never by number or order.

A socket is opened by the master, handed over by systemd (sd_listen_fds(3), with the names of `FileDescriptorName=`), or
by the master that this one replaces (USR2), which passes the names on in the same variable. Requests and probes have
sockets of their own; what is not handed over is opened as the settings say. This module knows gunicorn's sockets; it
knows nothing of what is served on them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from gunicorn import sock, systemd

from fairvisor.errors import SettingsError
from fairvisor.settings import PROXY, Bind, Settings

HEALTH: Final = "health"
_NAMES: Final = "LISTEN_FDNAMES"
_FROM_MASTER: Final = "GUNICORN_FD"
_UNNAMED: Final = ("", "unknown")  # and the name of the socket unit, which systemd gives where none is set


class Handed(NamedTuple):
    """A listening socket that this process was started with."""

    descriptor: int
    is_health: bool


class Listeners(NamedTuple):
    """gunicorn's listeners: those for requests (decisions, or the proxy's clients) and those for probes."""

    requests: list[Any]
    health: list[Any]


def handed_over(environ: Mapping[str, str], settings: Settings) -> list[Handed]:
    """Return the sockets that systemd or another master handed over. SettingsError: one has an unknown name."""
    own = _own_name(settings)
    names = environ.get(_NAMES, "").split(":")
    if environ.get("GUNICORN_PID") and environ.get(_FROM_MASTER):
        descriptors = [int(number) for number in environ[_FROM_MASTER].split(",")]
        if len(names) != len(descriptors):  # the master before did not name them
            names = [HEALTH if _is_at(each, settings.health_bind) else own for each in descriptors]
    else:
        first = systemd.SD_LISTEN_FDS_START
        descriptors = list(range(first, first + from_systemd(environ)))
        if len(names) != len(descriptors):
            names = [""] * len(descriptors)
    for name in names if descriptors else ():
        if name not in (own, HEALTH, *_UNNAMED) and not name.endswith(".socket"):
            raise SettingsError(
                f"{_NAMES}: {name!r} is wrong: FileDescriptorName= of a socket may be {own} (for requests), {HEALTH} "
                "(for probes and metrics), or not set, which is for requests"
            )
    return [Handed(each, name == HEALTH) for each, name in zip(descriptors, names, strict=False)]


def from_systemd(environ: Mapping[str, str]) -> int:
    """Return how many sockets systemd handed to this process."""
    is_ours = environ.get("LISTEN_PID") == str(os.getpid())
    return int(environ.get("LISTEN_FDS", "0")) if is_ours else 0


def open_listeners(cfg: Any, log: Any, settings: Settings, handed: Sequence[Handed]) -> Listeners:
    """Take what was handed over, and open the rest. Ends the process, with a line, when one cannot be opened."""
    requests = [each for each in handed if not each.is_health]
    health = [each for each in handed if each.is_health]
    own_health = () if settings.health_bind is None else (settings.health_bind,)
    return Listeners(
        _open(cfg, log, _binds(requests) or settings.bind), _open(cfg, log, _binds(health) or own_health)
    )


def names_of(listeners: Listeners, settings: Settings) -> dict[str, str]:
    """Return the variables by which a master that replaces this one finds the sockets."""
    named = [(each, _own_name(settings)) for each in listeners.requests]
    named += [(each, HEALTH) for each in listeners.health]
    return {
        _FROM_MASTER: ",".join(str(each.fileno()) for each, _ in named),
        _NAMES: ":".join(name for _, name in named),
    }


def _own_name(settings: Settings) -> str:
    return "proxy" if settings.mode == PROXY else "decision"


def _is_at(descriptor: int, bind: Bind | None) -> bool:
    """Return whether a socket listens at this address."""
    if bind is None:
        return False
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        address = listener.getsockname()
    return bool(address == bind.path if bind.path else address[:2] == (bind.host, bind.port))


def _binds(handed: Sequence[Handed]) -> tuple[Bind, ...]:
    return tuple(Bind(descriptor=each.descriptor) for each in handed)


def _open(cfg: Any, log: Any, binds: Sequence[Bind]) -> list[Any]:
    """Open one after the other: of several, gunicorn leaves out every address if one is a descriptor."""
    before = cfg.bind
    opened = []
    try:
        for bind in binds:
            cfg.set("bind", str(bind))
            opened += sock.create_sockets(cfg, log)
    finally:
        cfg.set("bind", before)
    return opened
