"""How perf/run starts the original: from its own template, with bundles that it takes. No file of it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

PERF = Path(__file__).parents[1] / "perf"
sys.path.insert(0, str(PERF))

import original  # noqa: E402
import run  # noqa: E402
from contenders import Contender, edges  # noqa: E402
from load import check  # noqa: E402
from workloads import WORKLOADS, beside  # noqa: E402

# The least that has everything in the places where its template has it.
TEMPLATE = """worker_processes ${FAIRVISOR_WORKER_PROCESSES};
env FAIRVISOR_CONFIG_FILE;
error_log /dev/stderr ${FAIRVISOR_LOG_LEVEL};
pid /tmp/nginx.pid;
events { worker_connections 16; }

http {
  geo $listed { include /etc/nginx/iplists/tor_exits.geo; }
  map $http_x_asn $kind { include /etc/fairvisor/asn_type.map; }
  lua_package_path "/opt/fairvisor/src/?.lua;;";
  lua_shared_dict counters ${FAIRVISOR_SHARED_DICT_SIZE};
  server {
    listen 8080;
    set $mode "${FAIRVISOR_MODE}";
    set $backend "${FAIRVISOR_BACKEND_URL}";
    location / { content_by_lua_file /opt/fairvisor/src/nginx/decision.lua; }
  }
}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "edge"
    for name in (*original.ENTERED, "data/asn_type.map", "data/tor_exits.geo"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / original.TEMPLATE).parent.mkdir()
    (folder / original.TEMPLATE).write_text(TEMPLATE)
    return folder


def conf(contender: Contender) -> str:
    return Path(contender.argv[contender.argv.index("-c") + 1]).read_text()


@pytest.mark.needs("nginx")
def test_nginx_takes_what_becomes_of_the_template(checkout: Path, tmp_path: Path) -> None:
    for each in (*original.decisions(tmp_path, checkout), original.proxy(tmp_path, checkout, 9)):
        subprocess.run([*each.argv, "-t"], check=True, capture_output=True, timeout=60)


@pytest.mark.needs("nginx")
def test_it_runs_from_the_checkout_with_one_worker_and_no_access_log(checkout: Path, tmp_path: Path) -> None:
    contender = original.decisions(tmp_path, checkout)[0]
    text = conf(contender)
    assert "worker_processes 1;" in text
    assert "access_log off;" in text
    assert f"listen 127.0.0.1:{contender.port};" in text
    assert f"content_by_lua_file {checkout}/src/nginx/decision.lua;" in text
    assert not [place for place in original.PLACES if place in text]
    assert "map $http_x_asn $kind" in text, "a variable of nginx is no setting"


@pytest.mark.needs("nginx")
def test_it_is_a_proxy_before_the_upstream_of_the_others(checkout: Path, tmp_path: Path) -> None:
    contender = original.proxy(tmp_path, checkout, 4711)
    assert 'set $mode "reverse_proxy";' in conf(contender)
    assert 'set $backend "http://127.0.0.1:4711";' in conf(contender)
    assert contender.environ["FAIRVISOR_MODE"] == "reverse_proxy"


@pytest.mark.needs("nginx")
def test_it_decides_by_the_same_limits_as_ours(checkout: Path, tmp_path: Path) -> None:
    for theirs, ours in zip(original.decisions(tmp_path, checkout), edges(tmp_path), strict=True):
        taken, meant = (
            json.loads(Path(each.environ["FAIRVISOR_CONFIG_FILE"]).read_text()) for each in (theirs, ours)
        )
        for policy in taken["policies"]:
            for rule in policy["spec"]["rules"]:
                for name in original.WANTED[rule["algorithm"]]:
                    del rule["algorithm_config"][name]
        assert taken == meant
        assert theirs.headers.keys() == ours.headers.keys()
        assert theirs.expect == {204: 200, 429: 429}[ours.expect]
        assert theirs.tells == "RateLimit"


def test_another_template_is_refused_with_what_it_lacks(checkout: Path) -> None:
    changed = TEMPLATE.replace("listen 8080;", "listen 80;")
    with pytest.raises(SystemExit, match="has no 'listen 8080;'"):
        original.configured(changed, checkout, original.SETTINGS, 1234, Path("pid"))


def test_it_takes_part_where_it_can_and_nowhere_else(checkout: Path) -> None:
    with_it = beside(checkout)
    assert [name for name in WORKLOADS if with_it[name] != WORKLOADS[name]] == ["decisions", "proxy"]
    assert list(with_it) == list(WORKLOADS)


def test_a_folder_without_it_is_an_error_that_says_what_is_missing(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "data/tor_exits.geo").unlink()
    monkeypatch.setattr(sys, "argv", ["perf/run", "--original", str(checkout)])
    with pytest.raises(SystemExit, match="2"):
        run.arguments()
    assert f"no fairvisor/edge in {checkout}: there is no data/tor_exits.geo\n" in capsys.readouterr().err


def test_a_checkout_is_taken(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["perf/run", "decisions", "--original", str(checkout)])
    assert run.arguments().original == checkout


class Limited(BaseHTTPRequestHandler):
    """Allows everything, and says at /limited that a limit was asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/limited":
            self.send_header("RateLimit", '"orders";r=1;t=1')
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Quietly."""


@pytest.fixture
def allowing() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Limited) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_one_that_allows_without_asking_its_limit_is_not_measured(allowing: int) -> None:
    asked = Contender("it", allowing, [], path="/limited", expect=200, tells="RateLimit")
    check(asked)
    with pytest.raises(SystemExit, match="it: answered without RateLimit"):
        check(asked._replace(path="/unlimited"))
