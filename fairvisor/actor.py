"""Who did something, as the audit log names them: `actor`, and `reason` where one was given.

The `kind` of an actor says how much its name is worth. A `user` is what the kernel says of the other end of a unix
socket. A `token` is known by a secret of its own, a `secret` is one that several may know. A `file` is named by its
owner and what it holds, `edge` is this program itself. What a client says of itself is set apart in `claimed`. This
module knows names, not what was done.
"""

from __future__ import annotations

import hashlib
import os
import pwd
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

from fairvisor.clock import NS_PER_S

MAX_REASON: Final = 500  # characters
MAX_NAME: Final = 64  # characters of a name that a client claims
REASON: Final = "reason"  # names of what a client may say of itself
CLAIMS: Final = ("as", "sudo_user")


class By(NamedTuple):
    """Who acts, and why."""

    actor: Mapping[str, Any]
    reason: str = ""

    def fields(self) -> dict[str, object]:
        """Return the fields of an audit line."""
        return {"actor": self.actor, **({"reason": self.reason} if self.reason else {})}


PROGRAM: Final = By({"kind": "edge", "name": "program"})


def edge(what: str) -> By:
    """Return the edge itself as the actor; `what` says why it acts."""
    return By({"kind": "edge", "name": what})


def user(uid: int) -> By:
    """Return the user of a process, as the kernel knows it."""
    return By({"kind": "user", "name": _user_name(uid), "uid": uid})


def token(name: str, address: str) -> By:
    """Return the holder of a token, who connects from an address."""
    return By({"kind": "token", "name": name, "address": address})


def secret(name: str, address: str) -> By:
    """Return the sender of a shared secret; `address` is "" on a unix socket."""
    return By({"kind": "secret", "name": name, "address": address})


def file(path: Path, data: bytes) -> By:
    """Return the owner of a file, with its modification time and the SHA-256 of the bytes that were read."""
    actor: dict[str, Any] = {"kind": "file", "name": str(path), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        status = path.stat()
    except OSError:  # removed since it was read
        return By(actor)
    changed = datetime.fromtimestamp(status.st_mtime_ns // NS_PER_S, timezone.utc)
    owner = {"uid": status.st_uid, "user": _user_name(status.st_uid)}
    return By({**actor, **owner, "modified": f"{changed:%Y-%m-%dT%H:%M:%SZ}"})


def claiming(who: By, said: Mapping[str, str]) -> By:
    """Return the actor with the claims of the client: `reason`, `as`, `sudo_user`. Raises ValueError."""
    reason = said.get(REASON, "")
    if len(reason) > MAX_REASON:
        raise ValueError(f"the reason has {len(reason)} characters: at most {MAX_REASON} are taken")
    claimed = {name: said[name] for name in CLAIMS if said.get(name)}
    for name, value in claimed.items():
        if len(value) > MAX_NAME or not value.isprintable():
            raise ValueError(
                f"{name} is {value[:MAX_NAME]!r}: allowed are up to {MAX_NAME} printable characters"
            )
    return By({**who.actor, "claimed": claimed} if claimed else who.actor, reason)


def myself() -> By:
    """Return the user of this process."""
    return user(os.getuid())


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user of a container, or of another machine
        return str(uid)
