"""Writes the pages of docs/ that are made from the code: the command line from --help, the settings from their
declarations, the policy reference from the model of the bundle, the metrics from their families. `make docs` runs it;
tests/test_docs.py fails when a page is out of step.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import click
from pydantic import BaseModel, TypeAdapter

from fairvisor.bundle import fields, model
from fairvisor.bundle.model_keys import Audience
from fairvisor.bundle.model_limits import Streaming, TokenSource, Weights
from fairvisor.bundle.schema import json_schema
from fairvisor.cli.main import cli
from fairvisor.metrics import families as metric
from fairvisor.settings import declared

HERE = Path(__file__).parent
MADE = "<!-- Made by `make docs` from the code: change it there. -->\n"
WIDTH = 100


def command_line_page() -> str:
    """docs/cli.md: the help of every command."""
    sections = [
        f"# The command line\n\n{MADE}\n"
        "Tables are for people, `--format json` is for programs. Results go to stdout, errors to stderr. Exit codes: "
        "0 done, 1 failed, 2 edge unreachable, 3 wrong usage, 130 interrupted.\n",
        _help_block("fairvisor", cli),
    ]
    for name, command in sorted(cli.commands.items()):
        sections.append(f"## fairvisor {name}\n\n{_help_block(f'fairvisor {name}', command)}")
    return "\n".join(sections)


def _help_block(name: str, command: click.Command) -> str:
    with click.Context(
        command,
        info_name=name,
        max_content_width=WIDTH,
        terminal_width=WIDTH,
        help_option_names=["-h", "--help"],
    ) as context:
        return f"```text\n{command.get_help(context)}\n```\n"


def settings_page() -> str:
    """docs/settings.md: every setting with its flag, default and sentence."""
    rows = [
        f"| `{each.variable}` | `{each.flag}` | {f'`{each.default}`' if each.default else ''} | {each.help} |"
        for each in declared()
    ]
    return "\n".join(
        [
            f"# Settings\n\n{MADE}",
            "Every setting is an environment variable and a flag of `fairvisor serve`; the flag wins. A wrong value",
            "stops the start with one line that names the variable, the value and what is allowed.\n",
            "Every user of a machine can read its command lines, so a secret has no flag. It is the variable's value,",
            "or it is in a file that the variable with `_FILE` at its end (`FAIRVISOR_ADMIN_TOKEN_FILE`) or the flag",
            "names: a regular file of root or of the edge's user that others may neither read nor change (mode 0400,",
            "0600 or 0440). A line end after a secret does not count. Secrets are printable ASCII, so that every",
            "header can carry them. One that is short, or consists of fewer than five characters again and again,",
            "stops the start; `openssl rand -hex 32` makes a good one.\n",
            "A secret's file has two lines while it is rotated: both secrets are accepted, and the first one is sent",
            "and signed with. HUP reads these files again ([how to rotate one](operations.md#a-secret-is-rotated)).\n",
            "White space around other values does not count; a control character within is wrong. **A variable that",
            "begins with `FAIRVISOR_` and is no setting stops the start**, with the nearest name: a misspelt one",
            "would be missed. Left alone are the links that Kubernetes makes for Services (`FAIRVISOR_SERVICE_HOST`,",
            "`FAIRVISOR_PORT_8080_TCP`), variables that `secret_env` of the bundle file or of the last good bundle",
            "names, `FAIRVISOR_CONTROL_…`, and those of the build and the tests.\n",
            "| variable | flag | default | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


# The policy reference

POLICY_INTRO: Final = """\
A bundle is one JSON document that holds every policy of an edge. `fairvisor init` writes one to start from,
`fairvisor validate` finds every error in one, `fairvisor explain` shows what one does with a request, and
`fairvisor schema` prints its JSON Schema, which editors use to complete and check (name it in `$schema`).

- A bundle with any error is refused whole, and the active one stays. Each error names its place, such as
  `policies[0].spec.rules[1].algorithm_config.burst`.
- An unknown field is an error inside selectors, kill switches and overrides, where a typo would let requests pass.
  Elsewhere it is a warning that names the nearest known field, and under `validate --strict` it is an error too.
