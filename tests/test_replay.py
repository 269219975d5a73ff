"""Reading logs and reporting on them: every format, every kind of damage, bounded memory, and the command itself."""

from __future__ import annotations

import gzip
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from edge import bucket, bundle, policy, tokens
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.cli.main import run
from fairvisor.cli.replayed import sparkline
from fairvisor.counters.sketch import Frequent, SpaceSaving, merged
from fairvisor.errors import RequestError
from fairvisor.replay.clock import LogClock, in_order
from fairvisor.replay.documents import DocumentFormat
from fairvisor.replay.fields import Logged, Maker, read_mapping
from fairvisor.replay.files import LogError
from fairvisor.replay.findings import CELLS, Timeline
from fairvisor.replay.formats import COMBINED, FORMATS, LineFormat, unescaped
from fairvisor.replay.reading import KEPT_COMPLAINTS, RequestLog
from fairvisor.replay.times import Times, read_time

Captured = pytest.CaptureFixture[str]

MOMENT_NS = 1_772_411_696_000_000_000  # 2026-03-02T00:34:56Z
COMBINED_LINE = (
    '203.0.113.7 - frank [02/Mar/2026:01:34:56 +0100] "GET /v1/x?a=1 HTTP/1.1" 200 2326 '
    '"https://shop.example.com/" "curl/8.5.0"'
)
ENVOY_LINE = (
    '[2026-03-02T00:34:56.000Z] "GET /v1/x?a=1 HTTP/2" 200 - 0 5 9 8 "203.0.113.7" "curl/8.5.0" '
    '"6f1c" "api.example.com" "10.0.0.2:80"'
)
CADDY_DOCUMENT: dict[str, Any] = {
    "level": "info",
    "ts": 1772411696.0,
    "logger": "http.log.access",
    "msg": "handled request",
    "request": {
        "remote_ip": "10.0.0.9",
        "remote_port": "41342",
        "client_ip": "203.0.113.7",
        "proto": "HTTP/2.0",
        "method": "GET",
        "host": "api.example.com:443",
        "uri": "/v1/x?a=1",
        "headers": {"User-Agent": ["curl/8.5.0"], "X-Api-Key": ["k1"]},
    },
    "status": 200,
}


def maker(host: str = "") -> Maker:
    return Maker("x-forwarded-for", host)


def read_all(path: Path, log_format: str = "", **mapping: str) -> tuple[list[Logged], RequestLog]:
    with RequestLog(str(path), log_format, mapping, maker()) as log:
        return list(log.requests()), log


def client_of(logged: Logged) -> bytes:
    return logged.headers["x-forwarded-for"]


# moments


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-02T00:34:56Z",
        "2026-03-02T00:34:56.000000000Z",
        "2026-03-02 00:34:56",
        "2026-03-02T01:34:56+01:00",
        "2026-03-01T19:34:56-0500",
        "2026-03-02T01:34:56+01",
        "2026-03-02 00:34:56 UTC",
        "2026-03-02 00:34:56,000",
        "2026/03/02 00:34:56",
        "2026/03/02 00:34:56.000000000000",
        "02/Mar/2026:00:34:56.000",
        "02/Mar/2026 01:34:56.0000000000 +0100",
        "Mon, 02 Mar 2026 00:34:56 GMT",
        "02/Mar/2026:00:34:56 +0000",
        "02/Mar/2026:06:04:56 +0530",
        "1772411696",
        "1772411696.000",
        "1772411696000",
        "1772411696000000",
        "1772411696000000000",
    ],
)
def test_every_spelling_of_a_moment_is_read(text: str) -> None:
    assert read_time(text) == MOMENT_NS


def test_a_time_without_a_zone_is_of_the_zone_that_is_named() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert read_time("02/Mar/2026:01:34:56", berlin) == MOMENT_NS
    assert read_time("02/Mar/2026:00:34:56 +0000", berlin) == MOMENT_NS
    assert read_time("1772411696", berlin) == MOMENT_NS
    assert read_time("02/Jul/2026:02:00:00", berlin) == read_time("2026-07-02T00:00:00Z")


