"""Who changed what, when and why: what `fairvisor logs --changes` shows of an audit log.

Every line of a change names its actor, so that a line is enough. What the lines say is decided where they are made
(`fairvisor/offered.py`, the admin API, `fairvisor reset`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from fairvisor.cli.logfiles import document_of, key_of, lines_of, members_of, place_of
from fairvisor.cli.screen import print_document, print_line

EVERYTHING: Final = ""


def show_changes(files: Sequence[Path], wanted: str, output_format: str) -> None:
    """Print the changes in these files: all, or those of one policy or rule (`POLICY/RULE`)."""
    for file in files:
        for line in lines_of(file):
            if b'"actor":' not in line:
                continue
            document = document_of(line)
            if not isinstance(document.get("actor"), dict) or not _concerns(document, wanted):
                continue
            if output_format == "json":
                print_document(line)
            else:
                print_change(document)


def _concerns(document: Mapping[str, Any], wanted: str) -> bool:
    """Return whether a change is one of the wanted policy or rule. A change of a policy concerns all its rules."""
    if wanted == EVERYTHING:
        return True
    policy, rule = document.get("policy"), document.get("rule", "")
    if not policy:
        return False
    return wanted in (policy, f"{policy}/{rule}") or (not rule and wanted.startswith(f"{policy}/"))


def print_change(document: Mapping[str, Any]) -> None:
    """Print one line for people."""
    what = (place_of(document), document.get("field"), key_of(document), _from_to(document))
    parts = [str(part) for part in what if part]
    reason = f"  ({document['reason']})" if document.get("reason") else ""
    print_line(
        f"{document.get('time', '')}  ", (_who(document["actor"]), "bold"), f"  {document.get('action', '')}",
        f"  {'  '.join(parts)}{reason}",
    )  # fmt: skip


def _from_to(document: Mapping[str, Any]) -> str:
    if "old" in document or "new" in document:
        return f"{_shown(document.get('old'))} -> {_shown(document.get('new'))}"
    if document.get("action") == "bundle":
        previous = members_of(document, "previous")
        return f"version {previous.get('version', 'none')} -> {document.get('version')}"
    return str(document.get("error", ""))


def _shown(value: object) -> str:
    return "none" if value is None else value if isinstance(value, str) else orjson.dumps(value).decode()


def _who(actor: Mapping[str, Any]) -> str:
    claimed = ", ".join(f"{name} {value}" for name, value in members_of(actor, "claimed").items())
    owner = f" of {actor['user']}" if actor.get("kind") == "file" and "user" in actor else ""
    return f"{actor.get('kind')} {actor.get('name')}{owner}{f' [claims {claimed}]' if claimed else ''}"
