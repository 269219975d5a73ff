"""The chain of an audit log: each line names the line before by its hash, so that a change to the log shows.

Three fields are added at the end of a line, `chain`, `seq` and `prev`, and two before them where there is a reason:

    {"time": ..., "worker": 4711, "lost": 3, "torn": 17, "chain": "file-9f86d081884c", "seq": 12, "prev": "sha256:…"}

`seq` counts the lines of a chain from 1. `prev` is the hash of the line with the number before, over its exact bytes
without the line end; null in the first line. It is SHA-256 (FIPS 180-4), or HMAC-SHA256 (RFC 2104) where there is a
key. `torn` is how many bytes are between the line before and this one: the beginning of a line whose writer was
killed, or found the disk full. The hash covers them too: it is that of the line's hash, a newline and these bytes.
`lost` counts the events before it that are in no line.

Where there is a key, a line ends with `mac`, the HMAC of all that is before it. Without that, whoever can write the
file could write the next line: the hash of the last one is in the head, and in the `prev` of a line that was cut off.

A `Head` says where a chain has got to; the next line continues from it, in whichever file and process. It is kept as
text with a checksum for each key: while the key is replaced, writers that know only the earlier one go on with it.
This module knows lines and hashes, and neither files nor what lines say.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from fairvisor.secret_values import encoded, is_one_of

HEAD_BYTES: Final = 512  # of a head as text, padded: it replaces another one in place, also on a full disk
OF_FILE: Final = "file"
OF_PROCESS: Final = "process"
_LINE_END: Final = b"}\n"
_MAC: Final = b',"mac":'


class Head(NamedTuple):
    """The last line of a chain: its number, its hash and where it ends. The next line reports `lost` events."""

    chain: str
    seq: int = 0
    digest: str = ""
    lost: int = 0
    device: int = 0
    inode: int = 0
    end: int = 0


class Link(NamedTuple):
    """What a line says of its place in a chain; `prev` is "" in the first line."""

    chain: str
    seq: int
    prev: str
    torn: int
    lost: int
    mac: str


def keys_of(secret: Sequence[str]) -> tuple[bytes, ...]:
    """Return the key of a chain from the setting, b"" if it is not set; and the earlier one while it is replaced."""
    return encoded(secret) or (b"",)


def begin(kind: str) -> Head:
    """Return the head of a new chain, of a `kind` (a file's or a process's)."""
    return Head(f"{kind}-{secrets.token_hex(6)}")


def digest(key: bytes, data: bytes) -> str:
    """Return the hash of these bytes, as `prev` has it."""
    if key:
        return "hmac-sha256:" + hmac.digest(key, data, "sha256").hex()
    return "sha256:" + hashlib.sha256(data).hexdigest()


def over(key: bytes, before: str, torn: bytes) -> str:
    """Return the `prev` of a line that follows the one with the hash `before`, with `torn` between them."""
    return digest(key, before.encode("ascii") + b"\n" + torn) if torn else before


def link(
    head: Head, lines: Sequence[bytes], key: bytes, torn: bytes = b"", lost: int = 0
) -> tuple[list[bytes], list[str]]:
    """Return lines with their places in the chain, and the hash of each. Each is a JSON object and a newline."""
    linked, digests = [], []
    before, seq = over(key, head.digest, torn), head.seq
    more = b""  # of the first line
    if lost:
        more += b',"lost":%d' % lost
    if torn:
        more += b',"torn":%d' % len(torn)
    chain = head.chain.encode("ascii")
    for line in lines:
        assert line.endswith(_LINE_END), "a line is a JSON object and a newline"
        seq += 1
        prev = b'"%b"' % before.encode("ascii") if before else b"null"
        text = b'%b%b,"chain":"%b","seq":%d,"prev":%b' % (line[:-2], more, chain, seq, prev)
        whole = b'%b%b"%b"}' % (text, _MAC, digest(key, text).encode("ascii")) if key else text + b"}"
        before = digest(key, whole)
        linked.append(whole + b"\n")
        digests.append(before)
        more = b""
    return linked, digests


def is_authentic(line: bytes, *keys: bytes) -> bool:
    """Return whether the `mac` of a line was made with one of the keys. No other hash is made of a text like the one
    before it: they end in a brace, or begin with the name of the hash."""
    text, _, mac = line.rpartition(_MAC)
    return is_one_of(mac, [b'"%b"}' % digest(key, text).encode("ascii") for key in keys if key])


def link_of(line: bytes) -> Link | None:
    """Return the chain fields of a line, or None if it has none."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return link_in(document) if isinstance(document, dict) else None


def link_in(document: Mapping[str, Any]) -> Link | None:
    """Return the chain fields of a parsed line, or None if it has none."""
    chain, seq, prev = document.get("chain"), document.get("seq"), document.get("prev")
    torn, lost, mac = document.get("torn", 0), document.get("lost", 0), document.get("mac", "")
    if not isinstance(chain, str) or not isinstance(prev, str | None) or not isinstance(mac, str):
        return None
    if type(seq) is not int or type(torn) is not int or type(lost) is not int:
        return None
    return Link(chain, seq, prev or "", torn, lost, mac)


def follow(head: Head, found: bytes, key: bytes, *earlier: bytes) -> tuple[Head, bytes]:
    """Return the head after the lines in `found` that continue its chain, and the bytes after those lines.

    There are such lines when a writer was killed after it wrote them and before it updated the head. Where there is a
    key, they must have been written with it or an earlier one.
    """
    while found:
        line, _, rest = found.partition(b"\n")
        place = link_of(line)
        if place is None or (place.chain, place.seq, place.prev) != (head.chain, head.seq + 1, head.digest):
            break
        if key and not is_authentic(line, key, *earlier):
            break
        head, found = head._replace(seq=place.seq, digest=digest(key, line), lost=0), rest
    return head, found


def pack(head: Head, *keys: bytes) -> bytes:
    """Return a head as text, HEAD_BYTES long, for all that know one of the keys."""
    text = orjson.dumps(head._asdict())
    sums = [digest(key, text) for key in keys]
    return orjson.dumps({"head": head._asdict(), "sums": sums}).ljust(HEAD_BYTES - 1) + b"\n"


def unpack(data: bytes, *keys: bytes) -> Head | None:
    """Return the head in a text, or None if there is none that was made with one of the keys."""
    try:
        document = orjson.loads(data)
        head = Head(**document["head"])
        sums = [str(each).encode() for each in document["sums"]]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    text = orjson.dumps(head._asdict())
    known = [digest(key, text).encode() for key in keys]
    return head if any(is_one_of(each, known) for each in sums) else None
