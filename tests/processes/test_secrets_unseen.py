"""No secret can be read anywhere: every secret setting has a value of its own, and everything is searched.

What clients send that may be a secret (tokens, cookies, queries) is searched for as well, except in the answers to
themselves.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from edge_server import Edge, StartEdge, ask, bundle_of, free_port, wait_until
from test_operating import run

from fairvisor.memory import SHM_DIR
from fairvisor.settings import PREFIX, declared

MARK = "mark3d"
OF_SETTINGS = {
    PREFIX + each.name.upper(): f"{MARK}-{each.name}-5ec7ba90d1f34e86" for each in declared() if each.secret
}
OF_BUNDLE = f"{MARK}-of-the-bundle-9b1c5d7e3f20486a"
OF_URL = f"{MARK}-of-the-url"
OF_CLIENT = f"{MARK}-of-a-client"
BUNDLE = bundle_of(
    {
        "id": "all",
        "spec": {
            "selector": {"pathPrefix": "/"},
            "rules": [
                {
                    "name": "r",
                    "limit_keys": ["jwt:sub", "header:x-api-key"],
                    "algorithm": "token_bucket",
                    "algorithm_config": {"tokens_per_second": 0.001, "burst": 1},
                    "on_missing": "skip",
                }
            ],
        },
    }
)
WRONG = (
    f"GET /v1/{OF_CLIENT} HTTP/1.1\r\n\r\n",
    f"GET /v1/decision?token={OF_CLIENT} HTTP/1.1\r\n\r\n",
    f"GET /v1/decision HTTP/1.1\r\nX-Fairvisor-Token: {OF_CLIENT}\r\n\r\n",
    f"POST /v1/debug/session HTTP/1.1\r\nX-Fairvisor-Debug-Secret: {OF_CLIENT}\r\n\r\n",
    f"GET {OF_CLIENT} HTTP/1.1\r\n\r\n",
    f"{OF_CLIENT}\r\n\r\n",
    f"GET / HTTP/1.1\r\n{OF_CLIENT}\r\n\r\n",
)


def seen(where: str, text: str) -> list[str]:
    """The lines that hold a mark."""
    return [f"{where}: {line}" for line in text.splitlines() if MARK in line]


def wrong_questions(edge: Edge) -> Iterator[bytes]:
    """Requests that are not decided, each of which holds what may be a secret."""
    token = OF_SETTINGS["FAIRVISOR_DECISION_TOKEN"]
    for head in (f"X-Original-Host: {OF_CLIENT} b", f"X-Original-Method: {OF_CLIENT} b"):
        yield f"GET /v1/decision HTTP/1.1\r\nX-Fairvisor-Token: {token}\r\n{head}\r\n\r\n".encode()
    url = f"X-Original-Method: GET\r\nX-Original-URL: ftp://{OF_CLIENT}"
    yield f"GET /v1/auth-url HTTP/1.1\r\nX-Fairvisor-Token: {token}\r\n{url}\r\n\r\n".encode()
    usage = json.dumps({"reservation": OF_CLIENT, "usage": {"total_tokens": 1}})
    head = f"POST /v1/usage HTTP/1.1\r\nX-Fairvisor-Token: {token}\r\nContent-Length: {len(usage)}\r\n\r\n"
    yield (head + usage).encode()
    for text in WRONG:
        yield text.encode()


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_secret_is_in_logs_pages_status_processes_or_shared_memory(
    start_edge: StartEdge, form: str
) -> None:
    admin = f"127.0.0.1:{free_port()}"
    edge = start_edge(
        ready=False,
        workers=2,
        FAIRVISOR_LOG_LEVEL="debug",
        FAIRVISOR_LOG_FORMAT=form,
        FAIRVISOR_ADMIN_BIND=admin,
        FAIRVISOR_JWKS_URL=f"http://svc:{OF_URL}@127.0.0.1:{free_port()}/jwks?key={OF_URL}",
        BUNDLE_SECRET=OF_BUNDLE,
        **OF_SETTINGS,
    )
    write_signed(edge, {**BUNDLE, "jwt_keys": [{"secret_env": "BUNDLE_SECRET"}]})
    wait_until(edge.is_answering)
    token = f"X-Fairvisor-Token: {OF_SETTINGS['FAIRVISOR_DECISION_TOKEN']}"
    key, bearer = f"X-Api-Key: {OF_CLIENT}", f"Authorization: Bearer {OF_CLIENT}"
    wait_until(lambda: edge.status(ask(f"/?token={OF_CLIENT}", "GET", token, key, bearer)) in (204, 429))
    for question in wrong_questions(edge):
        assert edge.status(question) >= 400, question
    edge.write(BUNDLE)
    wait_until(lambda: "invalid_signature" in edge.log.read_text())
    found = [each for page in ("/readyz", "/metrics", "/livez") for each in seen(page, page_of(edge, page))]
    for arguments in (["status"], ["status", "--format", "json"], ["limits", "top"], ["connect"]):
        ran = run(edge, *arguments)
        found += seen(" ".join(arguments), ran.stdout + ran.stderr)
    for pid in (edge.process.pid, *edge.workers()):
        found += seen("ps", Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    for path in SHM_DIR.glob(f"fairvisor-*{edge.instance}/note-*"):
        found += seen(path.name, path.read_bytes().decode())
    found += seen("the log", edge.log.read_text())
    assert found == []


def write_signed(edge: Edge, bundle: Any) -> None:
    payload = json.dumps(bundle).encode()
    key = OF_SETTINGS["FAIRVISOR_BUNDLE_SIGNING_KEY"].encode()
    edge.policy.write_bytes(base64.b64encode(hmac.digest(key, payload, "sha256")) + b"\n" + payload)


def page_of(edge: Edge, path: str) -> str:
    client = edge.connect()
    client.send(f"GET {path} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n".encode())
    return client.rest().decode()