- `$comment` and `$schema` are allowed in every object, with any value. `null` is allowed nowhere, except inside a
  `jwk`: leave the field out.
- Amounts are JSON numbers, and exact: `0.1` is a tenth. Counters count in millionths.
- Times are UTC, such as `"2026-11-02T12:00:00Z"`.
"""

# Each part of a bundle in the order of the page: its heading, its class, the page that explains it.
PARTS: Final[tuple[tuple[str, type[BaseModel], str], ...]] = (
    ("Bundle", model.Bundle, ""),
    ("Policy", model.Policy, ""),
    ("Spec", model.Spec, "several-limits.md"),
    ("Selector", model.Selector, "matching.md"),
    ("Rule", model.Rule, "matching.md"),
    ("token_bucket", model.TokenBucket, "token-bucket.md"),
    ("cost_based", model.CostBased, "budgets.md"),
    ("Staged action", model.StagedAction, "budgets.md"),
    ("token_bucket_llm", model.LlmTokens, "llm.md"),
    ("Token source", TokenSource, "llm.md"),
    ("Weights", Weights, "llm.md"),
    ("Streaming", Streaming, ""),
    ("Loop detection", model.LoopDetection, "loops.md"),
    ("Circuit breaker", model.CircuitBreaker, "circuit-breaker.md"),
    ("Kill switch", model.KillSwitch, "kill-switches.md"),
    ("Override", model.Override, "kill-switches.md"),
    ("Defaults", model.Defaults, ""),
    ("JWT key", model.JwtKey, "identity.md"),
    ("JWT issuer", model.JwtIssuer, "identity.md"),
)
RULES: Final = ("TokenBucketRule", "CostBasedRule", "LlmTokensRule")  # shown as one part: Rule
ALGORITHMS: Final = ("token_bucket", "cost_based", "token_bucket_llm")

# How values of a kind are shown; kinds are told by the schema that every field of the kind has.
KINDS: Final = tuple(
    (TypeAdapter(kind).json_schema(), shown)
    for kind, shown in (
        (fields.Descriptor, "[descriptor](matching.md#descriptors)"),
        (fields.CostSource, "`fixed`, `header:<name>` or `query:<name>`"),
        (fields.InstantNs, "UTC time"),
        (fields.Zone, "text"),
        (fields.Path, "path, begins with `/`"),
        (fields.Method, "method"),
        (fields.Name, "1 to 128 printable ASCII characters"),
        (fields.ScalarText, "text, number or boolean"),
        (fields.Accepted, "value or array of values: text, number or boolean"),
        (Audience, "text or array of texts"),
        (fields.Version, "number above 0, at most 2^53"),
        (fields.Text, "text, 1 to 256 characters"),
    )
)


def policy_page() -> str:
    """docs/policy.md: every part of a bundle with its fields."""
    schema = json_schema()
    parts = {**schema["$defs"], "Bundle": schema, "Rule": _one_rule(schema["$defs"])}
    known = {kind.__name__ for _, kind, _ in PARTS}
    assert known | {*RULES} == set(parts) | {"Rule"}, "every part of the schema has its place on the page"
    sections = [_section(heading, kind, page, parts[kind.__name__]) for heading, kind, page in PARTS]
    return "\n".join([f"# The policy bundle\n\n{MADE}", POLICY_INTRO, *sections])


def _one_rule(parts: dict[str, Any]) -> dict[str, Any]:
    """The three kinds of rules, which differ in their algorithm, as one part."""
    properties = dict(parts[RULES[0]]["properties"])
    properties["algorithm"] = {**properties["algorithm"], "enum": [*ALGORITHMS]}
    links = ", ".join(f"[{name}](#{name})" for name in ALGORITHMS)
    properties["algorithm_config"] = {**properties["algorithm_config"], "$ref": links}
    return {"properties": properties, "description": model.Rule.__doc__}


def _section(heading: str, kind: type[BaseModel], page: str, part: dict[str, Any]) -> str:
    explained = f" Explained in [{page}]({page})." if page else ""
    rows = [
        f"| `{name}` | {_shown_type(field)} | {_shown_default(kind, name, field)} | {field['description']} |"
        for name, field in part["properties"].items()
        if name != "rps"  # another spelling of tokens_per_second
    ]
    description = part["description"]
    table = ["| field | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return f"## {heading}\n\n{description}{explained}\n\n" + "\n".join(table) + "\n"


def _shown_type(field: dict[str, Any]) -> str:
    bare = {
        name: value for name, value in field.items() if name not in ("description", "default", "minItems")
    }
    for schema, shown in KINDS:
        if bare == schema:
            return shown
    if "$ref" in bare:
        return _link(bare["$ref"])
    if "oneOf" in bare:
        return "[rule](#rule)"
    if "enum" in bare or "const" in bare:
        return ", ".join(f"`{value}`" for value in bare.get("enum", [bare.get("const")]))
    if bare["type"] == "array":
        return f"array of {_shown_type(bare['items'])}"
    return _shown_plain_type(bare)


def _shown_plain_type(bare: dict[str, Any]) -> str:
    if bare["type"] in ("number", "integer"):
        whole = "whole number" if bare["type"] == "integer" else "number"
        return f"{whole}, {_number(bare['minimum'])} to {_number(bare['maximum'])}"
    if bare["type"] == "boolean":
        return "`true` or `false`"
    if bare.get("additionalProperties") is True:
        return "object"
    if "propertyNames" in bare:
        return "object: text to text"
    return "object: descriptor to value or array of values"


def _link(reference: str) -> str:
    name = reference.rpartition("/")[2]
    for heading, kind, _ in PARTS:
        if kind.__name__ == name:
            return f"[{heading.lower()}](#{heading.lower().replace(' ', '-')})"
    return reference


def _shown_default(kind: type[BaseModel], name: str, field: dict[str, Any]) -> str:
    declared_as = kind.model_fields.get(name) or next(
        (known for known in kind.model_fields.values() if known.alias == name), None
    )
    if declared_as is None or declared_as.is_required():
        return "required"
    default = field.get("default")
    if default in (None, []) or isinstance(default, (dict, list)) or name == "burst_tokens":
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _number(value: float) -> str:
    return f"{Decimal(repr(value)):,f}"


# The metrics

METRICS_INTRO: Final = """\
`GET /metrics` answers in the Prometheus text format, with the same numbers whichever worker is asked: they live in the
segment, and survive restarts. No label takes a value from a client: no paths, no keys. A family with labels shows a
series when something has happened.

