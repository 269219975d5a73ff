"""Bots by their user agent: the published list is applied as it is meant, whatever is sent."""

from __future__ import annotations

import re

import pytest
from crawleruseragents import CRAWLER_USER_AGENTS_DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.identity.bots import MAX_USER_AGENT, Bots

BOTS = Bots()
CHROME = "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:127.0) Gecko/20100101 Firefox/127.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)


@pytest.mark.parametrize(
    ("user_agent", "verdict"),
    [
        (
            "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            ("true", "search-engine"),
        ),
        ("Mozilla/5.0 (compatible; GPTBot/1.2; +https://openai.com/gptbot)", ("true", "ai-crawler")),
        ("curl/8.5.0", ("true", "http-library")),
        ("Wget/1.21.4", ("true", "http-library")),
        ("Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)", ("true", "seo")),
        (CHROME, ("false", None)),
        (FIREFOX, ("false", None)),
        (SAFARI, ("false", None)),
        ("", ("false", None)),
        ("-", ("false", None)),
        ("not-curl/8.5.0", ("false", None)),  # ^curl is anchored
        ("googlebot/2.1", ("false", None)),  # the list is case-sensitive
    ],
)
def test_well_known_agents(user_agent: str, verdict: tuple[str, str | None]) -> None:
    assert BOTS.bot(user_agent) == verdict
    assert BOTS.bot(user_agent) == verdict  # remembered


def first_entry(user_agent: str) -> int | None:
    """What the list says, tried in order: the specification of the index."""
    for position, entry in enumerate(CRAWLER_USER_AGENTS_DATA):
        if re.search(entry["pattern"], user_agent):
            return position
    return None


def expected(user_agent: str) -> tuple[str, str | None]:
    position = first_entry(user_agent)
    return ("false", None) if position is None else ("true", CRAWLER_USER_AGENTS_DATA[position]["tags"][0])


def test_every_example_of_the_list_is_a_bot() -> None:
    found = Bots()
    examples = [text for entry in CRAWLER_USER_AGENTS_DATA for text in entry["instances"]]
    missed = [text for text in examples if len(text) <= MAX_USER_AGENT and found.bot(text)[0] != "true"]
    assert missed == []
    assert len(examples) > 1000


@settings(max_examples=40, deadline=None)  # trying the list one by one takes its time
@given(
    st.lists(
        st.sampled_from([entry["pattern"].replace("\\", "") for entry in CRAWLER_USER_AGENTS_DATA[:300]])
        | st.sampled_from([CHROME, "Mozilla/5.0 ", "curl", " ", "("])
        | st.text(alphabet="botcrawle/ ", max_size=6),
        max_size=4,
    ).map("".join)
)
def test_the_index_agrees_with_the_list_tried_one_by_one(user_agent: str) -> None:
    assert BOTS.bot(user_agent) == expected(user_agent[:MAX_USER_AGENT])


@given(st.text(max_size=600))
def test_no_user_agent_makes_it_fail(user_agent: str) -> None:
    is_bot, category = BOTS.bot(user_agent)
    assert (is_bot == "true") is (category is not None)


def test_only_the_beginning_of_a_long_user_agent_is_read() -> None:
    assert BOTS.bot("-" * (MAX_USER_AGENT - 5) + "Googlebot/2.1") == ("false", None)
    assert BOTS.bot("Googlebot/2.1" + "x" * 100_000)[0] == "true"


def test_an_entry_without_tags_is_a_bot_without_category() -> None:
    found = Bots(
        [
            {"pattern": "plainbot"},
            {"pattern": "^x.y", "tags": []},
            {"pattern": "ab", "tags": ["seo", "scanner"]},
        ]
    )
    assert found.bot("a plainbot") == ("true", None)
    assert found.bot("x-y") == ("true", None)
    assert found.bot("..ab..") == ("true", "seo")


def test_a_flood_of_user_agents_stays_bounded() -> None:
    found = Bots([{"pattern": "plainbot"}])
    for number in range(10_000):
        assert found.bot(f"agent {number}") == ("false", None)
    assert len(found._known) <= 2 * 2048
