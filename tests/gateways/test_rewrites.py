"""A gateway that changes the path or the method for its application: policies are about what the client sent."""

from __future__ import annotations

import json

import pytest
from edge_server import Edge
from gateway_servers import KINDS, Edits, StartGateway

SITE = "http://:8000 {\n"
APPLICATION = "\treverse_proxy 127.0.0.1:3000\n"
CADDY_REWRITES = {
    "strip_prefix": "uri strip_prefix /write",
    "strip_suffix": "uri strip_suffix /x",
    "replace": "uri replace /write /other",
    "rewrite": "rewrite * /other{uri}",
    "method": "method DELETE",
}
TRAEFIK_REWRITES = {
    "stripPrefix": "stripPrefix: {prefixes: [/write]}",
    "stripPrefixRegex": 'stripPrefixRegex: {regex: ["/[a-z]+"]}',
    "replacePath": "replacePath: {path: /other}",
    "replacePathRegex": 'replacePathRegex: {regex: "^/write/(.*)", replacement: "/other/$1"}',
    "addPrefix": "addPrefix: {prefix: /other}",
    "chain": "chain: {middlewares: [inner]}\n    inner:\n      stripPrefix: {prefixes: [/write]}",
}
HAPROXY_REWRITES = {
    "set-path": "set-path /other",
    "replace-path": "replace-path /write(.*) \\1",
    "set-uri": "set-uri /other",
    "set-method": "set-method DELETE",
}


def caddy_edits(rewrite: str) -> Edits:
    return ((SITE, f"{SITE}\t{rewrite}\n"),)


def traefik_edits(rewrite: str) -> Edits:
    router = "rule: PathPrefix(`/`)\n"
    return (
        (router, f"{router}      middlewares: [changing]\n"),
        ("  middlewares:\n    fairvisor:", f"  middlewares:\n    changing:\n      {rewrite}\n    fairvisor:"),
    )


def haproxy_edits(rewrite: str) -> Edits:
    question = "    http-request lua.fairvisor\n"
    return ((question, f"{question}    http-request {rewrite}\n"),)


HANDLE_PATH: Edits = (
    (SITE, f"{SITE}\thandle_path /write/* {{\n"),
    (APPLICATION, f"{APPLICATION}\t}}\n"),
)
CASES = [
    *(
        (name, fail_open, f"{name} {word}", caddy_edits(rewrite))
        for name, fail_open in [("caddy", False), ("caddy-2.11", True), ("caddy-short", False)]
        for word, rewrite in CADDY_REWRITES.items()
    ),
    *(
        (name, False, f"{name} handle_path", HANDLE_PATH)
        for name in ("caddy", "caddy-2.11", "caddy-short", "caddy-short-2.11")
    ),
    *(
        ("traefik", False, f"traefik {word}", traefik_edits(rewrite))
        for word, rewrite in TRAEFIK_REWRITES.items()
    ),
    *(
        (name, False, f"{name} {word}", haproxy_edits(rewrite))
        for name in ("haproxy", "haproxy-2.8")
        for word, rewrite in HAPROXY_REWRITES.items()
    ),
]


@pytest.mark.parametrize(
    ("name", "fail_open", "key", "edits"),
    [pytest.param(*case, marks=pytest.mark.needs(KINDS[case[0]].program), id=case[2]) for case in CASES],
)
def test_a_changed_path_does_not_move_a_policy(
    name: str, fail_open: bool, key: str, edits: Edits, edge: Edge, start_gateway: StartGateway
) -> None:
    gateway = start_gateway(name, edge.bind[1], fail_open=fail_open, edits=edits)
    raw = f"PUT /write/x HTTP/1.1\r\nHost: edge\r\nX-API-Key: {key}\r\nContent-Length: 0\r\n\r\n".encode()
    answers = [gateway.ask(raw) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    got = json.loads(answers[0].body)
    assert (got["method"], got["target"]) != ("PUT", "/write/x")