def test_an_hour_that_is_written_twice_is_read_as_two() -> None:
    """The 25 hours of a day on which clocks are put back, a line every ten minutes, neighbours out of order."""
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 10, 24, 22, tzinfo=timezone.utc)
    moments = [start + timedelta(minutes=10 * number) for number in range(25 * 6)]
    moments = [
        each for first, second in zip(moments[::2], moments[1::2], strict=True) for each in (second, first)
    ]
    read = Times(berlin).read
    local = [moment.astimezone(berlin).strftime("%d/%b/%Y:%H:%M:%S").encode() for moment in moments]
    assert [read(text) for text in local] == [int(moment.timestamp()) * 10**9 for moment in moments]


def test_fractions_of_a_second_are_kept() -> None:
    assert read_time("2026-03-02T00:34:56.123456789Z") == MOMENT_NS + 123_456_789
    assert read_time("1772411696.5") == MOMENT_NS + 500_000_000
    assert read_time("1772411696000.25") == MOMENT_NS + 250_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "yesterday",
        "2026-13-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "02/Foo/2026:00:00:00 +0000",
        "9" * 19,
    ],
)
def test_what_is_not_a_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        read_time(text)


# formats


def test_a_combined_line_is_read() -> None:
    logged = LineFormat(COMBINED, {}, maker(), open_end=True).read(COMBINED_LINE.encode())
    assert logged == Logged(
        MOMENT_NS,
        "GET",
        "",
        "/v1/x?a=1",
        {
            "user-agent": b"curl/8.5.0",
            "referer": b"https://shop.example.com/",
            "x-forwarded-for": b"203.0.113.7",
        },
        "",
        None,
    )


def test_an_envoy_line_is_read() -> None:
    logged = LineFormat(FORMATS["envoy"], {}, maker(), open_end=True).read(ENVOY_LINE.encode())
    assert (logged.wall_ns, logged.method, logged.host, logged.target) == (
        MOMENT_NS,
        "GET",
        "api.example.com",
        "/v1/x?a=1",
    )
    assert client_of(logged) == b"203.0.113.7"
    assert logged.headers["x-request-id"] == b"6f1c"


def test_the_documents_of_caddy_envoy_nginx_and_traefik_say_the_same() -> None:
    documents: list[dict[str, Any]] = [
        CADDY_DOCUMENT,
        {
            "start_time": "2026-03-02T00:34:56Z", "method": "GET", "path": "/v1/x?a=1", "authority": "api.example.com",
            "downstream_remote_address": "203.0.113.7:4711", "user_agent": "curl/8.5.0",
        },
        {
            "msec": "1772411696.000", "request": "GET /v1/x?a=1 HTTP/1.1", "http_host": "api.example.com",
            "remote_addr": "203.0.113.7", "http_user_agent": "curl/8.5.0", "http_x_api_key": "",
        },
        {
            "StartUTC": "2026-03-02T00:34:56Z", "RequestMethod": "GET", "RequestPath": "/v1/x?a=1",
            "RequestHost": "api.example.com", "ClientHost": "203.0.113.7", "request_User-Agent": "curl/8.5.0",
        },
        {
            "time": MOMENT_NS // 10**9, "method": "GET", "url": "https://api.example.com/v1/x?a=1", "ip": "203.0.113.7",
            "headers": {"User-Agent": "curl/8.5.0"},
        },
    ]  # fmt: skip
    read = DocumentFormat({}, maker()).read
    for document in documents:
        logged = read(json.dumps(document).encode())
        assert (logged.wall_ns, logged.method, logged.host, logged.target) == (
            MOMENT_NS,
            "GET",
            "api.example.com",
            "/v1/x?a=1",
        ), document
        assert client_of(logged).startswith(b"203.0.113.7")
        assert logged.headers["user-agent"] == b"curl/8.5.0"


