"""What a scrape of /metrics costs the requests that arrive meanwhile, with 10,000 policies in use.

    python perf/scrape.py [--policies 10000] [--rounds 20] [--format table|json]

One client asks for decisions one after the other and notes how long each took; in every second round another one
scrapes. Both rounds are of the same length, so a drift of the machine meets both.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import threading
import time
from typing import Any

from bundles import many
from contenders import REQUEST, edge, running, scratch
from rich.console import Console
from rich.progress import track
from terminal import show


class Client:
    """A connection that asks for decisions and pages."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def decide(self, path: str) -> None:
        """One decision, answered."""
        head = "".join(f"{name}: {value}\r\n" for name, value in REQUEST.items() if name != "X-Original-URI")
        self._socket.sendall(f"GET /v1/decision HTTP/1.1\r\n{head}X-Original-URI: {path}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self._socket.recv(65536)
        assert answer.startswith(b"HTTP/1.1 204"), answer

    def scrape(self) -> int:
        """One page of metrics; its size in bytes."""
        self._socket.sendall(b"GET /metrics HTTP/1.1\r\nHost: edge\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(
            next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[
                1
            ]
        )
        size = len(body)
        while size < length:
            size += len(self._socket.recv(1 << 20))
        return size


def ask_for(client: Client, seconds: float) -> list[float]:
    """How long each decision took, in milliseconds."""
    took = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        client.decide("/svc1/")
        took.append((time.perf_counter() - began) * 1000)
    return took


def measure(port: int, policies: int, rounds: int, console: Console) -> list[dict[str, Any]]:
    """Rounds without and with a scrape, in turns."""
    client, scraper = Client(port), Client(port)
    for number in range(policies):
        client.decide(f"/svc{number}/")
    size, durations = scraper.scrape(), []
    took: dict[bool, list[float]] = {False: [], True: []}
    for turn in track(range(2 * rounds), "measuring", console=console):
        scraping = bool(turn % 2)
        if not scraping:
            took[False] += ask_for(client, 0.5)
            continue
        began = time.perf_counter()
        thread = threading.Thread(target=scraper.scrape)
        thread.start()
        while thread.is_alive():
            took[True] += ask_for(client, 0.02)
        durations.append((time.perf_counter() - began) * 1000)
    rows = []
    for scraping, each in took.items():
        quantiles = statistics.quantiles(each, n=100)
        rows.append(
            {
                "requests": "during a scrape" if scraping else "otherwise",
                "number": len(each),
                "p50_ms": round(quantiles[49], 3),
                "p99_ms": round(quantiles[98], 3),
                "max_ms": round(max(each), 3),
                "scrape_ms": round(statistics.median(durations)) if scraping else None,
                "page_bytes": size if scraping else None,
            }
        )
    return rows


def main() -> None:
    """Start an edge, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policies", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    console = Console(stderr=True)
    with scratch() as folder:
        contender = edge(folder, "many", many(options.policies))
        with running(contender):
            rows = measure(contender.port, options.policies, options.rounds, console)
    show(rows, options.format)


if __name__ == "__main__":
    main()
