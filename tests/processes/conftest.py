"""What tests with real processes share: servers that are gone afterwards, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edge_server import Edge, StartEdge, wait_until


@pytest.fixture
def start_edge(tmp_path: Path) -> Iterator[StartEdge]:
    """Starts servers: `start_edge(bundle, workers=2, FAIRVISOR_...="...")`; `ready=False` does not wait for them.

    `command` is another program that serves on the address it is given with -b.
    """
    edges: list[Edge] = []

    def start(
        bundle: object = None,
        *,
        workers: int = 1,
        unix: bool = False,
        ready: bool = True,
        command: list[str] | None = None,
        **environ: str,
    ) -> Edge:
        settings = {"FAIRVISOR_WORKER_PROCESSES": str(workers), **environ}
        edge = Edge(tmp_path, bundle, settings, unix, command)
        edges.append(edge)
        if ready:
            edge.wait_ready()
            wait_until(lambda: (len(edge.workers()) if command else edge.registered()) >= workers)
        return edge

    yield start
    for edge in edges:
        edge.clean_up()
