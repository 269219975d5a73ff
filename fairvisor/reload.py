"""The active bundle of this process: read from its file, verified, compiled, and kept.

Every worker has one `ActiveBundle`. A bundle that cannot be used changes nothing and says why in the log and in
`reason`. While there is none, the file is looked at again once a second, whenever somebody asks for a decision: an
edge that was started before its policy goes to work when the file appears.

This module knows the file and the steps from bytes to a compiled bundle. It knows nothing of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from fairvisor.bundle.compile import Options, compile_bundle
from fairvisor.bundle.load import Parsed, parse, verify_signature
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.segment import Segment
from fairvisor.decision import Reason
from fairvisor.engine import Bundle
from fairvisor.errors import BundleInvalid, BundleRefused
from fairvisor.identity import Identity
from fairvisor.settings import Settings

_LOOK_AGAIN_NS: Final = NS_PER_S

_log = logging.getLogger(__name__)


class ActiveBundle:
    """What decisions are made by, and how it got here. `bundle` and `parsed` are None until one was loaded."""

    def __init__(
        self, settings: Settings, segment: Segment, identity: Identity, environ: Mapping[str, str]
    ) -> None:
        # per process
        self._settings = settings
        self._segment = segment
        self._identity = identity
        self._environ = environ
        self._options = Options(
            reject_when_full=settings.table_full == "reject",
            trust_token_hint="x-token-estimate" in settings.trusted_hints,
        )
        # what changes
        self.bundle: Bundle | None = None
        self.parsed: Parsed | None = None
        self.reason = ""
        self._looked_ns = -_LOOK_AGAIN_NS

    def look(self, now: Now) -> None:
        """Load the file, unless it was looked at within the last second."""
        if now.mono_ns - self._looked_ns >= _LOOK_AGAIN_NS:
            self._looked_ns = now.mono_ns
            self.load(now)

    def load(self, now: Now) -> None:
        """Read, check and compile the configured file; on any fault the active bundle stays."""
        try:
            parsed = self._read(now)
        except (OSError, BundleInvalid, BundleRefused) as error:
            self._tell(str(error))
            return
        self._identity.use_keys(parsed.model.jwt_keys)
        self.bundle = compile_bundle(parsed.model, parsed.sha256, self._segment, self._options)
        self.parsed = parsed
        self.reason = ""
        version = parsed.model.bundle_version
        _log.info("bundle %s is active: %d policies", version, len(parsed.model.policies))
        for warning in parsed.warnings:
            _log.warning("bundle %s: %s", version, warning)

    def _read(self, now: Now) -> Parsed:
        path = self._settings.config_file
        if path is None:
            raise BundleRefused(Reason.NO_BUNDLE_LOADED.value, "FAIRVISOR_CONFIG_FILE is not set")
        key = self._settings.bundle_signing_key
        payload = verify_signature(path.read_bytes(), key.encode() if key else None)
        return parse(payload, wall_ns=now.wall_ns, environ=self._environ)

    def _tell(self, reason: str) -> None:
        """Say why there is no new bundle: once, not every second."""
        if reason != self.reason:
            self.reason = reason
            _log.error("the bundle cannot be used: %s", reason)
