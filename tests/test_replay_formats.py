"""The logs that servers write, read without an option: a corpus in tests/replay/, and drawn requests in every format.

A case is NAME.log with NAME.json: the format that is found out, how many lines cannot be read, and each request as
[time, method, host, target, client, other headers]. Where a case needs options, they are `log_format` and `map`.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.replay import reading
from fairvisor.replay.detection import KNOWN
from fairvisor.replay.elements import LONGEST_BYTES, Elements
from fairvisor.replay.fields import Logged, Maker, read_mapping
from fairvisor.replay.files import LONGEST_LINE_BYTES, LogError, LogFile
from fairvisor.replay.formats import FORMATS, LineFormat
from fairvisor.replay.reading import NAMES, RequestLog
from fairvisor.replay.times import read_time
from fairvisor.replay.wrappings import WRAPPINGS

FOLDER = Path(__file__).parent / "replay"
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))
WHOLE = ("array", "array-of-lines", "kong-batches", "session", "spread")  # not a record a line
WRAPPED_TWICE = ("cri-haproxy",)


def read_log(path: Path, log_format: str = "", **mapping: str) -> tuple[list[Logged], RequestLog]:
    with RequestLog(str(path), log_format, mapping, Maker("x-forwarded-for")) as log:
        return list(log.requests()), log


def shown(logged: Logged) -> list[Any]:
    headers = {name: value.decode() for name, value in logged.headers.items()}
    client = headers.pop("x-forwarded-for", "")
    return [logged.wall_ns, logged.method, logged.host, logged.target, client, headers]


def expected(case: str) -> dict[str, Any]:
    wanted: dict[str, Any] = json.loads((FOLDER / f"{case}.json").read_text())
    wanted["requests"] = [[read_time(time), *rest] for time, *rest in wanted["requests"]]
    return wanted


def read_case(case: str, path: Path) -> tuple[dict[str, Any], list[list[Any]], RequestLog]:
    wanted = expected(case)
    requests, log = read_log(path, wanted.get("log_format", ""), **wanted.get("map", {}))
    return wanted, [shown(logged) for logged in requests], log


@pytest.mark.parametrize("case", CASES)
def test_a_log_is_read_as_its_server_meant_it(case: str) -> None:
    wanted, requests, log = read_case(case, FOLDER / f"{case}.log")
    assert requests == wanted["requests"]
    assert log.unreadable == wanted.get("unreadable", 0)
    if "format" in wanted:
        assert log.format == wanted["format"]


# Whatever is around a log, it says the same.


def in_members(data: bytes) -> bytes:
    """As gzip with a member for each line: what rotated logs are, joined by cat."""
    return b"".join(gzip.compress(line, mtime=0) for line in data.splitlines(keepends=True))


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "gzip members": in_members,
    "UTF-8 mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16, little": lambda data: b"\xff\xfe" + data.decode().encode("utf-16-le"),
    "UTF-16, big": lambda data: b"\xfe\xff" + data.decode().encode("utf-16-be"),
    "UTF-8 mark in gzip": lambda data: gzip.compress(b"\xef\xbb\xbf" + data, mtime=0),
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "no last line end": lambda data: data.rstrip(b"\n"),
    "empty lines first": lambda data: b"\n \n" + data,
}
SHEATHS: dict[str, Callable[[bytes], bytes]] = {
    "syslog": lambda line: b"<134>Nov  2 12:00:00 web1 nginx[7]: " + line,
    "cri": lambda line: b"2026-11-02T12:00:00.5Z stdout F " + line,
    "json": lambda line: json.dumps({"log": line.decode() + "\n", "stream": "stdout", "time": "x"}).encode(),
    "timestamps": lambda line: b"2026-11-02T12:00:00.5Z " + line,
    "compose": lambda line: b"web-1    | " + line,
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("case", CASES)
def test_a_packed_or_marked_log_is_the_same_log(case: str, packing: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(PACKINGS[packing]((FOLDER / f"{case}.log").read_bytes()))
    wanted, requests, log = read_case(case, path)
    assert requests == wanted["requests"]
    assert log.unreadable == wanted.get("unreadable", 0)


@pytest.mark.parametrize("sheath", SHEATHS)
@pytest.mark.parametrize("case", [case for case in CASES if case not in (*WHOLE, *WRAPPED_TWICE)])
def test_a_collected_log_is_the_same_log(case: str, sheath: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = (FOLDER / f"{case}.log").read_bytes().splitlines()
    path.write_bytes(b"\n".join(map(SHEATHS[sheath], lines)) + b"\n")
    wanted, requests, log = read_case(case, path)
    assert requests == wanted["requests"]
    assert log.unreadable == wanted.get("unreadable", 0)


def test_every_wrapping_is_tried() -> None:
    assert SHEATHS.keys() == WRAPPINGS.keys()


# Drawn requests, written in every format


class Drawn(NamedTuple):
    second: int
    method: str
    path: str
    query: str
    host: str
    client: str
    agent: str


def at(drawn: Drawn) -> datetime:
    return datetime(2026, 11, 2, tzinfo=timezone.utc) + timedelta(seconds=drawn.second)


def local(drawn: Drawn) -> str:
    return at(drawn).astimezone(timezone(timedelta(hours=1))).strftime("%d/%b/%Y:%H:%M:%S %z")


def target(drawn: Drawn) -> str:
    return drawn.path + ("?" + drawn.query if drawn.query else "")


def escaped(text: str) -> str:
    """As nginx writes a value."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02X}" for byte in text.encode()
    )


