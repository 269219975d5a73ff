"""The one way from bytes to a bundle: `validate`, the server, the admin API and the tests all call `parse`.

A bundle with any error is refused whole, with its errors (the first hundred); what is odd but well-formed is a warning.
Policies are read one by one, so that a reload can do the same in slices and keep those whose bytes did not change.
`verify_signature` and `check_successor` say whether bytes may be looked at, and whether a bundle may replace another.
No file is read and no clock; the environment is only asked for what the bundle names (HMAC secrets).
"""

from __future__ import annotations

import base64
import binascii
import gc
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import orjson

from fairvisor.bundle.advice import advise
from fairvisor.bundle.model import Bundle, Defaults, KillSwitch, LlmTokens, Policy
from fairvisor.bundle.model_limits import FALLBACK_NAME, Strictly
from fairvisor.bundle.problems import Reading, read_part
from fairvisor.bundle.syntax import read_document
from fairvisor.clock import NS_PER_S
from fairvisor.errors import (
    MAX_PROBLEMS,
    BundleInvalid,
    BundleRefused,
    EstimatorUnavailable,
    Problem,
    listed,
)
from fairvisor.llm.estimate import load_estimator
from fairvisor.secret_values import is_one_of

MAX_VALUES: Final = 100_000  # of one policy, or of a bundle without its policies and kill switches

_SIGNATURE_LINE = re.compile(rb"[A-Za-z0-9+/]{43}=[ \t]*\r?\n")


@dataclass(frozen=True)
class Parsed:
    """A valid bundle: the model with defaults resolved, what is odd about it, its bytes and their SHA-256 in hex."""

    model: Bundle
    warnings: tuple[Problem, ...]
    sha256: str
    data: bytes


def parse(data: bytes, *, wall_ns: int, environ: Mapping[str, str], strict: bool = False) -> Parsed:
    """Read and validate a bundle (without signature line) as of `wall_ns` (nanoseconds since the Unix epoch).

    `strict` makes every unknown field an error. Raises BundleInvalid with all errors found.
    """
    with _collector_paused():
        document, syntax_errors = read_document(data)
        try:
            model, errors, warnings = _read_bundle(document, environ, strict)
        except RecursionError:
            raise BundleInvalid((Problem("", "the bundle is nested too deeply"),)) from None
    if model is None or syntax_errors:
        raise BundleInvalid(_merged(syntax_errors, errors))
    all_warnings = listed(chain(warnings, advise(model, wall_ns, environ)), "warnings")
    return Parsed(model, all_warnings, hashlib.sha256(data).hexdigest(), data)


def parse_policy(raw: object, defaults: Defaults) -> Policy:
    """One policy of a bundle that `parse` accepted, from its JSON value, with the bundle's defaults resolved."""
    reading = read_part(Policy, raw, "", {}, strict=False)
    if reading.part is None:
        raise BundleInvalid(tuple(reading.errors))
    policy: Policy = reading.part
    return policy.resolved(defaults)


def parse_kill_switch(raw: object) -> KillSwitch:
    """One kill switch of a bundle that `parse` accepted, from its JSON value."""
    reading = read_part(KillSwitch, raw, "kill_switches[0]", {}, strict=False)
    if reading.part is None:
        raise BundleInvalid(tuple(reading.errors))
    switch: KillSwitch = reading.part
    return switch


def parse_head(raw: dict[str, Any], environ: Mapping[str, str]) -> Bundle:
    """Everything else of a bundle that `parse` accepted: the same object without policies and kill switches."""
    reading = read_part(Bundle, {**raw, "policies": []}, "", {"environ": environ}, strict=False)
    if reading.part is None:
        raise BundleInvalid(tuple(reading.errors))
    head: Bundle = reading.part
    return head


def verify_signature(data: bytes, keys: Sequence[bytes]) -> bytes:
    """The payload of `<base64 HMAC-SHA256>\\n<payload>`, verified with one of the keys.

    Without a key nothing is verified and a signature line is cut off. Raises BundleRefused (`invalid_signature`).
    """
    signature, _, payload = data.partition(b"\n")
    if not keys:
        return payload if is_signed(data) else data
    try:
        given = base64.b64decode(signature.strip(), validate=True)
    except binascii.Error:
        given = b""
    if not is_one_of(given, [hmac.digest(key, payload, "sha256") for key in keys]):
        raise BundleRefused(
            "invalid_signature",
            "the first line is not the base64 HMAC-SHA256 of what follows it under FAIRVISOR_BUNDLE_SIGNING_KEY",
        )
    return payload


def is_signed(data: bytes) -> bool:
    """Whether the first line has the form of a signature."""
    return bool(_SIGNATURE_LINE.match(data))


def sign(payload: bytes, key: bytes) -> bytes:
    """Return the payload with its signature line in front: what `verify_signature` takes."""
    return base64.b64encode(hmac.digest(key, payload, "sha256")) + b"\n" + payload


def check_successor(
    offered: Parsed, active_version: float | None, active_sha256: str | None, wall_ns: int
) -> bool:
    """Whether an offered bundle is a new one: False when its bytes are the active ones, which is no error.

    Raises BundleRefused: `version_not_monotonic` for a version that is not greater than the active one,
    `bundle_expired` when it expired before `wall_ns`.
    """
    if offered.sha256 == active_sha256:
        return False
    version = offered.model.bundle_version
    if active_version is not None and version <= active_version:
        raise BundleRefused(
            "version_not_monotonic",
            f"bundle_version {version} is not greater than that of the active bundle, {active_version}",
        )
    expires_at_ns = offered.model.expires_at_ns
    if expires_at_ns is not None and expires_at_ns <= wall_ns:
        age_s = (wall_ns - expires_at_ns) // NS_PER_S
        raise BundleRefused("bundle_expired", f"expires_at of bundle_version {version} passed {age_s} s ago")
    return True


