"""Which user agents are bots, by the published list of the `crawler-user-agents` package.

The list has some 1,500 case-sensitive patterns. Nearly all are plain strings, so they are found through an index of
their rarest three characters; the few real regular expressions are tried one by one. The first matching entry in the
list's order decides, and its first tag (`search-engine`, `ai-crawler`, `seo`, `monitoring`, ...) is the category.
What no entry matches is not a bot: the list knows bots that say who they are, nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from crawleruseragents import CRAWLER_USER_AGENTS_DATA

from fairvisor.identity.recent import Recent

# Browsers send 100 to 250 characters; the name of a bot stands before this, and a longer header costs no more.
MAX_USER_AGENT: Final = 512

_REMEMBERED: Final = 2048
_INDEXED: Final = 3

# A pattern without these is a plain string once `\/` and the like are unescaped.
_SPECIAL: Final = re.compile(r"[][(){}*+?^$|.]|\\[A-Za-z0-9]")
_ESCAPED: Final = re.compile(r"\\([^A-Za-z0-9])")

Verdict = tuple[str, str | None]
_NO_BOT: Final[Verdict] = ("false", None)


class Bots:
    """Tells bots by their user agent. `entries` are those of the package's list: `pattern` and, if known, `tags`."""

    def __init__(self, entries: Sequence[Mapping[str, Any]] = CRAWLER_USER_AGENTS_DATA) -> None:
        self._verdicts = tuple(("true", next(iter(entry.get("tags", ())), None)) for entry in entries)
        self._plain: dict[str, list[tuple[int, str]]] = {}
        self._expressions: list[tuple[int, re.Pattern[str]]] = []
        self._known: Recent[str, Verdict] = Recent(_REMEMBERED)
        plain = []
        for position, entry in enumerate(entries):
            text = _plain_text(entry["pattern"])
            if text is None:
                self._expressions.append((position, re.compile(entry["pattern"])))
            else:
                plain.append((position, text))
        common = Counter(part for _, text in plain for part in set(_parts(text)))
        for position, text in plain:
            rarest = min(_parts(text), key=lambda part: common[part])
            self._plain.setdefault(rarest, []).append((position, text))

    def bot(self, user_agent: str) -> Verdict:
        """("true" or "false", category or None) for a User-Agent header; "" when there was none."""
        user_agent = user_agent[:MAX_USER_AGENT]
        verdict = self._known.get(user_agent)
        if verdict is None:
            first = min(self._matches(user_agent), default=None)
            verdict = _NO_BOT if first is None else self._verdicts[first]
            self._known.put(user_agent, verdict)
        return verdict

    def _matches(self, user_agent: str) -> Iterable[int]:
        for part in set(_parts(user_agent)):
            for position, text in self._plain.get(part, ()):
                if text in user_agent:
                    yield position
        for position, expression in self._expressions:
            if expression.search(user_agent):
                yield position


def _parts(text: str) -> Iterable[str]:
    return (text[start : start + _INDEXED] for start in range(len(text) - _INDEXED + 1))


def _plain_text(pattern: str) -> str | None:
    """The string that `pattern` stands for; None when it is a real expression, or too short for the index."""
    if _SPECIAL.search(_ESCAPED.sub("", pattern)):
        return None
    text = _ESCAPED.sub(r"\1", pattern)
    return text if len(text) >= _INDEXED else None