def hashed(text: str) -> str:
    """As HAProxy writes a value."""
    return "".join(
        chr(byte) if 32 < byte < 127 and byte not in b'#"{}|' else f"#{byte:02X}" for byte in text.encode()
    )


def combined(drawn: Drawn) -> str:
    return (
        f'{drawn.client} - - [{local(drawn)}] "{drawn.method} {target(drawn)} HTTP/1.1" 200 5 "-" '
        f'"{escaped(drawn.agent)}"'
    )


def haproxy(drawn: Drawn) -> str:
    return (
        f"{drawn.client}:4711 [{at(drawn):%d/%b/%Y:%H:%M:%S}.000] in~ be/s1 0/0/1/2/3 200 99 - - ---- 1/1/0/0/0 0/0 "
        f'{{{hashed(drawn.agent)}|}} {{}} "{drawn.method} https://{drawn.host}{hashed(target(drawn))} HTTP/2.0"'
    )


def envoy(drawn: Drawn, flags: str) -> str:
    return (
        f'[{at(drawn):%Y-%m-%dT%H:%M:%S}.000Z] "{drawn.method} {target(drawn)} HTTP/2" 200 {flags} 0 5 9 8 '
        f'"{drawn.client}" "agent" "id" "{drawn.host}" "10.0.0.2:80"'
    )


def elb(drawn: Drawn) -> str:
    return (
        f"{at(drawn):%Y-%m-%dT%H:%M:%S}.000000Z lb {drawn.client}:4711 10.0.0.1:80 0.1 0.2 0.3 200 200 0 5 "
        f'"{drawn.method} http://{drawn.host}:80{target(drawn)} HTTP/1.1" "{escaped(drawn.agent)}" - -'
    )


def twice(text: str) -> str:
    """As CloudFront writes a value."""
    return quote(text, safe="/:;=&?+,!$()*@._-'") or "-"


def cloudfront(drawn: Drawn) -> str:
    return (
        f"{at(drawn):%Y-%m-%d\t%H:%M:%S}\t{drawn.client}\t{drawn.method}\td1.example\t{twice(drawn.path)}\t"
        f"{twice(drawn.agent)}\t{twice(drawn.query)}\t{drawn.host}"
    )


def iis(drawn: Drawn) -> str:
    agent = drawn.agent.replace(" ", "+").encode("ascii", "replace").decode() or "-"
    return (
        f"{at(drawn):%Y-%m-%d %H:%M:%S} {drawn.method} {drawn.path} {drawn.query or '-'} {drawn.client} {agent} "
        f"{drawn.host}"
    )


def document(**members: Callable[[Drawn], Any]) -> Callable[[Drawn], str]:
    return lambda drawn: json.dumps({name: value(drawn) for name, value in members.items()})


CLOUDFRONT_FIELDS = (
    "#Version: 1.0\n"
    "#Fields: date time c-ip cs-method cs(Host) cs-uri-stem cs(User-Agent) cs-uri-query x-host-header\n"
)
IIS_FIELDS = "#Fields: date time cs-method cs-uri-stem cs-uri-query c-ip cs(User-Agent) cs-host\n"

