"""All of `tests/requests/` over the sockets of real WSGI servers: meinheld, and gunicorn's threads.

The servers parse what the files send and frame what the edge answers; the clock stays the files' own. The edge worker's
protocol is fed with the same bytes in `tests/test_requests.py`, and real edge workers play a sample in
`test_real_servers.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_server import ROOT, Edge
from gateway_servers import exchange
from request_checks import Received
from request_script import Script
from test_requests import FOLDER, SCRIPTS, Run

from fairvisor.master import wsgi_limits
from fairvisor.settings import Settings

SERVERS = {"gthread": ["gthread", "--threads", "2"], "meinheld": ["meinheld.gmeinheld.MeinheldWorker"]}
LIMITS = [  # spelled as gunicorn spells them
    f"--{name.replace('_', '-', 2)}={value}" for name, value in wsgi_limits(Settings.load({}, {})).items()
]

# What docs/gateways/transports.md says is different. A difference that goes away must leave the page.
DIFFERENT = {
    "gthread": frozenset[str](),
    "meinheld": frozenset({
        # a path with dot segments is refused, because it may not be what was sent
        "descriptors/009-request-path",
        "gateways/009-envoy-paths-are-read-like-others",
        "kill-switches/006-no-spelling-escapes-a-route",
        "kill-switches/008-other-descriptors",
        "loops/002-what-a-fingerprint-covers",
        "selectors/011-encoded-letters-are-letters",
        "selectors/014-dots-that-climb-too-high",
        # an encoded character of a path is that character
        "endpoints/005-unknown-paths",
        "selectors/012-both-readings-of-an-encoded-slash",
        "selectors/019-encoded-slashes-before-parameters",
        # a name with an underscore is one with a dash
        "gateways/015-underscores-are-no-dashes",
        # a header of more than 8 KiB is refused
        "gateways/014-malformed-uris",
        "tokens-verified/009-what-is-no-bearer-token",
        # QUERY is no method that it knows
        "loops/013-methods-that-live-by-their-body",
    }),
}  # fmt: skip


def name_of(script: Script) -> str:
    """Folder and file, as DIFFERENT names it."""
    return str(script.path.relative_to(FOLDER).with_suffix(""))


class Hosted:
    """`request_host.py` in a real server: the world of a file, and the way to it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._peer = ""

    def begin(self, path: Path) -> None:
        self._peer = ""
        self.direct("begin", str(path))

    def direct(self, word: str, text: str) -> None:
        body = text.encode()
        head = f"POST /-/{'at' if word == '@' else word} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
        assert exchange(self._address, head.encode() + body).status == 200

    def ask(self, raw: bytes, peer: str) -> Received:
        if peer != self._peer:
            self.direct("peer", peer)
            self._peer = peer
        received = exchange(self._address, raw)
        received.held_ms = int(received.header("x-fairvisor-throttle-ms") or 0)
        return received


@pytest.fixture(
    scope="module",
    params=[pytest.param("gthread"), pytest.param("meinheld", marks=pytest.mark.needs("meinheld"))],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Hosted]]:
    command = [sys.executable, "-m", "gunicorn", "--pythonpath", str(ROOT / "tests"), "-w", "1"]
    command += ["-k", *SERVERS[request.param], *LIMITS, "request_host:application"]
    edge = Edge(tmp_path_factory.mktemp("host"), None, {}, command=command)
    try:
        edge.wait_ready()
        assert isinstance(edge.bind, tuple)
        yield request.param, Hosted(edge.bind)
    finally:
        edge.clean_up()


@pytest.mark.parametrize(
    "script",
    [pytest.param(script, id=name_of(script)) for script in SCRIPTS if "wsgi" in script.transports],
)
def test_requests_over_a_real_server(script: Script, server: tuple[str, Hosted]) -> None:
    name, hosted = server
    hosted.begin(script.path)
    found = Run(script, hosted, hosted).problems
    assert bool(found) == (name_of(script) in DIFFERENT[name]), "\n" + "\n".join(found)
