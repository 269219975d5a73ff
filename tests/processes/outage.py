"""An outage of an identity provider while workers are killed, replaced and started again: what a limit is worth then.

One token is used until its limit of three is gone. From then on each of its requests must be rejected by that limit:
one that passes had no limit, and one that is rejected as missing had no claims. The test runs it with few requests;
`python tests/processes/outage.py 10000` with as many as that.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric import ec
from edge_server import Edge, ask, token_bucket

BURST = 3
RIGHT = (429, "rate_limit_exceeded")
ANSWERS = ("answers 500", "is slow", "sends garbage")
SLOW_S = 3.0

Outcomes = Counter[tuple[int, str]]


class Provider:
    """Publishes one key, as long as it is well. `answer` is "well" or one of ANSWERS."""

    def __init__(self) -> None:
        self.answer = "well"
        self.slow_s = SLOW_S
        self.asked = 0
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = jwt.get_algorithm_by_name("ES256").to_jwk(self._key.public_key(), as_dict=True)
        self._set = orjson.dumps({"keys": [public | {"kid": "k1"}]})
        self._stopped = threading.Event()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.publish(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def publish(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        answer = self.answer
        if answer == "is slow":
            self._stopped.wait(self.slow_s)
        body = b"<html>maintenance</html>" if answer == "sends garbage" else self._set
        handler.send_response(500 if answer == "answers 500" else 200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def token(self, subject: str) -> str:
        """A token of this subject, valid for a day."""
        claims = {"sub": subject, "exp": int(time.time()) + 86_400}
        return jwt.encode(claims, self._key, "ES256", headers={"kid": "k1"})

    def close(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def provider() -> Iterator[Provider]:
    """A provider that is gone afterwards."""
    made = Provider()
    try:
        yield made
    finally:
        made.close()


def bundle() -> dict[str, Any]:
    """A limit for each subject; a request without claims is rejected as missing, and never limited."""
    return token_bucket(BURST, rate=0.0001, limit_keys=["jwt:sub"], on_missing="reject")


def ask_with(edge: Edge, token: str) -> tuple[int, str]:
    """Ask on a connection of its own, again where a killed worker took it along: status and reason."""
    question = ask("/", "GET", f"Authorization: Bearer {token}")
    while True:
        client = edge.connect()
        try:
            client.send(question)
            status, headers, _ = client.answer()
        except (ConnectionError, AssertionError):
            continue
        finally:
            client.close()
            edge.forget(client)
        return status, headers.get("x-fairvisor-reason", "")


def use_up(edge: Edge, token: str) -> None:
    """Use a token until its limit is gone."""
    assert [ask_with(edge, token)[0] for _ in range(BURST)] == [204] * BURST
    assert ask_with(edge, token) == RIGHT


def kill_a_worker(edge: Edge) -> None:
    """Kill the worker that leads, and fetches for the others."""
    os.kill(edge.leader(), signal.SIGKILL)


def replace_the_workers(edge: Edge) -> None:
    """Have the master replace all workers."""
    edge.signal(signal.SIGHUP)


def start_again(edge: Edge) -> None:
    """Stop everything and start it."""
    edge.signal(signal.SIGTERM)
    edge.end()
    edge.start_again()


DISTURBANCES = (kill_a_worker, replace_the_workers, start_again)


def outage(edge: Edge, token: str, asks: int, *disturbances: Callable[[Edge], None]) -> Outcomes:
    """Disturb the edge again and again; after each, what so many requests of the token got."""
    seen: Outcomes = Counter()
    for disturb in disturbances:
        disturb(edge)
        seen += Counter(ask_with(edge, token) for _ in range(asks))
    return seen


def main(asks: int) -> int:
    """Run with each kind of outage; 1 when a request had no limit or no claims."""
    wrong: Outcomes = Counter()
    with tempfile.TemporaryDirectory() as folder, provider() as source:
        environ = {"FAIRVISOR_JWKS_URL": source.url, "FAIRVISOR_WORKER_PROCESSES": "2"}
        edge = Edge(Path(folder), bundle(), environ)
        try:
            edge.wait_ready()
            token = source.token("ann")
            use_up(edge, token)
            for answer in ANSWERS:
                source.answer = answer
                share = -(-asks // len(ANSWERS) // len(DISTURBANCES))
                seen = outage(edge, token, share, *DISTURBANCES)
                print(f"a provider that {answer}: {dict(seen)}")
                wrong += seen - Counter({RIGHT: seen[RIGHT]})
        finally:
            edge.clean_up()
    print(f"without a limit or as missing: {sum(wrong.values())}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
