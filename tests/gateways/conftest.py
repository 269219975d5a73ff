"""What the tests of the gateways share: the application, edges and gateways that are gone afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent / "processes")]  # what the tests beside us share

from edge_server import Edge, reserve_port, wait_until  # noqa: E402
from fake_edge import FakeEdge  # noqa: E402
from gateway_servers import KINDS, OTHERS, Edits, Gateway, StartGateway  # noqa: E402

WORKERS = {"FAIRVISOR_WORKER_PROCESSES": "2"}


@pytest.fixture(scope="session")
def application() -> Iterator[int]:
    """The port of the application."""
    reserved = reserve_port()
    port: int = reserved.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(HERE / "upstream.py"), str(port)])
    wait_until(lambda: _listens(port))
    yield port
    reserved.close()
    process.terminate()
    process.wait()


def _listens(port: int) -> bool:
    import socket

    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture(scope="module")
def start_edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Edge]]:
    """Starts edges with a bundle: the name of one in `bundles/`, or its path."""
    edges: list[Edge] = []

    def start(bundle: str | Path, **environ: str) -> Edge:
        path = bundle if isinstance(bundle, Path) else HERE / "bundles" / f"{bundle}.json"
        document = json.loads(path.read_text())
        edge = Edge(tmp_path_factory.mktemp("edge"), document, WORKERS | environ, False, None)
        edges.append(edge)
        edge.wait_ready()
        return edge

    yield start
    for edge in edges:
        edge.process.terminate()  # all at once: a WSGI worker takes a moment
    for edge in edges:
        edge.clean_up()


@pytest.fixture(scope="module")
def edge(start_edge: Callable[..., Edge]) -> Edge:
    """An edge with the bundle of the stories. A module that needs another has a fixture of this name."""
    return start_edge("stories")


@pytest.fixture(scope="module")
def fake_edge() -> Iterator[FakeEdge]:
    """An edge that answers what a test says."""
    fake = FakeEdge()
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def start_gateway(tmp_path_factory: pytest.TempPathFactory, application: int) -> Iterator[StartGateway]:
    """Starts gateways: `start_gateway("nginx", edge_port)`, with `fail_open=True` in that variant.

    `edits` make a configuration of a user's own. `patient=False`: with the time-outs that are shipped, which a machine
    in distress may exceed.
    """
    gateways: list[Gateway] = []

    def start(
        name: str, edge: int, *, fail_open: bool = False, patient: bool = True, edits: Edits = ()
    ) -> Gateway:
        kind = KINDS.get(name) or OTHERS[name]
        kind = replace(kind, edits=kind.edits + edits)
        variant = kind.open if fail_open else kind.closed
        gateway = Gateway(kind, variant, tmp_path_factory.mktemp(name), edge, application, patient)
        gateways.append(gateway)
        return gateway

    yield start
    for gateway in gateways:
        gateway.stop()
