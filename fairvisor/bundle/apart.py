"""A large bundle is validated in a process of its own: the two ends of that.

Python runs one thread at a time, so validating ten thousand policies in a thread would hold requests up.
`prepare_apart` starts the process, hands it an order and the bytes, and gives what `prepare` gave or raised there;
`main` is the process. The order goes through a pipe, since it may hold the signing key. What is checked is `offer.py`'s
business.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from fairvisor.bundle import shared
from fairvisor.bundle.changes import change_of
from fairvisor.bundle.offer import Made, Order, prepare
from fairvisor.errors import BundleInvalid, BundleRefused, Problem, SegmentError
from fairvisor.settings import environment

_CHILD: Final = "from fairvisor.bundle.apart import main; main()"
_WITHIN_S: Final = 60
_NICENESS: Final = 5  # workers come first, but under full load a push must get through as well

_log = logging.getLogger(__name__)


def prepare_apart(data: bytes, order: Order, environ: Mapping[str, str]) -> Made | None:
    """`prepare`, elsewhere. Raises BundleRefused (`not_validated`) as well, when that failed."""
    found = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        done = subprocess.run(  # noqa: S603 - our own program, and nothing of the bundle on its command line
            [_interpreter(), "-c", _CHILD],
            input=orjson.dumps(order._asdict()) + b"\n" + data,
            capture_output=True,
            check=True,
            env={**environ, "PYTHONPATH": found},
            timeout=_WITHIN_S,
        )
        outcome: dict[str, Any] = orjson.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        _log.error("the process that validates bundles failed: %s", error.stderr.decode(errors="replace"))
        raise BundleRefused("not_validated", f"the process that validates it failed: {error}") from None
    except (OSError, subprocess.TimeoutExpired, orjson.JSONDecodeError) as error:
        raise BundleRefused("not_validated", f"the process that validates it failed: {error}") from None
    return _result(outcome)


def _interpreter() -> str:
    """The Python that runs us, also where a server embeds it and is the executable itself."""
    if "python" in Path(sys.executable).name:
        return sys.executable
    return str(Path(sys.prefix) / "bin" / "python3")


def _result(outcome: dict[str, Any]) -> Made | None:
    if "problems" in outcome:
        raise BundleInvalid(tuple(Problem(*problem) for problem in outcome["problems"]))
    if "code" in outcome:
        raise BundleRefused(outcome["code"], outcome["message"])
    if "no_room" in outcome:
        raise SegmentError(outcome["no_room"])
    if outcome["about"] is None:
        return None
    found = tuple(map(change_of, outcome["changes"]))
    return Made(shared.about_of(outcome["about"]), found, outcome["number"])


def main() -> None:
    """Carry out the order in the first line of stdin on the bytes after it; the outcome goes to stdout, as JSON."""
    os.nice(_NICENESS)
    order = Order(**orjson.loads(sys.stdin.buffer.readline()))
    outcome = _attempt(sys.stdin.buffer.read(), order)
    sys.stdout.buffer.write(orjson.dumps(outcome))


def _attempt(data: bytes, order: Order) -> dict[str, Any]:
    try:
        made = prepare(data, order, environment())
    except BundleInvalid as error:
        return {"problems": [list(problem) for problem in error.problems]}
    except BundleRefused as error:
        return {"code": error.code, "message": str(error).removeprefix(f"{error.code}: ")}
    except SegmentError as error:
        return {"no_room": str(error)}
    if made is None:
        return {"about": None}
    return {
        "about": made.about._asdict(),
        "changes": [list(change) for change in made.changes],
        "number": made.number,
    }
