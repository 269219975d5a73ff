"""Random heads of up to 200 lines for HAProxy: each must be decided or rejected, whatever it looks like.

    python tests/gateways/random_heads.py [--heads 10000] [--seed 1] [--write FILE]

An exhausted limit is asked about each head, through both versions of HAProxy and both variants of its configuration. A
head that passes was not decided; one without an answer has ended HAProxy. `make campaign-haproxy` keeps the result.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE.parent / "processes")]

from edge_server import Edge, reserve_port, token_bucket  # noqa: E402
from gateway_servers import KINDS, Gateway  # noqa: E402

VERSIONS: Final = ("haproxy", "haproxy-2.8")
LIMIT: Final = 3
REFILL: Final = 0.00001  # a second: nothing comes back while a campaign runs
MAX_LINES: Final = 200
LONGEST: Final = 15_500  # in bytes; HAProxy takes tune.bufsize less tune.maxrewrite, 15,360
USUAL = b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n"

_METHODS = [b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"QUERY", b"X" * 300]
_KNOWN = [
    b"X-API-Key", b"Cookie", b"Authorization", b"User-Agent", b"Accept", b"Content-Type", b"TE", b"Via",
    b"X-Forwarded-For", b"X-Original-URI", b"X-Fairvisor-Request-Id", b"X-Country-Code", b"X_Original_URI",
    b"Forwarded", b"Keep-Alive", b"Proxy-Connection", b"Trailer", b"Content-Encoding", b"If-None-Match", b"Origin",
]  # fmt: skip
_TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VALUE = bytes(range(0x20, 0x7F)) + b"\t" + bytes(range(0x80, 0x100))


def heads(seed: int, count: int) -> Iterator[bytes]:
    """Heads as clients may send them, each with at most MAX_LINES lines and LONGEST bytes."""
    chance = random.Random(seed)
    for _ in range(count):
        target = b"/" + b"u" * chance.choice([0, 0, 0, 10, chance.randrange(LONGEST - 1000)])
        head = b"%b %b HTTP/1.1\r\nHost: edge\r\n" % (chance.choice(_METHODS), target)
        names = _names(chance)
        most = chance.choice([1, 8, 40, 150, LONGEST // 2])
        for _ in range(chance.choice([chance.randrange(MAX_LINES), chance.randrange(85, 105)])):
            line = chance.choice(names) + b":" + _text(chance, _VALUE, most) + b"\r\n"
            if len(head) + len(line) > LONGEST:
                break
            head += line
        yield head + b"\r\n"


def _names(chance: random.Random) -> list[bytes]:
    """A few names that come again and again, or many that come once."""
    several = [_text(chance, _TOKEN, 20) or b"x" for _ in range(MAX_LINES)]
    return chance.choice([_KNOWN, _KNOWN[:1], several, several[:2], several + _KNOWN])


def _text(chance: random.Random, alphabet: bytes, most: int) -> bytes:
    return bytes(chance.choices(alphabet, k=chance.randrange(most + 1)))


def rejects(gateway: Gateway, seed: int, count: int) -> Counter[int]:
    """Send the heads to a gateway whose limit is exhausted; how often each status was answered.

    Fails where a head passes, where it is answered with an error of the gateway, and where there is no answer.
    """
    exhaust(gateway)
    statuses: Counter[int] = Counter()
    for number, head in enumerate(heads(seed, count)):
        try:
            received = gateway.ask(head)
        except OSError as error:
            raise AssertionError(f"no answer to head {number} of seed {seed}") from error
        assert 400 <= received.status < 500, f"{received.status} for head {number} of seed {seed}"
        statuses[received.status] += 1
    assert gateway.process.poll() is None
    return statuses


def exhaust(gateway: Gateway) -> None:
    """Let the limit be reached: from then on a request that passes was not decided."""
    assert [gateway.ask(USUAL).status for _ in range(LIMIT + 1)][LIMIT] == 429


def main() -> int:
    """Send the heads to both versions in both variants, and write what was answered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--heads", type=int, default=10_000, help="to each of the four")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help="where the result is kept")
    options = parser.parse_args()
    answers = {}
    for name in VERSIONS:
        for variant in (KINDS[name].closed, KINDS[name].open):
            statuses = campaign(name, variant, options.seed, options.heads)
            answers[f"{name}: {variant}"] = {str(each): statuses[each] for each in sorted(statuses)}
            print(name, variant, answers[f"{name}: {variant}"])
    if options.write:
        result = {"heads": options.heads, "seed": options.seed, "answers": answers}
        options.write.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def campaign(name: str, variant: str, seed: int, count: int) -> Counter[int]:
    """Start an application, an edge and a HAProxy for one variant, and send the heads."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        reserved = running.enter_context(reserve_port())
        application: int = reserved.getsockname()[1]
        process = subprocess.Popen([sys.executable, str(HERE / "upstream.py"), str(application)])
        running.callback(process.wait)
        running.callback(process.terminate)
        edge = Edge(Path(folder), token_bucket(LIMIT, REFILL), {"FAIRVISOR_WORKER_PROCESSES": "1"})
        running.callback(edge.clean_up)
        edge.wait_ready()
        place = Path(folder) / "haproxy"
        place.mkdir()
        assert isinstance(edge.bind, tuple)
        gateway = Gateway(KINDS[name], variant, place, edge.bind[1], application, True)
        running.callback(gateway.stop)
        return rejects(gateway, seed, count)


if __name__ == "__main__":
    sys.exit(main())
