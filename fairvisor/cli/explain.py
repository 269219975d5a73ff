"""`fairvisor explain`: what a bundle does with one request, and why.

The request goes through the real engine (`trace.py`) and the answers are put into words (`words.py`); this module
makes the request from the arguments and prints. Counters are fresh: the explanation is of the first such request, not
of what a running edge has counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from fairvisor.bundle.model import Bundle
from fairvisor.bundle.reach import unreachable
from fairvisor.cli.files import read_bundle, read_file
from fairvisor.cli.screen import format_option, print_json, print_line, print_warnings
from fairvisor.cli.trace import trace
from fairvisor.cli.words import Words
from fairvisor.clock import read_now
from fairvisor.context import Context
from fairvisor.errors import listed
from fairvisor.identity import Identity, KeyFetcher, Web
from fairvisor.reading import HOSTS, METHODS, read_fields
from fairvisor.response import Answer, Renderer
from fairvisor.settings import Settings, environment

GATEWAY: Final = "127.0.0.1"  # the peer of the made-up request: a gateway on this machine

COLOURS: Final = {"allow": "green", "warn": "yellow", "throttle": "yellow", "reject": "bold red"}


@click.command()
@click.argument("file")
@click.option("--method", default="GET", show_default=True, help="The request's method.")
@click.option("--path", required=True, help="Its path, with the query.")
@click.option("--host", default="", help="Its host.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of it; repeatable."
)
@click.option("--body", metavar="FILE", help="A file with its body; - is standard input.")
@format_option
def explain(
    file: str,
    method: str,
    path: str,
    host: str,
    headers: tuple[str, ...],
    body: str | None,
    output_format: str,
) -> None:
    """Explain what the policy bundle FILE (- is standard input) does with one request.

    Which policies and rules apply, what they count by, the decision and why, on fresh counters. The request comes
    from a gateway on this machine: -H 'X-Forwarded-For: 203.0.113.7' sets the client's address.
    """
    settings, parsed = Settings.load(environment(), {}), read_bundle(file)
    identity = _identity(settings, parsed.model)
    context = _asked(method, host, path, headers, body, identity, settings.max_body)
    traced = trace(parsed, settings, context)
    if traced.selects_by_host and not host:
        raise click.UsageError("--host is needed: the bundle selects by host")
    answer = Renderer(settings.ratelimit_headers, settings.llm_headers).answer(
        traced.decision, context, settings.allow_status
    )
    warnings = listed((*parsed.warnings, *unreachable(parsed.model, identity.sources())), "warnings")
    report = {
        "request": {"method": context.method, "host": context.host, "path": context.path},
        **Words(parsed.model, traced, context).report(),
        "answer": _answer_report(answer),
        "warnings": [*map(str, warnings), *identity.problems(), *identity.warnings()],
    }
    if output_format == "json":
        print_json(report)
    else:
        _print_report(report)


def _asked(
    method: str,
    host: str,
    path: str,
    headers: Iterable[str],
    body: str | None,
    identity: Identity,
    max_body: int,
) -> Context:
    """Return the request of the arguments, read as every transport reads one; `body` names a file."""
    data = None if body is None else read_file(body)
    fields, repeated = read_fields(_header_lines(headers))
    return Context(
        METHODS[method.encode()],
        HOSTS[host.encode()] if host else "",
        path,
        fields,
        GATEWAY,
        identity,
        read_now(),
        None if data is None else data[:max_body],
        cut_bytes=max(0, len(data or b"") - max_body),
        repeated=repeated,
    )


def _answer_report(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain data."""
    return {
        "status": answer.status,
        "headers": [line for line in answer.head.split("\r\n") if line],
        "body": answer.body.decode(),
        "delay_ms": answer.delay_ms,
    }


def _identity(settings: Settings, bundle: Bundle) -> Identity:
    """The identity of a bundle, with its key sets fetched: an edge has them before it takes a request."""
    environ = environment()
    identity = Identity.from_settings(settings, bundle.jwt_keys, environ, bundle.jwt_issuers)
    fetcher = KeyFetcher(identity.sets, Web(environ, settings.jwks_ca, settings.jwks_networks))
    for thread in fetcher.step(identity.endpoints, read_now):
        thread.join()
    identity.refresh(read_now())
    return identity


def _header_lines(lines: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return `NAME: VALUE` lines as the field lines of a request, names in lower case."""
    pairs: list[tuple[str, bytes]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{line!r} is not 'NAME: VALUE'", param_hint="'-H'")
        pairs.append((name.strip().lower(), value.encode()))
    return pairs


def _print_report(report: Mapping[str, Any]) -> None:
    request, decision, answer = report["request"], report["decision"], report["answer"]
    host = f"  host {request['host']}" if request["host"] else ""
    print_line((f"{request['method']} {request['path']}", "bold"), host)
    for policy in report["policies"]:
        _print_policy(policy)
    print_line("")
    print_line("decision: ", (decision["action"], COLOURS[decision["action"]]), f", {decision['why']}")
    held = f", held for {answer['delay_ms']} ms" if answer["delay_ms"] else ""
    print_line(f"answer:   {answer['status']}{held}")
    for line in answer["headers"]:
        print_line(f"          {line}")
    if report["warnings"]:
        print_line("")
        print_warnings(report["warnings"])


def _print_policy(policy: Mapping[str, Any]) -> None:
    print_line("")
    mode = " (shadow: reports, never acts)" if policy["shadow"] else ""
    print_line("policy ", (policy["id"], "bold"), f"{mode}: {policy['why']}")
    for limit in policy["limits"]:
        print_line("  ", (limit["rule"], "bold"), f" ({limit['kind']}): {limit['why']}")
        for name, value in limit["keys"].items():
            print_line(f"    {name} = ", ("missing", "yellow") if value is None else repr(value))
