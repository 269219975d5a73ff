"""ingress-nginx with the files that are shipped: what a client sees with the snippets in its ConfigMap, and without."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from edge_server import Edge
from fake_edge import GARBAGE, WAYS, FakeEdge, carried
from gateway_servers import CONFIGURATIONS, KINDS, Gateway, StartGateway
from ingress_controller import read_headers, read_settings
from request_checks import Received

needs = pytest.mark.needs

FILES = CONFIGURATIONS / "ingress-nginx"
NGINX = CONFIGURATIONS / "nginx" / "fairvisor"
BODY = b'{"error":{"code":"x"}}'


def ask(gateway: Gateway, path: str, *lines: str, host: str = "edge") -> Received:
    return gateway.ask("\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode())


@needs("nginx")
@pytest.mark.parametrize(
    "name",
    [
        "ingress-nginx",
        "ingress-nginx-configmap.yaml+fail-open.yaml",
        "ingress-nginx-configmap.yaml+ingress.yaml",
    ],
)
def test_a_reject_keeps_its_status_its_headers_and_its_body(
    name: str, fake_edge: FakeEdge, start_gateway: StartGateway
) -> None:
    """Whether Fairvisor is asked for every Ingress, or by the annotation of one."""
    gateway = start_gateway(name, fake_edge.port)
    head = (
        "Retry-After: 7",
        "X-Fairvisor-Reason: denied",
        "X-Should-Retry: false",
        "WWW-Authenticate: Bearer",
    )
    for status in (400, 401, 402, 403, 404, 409, 413, 422, 429, 451):
        fake_edge.answer(carried(status, BODY, "Cache-Control: no-store", *head))
        received = ask(gateway, "/")
        assert (received.status, received.body) == (status, BODY)
        for line in (*head, "Cache-Control: no-store"):
            assert received.header(line.partition(": ")[0]) == line.partition(": ")[2]
    fake_edge.answer(carried(418, BODY))
    assert ask(gateway, "/").status == 403


@needs("nginx")
def test_annotations_alone_limit_and_show_a_page_of_nginx_s(edge: Edge, start_gateway: StartGateway) -> None:
    """docs/gateways/ingress-nginx.md says so: its template shows nothing of what Fairvisor answers."""
    gateway = start_gateway("ingress-nginx-ingress.yaml", edge.bind[1])
    received = [ask(gateway, "/plain", "X-API-Key: alone") for _ in range(4)]
    assert [each.status for each in received] == [200, 200, 200, 403]
    assert b"<center>nginx/" in received[3].body
    assert received[3].header("retry-after") is None
    assert received[0].header("ratelimit") is None


@needs("nginx")
def test_limits_hold_where_the_question_is_asked_by_lua(edge: Edge, start_gateway: StartGateway) -> None:
    """With auth-keepalive the template takes no status but 200 for an allow."""
    gateway = start_gateway("ingress-nginx-ingress.yaml+keepalive.yaml", edge.bind[1])
    received = [ask(gateway, "/plain", "X-API-Key: keepalive") for _ in range(4)]
    assert [each.status for each in received] == [200, 200, 200, 403]


@needs("nginx")
def test_an_allow_is_not_kept_by_a_cache_of_answers(edge: Edge, start_gateway: StartGateway) -> None:
    gateway = start_gateway("ingress-nginx-configmap.yaml+cache.yaml", edge.bind[1])
    received = [ask(gateway, "/plain", "X-API-Key: cache") for _ in range(4)]
    assert [each.status for each in received] == [200, 200, 200, 429]


@needs("nginx")
def test_annotations_alone_fail_closed_with_500(fake_edge: FakeEdge, start_gateway: StartGateway) -> None:
    gateway = start_gateway("ingress-nginx-ingress.yaml", fake_edge.port)
    for way in WAYS:
        if way != "slow":  # the template waits 60 s
            fake_edge.fail(way)
            assert ask(gateway, "/").status == 500


@needs("nginx")
def test_the_headers_of_an_annotation_are_not_believed_from_a_client(
    fake_edge: FakeEdge, start_gateway: StartGateway
) -> None:
    gateway = start_gateway("ingress-nginx-ingress.yaml", fake_edge.port)
    fake_edge.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    names = read_headers((FILES / "ingress.yaml").read_text())
    assert ask(gateway, "/", *(f"{name}: mine" for name in names)).status == 200
    assert names
    for name in names:
        assert f"\r\n{name}:".lower() not in fake_edge.asked.decode().lower()


@needs("nginx")
@pytest.mark.parametrize("way", WAYS)
def test_the_patch_fails_open(way: str, fake_edge: FakeEdge, start_gateway: StartGateway) -> None:
    """All but what is no HTTP: nginx has no status for that, and the place that passes is found by one."""
    gateway = start_gateway("ingress-nginx-configmap.yaml+fail-open.yaml", fake_edge.port, patient=False)
    fake_edge.fail(way)
    received = ask(gateway, "/")
    if way in GARBAGE and way not in ("nothing", "half an answer"):
        assert received.status == 503
        assert received.header("retry-after") == "1"
    else:
        assert received.status == 200
        assert received.header("x-application-count") is not None


@needs("nginx")
def test_failing_open_still_rejects_what_was_decided(edge: Edge, start_gateway: StartGateway) -> None:
    gateway = start_gateway("ingress-nginx-configmap.yaml+fail-open.yaml", edge.bind[1])
    assert [ask(gateway, "/plain", "X-API-Key: open").status for _ in range(4)] == [200, 200, 200, 429]
    assert ask(gateway, "/plain/%00").status == 400
    assert ask(gateway, "/plain", "X-API-Key: failed", "X-Want-Status: 500").status == 500


@needs("nginx")
@pytest.mark.parametrize("sent", ["http://api.example.com/host", "http://API.example.com:8000/host"])
def test_a_client_cannot_name_another_host_than_it_is_routed_by(
    sent: str, edge: Edge, start_gateway: StartGateway
) -> None:
    """nginx routes by the absolute form, and the template describes the request with the header Host."""
    gateway = start_gateway("ingress-nginx", edge.bind[1])
    assert ask(gateway, sent, "X-API-Key: hosts", host="other.example.com").status == 400
    assert ask(gateway, sent, "X-API-Key: hosts", host="api.example.com.other").status == 400
    for host in ("api.example.com", "API.Example.com", "api.example.com:8443", "api.example.com."):
        received = ask(gateway, "/host", f"X-API-Key: hosts {sent} {host}", host=host)
        assert (received.status, received.header("ratelimit-remaining")) == (200, "2"), host
    assert ask(gateway, sent, "X-API-Key: hosts", host="api.example.com").status == 200
    assert gateway.ask(b"GET /nothing HTTP/1.0\r\n\r\n").status in (200, 400)


@needs("nginx")
def test_the_application_s_limits_are_shown_only_where_we_have_none(
    fake_edge: FakeEdge, tmp_path: Path
) -> None:
    application = FakeEdge()
    kind = KINDS["ingress-nginx"]
    gateway = Gateway(kind, kind.closed, tmp_path, fake_edge.port, application.port, True)
    try:
        application.answer(b"HTTP/1.1 200 OK\r\nRateLimit-Remaining: 99\r\nContent-Length: 0\r\n\r\n")
        for ours, shown in ((b"RateLimit-Limit: 3\r\nRateLimit-Remaining: 2\r\n", "2"), (b"", "99")):
            fake_edge.answer(b"HTTP/1.1 200 OK\r\n%bContent-Length: 0\r\n\r\n" % ours)
            assert ask(gateway, "/").header("ratelimit-remaining") == shown
    finally:
        gateway.stop()
        application.stop()


def directives(text: str) -> list[str]:
    """The lines of an nginx configuration without comments and indentation, its includes put in."""
    found: list[str] = []
    for line in (line.strip() for line in text.splitlines()):
        included = re.fullmatch(r"include fairvisor/(.*);", line)
        if included:
            found += directives((NGINX / included[1]).read_text())
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def test_the_snippets_are_the_files_of_nginx() -> None:
    """Less what the controller writes itself, and the modules that its nginx is built without."""
    snippets = read_settings((FILES / "configmap.yaml").read_text())
    assert directives(snippets["http-snippet"]) == directives((NGINX / "http.conf").read_text())

    protect = directives((NGINX / "protect.conf").read_text())
    left_out = {line for line in protect if line.startswith(("uwsgi_", "scgi_"))} | {
        "auth_request /_fairvisor;"
    }
    assert directives(snippets["location-snippet"]) == [line for line in protect if line not in left_out]

    places = "include fairvisor/server.conf;\ninclude fairvisor/fail-closed.conf;"
    wanted = directives(places)
    wanted = wanted[wanted.index("location @fairvisor_refused {") :]
    server = directives(snippets["server-snippet"])
    begin, end = server.index("location @fairvisor_refused {"), server.index("location @fairvisor_passes {")
    assert server[begin:end] == wanted


def test_the_same_headers_are_kept_from_clients_as_by_the_files_of_nginx() -> None:
    """But those that the template sets, or that /v1/auth-url does not read."""
    cleared = {
        line.split()[1]
        for line in directives((NGINX / "server.conf").read_text())
        if line.startswith("proxy_set_header") and '"";' in line
    } - {"Content-Length", "Connection"}
    snippets = read_settings((FILES / "configmap.yaml").read_text())
    assert {line.split()[1] for line in directives(snippets["global-auth-snippet"])} == cleared
    assert set(read_headers((FILES / "ingress.yaml").read_text())) == cleared


def test_the_patch_changes_what_happens_to_undecided_requests_and_nothing_else() -> None:
    closed, opened = (
        directives(read_settings((FILES / name).read_text())["global-auth-snippet"])
        for name in ("configmap.yaml", "fail-open.yaml")
    )
    assert opened == [
        *closed,
        "proxy_intercept_errors on;",
        "error_page 500 502 503 504 = @fairvisor_passes;",
    ]


@needs("yaml", "kubernetes_validate")
def test_the_files_are_what_kubernetes_takes() -> None:
    yaml = importlib.import_module("yaml")
    validate = importlib.import_module("kubernetes_validate").validate
    for name in ("configmap.yaml", "ingress.yaml"):
        for document in yaml.safe_load_all((FILES / name).read_text()):
            for version in ("1.25.0", "1.34.0"):  # tests/test_kubernetes.py
                validate(document, version, strict=True)


@needs("yaml")
def test_the_controller_of_the_tests_reads_the_files_as_yaml_is_read() -> None:
    yaml = importlib.import_module("yaml")
    for name in ("configmap.yaml", "fail-open.yaml"):
        text = (FILES / name).read_text()
        assert yaml.safe_load(text)["data"].items() <= read_settings(text).items()
    ingress, headers = yaml.safe_load_all((FILES / "ingress.yaml").read_text())
    prefix = "nginx.ingress.kubernetes.io/"
    annotations = {
        name.removeprefix(prefix): value for name, value in ingress["metadata"]["annotations"].items()
    }
    read = read_settings((FILES / "ingress.yaml").read_text())
    assert read["auth-url"] == annotations["auth-url"]
    assert read_headers((FILES / "ingress.yaml").read_text()) == list(headers["data"])
    assert set(annotations) == {"auth-url", "auth-proxy-set-headers"}
    assert annotations["auth-proxy-set-headers"] == "default/" + headers["metadata"]["name"]