# What comes before the lines, a line, and which of host and agent the format has.
WRITERS: dict[str, tuple[str, Callable[[Drawn], str], bool, bool]] = {
    "combined": ("", combined, False, True),
    "common": ("", lambda drawn: combined(drawn).partition(' "-"')[0], False, False),
    "vhost-combined": ("", lambda drawn: f"{drawn.host}:443 {combined(drawn)}", True, True),
    "vhost-common": ("", lambda drawn: f"{drawn.host} {combined(drawn)}".partition(' "-"')[0], True, False),
    "envoy": ("", lambda drawn: envoy(drawn, "-"), True, False),
    "envoy-detailed": ("", lambda drawn: envoy(drawn, '- via_upstream - "-"'), True, False),
    "haproxy": ("", haproxy, True, False),
    "elb": ("", elb, True, True),
    "alb": ("", lambda drawn: f"https {elb(drawn)} arn x", True, True),
    "w3c": (CLOUDFRONT_FIELDS, cloudfront, True, True),
    "w3c of IIS": (IIS_FIELDS, iis, True, False),
    "json of Kong": (
        "",
        document(
            request=lambda drawn: {
                "method": drawn.method,
                "uri": target(drawn),
                "headers": {"host": drawn.host, "user-agent": drawn.agent},
            },
            started_at=lambda drawn: int(at(drawn).timestamp()) * 1000,
            client_ip=lambda drawn: drawn.client,
        ),
        True,
        True,
    ),
    "json of Cloudflare": (
        "",
        document(
            EdgeStartTimestamp=lambda drawn: int(at(drawn).timestamp()) * 10**9,
            ClientIP=lambda drawn: drawn.client,
            ClientRequestHost=lambda drawn: drawn.host,
            ClientRequestMethod=lambda drawn: drawn.method,
            ClientRequestURI=target,
            ClientRequestUserAgent=lambda drawn: drawn.agent,
        ),
        True,
        True,
    ),
    "json of Caddy": (
        "",
        document(
            ts=lambda drawn: f"{at(drawn):%Y/%m/%d %H:%M:%S}.000",
            request=lambda drawn: {
                "client_ip": drawn.client,
                "method": drawn.method,
                "host": drawn.host,
                "uri": target(drawn),
                "headers": {"User-Agent": [drawn.agent]},
            },
        ),
        True,
        True,
    ),
}

UNRESERVED = "abcXYZ019-._~!$&'()*+,;=:@"
PIECE = st.text(UNRESERVED, max_size=6) | st.sampled_from(["%20", "%2F", "%25", "%C3%A9"])
PATHS = st.lists(PIECE, min_size=1, max_size=4).map(lambda pieces: "/" + "/".join(pieces).lstrip("/"))
QUERIES = st.lists(PIECE, max_size=3).map("".join).filter(lambda query: query != "-")
AGENTS = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f%"), max_size=20
).filter(lambda agent: agent == agent.strip() and agent not in ("", "-") and not agent.isspace())
DRAWN = st.builds(
    Drawn,
    st.integers(0, 10**7),
    st.sampled_from(["GET", "POST", "OPTIONS", "PROPFIND"]),
    PATHS,
    QUERIES,
    st.sampled_from(["api.example.com", "a-1.example", "192.0.2.9"]),
    st.sampled_from(["203.0.113.7", "2001:db8::7", "::1"]),
    AGENTS,
)


