"""Variables that look like settings and are none: a misspelt one is found at the start, before it is missed.

`FAIRVISOR_DECISION_TOKN` would leave the edge open to everybody. So each variable that begins with FAIRVISOR_ must be a
setting, or one of those that others set: service links of Kubernetes, names of the build and the tests, secrets that a
bundle names, and what belongs to the control plane's program.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import orjson

from fairvisor.errors import SettingsError
from fairvisor.setting_reading import FILE_SUFFIX, PREFIX, Declared

# What Kubernetes puts into every container for a Service named fairvisor, or fairvisor-…, of its namespace.
_SERVICE_LINK: Final = re.compile(r"FAIRVISOR_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)", re.ASCII)
_CONTROL: Final = "FAIRVISOR_CONTROL_"
# Read by the build, the tests and the measurements, which an environment may carry on into an edge.
BUILD_AND_TESTS: Final = frozenset(
    PREFIX + name
    for name in (
        "CHAOS_OWN_SHM",
        "COMPILE",
        "FLOOD",
        "HAMMER_SECONDS",
        "PERF_COUNT_INTO",
        "PERF_SECRET",
        "SANITIZE",
        "SANITIZER_OPERATIONS",
        "TEST_ALL",
        "TEST_EXAMPLES",
        "WERROR",
    )
)
# How like a name must be (0 to 1) to be what was meant, and to be one of two that may have been.
_TYPO: Final = 0.85
_LIKENESS: Final = 0.6


def check_names(environ: Mapping[str, str], declared: Iterable[Declared], secrets: Collection[str]) -> None:
    """Raise SettingsError for a FAIRVISOR_ variable that is no setting and not one of `secrets`."""
    settings = tuple(declared)
    known = {variable for each in settings for variable in each.variables} | BUILD_AND_TESTS | {*secrets}
    unknown = sorted(
        name
        for name, value in environ.items()
        if value  # an empty one counts as unset
        and name.startswith(PREFIX)
        and name not in known
        and not name.startswith(_CONTROL)
        and not _SERVICE_LINK.fullmatch(name)
    )
    if unknown:
        raise SettingsError(*(f"{name}: {_remedy(name, settings)}" for name in unknown))


def _remedy(name: str, settings: Iterable[Declared]) -> str:
    in_file = name.endswith(FILE_SUFFIX)
    stems = [
        variable.removeprefix(PREFIX)
        for each in settings
        for variable in (each.variables if in_file else (each.variable,))
    ]
    stem = name.removeprefix(PREFIX).upper()
    near = difflib.get_close_matches(stem, stems, n=1, cutoff=_TYPO) or difflib.get_close_matches(
        stem, stems, n=2, cutoff=_LIKENESS
    )
    meant = " or ".join(PREFIX + each for each in near)
    if not meant:
        return "is not a setting (`fairvisor serve --help` lists them): rename or unset it"
    return f"is not a setting; did you mean {meant}? Rename or unset it"


def secrets_named_in(bundle: bytes) -> frozenset[str]:
    """Return the variables that the `jwt_keys` of a bundle read, of one that is not valid too; with or without its
    signature line."""
    try:
        document = orjson.loads(bundle[max(0, bundle.find(b"{")) :])
    except orjson.JSONDecodeError:
        return frozenset()
    keys = document.get("jwt_keys") if isinstance(document, dict) else None
    found = (
        [each.get("secret_env") for each in keys if isinstance(each, dict)] if isinstance(keys, list) else []
    )
    return frozenset(name for name in found if isinstance(name, str))
