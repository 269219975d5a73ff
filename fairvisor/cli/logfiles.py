"""The files of an audit log: the one that is written, and those that rotation has set aside, also compressed.

It gives lines in the order in which they were written, and knows nothing of what is done with them.
"""

from __future__ import annotations

import glob
import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

import orjson

from fairvisor.chain import link_in
from fairvisor.errors import FairvisorError

GZIP: Final = ".gz"
_ROTATED: Final = re.compile(r"(?:[.-][0-9][0-9.-]*(?:\.gz)?)?")  # logrotate's numbers and dates
_LONGEST_BYTES: Final = 1 << 24  # of a line; ours have 4 KiB
_LOOKED_AT: Final = 1000  # lines from the beginning, for the first one of a chain


class _Age(NamedTuple):
    """The sort key of a file."""

    chain: str
    seq: int
    time: str
    changed: float


def files_of(path: Path) -> list[Path]:
    """Return the log at `path` and its rotated files, oldest first. Raises FairvisorError when there are none."""
    found = [
        each
        for each in path.parent.glob(f"{glob.escape(path.name)}*")
        if _ROTATED.fullmatch(each.name.removeprefix(path.name)) and not _is_being_compressed(each)
    ]
    if not found:
        raise FairvisorError(f"there is no audit log at {path}")
    return in_order(found)


def _is_being_compressed(file: Path) -> bool:
    return file.suffix == GZIP and file.with_suffix("").exists()


def in_order(files: Sequence[Path]) -> list[Path]:
    """Return files in the order in which they were written: by `seq` if they are of one chain, else by time.

    Files without a chain come first: they are older than the chain.
    """
    ages = {file: _age(file) for file in files}
    chains = {age.chain for age in ages.values() if age.chain}
    if len(chains) == 1:
        return sorted(files, key=lambda file: (ages[file].seq, ages[file].changed))
    return sorted(files, key=lambda file: (bool(ages[file].chain), ages[file].time, ages[file].changed))


def _age(file: Path) -> _Age:
    first = ""
    for line in islice(lines_of(file), _LOOKED_AT):
        document = document_of(line)
        first = first or str(document.get("time", ""))
        link = link_in(document)
        if link is not None:
            return _Age(link.chain, link.seq, first, 0.0)
    return _Age("", 0, first, file.stat().st_mtime)


def lines_of(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file, without line ends. Raises FairvisorError when it cannot be read."""
    try:
        with _opened(file) as opened:
            while line := opened.readline(_LONGEST_BYTES):
                yield line.removesuffix(b"\n")
    except (OSError, EOFError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or str(error) or "it is cut short"
        raise FairvisorError(f"{file}: {why}") from None


def _opened(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file, "rb")) if file.suffix == GZIP else file.open("rb")


def members_of(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object in a document; empty if there is none of this name."""
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def place_of(document: Mapping[str, Any]) -> str:
    """Return the policy of a line, and its rule if it has one."""
    return "/".join(str(document[name]) for name in ("policy", "rule") if document.get(name))


def key_of(document: Mapping[str, Any]) -> str:
    """Return the key of a line as people read it."""
    return ", ".join(f"{name}={value}" for name, value in members_of(document, "key").items())


def document_of(line: bytes) -> Mapping[str, Any]:
    """Return a parsed line; empty if it is no JSON object."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