The page stands beside the decisions, or with `/livez` and `/readyz` on a listener of its own where
`FAIRVISOR_HEALTH_BIND` is set. A ready scrape configuration and alert rules are in `conf/prometheus/`, a Grafana
dashboard in `conf/grafana/`.
"""

METRICS_EXACTNESS: Final = """\
## How exact they are

- **Counters** are added to before the request is answered, in memory that all workers share: a killed worker loses
  none. They go on as long as the segment lives, over restarts and upgrades, and begin at 0 with a new one (a reboot, a
  new container): what was restored from a snapshot could be less than what was scraped, and Prometheus would count all
  of it anew.
- **Durations** are taken of one decision in sixteen, because a second look at the clock costs as much as a limit does:
  quantiles and averages hold, `_count` is a sixteenth of the decisions. Buckets end at powers of two, from 1.024 µs to
  1.07 s.
- **What is left** (`fairvisor_ratelimit_remaining`, `fairvisor_tokens_remaining`) is the least that a request of any
  key left behind. A low is written within a second and shown for at least 30 s: whoever scrapes every 30 s misses none.
  A rule that nobody used in that time has no sample.
- **Connections and held answers** are told by each worker once a second.
- The page is made in slices of less than a millisecond between requests: with 10,000 policies in use, 30,000 samples
  take about 0.5 s, and no request waits for them (`perf/scrape.py`: 1.1 ms at the 99th percentile meanwhile, 1.2 ms
  otherwise).
- The segment has room for one series in every KiB (49,151 in 48 MiB): a rule in use takes three, and two more when it
  also refuses. What finds no room is counted in `fairvisor_series_overflows_total`, and is missing.
"""

METRICS_UNDECIDED: Final = """\
## Requests that are not decided

