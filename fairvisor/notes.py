"""What goes wrong or went wrong, where every process of the instance can read it.

A note is a small text in a file of its own in the instance's directory in shared memory: the state directory may be the
very thing that is broken. It is there as long as what it tells is so: whoever finds a fault puts the note, whoever
finds it gone drops it. This module does not know what notes say.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

import orjson

from fairvisor.clock import Now
from fairvisor.memory import InstanceMemory

STATE_DIR: Final = "state_dir"
BUNDLE_FILE: Final = "bundle_file"
SNAPSHOT: Final = "snapshot"
AUDIT_LOG: Final = "audit_log"
ADMIN: Final = "admin"
RELOAD: Final = "reload"  # not a fault of the moment: why the last attempt to change the bundle failed

_PREFIX: Final = "note-"

_log = logging.getLogger(__name__)


class Note(NamedTuple):
    """One note: what it says, since when (wall clock, ns), and a digest of what it is about ("" when of nothing)."""

    text: str
    since_ns: int
    about: str = ""


class Notes:
    """The notes of one instance. A note that cannot be written or read is a line in the log, never an error."""

    def __init__(self, directory: InstanceMemory) -> None:
        self._directory = directory
        self._unstored: dict[
            str, tuple[str, str]
        ] = {}  # what found no room, so that it is said once all the same
        self._told: set[str] = set()  # what was wrong with the directory itself

    def put(self, name: str, text: str, now: Now, about: str = "") -> bool:
        """Say this under `name`; False when it is said already. A fault that goes on keeps the time it began."""
        old = self.get(name)
        if (text, about) in ((old.text, old.about) if old is not None else None, self._unstored.get(name)):
            return False
        since_ns = now.wall_ns if old is None or name == RELOAD else old.since_ns
        try:
            note = orjson.dumps({"text": text, "since_ns": since_ns, "about": about})
            self._directory.write(_PREFIX + name, note)
            self._unstored.pop(name, None)
        except OSError as error:
            self._unstored[name] = (text, about)
            self._complain(f"the note {name} cannot be written", error)
        return True

    def drop(self, name: str) -> bool:
        """It is so no more; False when it was not said."""
        unstored = self._unstored.pop(name, None) is not None
        try:
            return self._directory.remove(_PREFIX + name) or unstored
        except OSError as error:
            self._complain(f"the note {name} cannot be removed", error)
            return unstored

    def get(self, name: str) -> Note | None:
        """The note of this name."""
        try:
            return Note(**orjson.loads(self._directory.read(_PREFIX + name)))
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, OSError, TypeError) as error:
            self._complain(f"the note {name} cannot be read", error)
            return None

    def all(self) -> dict[str, Note]:
        """Every note, by name."""
        found = {name: self.get(name) for name in self._names()}
        return {name: note for name, note in found.items() if note is not None}

    def faults(self) -> dict[str, Note]:
        """What is wrong at this moment, by name; empty when all is well."""
        return {name: note for name, note in self.all().items() if name != RELOAD}

    def drop_all(self) -> None:
        """Begin anew, with nothing known to be wrong."""
        for name in self._names():
            self.drop(name)

    def _names(self) -> list[str]:
        try:
            names = self._directory.names()
        except OSError as error:
            self._complain("the notes cannot be listed", error)
            return []
        return [name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX)]

    def _complain(self, what: str, error: Exception) -> None:
        """Log what is wrong with the directory, once in each process: notes are looked at very often."""
        text = f"{what}: {error}"
        if text not in self._told:
            self._told.add(text)
            _log.warning("%s", text)