def test_a_har_archive_is_read(tmp_path: Path) -> None:
    entry = {
        "startedDateTime": "2026-03-02T00:34:56.000Z",
        "request": {
            "method": "POST",
            "url": "https://api.example.com/v1/chat?x=1",
            "headers": [
                {"name": ":authority", "value": "x"},
                {"name": "X-Key", "value": "a"},
                {"name": "x-key", "value": "b"},
            ],
            "postData": {"mimeType": "application/json", "text": '{"model":"m"}'},
        },
    }
    for indent in (None, 1):
        path = tmp_path / "session.har"
        path.write_text(
            json.dumps({"log": {"version": "1.2", "entries": [entry, {"request": {}}]}}, indent=indent)
        )
        (logged,), log = read_all(path)
        assert log.format == "har"
        assert (logged.method, logged.host, logged.target) == ("POST", "api.example.com", "/v1/chat?x=1")
        assert logged.headers == {"x-key": b"a, b"}
        assert logged.body == b'{"model":"m"}'
        assert log.unreadable == 1


def test_escaped_bytes_are_read_as_they_were() -> None:
    assert unescaped(rb"caf\xC3\xA9 \"q\" \x22") == 'café "q" "'.encode()


def test_a_format_of_ones_own_is_read() -> None:
    own = "$time_iso8601|$request_method|${host}|$uri|$args|$http_x_api_key|$remote_addr"
    read = LineFormat(own, {}, maker(), open_end=False).read
    logged = read(b"2026-03-02T00:34:56+00:00|POST|api.example.com|/v1/x|a=1|k 1|2001:db8::1\n")
    assert (logged.target, logged.host) == ("/v1/x?a=1", "api.example.com")
    assert logged.headers == {"x-api-key": b"k 1", "x-forwarded-for": b"2001:db8::1"}
    with pytest.raises(ValueError, match="format"):
        read(b"2026-03-02T00:34:56+00:00|POST|api.example.com|/v1/x\n")


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ("no variable", "allowed are"),
        ("$request", "no field is a time"),
        ("$msec $status", "no field is a request line"),
        ("$msec$request", "nothing is between"),
    ],
)
def test_a_format_that_cannot_be_used_says_why(own: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LineFormat(own, {}, maker(), open_end=False)


def test_the_client_is_told_where_the_edge_looks_for_it() -> None:
    line = COMBINED_LINE.replace("203.0.113.7", "2001:db8::7").encode()
    forwarded = LineFormat(COMBINED, {}, Maker("forwarded"), open_end=True).read(line)
    assert forwarded.headers["forwarded"] == b'for="[2001:db8::7]"'
    peer = LineFormat(COMBINED, {}, Maker("none"), open_end=True).read(line)
    assert peer.peer == "2001:db8::7"
    assert not {"forwarded", "x-forwarded-for"} & peer.headers.keys()
    hops = LineFormat(COMBINED, {}, Maker("hops:1"), open_end=True).read(line)
    assert hops.headers["x-forwarded-for"] == b"2001:db8::7"
    single = LineFormat(COMBINED, {}, Maker("x-real-ip"), open_end=True).read(line)
    assert single.headers["x-real-ip"] == b"2001:db8::7"


def test_a_logged_header_that_names_the_client_wins_over_the_address_of_its_connection() -> None:
    own = COMBINED + ' "$http_cf_connecting_ip"'
    line = (COMBINED_LINE + ' "192.0.2.1"').encode()
    logged = LineFormat(own, {}, Maker("cf-connecting-ip"), open_end=False).read(line)
    assert logged.headers["cf-connecting-ip"] == b"192.0.2.1"


def test_a_proxys_header_in_the_log_stays_to_the_left_of_the_address() -> None:
    own = COMBINED + ' "$http_x_forwarded_for"'
    line = (COMBINED_LINE + ' "192.0.2.1, 192.0.2.2"').encode()
    assert (
        client_of(LineFormat(own, {}, maker(), open_end=False).read(line))
        == b"192.0.2.1, 192.0.2.2, 203.0.113.7"
    )


# fields that are mapped


def test_fields_are_given_a_meaning() -> None:
    mapping = read_mapping(
        ["header:X-Api-Key=key", "jwt:sub=user.id", "ip:country=geo", "cookie:plan=plan", "query:cost=cost"]
    )
    document = {
        "time": "2026-03-02T00:34:56Z", "method": "GET", "path": "/x", "key": "k1", "user": {"id": 7}, "geo": "nl",
        "plan": "pro", "cost": 2.5,
    }  # fmt: skip
    logged = DocumentFormat(mapping, maker()).read(json.dumps(document).encode())
    assert logged.headers["x-api-key"] == b"k1"
    assert logged.headers["x-country-code"] == b"nl"
    assert logged.headers["cookie"] == b"plan=pro"
    assert logged.headers["authorization"].startswith(b"Bearer ")
    assert logged.target == "/x?cost=2.5"


@pytest.mark.parametrize("assignment", ["header:x", "header:=f", "=f", "colour=f", "header:x="])
def test_a_mapping_that_cannot_be_is_refused(assignment: str) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        read_mapping([assignment])


def test_a_mapped_field_that_the_format_does_not_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(COMBINED_LINE)
    with pytest.raises(LogError, match="no field 'nowhere'; it has remote_addr"):
        read_all(path, nowhere="header:x")


def test_a_mapped_field_wins_over_what_another_ones_name_says(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(COMBINED_LINE)
    (logged,), _ = read_all(path, remote_user="ip:address")
    assert client_of(logged) == b"frank"


# files


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("combined", [COMBINED_LINE + ' "more" 0.001']),
        ("common", [COMBINED_LINE.partition(' "https')[0]]),
        ("envoy", [ENVOY_LINE]),
        ("json", [json.dumps(CADDY_DOCUMENT)]),
        ("json", ["{broken", json.dumps(CADDY_DOCUMENT)]),
    ],
)
def test_the_format_is_found_out(tmp_path: Path, name: str, lines: list[str]) -> None:
    path = tmp_path / "log"
    path.write_text("\n\n".join(lines) + "\r\n")
    requests, log = read_all(path)
    assert (len(requests), log.format) == (1, name)