What no policy decided is in `fairvisor_undecided_requests_total`: every 400, 401, 403, 404, 405, 408, 413, 431, 501,
503 and 508 that the edge answers [without a decision](reasons.md#answers-that-are-not-refusals). Every combination has
a sample from the start. The [log](logging.md) has one line a minute for each, with the address of the last peer, and
`fairvisor status` shows those of the last ten minutes. `fairvisor_undecided_last_timestamp_seconds` says when it was
last.

| `endpoint` | what was asked |
| --- | --- |
| `/v1/…` | that path, or what is below it where it ends in a slash; `/v1/debug`: both debug pages |
| `health` | `/livez`, `/readyz`, `/metrics`, and everything on the listener of `FAIRVISOR_HEALTH_BIND` |
| `admin` | the admin listener |
| `proxy` | a request that wanted to pass, in proxy mode |
| `other` | no path that there is, or a request that was not read as far as its path |

| `reason` | status | what was wrong |
| --- | --- | --- |
| `malformed` | 400 | HTTP or a header that cannot be read, a body that is not what the endpoint reads |
| `header_missing` | 400 | the gateway did not send a header that describes the request |
| `untrusted_peer` | 403 | the peer is not in `FAIRVISOR_TRUSTED_PEERS` |
| `wrong_secret` | 403 | the decision token, admin token or debug secret is missing or wrong |
| `not_found`, `method_not_allowed` | 404, 405 (admin listener: 501) | no such path, or not for this method |
| `timeout` | 408 | the head or the body did not come in time |
| `body_too_large`, `head_too_large` | 413, 431 (admin listener: 414) | larger than what is read |
| `busy` | 503 | too much is kept of unfinished requests, or too many operators ask at once |
| `proxy_loop` | 508 | the request had passed this proxy before |

Counted elsewhere: a missing bundle and failures of the engine (503) in `fairvisor_decisions_total`, settlements in
`fairvisor_settlements_total`, bundles that were not taken in `fairvisor_reloads_total`, an upstream's failures in
`fairvisor_upstream_failures_total`. With another worker class than `edge` its server reads the requests: what it
rejects itself is in its own lines of the log only.
"""

# What somebody should be told about, and what it means.
ALARMS: Final = (
    (metric.EVICTIONS, "> 0", "limits were forgotten early: the segment is too small"),
    (metric.TABLE_FULL, "> 0", "limits could not be counted: the segment is too small"),
    (
        metric.UNDECIDED,
        "rises",
        "a gateway asks with a wrong token or from a wrong address, or does not say what was asked: its traffic fails",
    ),
    (metric.LOG_LINES_LOST, "rises", "standard error is not read, or the disk of the log is full"),
    (metric.FAULTS, "= 1", "a file cannot be read or written; decisions go on"),
    (metric.CIRCUIT_STATE, "= 1", "a circuit breaker is open"),
    (metric.GLOBAL_SHADOW, "= 1", "nothing is enforced"),
    (metric.SWITCH_OVERRIDE, "= 1", "kill switches are suspended"),
    (metric.WORKER_RESTARTS, "rises", "workers die"),
    (metric.BUNDLE_VERSION, "= 0", "there is no bundle"),
)


def metrics_page() -> str:
    """docs/metrics.md: every metric family."""
    alarms = [f"| `{family.name}` | {when} | {meaning} |" for family, when, meaning in ALARMS]
    rows = [
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.help} |"
        for each in metric.FAMILIES
    ]
    return "\n".join(
        [
            f"# Metrics\n\n{MADE}",
            METRICS_INTRO,
            "## Worth an alarm\n",
            "| metric | when | meaning |",
            "| --- | --- | --- |",
            *alarms,
            "\n## All of them\n",
            "| metric | kind | labels | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            METRICS_UNDECIDED,
            METRICS_EXACTNESS,
        ]
    )


def pages() -> dict[str, str]:
    """Every made page by its file name in docs/."""
    return {
        "cli.md": command_line_page(),
        "settings.md": settings_page(),
        "policy.md": policy_page(),
        "metrics.md": metrics_page(),
    }


if __name__ == "__main__":
    for file_name, text in pages().items():
        (HERE / file_name).write_text(text)
