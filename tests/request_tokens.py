"""Bearer tokens for the request files: signed with the fixed keys of `requests/keys/`, dated in simulated time.

Signed by hand, so that tokens which no library would make (no algorithm, a public key as a secret) can be made too.
"""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from functools import cache
from pathlib import Path
from typing import Any

from jwt.algorithms import get_default_algorithms
from request_script import duration_ns

KEYS = Path(__file__).parent / "requests" / "keys"


@cache
def mint(key: str, algorithm: str, claims: str, start_ns: int) -> str:
    """A token. `key` is a file of `requests/keys/` without its ending, with `/kid` behind it where it has a key id.
    With `!` at the end of `key`, something else was signed: a token whose claims were changed on the way.

    In `claims` (JSON) a text such as "@ 60s" or "@ -60s" is that moment, counted from the start of the file.
    """
    name, _, kid = key.rstrip("!").partition("/")
    header = {"typ": "JWT", "alg": algorithm} | ({"kid": kid} if kid else {})
    dated = {claim: _moment(value, start_ns) for claim, value in json.loads(claims).items()}
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, dated))
    changed = "x" if key.endswith("!") else ""
    return f"{signed}.{_encoded(_signature(name, algorithm, (signed + changed).encode()))}"


def _signature(name: str, algorithm: str, signed: bytes) -> bytes:
    if algorithm.lower() == "none":
        return b""
    if algorithm.startswith("HS"):
        return hmac.digest(_bytes(name), signed, f"sha{algorithm[2:]}")
    signature: bytes = get_default_algorithms()[algorithm].sign(signed, _key(algorithm, name))
    return signature


@cache
def _key(algorithm: str, name: str) -> Any:
    return get_default_algorithms()[algorithm].prepare_key(_bytes(name))


@cache
def _bytes(name: str) -> bytes:
    return (KEYS / f"{name}.pem").read_bytes().strip()


def _moment(value: Any, start_ns: int) -> Any:
    if isinstance(value, str) and value.startswith("@ "):
        text = value[2:]
        offset_ns = -duration_ns(text[1:]) if text.startswith("-") else duration_ns(text)
        return (start_ns + offset_ns) // 10**9
    return value


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
