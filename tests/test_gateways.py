"""Each endpoint reads the headers its gateway sets, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.errors import RequestError
from fairvisor.http.gateways import decision_endpoints
from fairvisor.http.request import Peer, Request
from fairvisor.reading import normal_host

ENDPOINTS = decision_endpoints(request_ids=False)
PEER = Peer("127.0.0.1", True)

ORIGINAL = {"x-original-method": b"get", "x-original-uri": b"/o?q=1", "x-original-host": b"O.example:8443"}
FORWARDED = {"x-forwarded-method": b"POST", "x-forwarded-uri": b"/f", "x-forwarded-host": b"f.example"}


def described(
    path: str, headers: dict[str, bytes], *, method: str = "GET", target: str = ""
) -> tuple[str, str, str]:
    return ENDPOINTS[path].source.describe(Request(method, target or path, headers, PEER))


def refusal(path: str, headers: dict[str, bytes]) -> str:
    with pytest.raises(RequestError) as caught:
        described(path, headers)
    assert caught.value.status == 400
    return str(caught.value)


def test_decision_reads_the_original_family_when_any_of_it_is_there() -> None:
    assert described("/v1/decision", ORIGINAL | FORWARDED) == ("GET", "/o?q=1", "o.example")


def test_decision_reads_the_forwarded_family_otherwise() -> None:
    assert described("/v1/decision", FORWARDED) == ("POST", "/f", "f.example")


@pytest.mark.parametrize("left_out", list(ORIGINAL))
def test_decision_never_mixes_the_families(left_out: str) -> None:
    headers = {name: value for name, value in ORIGINAL.items() if name != left_out} | FORWARDED
    if left_out == "x-original-host":
        assert described("/v1/decision", headers) == ("GET", "/o?q=1", "")
    else:
        assert left_out in refusal("/v1/decision", headers).lower()


def test_auth_request_does_not_see_the_forwarded_family() -> None:
    assert described("/v1/auth-request", ORIGINAL | FORWARDED)[1] == "/o?q=1"
    assert "X-Original-Method" in refusal("/v1/auth-request", FORWARDED)


def test_forward_auth_does_not_see_the_original_family() -> None:
    """A client behind Traefik may send X-Original-URI: it does not count."""
    assert described("/v1/forward-auth", ORIGINAL | FORWARDED)[1] == "/f"
    assert "X-Forwarded-Method" in refusal("/v1/forward-auth", ORIGINAL)


@pytest.mark.parametrize("prefix", ["/v1/ext-authz", "/v1/decision"])
def test_envoy_tells_by_request_line_and_host_only(prefix: str) -> None:
    headers = ORIGINAL | FORWARDED | {"host": b"API.example."}
    found = described(prefix + "/", headers, method="delete", target=prefix + "//a/../b?x=1")
    assert found == ("DELETE", "//a/../b?x=1", "api.example")


def test_a_missing_path_is_named() -> None:
    assert "X-Original-URI" in refusal("/v1/auth-request", {"x-original-method": b"GET"})
    assert "X-Forwarded-URI" in refusal("/v1/forward-auth", {"x-forwarded-method": b"GET"})
    assert "X-Original-Method" in refusal("/v1/decision", {})


def test_an_empty_value_is_missing() -> None:
    assert "X-Original-URI" in refusal("/v1/decision", ORIGINAL | {"x-original-uri": b""})


@pytest.mark.parametrize("name", list(ORIGINAL))
def test_a_header_that_was_sent_twice_describes_nothing(name: str) -> None:
    refusal("/v1/decision", ORIGINAL | {name: ORIGINAL[name] + b", " + ORIGINAL[name]})


def test_what_each_gateway_needs() -> None:
    for path in ("/v1/auth-request", "/v1/auth-request/once", "/v1/auth-url"):
        assert ENDPOINTS[path].carrier
        assert not ENDPOINTS[path].reads_body
        assert ENDPOINTS[path].reads_id == ENDPOINTS[path].needs_id == (path == "/v1/auth-request/once")
    assert ENDPOINTS["/v1/ext-authz/"].allow_status == 200
    assert ENDPOINTS["/v1/decision/"].allow_status == 200
    assert ENDPOINTS["/v1/decision"].allow_status is None
    assert not ENDPOINTS["/v1/decision"].reads_id
    assert decision_endpoints(request_ids=True)["/v1/decision"].reads_id
    assert not decision_endpoints(request_ids=True)["/v1/auth-request"].reads_id


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.com:443", "example.com"),
        ("example.com.", "example.com"),
        ("example.com.:80", "example.com"),
        ("example.com:", "example.com"),
        (" example.com ", "example.com"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:DB8::0:1]:8080", "[2001:db8::1]"),
        ("[::1]", "[::1]"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("under_score.example", "under_score.example"),
    ],
)
def test_host_spellings(text: str, host: str) -> None:
    assert normal_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        ":80",
        "a b",
        "a, b",
        "a/b",
        "a@b",
        "::1",
        "[::1",
        "[zz]",
        "[1:2]",
        "a:b",
        "a:80:80",
        "\x00",
        "a\r\nb",
        "é",
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        normal_host(text)


@given(st.text(max_size=40))
def test_a_normalised_host_stays_as_it_is(text: str) -> None:
    try:
        host = normal_host(text)
    except RequestError:
        return
    assert normal_host(host) == host or host.endswith(".")


@given(st.binary(max_size=40))
def test_any_method_is_a_token_in_upper_case_or_refused(value: bytes) -> None:
    try:
        found = described("/v1/decision", ORIGINAL | {"x-original-method": value})
    except RequestError:
        return
    assert found[0] == found[0].upper()
    assert found[0].isascii()


def test_many_invented_hosts_do_not_grow_memory() -> None:
    endpoints = decision_endpoints(request_ids=False)
    describe = endpoints["/v1/decision"].source.describe
    for number in range(10_000):
        found = describe(Request("GET", "/", ORIGINAL | {"x-original-host": b"h%d.example" % number}, PEER))
        assert found[2] == f"h{number}.example"
