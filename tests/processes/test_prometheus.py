"""A real Prometheus scrapes a real edge: every query of the dashboard and every alert has something to work with."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from edge_server import PATIENCE_S, ROOT, Client, Edge, StartEdge, free_port, wait_until

pytestmark = pytest.mark.needs("prometheus", "promtool")

RULES = ROOT / "conf" / "prometheus"
DASHBOARD = ROOT / "conf" / "grafana" / "fairvisor.json"

# What a person would have chosen in Grafana.
VARIABLES = {"$instance": ".*", "$__rate_interval": "1m"}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    for arguments in (("check", "rules", "fairvisor.rules.yml"), ("check", "config", "prometheus.yml")):
        checked = promtool(*arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_are_raised_when_they_should_be_and_only_then() -> None:
    tested = promtool("test", "rules", "fairvisor.rules.test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for variable, value in VARIABLES.items():
        found = [query.replace(variable, value) for query in found]
    assert not [query for query in found if "$" in query]
    return found


def rule(name: str, algorithm: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "limit_keys": [], "algorithm": algorithm, "algorithm_config": config, **more}


def policy(name: str, *rules: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"id": name, "spec": {"selector": {"pathPrefix": f"/{name}"}, "rules": [*rules], **spec}}


def everything() -> dict[str, Any]:
    """A bundle in which everything can happen."""
    bucket = {"tokens_per_second": 0.001, "burst": 2}
    loop = {
        "enabled": True,
        "window_seconds": 60,
        "threshold_identical_requests": 3,
        "action": "warn",
        "body": "require",
    }
    breaker = {"enabled": True, "spend_rate_threshold_per_minute": 2}
    llm = {"tokens_per_minute": 1_000_000_000, "default_max_completion": 100}
    return {
        "bundle_version": 1,
        "expires_at": "2100-01-01T00:00:00Z",
        "kill_switches": [{"scope_key": "header:x-stop", "scope_value": "*"}],
        "policies": [
            policy("bucket", rule("r", "token_bucket", bucket)),
            policy("shadow", rule("r", "token_bucket", bucket), mode="shadow"),
            policy("missing", rule("r", "token_bucket", bucket, limit_keys=["header:x-absent"])),
            policy(
                "loop", rule("r", "token_bucket", {"tokens_per_second": 9, "burst": 99}), loop_detection=loop
            ),
            policy(
                "breaker",
                rule("r", "token_bucket", {"tokens_per_second": 9, "burst": 99}),
                circuit_breaker=breaker,
            ),
            policy("llm", rule("t", "token_bucket_llm", llm)),
            policy(
                "full", rule("b", "cost_based", {"budget": 9, "period": "1d"}, limit_keys=["header:x-key"])
            ),
        ],
    }


def happen(edge: Edge) -> None:
    """Let each thing happen that a bundle can count."""
    client = edge.connect()
    for name in ("bucket", "shadow", "missing", "loop", "breaker"):
        for _ in range(5):
            client.send(question(f"/{name}"))
            client.answer()
    client.send(question("/loop", "POST"))
    client.answer()
    client.send(question("/bucket", "GET", "X-Stop: now"))
    client.answer()
    client.send(question("/bucket", "GET", "X-Fairvisor-Request-Id: 1", "Authorization: Bearer no-token"))
    client.answer()
    assert client.status(b"GET /v1/nothing HTTP/1.1\r\n\r\n") == 404
    for used in (10, 1000):
        settle(client, used)
    client.close()


def fill(edge: Edge, keys: int) -> None:
    """More counters that may not be evicted than there are slots."""
    client = edge.connect()
    for start in range(0, keys, 500):
        client.send(b"".join(question("/full", "GET", f"X-Key: {key}") for key in range(start, start + 500)))
        for _ in range(500):
            client.answer()
    client.close()


def settle(client: Client, used: int) -> None:
    client.send(question("/llm", "POST"))
    status, headers, _ = client.answer()
    assert status == 204, headers
    body = json.dumps({"reservation": headers["x-fairvisor-reservation"], "usage": {"total_tokens": used}})
    head = f"POST /v1/usage HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(body)}\r\n\r\n"
    assert client.status(head.encode() + body.encode()) == 204


def question(path: str, method: str = "GET", *lines: str) -> bytes:
    head = [
        "GET /v1/decision HTTP/1.1",
        "Host: edge",
        f"X-Original-Method: {method}",
        f"X-Original-URI: {path}",
        *lines,
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode()


def fails_upstream(proxy: Edge) -> bool:
    """Whether the proxy answers, and what: nobody is behind it. Often enough for the upstream to be left out."""
    try:
        client = proxy.connect()
    except ConnectionRefusedError:
        return False
    with closing(client):
        for _ in range(20):
            assert client.status(b"GET /none HTTP/1.1\r\nHost: edge\r\n\r\n") in (502, 503)
    return True


class Prometheus:
    """A Prometheus on a free port that scrapes every second, with the shipped rules."""

    def __init__(self, place: Path, *targets: str) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES / "fairvisor.rules.yml")],
            "scrape_configs": [{"job_name": "fairvisor", "static_configs": [{"targets": [*targets]}]}],
        }
        (place / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
        self._log = (place / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={place / 'prometheus.json'}",
                f"--storage.tsdb.path={place / 'prometheus'}",
                f"--web.listen-address={self._address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def query(self, expression: str) -> list[Any]:
        """The result of an instant query."""
        found = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        result: list[Any] = found["data"]["result"]
        return result

    def alert_health(self) -> dict[str, str]:
        """Each alert with whether its last evaluation went well."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=PATIENCE_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._log.close()


