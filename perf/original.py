"""The original Fairvisor Edge (OpenResty, Lua) beside ours: one worker of it, run from a checkout of its repository.

Its configuration is its own template, filled as its image fills it; the paths of the image become those of the
checkout. nginx and the Lua module are the distribution's. As with every other nginx here there is no access log; it
logs warnings only, as in its own benchmark. Owns how it is started and what it is asked; nothing of it is copied.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

import bundles
from contenders import CHAT, REQUEST, Contender, free_port
from machine import program

TEMPLATE = "docker/nginx.conf.template"
PLACES = {  # in its image: in its repository
    "/opt/fairvisor/src": "src",
    "/etc/fairvisor/asn_type.map": "data/asn_type.map",
    "/etc/nginx/iplists/tor_exits.geo": "data/tor_exits.geo",
}
ENTERED = [f"src/nginx/{name}.lua" for name in ("init_worker", "decision", "access", "header_filter")]
SETTINGS = {
    "FAIRVISOR_WORKER_PROCESSES": "1",
    "FAIRVISOR_SHARED_DICT_SIZE": "128m",  # as its image has it
    "FAIRVISOR_LOG_LEVEL": "warn",
    "FAIRVISOR_MODE": "decision_service",
    "FAIRVISOR_BACKEND_URL": "http://127.0.0.1:8081",
}
MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
UNREAD = b"{}"  # it decides about POST only, as its own benchmark asks
TELLS = "RateLimit"  # shows that a limit was asked: a policy that it finds wrong it leaves out, and allows
# What it wants besides: how a budget ends, and for tokens what it works out itself and then forgets.
WANTED: dict[str, dict[str, Any]] = {
    "token_bucket": {},
    "cost_based": {"staged_actions": [{"threshold_percent": 100, "action": "reject"}]},
    "token_bucket_llm": {
        "default_max_completion": 16,
        "_tpm_bucket_config": {"tokens_per_second": 1e9 / 60, "burst": 1e9},
    },
}


def missing(folder: Path) -> list[str]:
    """What should be in a checkout of the original and is not."""
    return [name for name in (TEMPLATE, *PLACES.values(), *ENTERED) if not (folder / name).exists()]


def decisions(folder: Path, original: Path) -> list[Contender]:
    """The paths of `contenders.edges`, as far as it has them: it believes any token, and reads no body."""
    claimed = "original, five limits, JWT unverified, loop, breaker"
    unread = "original, LLM tokens, body unread"
    return [
        _decides(folder, original, "original, one limit", bundles.one_limit()),
        _decides(folder, original, claimed, bundles.five_limits(), headers=REQUEST | bundles.bearer()),
        _decides(folder, original, "original, every request rejected", bundles.all_rejected(), expect=429),
        _decides(folder, original, unread, bundles.llm_tokens(), headers=REQUEST | CHAT, body=bundles.chat()),
    ]


def _decides(folder: Path, original: Path, name: str, bundle: dict[str, Any], **asked: Any) -> Contender:
    port = free_port()
    contender = Contender(name, port, *_started(folder, original, port, bundle), tells=TELLS)
    return contender._replace(**{"expect": 200, "body": UNREAD} | asked)


def proxy(folder: Path, original: Path, behind: int) -> Contender:
    """A reverse proxy with one limit before the port `behind`."""
    port = free_port()
    mode = {"FAIRVISOR_MODE": "reverse_proxy", "FAIRVISOR_BACKEND_URL": f"http://127.0.0.1:{behind}"}
    started = _started(folder, original, port, bundles.one_limit(), mode)
    return Contender("original, one limit", port, *started, tells=TELLS)


def _started(
    folder: Path, original: Path, port: int, bundle: dict[str, Any], settings: dict[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Its command and environment."""
    settings = SETTINGS | {"FAIRVISOR_CONFIG_FILE": str(folder / f"original-{port}.json")} | (settings or {})
    Path(settings["FAIRVISOR_CONFIG_FILE"]).write_text(json.dumps(wanted(bundle)))
    conf = folder / f"original-{port}.conf"
    template = (original / TEMPLATE).read_text()
    conf.write_text(configured(template, original, settings, port, Path(f"{conf}.pid")))
    nginx = program("nginx") or sys.exit("nginx is missing")
    # Root stays root, so that the worker can read the checkout and the bundle wherever they are.
    directives = ["daemon off", "user root", *(f"load_module {path}" for path in _modules(nginx))]
    return [nginx, "-c", str(conf), "-g", "".join(f"{each};" for each in directives)], settings


def wanted(bundle: dict[str, Any]) -> dict[str, Any]:
    """A bundle of ours as it takes it."""
    for policy in bundle["policies"]:
        for rule in policy["spec"]["rules"]:
            rule["algorithm_config"] |= WANTED[rule["algorithm"]]
    return bundle


def configured(template: str, original: Path, settings: dict[str, str], port: int, pid: Path) -> str:
    """Its template with everything in its place; ends with a word about what is not in the template any more."""
    text = Template(template).safe_substitute(settings)
    moved = {place: str(original / name) for place, name in PLACES.items()}
    for old, new in {
        **moved,
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "pid /tmp/nginx.pid;": f"pid {pid};",
        "\nhttp {": "\nhttp {\n  access_log off;",
    }.items():
        if old not in text:
            sys.exit(f"{original / TEMPLATE} has no {old.strip()!r}: this was written for another version")
        text = text.replace(old, new)
    return text


def _modules(nginx: str) -> list[Path]:
    """The modules with which it runs Lua; ends with a word when there are none."""
    told = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=True).stderr
    folder = re.search(r"--modules-path=(\S+)", told)
    paths = [Path(folder[1] if folder else "/") / name for name in MODULES]
    if not all(path.exists() for path in paths):
        sys.exit(f"nginx has no module for Lua: {' and '.join(map(str, paths))}")
    return paths
