"""Proxies before one upstream, which shares its core with the load: nginx, Envoy, an edge and maybe the original."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import original
from bundles import one_limit
from contenders import Contender, edge, envoy, envoy_address, free_port, nginx_with, running
from machine import LOAD_CORE

ANSWER = "x" * 213
LARGE = 1 << 20


@contextmanager
def upstream(folder: Path) -> Iterator[int]:
    """The port of an nginx with a small answer at / and a large one at /large."""
    port = free_port()
    folder.chmod(0o755)  # nginx reads as another user
    (folder / "large").write_bytes(os.urandom(LARGE))
    places = f'location = /large {{ root {folder}; }} location / {{ return 200 "{ANSWER}"; }}'
    http = f"sendfile on; server {{ listen 127.0.0.1:{port}; {places} }}"
    with running(Contender("upstream", port, nginx_with(folder, port, http)), LOAD_CORE):
        yield port


def proxies(folder: Path, behind: int, path: str = "/", beside: Path | None = None) -> list[Contender]:
    """All of them before the port `behind`, nginx first; the original if there is a checkout of it `beside`."""
    ours = [nginx(folder, behind), envoy_proxy(folder, behind), fairvisor(folder, behind)]
    older = [original.proxy(folder, beside, behind)] if beside else []
    return [each._replace(path=path, headers={"X-Api-Key": "key-1"}, expect=200) for each in (*ours, *older)]


def nginx(folder: Path, behind: int) -> Contender:
    """nginx with kept connections to the upstream, and no files for large answers."""
    port = free_port()
    http = (
        f"upstream u {{ server 127.0.0.1:{behind}; keepalive 128; }} proxy_max_temp_file_size 0; "
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://u; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; } }'
    )
    return Contender("nginx", port, nginx_with(folder, port, http))


def envoy_proxy(folder: Path, behind: int) -> Contender:
    """Envoy with one worker thread."""
    endpoint = {"endpoint": {"address": envoy_address(behind)}}
    assignment = {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]}
    cluster = {"name": "upstream", "type": "STATIC", "load_assignment": assignment}
    port = free_port()
    return Contender(
        "Envoy", port, envoy(folder, port, {"route": {"cluster": "upstream"}}, clusters=[cluster])
    )


def fairvisor(folder: Path, behind: int) -> Contender:
    """One edge worker with one limit."""
    environ = {
        "FAIRVISOR_MODE": "reverse_proxy",
        "FAIRVISOR_BACKEND_URL": f"http://127.0.0.1:{behind}",
        "FAIRVISOR_HEALTH_BIND": f"127.0.0.1:{free_port()}",
    }
    return edge(folder, "edge, one limit", one_limit(), environ=environ)
