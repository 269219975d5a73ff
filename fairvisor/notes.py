"""What goes wrong or went wrong, where every process of the instance can read it.

A note is a small text under a name of its own in shared memory: the state directory may be the very thing that is
broken. It is there as long as what it tells is so: whoever finds a fault puts the note, whoever finds it gone drops it.
Notes are replaced whole, by a rename, so that no reader sees half of one. This module does not know what they say.
"""

from __future__ import annotations

import glob
import logging
import os
from typing import Final, NamedTuple

import orjson

from fairvisor.clock import Now
from fairvisor.counters.segment import SHM_DIR

STATE_DIR: Final = "state_dir"
BUNDLE_FILE: Final = "bundle_file"
SNAPSHOT: Final = "snapshot"
AUDIT_LOG: Final = "audit_log"
ADMIN: Final = "admin"
RELOAD: Final = "reload"  # not a fault of the moment: why the last attempt to change the bundle failed

_log = logging.getLogger(__name__)


class Note(NamedTuple):
    """One note: what it says, since when (wall clock, ns), and a digest of what it is about ("" when of nothing)."""

    text: str
    since_ns: int
    about: str = ""


class Notes:
    """The notes of one instance, by its segment's name."""

    def __init__(self, segment_name: str) -> None:
        self._unstored: dict[
            str, tuple[str, str]
        ] = {}  # what found no room, so that it is said once all the same
        self._prefix = f"{segment_name}+note-"  # no instance has a plus sign in its name

    def put(self, name: str, text: str, now: Now, about: str = "") -> bool:
        """Say this under `name`; False when it is said already. A fault that goes on keeps the time it began."""
        old = self.get(name)
        if (text, about) in ((old.text, old.about) if old is not None else None, self._unstored.get(name)):
            return False
        since_ns = now.wall_ns if old is None or name == RELOAD else old.since_ns
        new = SHM_DIR / f"{self._prefix}{name}.{os.getpid()}"
        try:
            fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(orjson.dumps({"text": text, "since_ns": since_ns, "about": about}))
            new.rename(SHM_DIR / (self._prefix + name))
            self._unstored.pop(name, None)
        except OSError as error:
            self._unstored[name] = (text, about)
            _log.warning("cannot leave a note in %s: %s", SHM_DIR, error)
        return True

    def drop(self, name: str) -> bool:
        """It is so no more; False when it was not said."""
        self._unstored.pop(name, None)
        try:
            (SHM_DIR / (self._prefix + name)).unlink()
        except FileNotFoundError:
            return False
        return True

    def get(self, name: str) -> Note | None:
        """The note of this name."""
        try:
            return Note(**orjson.loads((SHM_DIR / (self._prefix + name)).read_bytes()))
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, OSError, TypeError) as error:
            _log.warning("note %s cannot be read: %s", name, error)
            return None

    def all(self) -> dict[str, Note]:
        """Every note, by name."""
        names = [path.name[len(self._prefix) :] for path in SHM_DIR.glob(f"{glob.escape(self._prefix)}*")]
        found = {name: self.get(name) for name in sorted(names) if "." not in name}
        return {name: note for name, note in found.items() if note is not None}

    def faults(self) -> dict[str, Note]:
        """What is wrong at this moment, by name; empty when all is well."""
        return {name: note for name, note in self.all().items() if name != RELOAD}

    def drop_all(self) -> None:
        """Begin anew, with nothing known to be wrong."""
        for path in SHM_DIR.glob(f"{glob.escape(self._prefix)}*"):
            path.unlink(missing_ok=True)
