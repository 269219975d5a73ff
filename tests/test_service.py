"""The service beside its decisions: who may ask, what is said when something fails, and how often that is logged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import orjson
import pytest

from fairvisor.bundle.compile import compile_bundle
from fairvisor.bundle.load import parse
from fairvisor.bundle.offer import describe
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.errors import RequestTimeout
from fairvisor.follow import ActiveBundle, Current, decision_options
from fairvisor.http.request import Peer, Request
from fairvisor.http.service import CONTROL_BODY_BYTES, Service
from fairvisor.http.wsgi import Application
from fairvisor.identity import Identity
from fairvisor.llm.reservation import LIFETIME_NS
from fairvisor.memory import InstanceMemory
from fairvisor.notes import Notes
from fairvisor.response import Answer
from fairvisor.settings import PREFIX, Settings

START = Now(10**15, 1_700_000_000 * NS_PER_S)
ORIGINAL = {"x-original-method": b"GET", "x-original-uri": b"/a", "x-original-host": b"a.example"}
BUNDLE = {
    "bundle_version": 7,
    "policies": [
        {
            "id": "all",
            "spec": {
                "selector": {"pathPrefix": "/"},
                "rules": [
                    {
                        "name": "bucket",
                        "limit_keys": [],
                        "algorithm": "token_bucket",
                        "algorithm_config": {"tokens_per_second": 1, "burst": 2},
                    }
                ],
            },
        }
    ],
}


class Setup:
    """A service on a clock of its own; `environ` are settings without their prefix."""

    def __init__(self, place: Path, bundle: object = BUNDLE, **environ: str) -> None:
        settings = Settings.load({PREFIX + name.upper(): value for name, value in environ.items()}, {})
        self.now = START
        segment = Segment.private(1 << 20)
        identity = Identity.from_settings(settings)
        self.active = ActiveBundle(Notes(InstanceMemory.find("test-service", 0)))
        if bundle is not None:
            parsed = parse(json.dumps(bundle).encode(), wall_ns=START.wall_ns, environ={})
            compiled = compile_bundle(parsed.model, parsed.sha256, segment, decision_options(settings))
            self.active.current = Current(compiled, identity, describe(parsed, "test", START.wall_ns), 1)
        self.service = Service(settings, segment, identity, self.active, lambda: self.now)
        self.segment = segment

    def ask(
        self,
        target: str = "/v1/decision",
        method: str = "GET",
        body: bytes | None = None,
        peer: str = "127.0.0.1",
        **headers: bytes,
    ) -> Answer:
        sent = ORIGINAL | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.service.answer(Request(method, target, sent, self.service.peer(peer), body), self.now)

    def pass_seconds(self, seconds: int) -> None:
        self.now = Now(self.now.mono_ns + seconds * NS_PER_S, self.now.wall_ns + seconds * NS_PER_S)


def message(answer: Answer) -> str:
    text: str = orjson.loads(answer.body)["error"]["message"]
    return text


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def break_engine(setup: Setup) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise ZeroDivisionError("broken on purpose")

    assert setup.active.current is not None
    setup.active.current.bundle = Broken()  # type: ignore[assignment]


# who may ask


@pytest.mark.parametrize(
    "target", ["/v1/decision", "/v1/auth-request", "/v1/forward-auth", "/v1/ext-authz/a", "/v1/usage"]
)
def test_a_stranger_may_not_describe_requests(setup: Setup, target: str) -> None:
    assert setup.ask(target, "POST", peer="203.0.113.9").status == 403


def test_a_stranger_may_ask_for_health(setup: Setup) -> None:
    assert setup.ask("/readyz", peer="203.0.113.9").status == 200


def test_a_unix_socket_is_trusted(setup: Setup) -> None:
    assert setup.service.peer("").trusted
    assert setup.ask(peer="").status == 204


def test_strangers_are_logged_once_a_minute_with_the_last_one(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        setup.ask(peer="203.0.113.9")
    setup.pass_seconds(60)
    setup.ask(peer="203.0.113.10")
    told = (
        "/v1/decision answered 403 without a decision: untrusted_peer (this peer may not ask for decisions "
    )
    assert caplog.messages == [
        f"{told}(FAIRVISOR_TRUSTED_PEERS)), from 203.0.113.9 (1 times since the last such line, by any peer)",
        f"{told}(FAIRVISOR_TRUSTED_PEERS)), from 203.0.113.10 (5 times since the last such line, by any peer)",
    ]


UNDECIDED = [
    ("/v1/decision", {"x_original_uri": b""}, "/v1/decision", "header_missing"),
    ("/v1/decision?a=b", {"x_original_uri": b"/a /b"}, "/v1/decision", "malformed"),
    ("/v1/auth-request", {"x_original_uri": b""}, "/v1/auth-request", "header_missing"),
    ("/v1/auth-request/once", {}, "/v1/auth-request/once", "header_missing"),
    ("/v1/auth-url", {}, "/v1/auth-url", "header_missing"),
    ("/v1/auth-url", {"x_original_url": b"ftp://e/"}, "/v1/auth-url", "malformed"),
    ("/v1/forward-auth", {}, "/v1/forward-auth", "header_missing"),
    ("http://a/v1/ext-authz/a", {"host": b"b"}, "/v1/ext-authz/", "malformed"),
    ("/v1/decision/a", {"host": b"a b"}, "/v1/decision/", "malformed"),
    ("/v1/usage", {}, "/v1/usage", "method_not_allowed"),
    ("/v1/debug/session", {}, "/v1/debug", "method_not_allowed"),
    ("/v1/nothing", {}, "other", "not_found"),
    ("/metrics/", {}, "other", "not_found"),
]


@pytest.mark.parametrize(("target", "headers", "endpoint", "reason"), UNDECIDED)
def test_what_is_not_decided_is_counted_and_logged(
    setup: Setup,
    caplog: pytest.LogCaptureFixture,
    target: str,
    headers: dict[str, bytes],
    endpoint: str,
    reason: str,
) -> None:
    answer = setup.ask(target, **headers)
    assert answer.status in (400, 403, 404, 405)
    assert undecided(setup) == {(endpoint, reason): 1}
    (line,) = caplog.messages
    assert line.startswith(f"{endpoint} answered ")
    assert reason in line
    assert "127.0.0.1" in line


@pytest.mark.parametrize(
    ("target", "body", "reason"),
    [
        ("/v1/usage", b"no", "malformed"),
        ("/v1/debug/session", None, "wrong_secret"),
        ("/metrics", None, "method_not_allowed"),
    ],
)
def test_what_is_posted_and_cannot_be_answered_is_counted(
    tmp_path: Path, target: str, body: bytes | None, reason: str
) -> None:
    setup = Setup(tmp_path, debug_session_secret="the-secret-of-the-person-on-call")
    setup.ask(target, "POST", body)
    (((endpoint, found), times),) = undecided(setup).items()
    assert (found, times) == (reason, 1)
    assert endpoint in (target, "/v1/debug", "health")


def test_what_is_decided_is_not_counted_as_undecided(setup: Setup) -> None:
    assert setup.ask().status == 204
    assert setup.ask("/readyz").status == 200
    assert undecided(setup) == {}


def test_what_a_transport_cannot_read_is_counted_where_it_was_for(setup: Setup) -> None:
    service = setup.service
    for target in ("/v1/usage", ""):
        service.refusal(RequestTimeout("late"), service.peer("192.0.2.1"), setup.now, target)
    assert undecided(setup) == {("/v1/usage", "timeout"): 1, ("other", "timeout"): 1}


def test_what_wsgi_cannot_read_is_counted(setup: Setup) -> None:
    application = Application(setup.service, lambda: setup.now)
    environ = {
        "REQUEST_METHOD": "POST",
        "RAW_URI": "/v1/usage",
        "CONTENT_LENGTH": str(CONTROL_BODY_BYTES + 1),
        "wsgi.input": io.BytesIO(b"x" * (CONTROL_BODY_BYTES + 1)),
    }
    application(environ, lambda status, headers: None)
    application({"REQUEST_METHOD": "GET", "PATH_INFO": "/v1/../x"}, lambda status, headers: None)
    assert undecided(setup) == {("/v1/usage", "body_too_large"): 1, ("other", "malformed"): 1}


def undecided(setup: Setup) -> dict[tuple[str, str], int]:
    return {
        (dict(labels)["endpoint"], dict(labels)["reason"]): value
        for name, labels, value in setup.segment.series_values()
        if name == "fairvisor_undecided_requests_total"
    }


@pytest.mark.parametrize("target", ["/v1/decision", "/v1/auth-request", "/v1/usage"])
def test_the_token_is_asked_for_when_one_is_set(tmp_path: Path, target: str) -> None:
    setup = Setup(tmp_path, decision_token="the-token-of-the-gateway")
    assert setup.ask(target, "POST").status == 403
    assert setup.ask(target, "POST", x_fairvisor_token=b"wrong").status == 403
    assert setup.ask(target, "POST", x_fairvisor_token=b"\xff").status == 403
    assert undecided(setup) == {(target, "wrong_secret"): 3}
    assert setup.ask(target, "POST", x_fairvisor_token=b"the-token-of-the-gateway").status != 403


def test_both_tokens_are_good_while_one_is_rotated(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-token-of-tomorrow\nthe-token-of-yesterday\n")
    file.chmod(0o600)
    setup = Setup(tmp_path, decision_token_file=str(file))
    for token, accepted in (
        (b"the-token-of-tomorrow", True),
        (b"the-token-of-yesterday", True),
        (b"the-token-of-tomorrow\nthe-token-of-yesterday", False),
        (b"", False),
    ):
        assert (setup.ask(x_fairvisor_token=token).status != 403) == accepted


# what is where


@pytest.mark.parametrize(
    "target", ["/", "/v1", "/v1/decisions", "/v1/ext-authz", "/v1/ext-authzz/x", "*", "//v1/decision", ""]
)
def test_unknown_paths_are_404(setup: Setup, target: str) -> None:
    answer = setup.ask(target)
    assert answer.status == 404
    assert "Content-Type: application/json" in answer.head


def test_an_absolute_form_is_its_path(setup: Setup) -> None:
    assert setup.ask("http://edge:8080/livez").body == b"ok"


def test_another_method_is_405_and_told_which(setup: Setup) -> None:
    answer = setup.ask("/v1/usage", "GET")
    assert answer.status == 405
    assert "Allow: POST\r\n" in answer.head
    assert setup.ask("/livez", "HEAD").status == 200


def test_any_method_may_ask_for_a_decision(setup: Setup) -> None:
    assert setup.ask(method="PUT").status == 204


@pytest.mark.parametrize(
    ("target", "limit", "strict"),
    [
        ("/v1/decision?client=query", 1 << 20, False),
        ("/v1/forward-auth", 1 << 20, False),
        ("/v1/ext-authz/a", 1 << 20, False),
        ("/v1/auth-request", 0, False),
        ("/v1/usage", CONTROL_BODY_BYTES, True),
        ("/v1/debug/session", CONTROL_BODY_BYTES, True),
        ("/livez", 0, False),
        ("/nothing", 0, False),
    ],
)
def test_how_much_of_a_body_is_read(setup: Setup, target: str, limit: int, strict: bool) -> None:
    assert setup.service.body_rule(target) == (limit, strict)


def test_host_is_asked_for_only_when_policies_select_by_it(tmp_path: Path) -> None:
    bundle = json.loads(json.dumps(BUNDLE))
    bundle["policies"][0]["spec"]["selector"]["hosts"] = ["a.example"]
    setup = Setup(tmp_path, bundle)
    headers = {name: value for name, value in ORIGINAL.items() if name != "x-original-host"}
    answer = setup.service.answer(Request("GET", "/v1/decision", headers, Peer("", True)), setup.now)
    assert answer.status == 400
    assert "X-Original-Host" in message(answer)


# health


def test_ready_says_which_policy(setup: Setup) -> None:
    document = orjson.loads(setup.ask("/readyz").body)
    assert document["status"] == "ok"
    assert document["policy_version"] == 7
    assert len(document["policy_hash"]) == 64


def test_without_a_bundle_it_is_alive_and_not_ready_and_says_why(tmp_path: Path) -> None:
    setup = Setup(tmp_path, None)
    assert setup.ask("/livez").status == 200
    answer = setup.ask("/readyz")
    document = orjson.loads(answer.body)
    assert (answer.status, document["status"], document["reason"]) == (503, "not_ready", "no_bundle_loaded")
    assert document["detail"] == "no bundle was offered yet"
    decision = setup.ask()
    assert decision.status == 503
    assert "X-Fairvisor-Reason: no_bundle_loaded\r\n" in decision.head


# failures


def test_a_failing_engine_is_503_and_tells_the_client_nothing_more(setup: Setup) -> None:
    break_engine(setup)
    answer = setup.ask()
    assert answer.status == 503
    assert "X-Fairvisor-Reason: engine_error\r\n" in answer.head
    assert b"ZeroDivision" not in answer.body
    assert b"purpose" not in answer.body


def test_a_failure_is_logged_in_full_once_a_minute(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    break_engine(setup)
    for _ in range(100):
        setup.ask()
    setup.pass_seconds(61)
    setup.ask()
    first, second = caplog.records
    assert first.exc_info is not None
    assert second.getMessage() == "a decision failed (100 times since the last such line)"


def test_fail_open_turns_a_failure_into_a_counted_allow(tmp_path: Path) -> None:
    setup = Setup(tmp_path, fail_open="true")
    break_engine(setup)
    assert setup.ask().status == 204
    assert setup.ask("/v1/ext-authz/a", host=b"a").status == 200
    counted = {
        labels: value
        for name, labels, value in setup.segment.series_values()
        if name == "fairvisor_decisions_total"
    }
    assert [value for labels, value in counted.items() if ("reason", "engine_error") in labels] == [2]


def test_fail_open_does_not_cover_a_missing_bundle(tmp_path: Path) -> None:
    assert Setup(tmp_path, None, fail_open="true").ask().status == 503


# usage


def test_a_settlement_that_may_be_a_repeated_one_is_accepted_and_counted_apart(tmp_path: Path) -> None:
    """A nonce of a reservation as old was evicted: nothing is given back."""
    rule = {
        "name": "t",
        "limit_keys": [],
        "algorithm": "token_bucket_llm",
        "algorithm_config": {"tokens_per_minute": 5000},
    }
    spec = {"selector": {"pathPrefix": "/"}, "rules": [rule]}
    setup = Setup(tmp_path, {"bundle_version": 1, "policies": [{"id": "p", "spec": spec}]})
    asked = setup.ask("/v1/decision", x_original_method=b"POST", body=b"{}")
    token = asked.head.partition("X-Fairvisor-Reservation: ")[2].partition("\r\n")[0]
    setup.segment.table.word_set(Word.CLAIM_STAMP, START.wall_ns + LIFETIME_NS)
    body = orjson.dumps({"reservation": token, "failed": True})
    assert [setup.ask("/v1/usage", "POST", body).status for _ in range(2)] == [204, 409]
    counted = {
        dict(labels).get("result", name): value
        for name, labels, value in setup.segment.series_values()
        if value
    }
    assert (counted["charged_only"], counted["repeated"]) == (1, 1)
    assert "failed_upstream" not in counted
    assert counted["fairvisor_tokens_consumed_total"] == counted["fairvisor_tokens_reserved_total"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (None, 400),
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"{}", 400),
        (b'{"reservation": 1, "failed": true}', 400),
        (b'{"reservation": "x"}', 400),
        (b'{"reservation": "x", "failed": "true"}', 400),
        (b'{"reservation": "forged", "failed": true}', 400),
    ],
)
def test_usage_that_settles_nothing(setup: Setup, body: bytes | None, status: int) -> None:
    answer = setup.ask("/v1/usage", "POST", body)
    assert answer.status == status
    assert message(answer)