def test_gzip_is_read_as_it_is_and_its_damage_ends_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    packed = gzip.compress("\n".join([COMBINED_LINE] * 100_000).encode(), mtime=0)
    path.write_bytes(packed)
    assert len(read_all(path)[0]) == 100_000
    path.write_bytes(packed[: len(packed) // 2])
    requests, log = read_all(path)
    assert 0 < len(requests) < 100_000
    assert "ended before" in log.cut_short


def test_lines_that_cannot_be_read_are_counted_and_the_first_ones_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    bad = COMBINED_LINE.replace("GET /v1/x?a=1 HTTP/1.1", "\\x16\\x03\\x01")
    path.write_text("\n".join([COMBINED_LINE, bad, "", *["garbage"] * 20, COMBINED_LINE]))
    requests, log = read_all(path)
    assert (len(requests), log.unreadable) == (2, 21)
    assert [complaint.line for complaint in log.complaints] == [2, 4, 5, 6, 7]
    assert "is not a request line" in log.complaints[0].reason
    assert log.complaints[1] == (4, "it does not have the log's format", "garbage")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"what is this\n", "--log-format"),
        (b'{"log": 1}\n', "no field is a time"),
    ],
)
def test_a_file_that_is_no_log_is_an_error_that_says_so(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(LogError, match=complaint):
        read_all(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere\.log: No such file"):
        read_all(tmp_path / "nowhere.log")


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_no_bytes_end_the_reading_of_text(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("replay") / "log"
    path.write_bytes(b"\n".join([COMBINED_LINE.encode(), *lines, COMBINED_LINE.encode()]))
    requests, log = read_all(path, "combined")
    assert len(requests) >= 2
    assert len(log.complaints) == min(log.unreadable, KEPT_COMPLAINTS)


NAMES = st.sampled_from(
    [
        "time",
        "ts",
        "request",
        "req",
        "method",
        "uri",
        "url",
        "path",
        "headers",
        "host",
        "ip",
        "msec",
        "body",
        "args",
        "x",
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, JSON))
def test_no_document_is_more_than_unreadable(document: dict[str, Any]) -> None:
    try:
        DocumentFormat({"x": "header:x"}, maker()).logged(document)
    except (ValueError, RequestError):
        return


@given(JSON)
def test_no_archive_is_more_than_unreadable(tmp_path_factory: pytest.TempPathFactory, entry: Any) -> None:
    path = tmp_path_factory.mktemp("replay") / "log"
    known = {"startedDateTime": "2026-03-02T00:34:56Z", "request": {"method": "GET", "url": "/x"}}
    path.write_text(json.dumps({"log": {"entries": [entry, known]}}))
    requests, log = read_all(path)
    assert len(requests) + log.unreadable == 2


@given(st.text(alphabet='GETPOS /?=%\\x0aHTTP1." ', max_size=60))
def test_a_line_is_read_back_as_nginx_escapes_it(target: str) -> None:
    """Whatever is in a User-Agent comes out as it went in."""
    escaped = "".join(
        char if " " <= char < "\x7f" and char not in '"\\' else f"\\x{ord(char):02X}" for char in target
    )
    line = COMBINED_LINE.replace("curl/8.5.0", escaped)
    logged = LineFormat(COMBINED, {}, maker(), open_end=True).read(line.encode())
    assert logged.headers.get("user-agent", b"") == target.encode() or target == "-"


# time


def logged_at(*seconds: int) -> list[Logged]:
    return [Logged(MOMENT_NS + second * 10**9, "GET", "", f"/{second}", {}, "", None) for second in seconds]


def test_requests_out_of_order_are_put_in_order_within_the_window() -> None:
    assert [each.target for each in in_order(logged_at(3, 1, 2, 5, 4), window=3)] == [
        "/1",
        "/2",
        "/3",
        "/4",
        "/5",
    ]


@given(st.lists(st.integers(0, 50)), st.integers(1, 20))
def test_ordering_loses_no_request_and_keeps_those_of_one_moment_as_they_were(
    seconds: list[int], window: int
) -> None:
    requests = logged_at(*seconds)
    ordered = list(in_order(requests, window))
    assert sorted(map(id, ordered)) == sorted(map(id, requests))
    if window >= len(requests):
        assert ordered == sorted(requests, key=lambda each: each.wall_ns)


def test_a_request_that_comes_after_its_time_gets_the_latest() -> None:
    clock = LogClock()
    moments = [clock.at(each.wall_ns) for each in logged_at(0, 5, 3, 6)]
    assert [(moment.wall_ns - MOMENT_NS) // 10**9 for moment in moments] == [0, 5, 5, 6]
    assert [moment.mono_ns - moments[0].mono_ns for moment in moments] == [0, 5 * 10**9, 5 * 10**9, 6 * 10**9]
    assert moments[0].mono_ns % (60 * 10**9) == MOMENT_NS % (60 * 10**9)
    assert clock.late == 1


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=300))
def test_a_timeline_keeps_every_reject_in_bounded_memory(seconds: list[int]) -> None:
    timeline = Timeline()
    for second in seconds:
        timeline.add(second)
    assert sum(timeline.cells.values()) == len(seconds)
    assert max(timeline.cells) - min(timeline.cells) < CELLS
    assert sum(timeline.spread(min(seconds), max(seconds), 48)) == len(seconds)


def test_a_sparkline_shows_the_least_as_a_bar_and_nothing_as_none() -> None:
    assert sparkline([0, 1, 50, 100]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "


# the sketch


@given(st.lists(st.integers(0, 40)), st.integers(1, 12))
def test_a_sketch_never_counts_too_low_and_says_how_much_too_high(keys: list[int], capacity: int) -> None:
    sketch: SpaceSaving[int] = SpaceSaving(capacity)
    for key in keys:
        sketch.hit(key)
    top = sketch.top(capacity)
    assert sum(each.hits for each in top) == len(keys)
    for each in top:
        assert each.hits - each.error <= keys.count(each.key) <= each.hits
    kept = {each.key for each in top}
    assert {key for key in keys if keys.count(key) > len(keys) / capacity} <= kept


def test_sketches_of_several_processes_are_added_up() -> None:
    both = merged([Frequent("a", 3, 1), Frequent("b", 5, 0), Frequent("a", 4, 1)])
    assert both == [Frequent("a", 7, 2), Frequent("b", 5, 0)]


# the command


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with policy.json and access.log: 40 requests in ten seconds, from two clients."""
    monkeypatch.chdir(tmp_path)
    rules = [
        bucket("per-client", "ip:address", rate=1, burst=5),
        bucket("per-key", "header:x-api-key"),
        tokens("llm", "jwt:sub"),
    ]
    document = bundle(
        policy("api", *rules, path="/v1"),
        policy("shop", bucket("per-visitor", "ip:address"), path="/shop"),
        kill_switches=[{"scope_key": "header:x-tenant", "scope_value": "evil"}],
    )
    (tmp_path / "policy.json").write_text(json.dumps(document))
    lines = [
        COMBINED_LINE.replace("01:34:56", f"01:34:{50 + number // 4}").replace(
            "203.0.113.7", f"203.0.113.{1 + (number % 4 == 0)}"
        )
        for number in range(40)
    ]
    (tmp_path / "access.log").write_text("\n".join(lines))
    return tmp_path


def report(captured: Captured, *arguments: str) -> dict[str, Any]:
    assert run(["test", "policy.json", "--format", "json", *arguments]) == 0
    shown: dict[str, Any] = json.loads(captured.readouterr().out)
    return shown


def limit_of(shown: dict[str, Any], policy_id: str, rule: str) -> dict[str, Any]:
    (found,) = [limit for limit in shown["limits"] if (limit["policy"], limit["rule"]) == (policy_id, rule)]
    return dict(found)


def test_the_report_says_what_each_rule_rejects_for_whom_and_when(files: Path, capsys: Captured) -> None:
    shown = report(capsys, "--requests", "access.log")
    assert shown["decisions"] == {"allow": 24, "warn": 0, "throttle": 0, "reject": 16}
    limit = limit_of(shown, "api", "per-client")
    assert (limit["asked"], limit["rejected"], limit["reasons"]) == (40, 16, {"rate_limit_exceeded": 16})
    assert limit["top"] == [
        {"keys": {"ip:address": "203.0.113.1"}, "rejected": 16, "too_high_by_at_most": 0},
    ]
    assert (limit["first"], limit["last"]) == ("2026-03-02T00:34:52Z", "2026-03-02T00:34:59Z")
    assert limit["worst_minute"] == {"from": "2026-03-02T00:34:00Z", "rejected": 16}
    assert sum(limit["timeline"]) == 16


def test_the_report_names_every_rule_whose_descriptors_the_log_lacks(files: Path, capsys: Captured) -> None:
    assert report(capsys, "--requests", "access.log")["lacking"] == [
        {"policy": "", "rule": "kill_switch", "descriptors": ["header:x-tenant"]},
        {"policy": "api", "rule": "per-key", "descriptors": ["header:x-api-key"]},
        {"policy": "api", "rule": "llm", "descriptors": ["jwt:sub"]},
    ]
    mapped = ["--map", "header:x-api-key=http_referer", "--map", "jwt:sub=remote_user"]
    shown = report(capsys, "--requests", "access.log", *mapped)
    assert [each["rule"] for each in shown["lacking"]] == ["kill_switch"]
    assert limit_of(shown, "api", "per-key")["asked"] == 40
    assert limit_of(shown, "api", "llm")["without_body"] > 0


def test_in_a_dry_run_every_policy_is_a_shadow(files: Path, capsys: Captured) -> None:
    shown = report(capsys, "--requests", "access.log", "--dry-run")
    assert shown["decisions"]["allow"] == 40
    limit = limit_of(shown, "api", "per-client")
    assert (limit["mode"], limit["rejected"]) == ("shadow", 16)


def test_the_report_for_people_says_the_same(files: Path, capsys: Captured) -> None:
    assert run(["test", "policy.json", "--requests", "access.log"]) == 0
    shown = capsys.readouterr()
    assert "40 requests of access.log (combined), 2026-03-02T00:34:50Z to 2026-03-02T00:34:59Z\n" in shown.out
    assert "  per-client (token_bucket): of 40 requests, rejects 16 (40.0 %)\n" in shown.out
    assert "ip:address=203.0.113.1\n" in shown.out
    assert "policy shop: 0 requests\n" in shown.out
    assert "  api/per-key: header:x-api-key\n" in shown.out
    assert shown.err == ""


def test_without_a_log_every_policy_gets_a_request_that_its_rules_run_for(
    files: Path, capsys: Captured
) -> None:
    shown = report(capsys)
    assert [(each["policy"], each["path"], each["action"]) for each in shown["made_up"]] == [
        ("api", "/v1", "allow"),
        ("shop", "/shop", "allow"),
    ]
    assert [limit["asked"] for limit in shown["limits"] if limit["policy"]] == [1, 1, 1, 1]


def test_the_bundle_defaults_to_the_configured_one(
    files: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["test", "--requests", "access.log"]) == 3
    monkeypatch.setenv("FAIRVISOR_CONFIG_FILE", "policy.json")
    assert run(["test", "--requests", "access.log"]) == 0
    capsys.readouterr()


def test_the_zone_of_a_log_is_named(files: Path, capsys: Captured) -> None:
    line = (
        "203.0.113.7:1 [02/Mar/2026:01:34:56.000] fe be/s 0/0/0/0/0 200 9 - - ---- 1/1/0/0/0 0/0 "
        '"GET /v1/x HTTP/1.1"'
    )
    (files / "access.log").write_text(line)
    assert report(capsys, "--requests", "access.log")["from"] == "2026-03-02T01:34:56Z"
    shown = report(capsys, "--requests", "access.log", "--time-zone", "Europe/Berlin")
    assert shown["from"] == "2026-03-02T00:34:56Z"
    for unknown in ("Europe/Berln", "Europe", "../etc/passwd", ""):
        assert run(["test", "policy.json", "--requests", "access.log", "--time-zone", unknown]) == 3
        assert "is not an IANA time zone such as Europe/Berlin" in capsys.readouterr().err


def test_a_log_that_ends_early_is_reported_and_fails(files: Path, capsys: Captured) -> None:
    lines = "\n".join([COMBINED_LINE] * 10_000)
    packed = gzip.compress(lines.encode(), mtime=0)
    (files / "access.log.gz").write_bytes(packed[: len(packed) // 2])
    assert run(["test", "policy.json", "--requests", "access.log.gz"]) == 1
    shown = capsys.readouterr()
    assert "requests of access.log.gz (combined)" in shown.out
    assert "Error: access.log.gz ends early: Compressed file ended before" in shown.err


@pytest.mark.parametrize("content", ["", "no log\n", '{"no": "request"}\n', "[]", '{"log": {"entries": []}}'])
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_log_of_which_nothing_can_be_read_fails(
    files: Path, capsys: Captured, content: str, output: str
) -> None:
    (files / "access.log").write_text(content)
    assert run(["test", "policy.json", "--requests", "access.log", "--format", output]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "access.log" in shown.err


def test_what_clients_wrote_into_a_log_reaches_a_terminal_escaped(files: Path, capsys: Captured) -> None:
    with (files / "access.log").open("a") as log:
        log.write("\n\x1b]0;owned\x07 \x1b[2J\n")
    assert run(["test", "policy.json", "--requests", "access.log"]) == 0
    shown = capsys.readouterr().out
    assert "line 41: it does not have the log's format" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown
    (files / "access.log").write_text("\x1b]0;owned\x07\n")
    assert run(["test", "policy.json", "--requests", "access.log"]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_a_bundle_that_selects_by_host_says_what_the_log_lacks(files: Path, capsys: Captured) -> None:
    hosts = policy("hosts", bucket("r"))
    hosts["spec"]["selector"]["hosts"] = ["api.example.com"]
    (files / "policy.json").write_text(json.dumps(bundle(hosts)))
    assert report(capsys, "--requests", "access.log")["log"]["without_host"] == 40
    shown = report(capsys, "--requests", "access.log", "--host", "API.example.com")
    assert (shown["log"]["without_host"], shown["requests"]) == (0, 40)