@pytest.mark.parametrize("name", WRITERS)
@given(drawn=st.lists(DRAWN, min_size=1, max_size=6), sheath=st.sampled_from(["", *SHEATHS]))
@settings(max_examples=25)
def test_what_is_written_in_a_format_is_read_back(
    name: str, drawn: list[Drawn], sheath: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    head, write, has_host, has_agent = WRITERS[name]
    lines = [*head.encode().splitlines(), *(write(each).encode() for each in drawn)]
    path = tmp_path_factory.mktemp("replay") / "log"
    path.write_bytes(b"\n".join(map(SHEATHS[sheath], lines) if sheath else lines))
    requests, log = read_log(path)
    assert log.format.split(" in ")[0] == name.partition(" of ")[0]
    assert log.unreadable == 0
    for logged, each in zip(requests, drawn, strict=True):
        assert logged.wall_ns == int(at(each).timestamp()) * 10**9
        assert (logged.method, logged.target) == (each.method, target(each))
        assert logged.headers["x-forwarded-for"].decode() == each.client
        assert logged.host == (each.host if has_host else "")
        if has_agent:
            assert logged.headers["user-agent"] == each.agent.encode()


def test_every_format_is_written_and_in_the_corpus() -> None:
    formats = {log_format.split(" in ")[0] for case in CASES if (log_format := expected(case).get("format"))}
    drawn = {name.partition(" of ")[0] for name in WRITERS}
    assert {*NAMES} - {"har"} == drawn
    assert {*NAMES} == formats


# JSON in one piece


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@given(st.lists(JSON, max_size=5), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_the_elements_of_an_array_are_found_wherever_the_pieces_end(
    values: list[Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    elements = Elements(1)
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    found = [each for piece in in_pieces(data, size) for each in elements.feed(piece)]
    assert [json.loads(each) for each in found] == json.loads(data)
    assert not elements.unfinished


@given(st.lists(JSON, max_size=4), st.lists(JSON, max_size=4), st.integers(1, 9))
def test_the_entries_of_an_archive_are_kept_apart_from_its_other_lists(
    entries: list[Any], pages: list[Any], size: int
) -> None:
    elements = Elements(3, "entries")
    data = json.dumps(
        {"log": {"creator": {"entries": [1]}, "pages": pages, "entries": entries, "_x": pages}}
    ).encode()
    found = [each for piece in in_pieces(data, size) for each in elements.feed(piece)]
    assert [json.loads(each) for each in found] == entries


def test_an_array_is_read_while_it_is_written() -> None:
    """What is not there yet cannot be waited for: an array of any length is read in bounded memory."""
    reader, writer = os.pipe()
    entry = b'{"ts":1793620800,"method":"GET","path":"/x"}'
    os.write(writer, b"[" + b",".join([entry] * 1100))
    with RequestLog(f"/proc/self/fd/{reader}", "", {}, Maker("x-forwarded-for")) as log:
        os.close(reader)
        requests = log.requests()
        assert next(requests).target == "/x"
        os.write(writer, b"," + entry + b"]")
        os.close(writer)
        assert sum(1 for _ in requests) == 1100


def test_an_element_that_does_not_end_is_not_held_for_ever() -> None:
    elements = Elements(1)
    list(elements.feed(b'[{"x": "'))
    with pytest.raises(ValueError, match="longer than 64 MiB"):
        for _ in range(LONGEST_BYTES // (8 << 20) + 1):
            list(elements.feed(b"y" * (8 << 20)))


@pytest.mark.parametrize(
    "size_bytes", [LONGEST_LINE_BYTES - 1, LONGEST_LINE_BYTES, 3 * LONGEST_LINE_BYTES + 7]
)
def test_of_a_line_without_end_the_beginning_is_held(size_bytes: int) -> None:
    piece = b"y" * (1 << 18)
    long = [piece] * (size_bytes // len(piece)) + [piece[: size_bytes % len(piece)]]
    lines = list(LogFile("log").lines([b"a\nb", b"b\n", *long, b"\nc\n", *long]))
    assert [line[:2] for line in lines] == [b"a", b"bb", b"yy", b"c", b"yy"]
    assert len(lines[2]) == len(lines[4]) == min(size_bytes, LONGEST_LINE_BYTES)


def test_the_format_is_found_out_from_a_bounded_part_of_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes((FOLDER / "nginx-combined.log").read_bytes() + (FOLDER / "plain.log").read_bytes() * 9)
    assert read_log(path)[1].format == "json"
    monkeypatch.setattr(reading, "_LOOKED_AT_BYTES", 10)
    assert read_log(path)[1].format == "combined"


@pytest.mark.parametrize("case", ["array", "session", "spread"])
def test_json_that_ends_in_the_middle_counts_as_far_as_it_goes(case: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes((FOLDER / f"{case}.log").read_bytes().rstrip()[:-20])
    requests, log = read_log(path)
    assert requests
    assert log.cut_short == "its JSON ends in the middle"


# What cannot be read


@pytest.mark.parametrize("name", ["", *NAMES, '$remote_addr [$time_local] "$request"'])
@pytest.mark.parametrize(
    "content",
    [b"", b"\n \n", b"no log\n", b'{"no": "request"}\n', b"[]", b'{"log": {"entries": []}}', b"#Fields: a\n"],
)
def test_a_log_of_which_nothing_can_be_read_is_an_error_in_every_format(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "log"
    for data in (content, gzip.compress(content, mtime=0), b"\xef\xbb\xbf" + content):
        path.write_bytes(data)
        with pytest.raises(LogError, match=r"/log"):
            read_log(path, name)


def test_what_is_the_matter_is_said_of_a_log_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"when": "2026-11-02T12:00:00Z", "method": "GET", "path": "/x"}\n' * 7)
    with pytest.raises(
        LogError, match=r"\(json\) could be read: 7 lines, line 1: no field is a time: \{\"when"
    ):
        read_log(path)
    (logged, *_), _ = read_log(path, when="time")
    assert logged.target == "/x"


def test_other_packings_are_named_with_the_command_that_unpacks_them(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bz2.compress(b"x"))
    with pytest.raises(LogError, match=r"`bzcat FILE \| fairvisor test"):
        read_log(path)


def test_a_mapped_column_that_a_log_does_not_have_is_named() -> None:
    with pytest.raises(LogError, match="no column 'nowhere'; it has date, time"):
        read_log(FOLDER / "cloudfront.log", nowhere="header:x")


@pytest.mark.parametrize("text", ["9999-12-31 23:59:60", "9999-12-31 23:59:59", "0001-01-01 00:00:00"])
def test_a_time_at_the_ends_of_the_calendar_is_none_in_any_zone(text: str) -> None:
    for zone in (None, ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York")):
        with pytest.raises(ValueError, match="is not a time from 1970 to 2255"):
            read_time(text, zone)


def test_the_times_of_columns_are_utc_whatever_zone_is_named() -> None:
    with RequestLog(str(FOLDER / "iis.log"), "", {}, Maker("none", zone=ZoneInfo("Asia/Tokyo"))) as log:
        assert [logged.wall_ns for logged in log.requests()] == [
            each[0] for each in expected("iis")["requests"]
        ]


def test_a_column_is_mapped() -> None:
    requests, _ = read_log(FOLDER / "cloudfront.log", **{"x-edge-location": "header:x-edge"})
    assert [logged.headers["x-edge"] for logged in requests] == [b"FRA2", b"FRA2"]


def test_lines_of_another_format_between_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = (FOLDER / "traefik.log").read_text() * 3 + (FOLDER / "plain.log").read_text()
    path.write_text(lines)
    requests, log = read_log(path)
    assert (len(requests), log.format, log.unreadable) == (3, "combined", 1)
    assert log.complaints[0].line == 4


@pytest.mark.parametrize("name", FORMATS)
def test_no_line_takes_long_whatever_is_on_it(name: str) -> None:
    """Expressions that try every way to part a line would not end in a lifetime."""
    read = LineFormat(FORMATS[name], {}, Maker("x-forwarded-for"), open_end=True).read
    for piece in (b" ", b"/", b":", b'"', b"\\", b"[", b"a b/c:d ", b'" "', b"1/2 "):
        with pytest.raises(ValueError, match="format"):
            read(b"203.0.113.7:1 [02/Nov/2026:12:00:00.0] x " + piece * 20_000)


def test_a_mapping_names_a_field_as_the_format_writes_it() -> None:
    own = '%h %l %u %t "%r" %{tenant}n'
    read = LineFormat(
        own, read_mapping(["header:x-tenant={tenant}n"]), Maker("x-forwarded-for"), open_end=False
    ).read
    logged = read(b'203.0.113.7 - - [02/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" t1')
    assert logged.headers["x-tenant"] == b"t1"


@pytest.mark.parametrize("name", [*KNOWN])
def test_a_format_that_is_named_is_read_inside_a_wrapping(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if expected(case).get("format") == name and case not in WHOLE)
    path = tmp_path / "log"
    path.write_bytes(b"\n".join(map(SHEATHS["cri"], (FOLDER / f"{case}.log").read_bytes().splitlines())))
    assert [shown(each) for each in read_log(path, name)[0]] == expected(case)["requests"]