def _read_bundle(
    document: dict[str, Any], environ: Mapping[str, str], strict: bool
) -> tuple[Bundle | None, list[Problem], list[Problem]]:
    lists = {
        name: raw for name in ("policies", "kill_switches") if isinstance(raw := document.get(name), list)
    }
    head = {**document, **{name: [] for name in lists}}
    bundle, errors, warnings = _read_part(Bundle, head, "", {"environ": environ}, strict)
    switches = _read_switches(lists.get("kill_switches", []), errors)
    defaults = bundle.defaults if bundle is not None else Defaults()
    policies: list[Policy] = []
    taken: dict[str, int] = {}
    estimators = Estimators()
    for index, raw in enumerate(lists.get("policies", ())):
        if len(errors) > MAX_PROBLEMS:
            break
        path = f"policies[{index}]"
        policy, wrong, unknown = _read_part(Policy, raw, path, {}, strict)
        errors += wrong
        warnings += unknown
        if isinstance(raw, dict):
            errors += _repeated_names(raw, path)
            policy_id = raw.get("id")
            if isinstance(policy_id, str) and taken.setdefault(policy_id, index) != index:
                errors.append(
                    Problem(f"{path}.id", f'"{policy_id}" is taken by policies[{taken[policy_id]}]')
                )
        if policy is not None:
            errors += _missing_estimators(policy, path, estimators)
            policies.append(policy.resolved(defaults))
    if bundle is None or errors:
        return None, errors, warnings
    update = {"policies": tuple(policies), "kill_switches": switches}
    return bundle.model_copy(update=update), errors, warnings


def _read_part(
    model: type[Strictly], raw: object, path: str, context: Mapping[str, object], strict: bool
) -> Reading:
    """`read_part`, for parts with at most MAX_VALUES values: each may be an error, and pydantic makes all of them."""
    number = _values(raw) if len(orjson.dumps(raw)) > 2 * MAX_VALUES else 0  # a value has a byte and a comma
    if number > MAX_VALUES:
        message = f"has {number:,} values; at most {MAX_VALUES:,} are read"
        return Reading(
            None, [Problem(path, message if path else f"the bundle without its policies {message}")], []
        )
    return read_part(model, raw, path, context, strict)


def _values(raw: object) -> int:
    """How many JSON values `raw` consists of."""
    number = 0
    todo = [raw]
    while todo:
        part = todo.pop()
        number += 1
        if isinstance(part, dict):
            todo += part.values()
        elif isinstance(part, list):
            todo += part
    return number


def _read_switches(listed_switches: list[Any], errors: list[Problem]) -> tuple[KillSwitch, ...]:
    """The kill switches; their errors are added. A typo in one lets requests pass: unknown fields are errors."""
    switches: list[KillSwitch] = []
    for index, raw in enumerate(listed_switches):
        switch, wrong, _ = _read_part(KillSwitch, raw, f"kill_switches[{index}]", {}, strict=True)
        errors += wrong
        if len(errors) > MAX_PROBLEMS:
            break
        switches.append(switch)
    return tuple(switches)


def _repeated_names(raw: dict[str, Any], path: str) -> Iterator[Problem]:
    """Rule names that are not unique in their policy: they would share a counter."""
    spec = raw.get("spec")
    if not isinstance(spec, dict):
        return
    rules = spec.get("rules")
    named = [(f"rules[{index}]", rule) for index, rule in enumerate(rules)] if isinstance(rules, list) else []
    if "fallback_limit" in spec:
        named.append(("fallback_limit", spec["fallback_limit"]))
    taken: dict[str, str] = {}
    for place, rule in named:
        name = (
            rule.get("name", FALLBACK_NAME if place == FALLBACK_NAME else None)
            if isinstance(rule, dict)
            else None
        )
        if isinstance(name, str) and taken.setdefault(name, place) != place:
            yield Problem(f"{path}.spec.{place}.name", f'"{name}" is taken by {taken[name]}')


class Estimators(dict[str, str]):
    """Why an estimator cannot be used, "" when it can: each is loaded once, since that may take seconds."""

    def __missing__(self, name: str) -> str:
        self[name] = ""
        try:
            load_estimator(name)
        except EstimatorUnavailable as error:
            self[name] = str(error)
        return self[name]


def _missing_estimators(policy: Policy, path: str, estimators: Estimators) -> Iterator[Problem]:
    for place, rule in policy.spec.placed_rules():
        config = rule.algorithm_config
        if isinstance(config, LlmTokens) and config.token_source.estimator != "header_hint":
            why = estimators[config.token_source.estimator]
            if why:
                yield Problem(f"{path}.spec.{place}.algorithm_config.token_source.estimator", why)


def _merged(syntax_errors: tuple[Problem, ...], errors: list[Problem]) -> tuple[Problem, ...]:
    """All errors; where the document itself is wrong at a path, what the model says of that value adds nothing."""
    told = {problem.path for problem in syntax_errors}
    told |= {path.rpartition("[")[0] for path in told}  # the model may speak of the array around it
    return (*syntax_errors, *(problem for problem in errors if problem.path not in told))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Reading makes objects that stay; walking them over and over while they grow would double the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