@pytest.fixture
def watched(start_edge: StartEdge, tmp_path: Path) -> Iterator[tuple[Edge, Prometheus]]:
    """An edge to which everything happened, and a Prometheus that scrapes it."""
    keys = tmp_path / "keys.json"
    secret = base64.urlsafe_b64encode(b"k" * 32).rstrip(b"=").decode()
    keys.write_text(json.dumps({"keys": [{"kty": "oct", "k": secret, "kid": "a", "alg": "HS256"}]}))
    edge = start_edge(
        everything(),
        FAIRVISOR_SHARED_DICT_SIZE="256k",
        FAIRVISOR_JWKS_FILE=str(keys),
        FAIRVISOR_REQUEST_ID="true",
    )
    proxy_health = f"127.0.0.1:{free_port()}"
    proxy = start_edge(
        everything(),
        ready=False,
        FAIRVISOR_MODE="reverse_proxy",
        FAIRVISOR_BACKEND_URL=f"http://127.0.0.1:{free_port()}",
        FAIRVISOR_HEALTH_BIND=proxy_health,
    )
    wait_until(lambda: fails_upstream(proxy))
    prometheus = Prometheus(tmp_path, f"127.0.0.1:{edge.bind[1]}", proxy_health)
    try:
        wait_until(prometheus.is_ready)
        yield edge, prometheus
    finally:
        prometheus.stop()


def test_every_query_of_the_dashboard_resolves(watched: tuple[Edge, Prometheus]) -> None:
    edge, prometheus = watched
    happen(edge)
    fill(edge, 10_000)
    unresolved = queries()
    assert len(unresolved) > 50

    def resolve() -> bool:
        unresolved[:] = [query for query in unresolved if not prometheus.query(query)]
        return not unresolved

    try:
        wait_until(resolve)
    except AssertionError:
        pytest.fail("nothing came of:\n" + "\n".join(unresolved))


def test_prometheus_evaluates_every_alert(watched: tuple[Edge, Prometheus]) -> None:
    _, prometheus = watched
    wait_until(lambda: set(prometheus.alert_health().values()) == {"ok"})
    assert len(prometheus.alert_health()) == 19
    wait_until(lambda: prometheus.query('up{job="fairvisor"} == 1') != [])
