"""Selectors: which policies apply to a request, and that no spelling of a path escapes its policy."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairvisor.errors import RequestError
from fairvisor.route import PLAN_CACHE_SIZE, Routes, Selector, normal_route, read_path


class Policy:
    def __init__(
        self,
        policy_id: str,
        exact: str | None = None,
        prefix: str | None = None,
        methods: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
    ) -> None:
        self.id = policy_id
        self.selector = Selector(exact, prefix, frozenset(methods), hosts)


def applies(policy: Policy, path: str, method: str = "GET", host: str = "") -> bool:
    return bool(Routes([policy]).plan(method, host, path).policies)


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        ("/v1", ["/v1", "/v1/", "/v1/x", "/v1/x/y", "/v1?q", "/v1#f"], ["/v10", "/v", "/", "/x/v1", "/V1"]),
        ("/v1/", ["/v1/", "/v1/x", "/v1/x/"], ["/v1", "/v10", "/v10/"]),
        ("/", ["/", "/x", "/x/y/"], []),
        ("/a/b", ["/a/b", "/a/b/c"], ["/a", "/a/", "/a/bc", "/a/x/b"]),
    ],
)
def test_a_prefix_is_matched_by_whole_segments(prefix: str, inside: list[str], outside: list[str]) -> None:
    policy = Policy("p", prefix=prefix)
    assert [path for path in inside if not applies(policy, path)] == []
    assert [path for path in outside if applies(policy, path)] == []


def test_an_exact_path_is_that_path_only() -> None:
    policy = Policy("p", exact="/v1/x")
    assert applies(policy, "/v1/x")
    assert not any(applies(policy, path) for path in ("/v1/x/", "/v1/x/y", "/v1", "/v1/X"))


def test_either_path_is_enough() -> None:
    policy = Policy("p", exact="/health", prefix="/v1")
    assert applies(policy, "/health")
    assert applies(policy, "/v1/x")
    assert not applies(policy, "/health/x")


def test_methods_select() -> None:
    policy = Policy("p", prefix="/", methods=("GET", "POST"))
    assert applies(policy, "/", "POST")
    assert not applies(policy, "/", "PUT")
    assert applies(Policy("p", prefix="/"), "/", "BREW")


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("api.example.com", ["api.example.com"], ["example.com", "x.api.example.com", "", "api.example.org"]),
        (
            "*.example.com",
            ["a.example.com", "a.b.example.com"],
            ["example.com", "example.org", "aexample.com", ""],
        ),
        ("*.com", ["example.com", "a.example.com"], ["com"]),
        ("[2001:db8::1]", ["[2001:db8::1]"], ["[2001:db8::2]"]),
    ],
)
def test_hosts_select(pattern: str, inside: list[str], outside: list[str]) -> None:
    policy = Policy("p", prefix="/", hosts=(pattern,))
    assert [host for host in inside if not applies(policy, "/", host=host)] == []
    assert [host for host in outside if applies(policy, "/", host=host)] == []


def test_every_matching_policy_applies_in_order_of_id() -> None:
    policies = [
        Policy("c", prefix="/v1"),
        Policy("b", exact="/v1/x", hosts=("a.example.com",)),
        Policy("d", prefix="/v1/x", hosts=("*.example.com",)),
        Policy("a", prefix="/"),
        Policy("e", prefix="/v2"),
    ]
    plan = Routes(policies).plan("GET", "a.example.com", "/v1/x")
    assert [policy.id for policy in plan.policies] == ["a", "b", "c", "d"]


def test_routes_know_whether_a_host_is_needed() -> None:
    assert not Routes([Policy("p", prefix="/")]).selects_by_host
    assert Routes([Policy("p", prefix="/"), Policy("q", prefix="/", hosts=("a.b",))]).selects_by_host


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://example.com/v1/x", "/v1/x"),
        ("HTTPS://user@example.com:8443/v1", "/v1"),
        ("http://example.com", "/"),
        ("http://example.com?q", "/"),
        ("http://example.com#f", "/"),
        ("/v1/x?a=/b", "/v1/x"),
        ("/v1/x#/y", "/v1/x"),
        ("/v1#?x", "/v1"),
        ("/%76%31/%7Euser", "/v1/~user"),
        ("/%2e%2E/", None),
        ("/a/%2e%2e/b", "/b"),
        ("/%2576", "/%2576"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%3ab", "/a%3Ab"),
        ("//v1///x", "/v1/x"),
        ("//example.com/v1", "/example.com/v1"),
        ("/./v1/../v1/./x", "/v1/x"),
        ("/v1/x/.", "/v1/x/"),
        ("/v1/x/..", "/v1/"),
        ("/v1/..", "/"),
        ("/v1/...", "/v1/..."),
        ("/v1/.x", "/v1/.x"),
        ("/caf\xc3\xa9", "/caf%C3%A9"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a b", "/a%20b"),
        ('/"<>', "/%22%3C%3E"),
        ("/a%zz", "/a%zz"),
        ("/..", None),
        ("/a/../..", None),
        ("/a%2F..%2F..%2Fb", None),
        ("/a/..;/..;x/b", None),
        ("/a\\..\\..\\b", None),
        ("/a%00", None),
        ("/a%0d%0aX", None),
        ("/a%7f", None),
        ("/a\x00", None),
        ("/a\tb", None),
        ("", None),
        ("v1", None),
        ("*", None),
    ],
)
def test_a_path_is_normalised_in_one_order(target: str, path: str | None) -> None:
    """None: it cannot be read, the request is refused with 400."""
    if path is None:
        with pytest.raises(RequestError):
            read_path(target)
    else:
        assert path == read_path(target)[0]


@pytest.mark.parametrize(
    "target",
    [
        "/public%2F..%2Fadmin",
        "/public/..%2fadmin",
        "/public%5c..%5Cadmin",
        "/public\\..\\admin",
        "/public/..;/admin",
        "/public/..;jsessionid=1/admin;x=y",
        "/public%2f..;x%2fadmin",
        "/public/..%3B/admin",
        "/admin;x",
        "/admin%3bx",
        "/;x/admin",
        "/%61dmin%2F",
    ],
)
def test_the_policies_of_every_reading_apply(target: str) -> None:
    admin, all_of_it = Policy("admin", prefix="/admin"), Policy("all", prefix="/")
    plan = Routes([admin, all_of_it]).plan("GET", "", target)
    assert [policy.id for policy in plan.policies] == ["admin", "all"]
    assert "/admin" in {reading.rstrip("/") for reading in plan.readings}


def test_a_slash_may_be_decoded_where_other_escapes_are_not() -> None:
    assert applies(Policy("p", prefix="/a%24/b"), "/a%24%2Fb")


SEGMENTS = st.text("abAZ09-._~$&+:@ %é/\\;", min_size=1, max_size=6).filter(
    lambda text: text.strip(".") != "" and not set(text) & set("/\\;")
)


@st.composite
def spelled(draw: st.DrawFn) -> tuple[str, str]:
    """A path as a bundle writes it, and another spelling of it that some server reads as the same."""
    segments = draw(st.lists(SEGMENTS, min_size=1, max_size=4))
    plain = "".join("/" + quote(segment) for segment in segments)
    target = draw(st.sampled_from(["", "http://example.com/", "//", "/./", "/x/../", "/x/%2E%2e"]))
    for segment in segments:
        target += draw(st.sampled_from(["/", "//", "/./", "/x/../", "%2F", "%5c", "\\", "/;a=b/", "/%2e/"]))
        for byte in segment.encode():
            char = chr(byte)
            unreserved = char.isascii() and (char.isalnum() or char in "-._~")
            escaped = f"%{byte:02x}" if draw(st.booleans()) else f"%{byte:02X}"
            target += escaped if not unreserved or draw(st.integers(0, 9)) == 0 else char
        target += draw(st.sampled_from(["", "", "", ";", ";v=1", "%3Bv"]))
    target += draw(st.sampled_from(["", "?q=1", "#f", "?a=/../..", ";x"]))
    return plain, target if target.startswith(("/", "http")) else "/" + target


@given(spelled())
@example(("/admin", "/x/..%2F%61dmin;a?q"))
def test_no_spelling_of_a_path_escapes_its_policy(case: tuple[str, str]) -> None:
    plain, target = case
    assert applies(Policy("exact", exact=plain), target)
    assert applies(Policy("prefix", prefix=plain), target)
    assert applies(Policy("within", prefix=plain), target.replace("?", "/y?").replace("#", "/y#") + "/y")


@given(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40))
def test_every_target_is_read_or_refused_and_reading_again_changes_nothing(text: str) -> None:
    try:
        readings = read_path("/" + text)
    except RequestError:
        return
    assert readings
    assert all(reading.startswith("/") and reading.isascii() and "//" not in reading for reading in readings)
    assert read_path(readings[0])[0] == readings[0]


def test_the_paths_of_a_selector_are_normalised_too() -> None:
    assert applies(Policy("p", exact="/caf%c3%a9//x"), "/caf\xc3\xa9/x")
    assert applies(Policy("p", prefix="/café"), "/caf%C3%A9/x")
    assert applies(Policy("p", prefix="/%76%31/"), "/v1/x")


def test_routes_of_kill_switches_are_normalised_and_prefixes_stay_raw() -> None:
    assert normal_route("/v1//x/../%79") == "/v1/y"
    assert normal_route("/v1/.*") == "/v1/.*"
    assert normal_route("/caf\u00e9%7e*") == "/caf%C3%A9~*"


def test_plans_are_kept_in_a_bounded_map() -> None:
    routes = Routes([Policy("p", prefix="/v1")])
    for number in range(PLAN_CACHE_SIZE + 10):
        assert routes.plan("GET", "", f"/v1/{number}").policies
    long = "/v1/" + "x" * 500
    assert routes.plan("GET", "", long) is not routes.plan("GET", "", long)
    assert len(routes._plans) <= PLAN_CACHE_SIZE
    assert routes.plan("GET", "", "/v1/1?a") is routes.plan("GET", "", "/v1/1?b")
