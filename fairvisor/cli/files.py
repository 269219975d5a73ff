"""Files named on the command line: read whole, with an error that says what is the matter instead of a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

from fairvisor.bundle.load import Parsed, parse, verify_signature
from fairvisor.clock import read_now
from fairvisor.errors import FairvisorError
from fairvisor.secret_values import encoded
from fairvisor.settings import Settings, environment


class Unreadable(FairvisorError):
    """A file of the command line that cannot be read."""


def read_file(name: str) -> bytes:
    """The bytes of the file `name`; `-` is standard input.

    Raises:
        Unreadable: it is missing, a directory, not permitted, or reading it fails.

    """
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Unreadable(f"cannot read {shown_name(name)}: {reason}") from None


def read_bundle(name: str, *, strict: bool = False) -> Parsed:
    """The policy bundle in the file `name`, its signature checked when a signing key is set.

    Raises:
        Unreadable: see `read_file`.
        BundleInvalid: with every error found.
        BundleRefused: the signature is not the key's.
        SettingsError: a setting is wrong, the signing key or another one.

    """
    environ = environment()
    keys = encoded(Settings.load(environ, {}).bundle_signing_key)
    payload = verify_signature(read_file(name), keys)
    return parse(payload, wall_ns=read_now().wall_ns, environ=environ, strict=strict)


def signing_key() -> bytes | None:
    """The key that bundles are signed with; None: none is set. Raises SettingsError."""
    keys = encoded(Settings.load(environment(), {}).bundle_signing_key)
    return keys[0] if keys else None


def shown_name(name: str) -> str:
    """How messages call the file `name`."""
    return "standard input" if name == "-" else name
