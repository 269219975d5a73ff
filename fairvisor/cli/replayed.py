"""A replay's report for people: what each limit would have rejected, for whom, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fairvisor.cli.screen import count_of, print_line

Report = Mapping[str, Any]

BARS: Final = " ▁▂▃▄▅▆▇█"


def print_replay(report: Report) -> None:
    """The whole report."""
    _print_log(report)
    _print_decisions(report)
    policy = None
    for limit in report["limits"]:
        if limit["policy"] != policy:
            policy = limit["policy"]
            _print_policy(limit)
        _print_limit(limit)
    _print_lacking(report["lacking"])


def sparkline(counts: Sequence[int]) -> str:
    """One bar for each count; the lowest bar is already one."""
    most = max(counts, default=0)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] if count else BARS[0] for count in counts)


def _print_log(report: Report) -> None:
    log = report["log"]
    if log is None:
        print_line(
            f"{count_of(report['requests'], 'made-up request', 'made-up requests')}, one for each policy"
        )
        return
    between = f", {report['from']} to {report['to']}" if report["requests"] else ""
    print_line(f"{_requests(report['requests'])} of {log['name']} ({log['format']}){between}")
    for number, one, many, text in (
        (log["unreadable"], "line", "lines", "could not be read"),
        (log["out_of_order"], "request", "requests", "came late and got the time of the one before"),
        (
            log["without_host"],
            "request",
            "requests",
            "left out: policies select by host, the log has none (--host)",
        ),
        (sum(log["unanswerable"].values()), "request", "requests", "would have been answered with 400"),
    ):
        if number:
            print_line(("warning", "yellow"), f"  {count_of(number, one, many)} {text}")
    for example in log["unreadable_examples"]:
        print_line(f"         line {example['line']}: {example['reason']}: {example['text']}")
    for message, number in log["unanswerable"].items():
        print_line(f"         {number:,}: {message}")
    if log["cut_short"]:
        print_line(("warning", "yellow"), f"  the log ends early: {log['cut_short']}")


def _print_decisions(report: Report) -> None:
    total = report["requests"]
    parts = [
        f"{name} {number:,}{_share(number, total)}" for name, number in report["decisions"].items() if number
    ]
    print_line(
        ", ".join(parts) or "no requests", " (dry run: every policy is a shadow)" if report["dry_run"] else ""
    )


def _print_policy(limit: Report) -> None:
    print_line("")
    if not limit["policy"]:
        print_line(("kill switches", "bold"))
        return
    mode = ", shadow" if limit["mode"] == "shadow" else ""
    print_line("policy ", (limit["policy"], "bold"), f"{mode}: {_requests(limit['policy_requests'])}")


def _print_limit(limit: Report) -> None:
    verb = "would reject" if limit["mode"] == "shadow" else "rejects"
    rejected = limit["rejected"]
    line = f" ({limit['kind']}): of {_requests(limit['asked'])}, " if limit["on_missing"] else ": "
    done = f"{verb} {rejected:,}{_share(rejected, limit['asked'])}"
    print_line("  ", (limit["rule"], "bold"), line, (done, "red" if rejected else ""), _marks(limit))
    if rejected:
        reasons = limit["reasons"]
        why = ", ".join(
            name if len(reasons) == 1 else f"{name} {number:,}" for name, number in reasons.items()
        )
        worst = limit["worst_minute"]
        print_line(f"    {why}, {limit['first']} to {limit['last']}")
        print_line(f"    worst minute {worst['from']}: {worst['rejected']:,}")
        print_line(f"    |{sparkline(limit['timeline'])}|")
    for key in limit["top"]:
        about = f" (at most {key['too_high_by_at_most']:,} too many)" if key["too_high_by_at_most"] else ""
        print_line(
            f"    {key['rejected']:>10,}{_share(key['rejected'], rejected)}  {_who(key['keys'])}{about}"
        )
    _print_gaps(limit)


def _marks(limit: Report) -> str:
    return "".join(f", {name} {limit[name]:,}" for name in ("warned", "throttled") if limit[name])


def _print_gaps(limit: Report) -> None:
    """What the rule could not see."""
    never = "; the rule never ran" if not limit["asked"] else ""
    for name in limit["lacking"]:
        print_line("    ", ("lacks", "yellow"), f" {name}: no request of the policy has it{never}")
    for name, number in limit["missing"].items():
        if name not in limit["lacking"]:
            print_line("    ", ("misses", "yellow"), f" {name} in {_requests(number)}")
    if limit["without_body"]:
        print_line("    ", ("misses", "yellow"), f" the body of {_requests(limit['without_body'])}")


def _print_lacking(lacking: Sequence[Report]) -> None:
    if not lacking:
        return
    print_line("")
    print_line(
        ("The log lacks what these rules go by", "bold yellow"),
        "; --map NAME=FIELD names a field that has it:",
    )
    for rule in lacking:
        place = f"{rule['policy']}/{rule['rule']}" if rule["policy"] else "kill switches"
        print_line(f"  {place}: {', '.join(rule['descriptors'])}")


def _who(keys: Mapping[str, str | None]) -> str:
    return (
        ", ".join(f"{name}={'(missing)' if value is None else value}" for name, value in keys.items())
        or "all"
    )


def _requests(number: int) -> str:
    return count_of(number, "request", "requests")


def _share(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""
