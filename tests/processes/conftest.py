"""What tests with real processes share: servers that are gone afterwards, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_server import Edge, StartEdge


@pytest.fixture
def start_edge(tmp_path: Path) -> Iterator[StartEdge]:
    """Starts servers: `start_edge(bundle, workers=2, FAIRVISOR_...="...")`; `ready=False` does not wait for them."""
    edges: list[Edge] = []

    def start(
        bundle: object = None, *, workers: int = 1, unix: bool = False, ready: bool = True, **environ: str
    ) -> Edge:
        edge = Edge(tmp_path, bundle, {"FAIRVISOR_WORKER_PROCESSES": str(workers), **environ}, unix)
        edges.append(edge)
        if ready:
            edge.wait_ready()
        return edge

    yield start
    for edge in edges:
        edge.clean_up()
