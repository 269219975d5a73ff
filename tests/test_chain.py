"""The chain of the audit log: which line names which, through rotation, crashes, full disks and several writers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from test_linefile import append_all, ends_here, largest_file

from fairvisor import chain
from fairvisor.chain import Head
from fairvisor.linefile import CHAIN_SUFFIX, LineFile, PartlyWritten, read_head

KEY = b"a key of this many bytes, or more"


def line(text: str) -> bytes:
    return json.dumps({"text": text}, separators=(",", ":")).encode() + b"\n"


def links(data: bytes) -> list[tuple[int, str]]:
    """The number and the text of each whole line that is one of a chain."""
    found = [json.loads(each) for each in data.splitlines() if chain.link_of(each)]
    return [(each["seq"], each["text"]) for each in found]


def assert_chained(lines: Sequence[bytes], key: bytes = b"") -> None:
    """Each line names the one before it, by its exact bytes."""
    before = ""
    for number, each in enumerate(lines, 1):
        link = chain.link_of(each)
        assert link is not None
        assert (link.seq, link.prev, link.torn) == (number, before, 0)
        before = chain.digest(key, each)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.log"


def test_a_line_has_the_hash_of_the_line_before_which_anybody_can_compute(path: Path) -> None:
    LineFile(path, b"").append([line("one"), line("two")])
    one, two = path.read_bytes().splitlines()
    assert json.loads(one)["prev"] is None
    assert json.loads(two)["prev"] == "sha256:" + hashlib.sha256(one).hexdigest()


def test_the_hash_is_made_with_the_key_where_there_is_one(path: Path) -> None:
    LineFile(path, KEY).append([line("one"), line("two")])
    assert_chained(path.read_bytes().splitlines(), KEY)
    assert b'"prev":"hmac-sha256:' in path.read_bytes()


def test_a_line_with_a_key_proves_itself(path: Path) -> None:
    LineFile(path, KEY).append([line("one")])
    one = path.read_bytes().rstrip()
    assert chain.is_authentic(one, b"another key", KEY)
    assert not chain.is_authentic(one, b"another key")
    assert not chain.is_authentic(one.replace(b"one", b"two"), KEY)
    assert not chain.is_authentic(one, b"")


def test_a_line_that_a_killed_writer_made_with_the_earlier_key_is_of_the_chain(path: Path) -> None:
    LineFile(path, b"earlier").append([line("one")])
    noted = path.with_name(path.name + CHAIN_SUFFIX).read_bytes()
    LineFile(path, b"earlier").append([line("two")])
    path.with_name(path.name + CHAIN_SUFFIX).write_bytes(noted)
    LineFile(path, KEY, b"earlier").append([line("three")])
    assert links(path.read_bytes()) == [(1, "one"), (2, "two"), (3, "three")]


def test_a_chain_goes_on_after_a_rotation_and_in_another_process(path: Path) -> None:
    log = LineFile(path, b"")
    log.append([line("one")])
    path.rename(path.with_name("audit.log.1"))
    log.append([line("two")])
    path.rename(path.with_name("audit.log.2"))
    LineFile(path, b"").append([line("three")])
    files = [path.with_name("audit.log.1"), path.with_name("audit.log.2"), path]
    assert_chained(b"".join(file.read_bytes() for file in files).splitlines())


def test_the_chain_of_several_processes_is_one_whatever_rotates_meanwhile(path: Path) -> None:
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            with ends_here():
                log = LineFile(path, KEY)
                for number in range(40):
                    append_all(log, [line(f"{child}-{number}-{each}") for each in range(20)])
        children.append(pid)
    rotated = []
    for number in range(20):
        LineFile(path, KEY).append([line("rotate")])
        rotated.append(path.with_name(f"audit.log.{number}"))
        path.rename(rotated[-1])
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    files = [*rotated, *([path] if path.exists() else [])]
    lines = b"".join(file.read_bytes() for file in files).splitlines()
    assert len(lines) == 4 * 40 * 20 + 20
    assert_chained(lines, KEY)


def test_a_line_that_a_full_disk_cut_short_is_vouched_for_by_the_next_one(path: Path) -> None:
    log = LineFile(path, b"")
    log.append([line("one")])
    size = path.stat().st_size
    with largest_file(size + 20), pytest.raises(PartlyWritten) as caught:
        log.append([line("two")])
    assert caught.value.lines == 0
    log.append([line("two")])
    one, torn, two = path.read_bytes().splitlines()
    link = chain.link_of(two)
    assert link is not None
    assert (link.seq, link.torn, len(torn)) == (2, 20, 20)
    assert link.prev == chain.over(b"", chain.digest(b"", one), torn)


def test_a_line_without_its_line_end_is_whole(path: Path) -> None:
    log = LineFile(path, b"")
    log.append([line("x" * chain.HEAD_BYTES)])
    head = Head("file-389a0354e310", 1, "sha256:" + "0" * 64)
    whole = len(chain.link(head, [line("two")], b"")[0][0])
    with largest_file(path.stat().st_size + whole - 1):
        log.append([line("two")])
    log.append([line("three")])
    assert_chained(path.read_bytes().splitlines())


def test_lines_of_a_writer_that_was_killed_before_it_noted_them_are_of_the_chain(path: Path) -> None:
    log = LineFile(path, KEY)
    log.append([line("one")])
    noted = path.with_name(path.name + CHAIN_SUFFIX).read_bytes()
    log.append([line("two"), line("three")])
    path.with_name(path.name + CHAIN_SUFFIX).write_bytes(noted)
    LineFile(path, KEY).append([line("four")])
    assert_chained(path.read_bytes().splitlines(), KEY)


@pytest.mark.parametrize("cut", range(1, 100, 7))
def test_a_writer_that_was_killed_within_a_line_leaves_one_that_is_vouched_for(path: Path, cut: int) -> None:
    log = LineFile(path, b"")
    log.append([line("one")])
    noted = path.with_name(path.name + CHAIN_SUFFIX).read_bytes()
    log.append([line("two"), line("three")])
    os.truncate(path, path.stat().st_size - cut)
    path.with_name(path.name + CHAIN_SUFFIX).write_bytes(noted)
    LineFile(path, b"").append([line("four")])
    lines = path.read_bytes().splitlines()
    if cut == 1:  # only the line end is missing
        assert_chained(lines)
        return
    link = chain.link_of(lines[-1])
    assert link is not None
    assert (link.seq, link.torn) == (3, len(lines[-2]))


def test_what_was_in_the_file_before_the_chain_begins_is_left_as_it_is(path: Path) -> None:
    path.write_bytes(b'{"text":"old"}\n{"text":"hal')
    LineFile(path, b"").append([line("one")])
    old, half, one = path.read_bytes().splitlines()
    assert (old, half) == (b'{"text":"old"}', b'{"text":"hal')
    assert_chained([one])


@pytest.mark.parametrize("wrong", [b"", b"{}", b"\0" * 512, b'{"head":{},"sums":[""]}'])
def test_where_nobody_knows_where_the_chain_has_got_to_another_one_begins(path: Path, wrong: bytes) -> None:
    LineFile(path, b"").append([line("one")])
    path.with_name(path.name + CHAIN_SUFFIX).write_bytes(wrong)
    LineFile(path, b"").append([line("two")])
    one, two = map(chain.link_of, path.read_bytes().splitlines())
    assert one is not None
    assert two is not None
    assert one.chain != two.chain
    assert two.seq == 1


def test_a_chain_is_not_continued_with_another_key(path: Path) -> None:
    LineFile(path, KEY).append([line("one")])
    assert read_head(path, b"") is None
    LineFile(path, b"").append([line("two")])
    assert [seq for seq, _ in links(path.read_bytes())] == [1, 1]


def test_the_next_line_tells_how_many_events_were_lost_also_in_another_process(path: Path) -> None:
    log = LineFile(path, KEY)
    log.lose(3)
    log.append([line("one"), line("two")])
    log.lose(4)
    log.close()
    LineFile(path, KEY).append([line("three")])
    LineFile(path, KEY).append([line("four")])
    lines: list[dict[str, Any]] = [json.loads(each) for each in path.read_bytes().splitlines()]
    assert [each.get("lost") for each in lines] == [3, None, 4, None]


def test_where_the_chain_cannot_be_noted_nothing_is_written(path: Path) -> None:
    path.with_name(path.name + CHAIN_SUFFIX).mkdir()
    with pytest.raises(PartlyWritten) as caught:
        LineFile(path, b"").append([line("one")])
    assert caught.value.lines == 0
    assert path.read_bytes() == b""


def test_each_process_has_a_chain_of_its_own_in_a_pipe(path: Path) -> None:
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    logs = [LineFile(path, b""), LineFile(path, b"")]
    texts = [line(f"{number} {'x' * 300}") for number in range(20)]
    for log in logs:
        log.append(texts)
        log.append([line("last")])
    lines = os.read(reader, 1 << 16).splitlines()
    os.close(reader)
    assert_chained(lines[:21])
    assert_chained(lines[21:])
    names = {json.loads(each)["chain"] for each in lines}
    assert len(names) == 2
    assert all(name.startswith(chain.OF_PROCESS) for name in names)


def test_a_head_is_what_was_packed_and_nothing_else() -> None:
    head = Head("file-1", 7, "sha256:" + "0" * 64, 2, 3, 4, 5)
    data = chain.pack(head, KEY)
    assert len(data) == chain.HEAD_BYTES
    assert chain.unpack(data, KEY) == head
    assert chain.unpack(data.replace(b'"seq":7', b'"seq":8'), KEY) is None
    assert chain.unpack(chain.pack(head, b""), KEY) is None


def test_the_longest_head_with_two_keys_has_room() -> None:
    most = 2**64 - 1
    head = Head("file-389a0354e310", most, chain.digest(KEY, b""), most, most, most, most)
    data = chain.pack(head, KEY, b"earlier")
    assert len(data) == chain.HEAD_BYTES
    assert chain.unpack(data, b"earlier") == chain.unpack(data, KEY) == head


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"chain":1,"seq":1,"prev":null}', b'{"chain":"a","seq":"1","prev":null}',
     b'{"chain":"a","seq":1,"prev":1}', b'{"chain":"a","seq":true,"prev":null}', b'{"seq":1,"prev":null}',
     b'{"chain":"a","seq":1,"prev":null,"torn":"x"}'],
)  # fmt: skip
def test_what_is_no_line_of_a_chain(data: bytes) -> None:
    assert chain.link_of(data) is None
