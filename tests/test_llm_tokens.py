"""`token_bucket_llm` in simulated time: estimates, caps, reserving from both or neither, settling."""

from __future__ import annotations

from typing import Any

import pytest
from edge import DAY, START_S, Edge, Json, Reply, bucket, moment, policy, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvisor.bundle.compile import Options
from fairvisor.counters.layout import Word
from fairvisor.decision import UNIT_U
from fairvisor.errors import Conflict, Gone, RequestError
from fairvisor.llm.reservation import unseal
from fairvisor.llm.usage import Usage
from fairvisor.rules.llm_tokens import Settled

TRUSTED = Options(trust_token_hint=True)
HOUR = 3600


def llm(**config: Any) -> Edge:
    return Edge(policy("p", tokens("t", **config)), options=TRUSTED)


def ask(edge: Edge, prompt: int | None = None, completion: int | None = None, **more: Any) -> Reply:
    """A request whose prompt is estimated by the gateway and that asks for so many completion tokens."""
    body: Json = dict(more.pop("body", {}))
    if completion is not None:
        body["max_tokens"] = completion
    headers = {} if prompt is None else {"x-token-estimate": str(prompt)}
    return edge.ask("POST", "/v1/chat/completions", headers, body=body, **more)


HINT = {"estimator": "header_hint"}


def hinted(**config: Any) -> Edge:
    return llm(token_source=HINT, **config)


def test_prompt_and_completion_are_reserved() -> None:
    edge = hinted(tpm=1000)
    reply = ask(edge, 100, 50)
    assert (reply.status, reply.remaining) == (204, 850)
    assert reply.headers["RateLimit-Policy"] == '"t";q=1000;w=60'
    assert edge.metric("tokens_reserved_total", policy="p", rule="t") == 150


def test_tokens_come_back_at_the_rate_per_minute_up_to_the_burst() -> None:
    edge = hinted(tpm=600, burst_tokens=1200)
    assert ask(edge, 1190, 10).remaining == 0
    refused = ask(edge, 10, 10)
    assert (refused.reason, refused.reset, refused.should_retry) == ("tpm_exceeded", 2, True)
    assert ask(edge, 10, 10, at=2.001).status == 204
    assert ask(edge, 1190, 10, at=1000).remaining == 0


def test_the_prompt_is_estimated_from_the_body() -> None:
    body = {"messages": [{"role": "user", "content": "a few plain words " * 50}], "max_tokens": 1}
    small, large = (
        llm(tpm=100_000).ask(
            "POST", "/v1/chat/completions", body=body | {"messages": body["messages"] * times}
        )  # type: ignore[operator]
        for times in (1, 3)
    )
    spent = [100_000 - reply.remaining for reply in (small, large)]
    assert 150 < spent[0] < 400
    assert 2.5 * spent[0] < spent[1] < 3.5 * spent[0]


def test_without_a_body_the_trusted_estimate_counts_else_the_default() -> None:
    config = {"tpm": 10_000, "default_prompt_tokens": 70, "default_max_completion": 500}
    trusting, wary = llm(**config), Edge(policy("p", tokens("t", **config)))
    hint = {"x-token-estimate": "30"}
    assert trusting.ask(headers=hint).remaining == 10_000 - 30 - 500
    assert wary.ask(headers=hint).remaining == 10_000 - 70 - 500
    assert trusting.ask().remaining == 9470 - 570
    assert (trusting.metric("estimate_missing_total"), wary.metric("estimate_missing_total", rule="t")) == (
        1,
        1,
    )


def test_an_estimate_that_is_no_amount_is_none() -> None:
    edge = hinted(tpm=10_000, default_prompt_tokens=70, default_max_completion=0)
    for said in ("-5", "NaN", "0", "5, 5"):
        before = edge.ask().remaining
        assert before - edge.ask(headers={"x-token-estimate": said}).remaining == 70


def test_a_client_that_does_not_say_reserves_the_default() -> None:
    assert ask(hinted(tpm=10_000), 100).remaining == 8900
    assert ask(hinted(tpm=10_000, default_max_completion=40), 100).remaining == 9860


@pytest.mark.parametrize(
    ("config", "remaining"),
    [
        ({"tpm": 500}, 0),
        ({"tpm": 500, "burst_tokens": 5000}, 3900),
        ({"tpm": 5000, "tokens_per_day": 700}, 0),
        ({"tpm": 5000, "max_tokens_per_request": 250}, 4750),
        ({"tpm": 5000, "max_completion_tokens": 30}, 4870),
    ],
)
def test_the_default_alone_never_makes_a_request_impossible(config: dict[str, float], remaining: int) -> None:
    reply = ask(hinted(**config), 100)
    assert (reply.status, reply.remaining) == (204, remaining)


def test_each_of_n_completions_is_reserved_and_the_cap_clamps_each() -> None:
    assert ask(hinted(tpm=10_000), 100, 50, body={"n": 4}).remaining == 9700
    assert ask(hinted(tpm=10_000, max_completion_tokens=20), 100, 50, body={"n": 4}).remaining == 9820


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_every_way_to_ask_for_completion_tokens(field: str) -> None:
    assert ask(hinted(tpm=10_000), 100, body={field: 7}).remaining == 9893


@pytest.mark.parametrize(
    ("config", "prompt", "completion", "reason"),
    [
        ({"max_prompt_tokens": 100}, 101, 1, "prompt_tokens_exceeded"),
        ({"max_tokens_per_request": 150}, 100, 51, "max_tokens_per_request_exceeded"),
        ({"max_tokens_per_request": 150}, 151, None, "max_tokens_per_request_exceeded"),
        ({"tpm": 1000}, 900, 101, "max_tokens_per_request_exceeded"),
        ({"tpm": 1000}, 1001, None, "max_tokens_per_request_exceeded"),
        ({"tpm": 10_000, "tokens_per_day": 1000}, 900, 101, "max_tokens_per_request_exceeded"),
    ],
)
def test_what_can_never_fit_is_refused_at_once_and_charges_nothing(
    config: dict[str, float], prompt: int, completion: int | None, reason: str
) -> None:
    edge = hinted(**{"tpm": 1000.0, **config})
    reply = ask(edge, prompt, completion)
    assert (reply.reason, reply.should_retry) == (reason, False)
    assert 60 <= reply.retry_after <= 90
    assert "RateLimit" not in reply.headers
    assert ask(edge, 1, 1).remaining == min(config.get("tpm", 1000), config.get("tokens_per_day", 1e9)) - 2


def test_caps_admit_what_they_say() -> None:
    edge = hinted(tpm=1000, max_prompt_tokens=100, max_tokens_per_request=150)
    assert ask(edge, 100, 50).status == 204


def test_a_day_is_counted_beside_the_minute_and_the_tighter_one_is_shown() -> None:
    edge = hinted(tpm=1000, tokens_per_day=1500)
    first = ask(edge, 900, 10, at=HOUR)
    assert (first.remaining, first.headers["RateLimit-Limit"]) == (90, "1000")
    second = ask(edge, 500, 10, at=2 * HOUR)
    assert (second.remaining, second.reset) == (80, 22 * HOUR)
    assert second.headers["RateLimit-Policy"] == '"t";q=1500;w=86400'
    refused = ask(edge, 80, 1)
    assert (refused.reason, refused.remaining, refused.should_retry) == ("tpd_exceeded", 80, False)
    assert refused.reset == 22 * HOUR
    assert ask(edge, 900, 10, at=DAY).status == 204


def test_no_key_is_taken_for_the_day_of_another() -> None:
    edge = Edge(
        policy("p", tokens("t", "header:x-key", tpm=1000, tokens_per_day=1200, token_source=HINT)),
        options=TRUSTED,
    )
    assert ask(edge, 1, 1, key=f"day{START_S // DAY}:a").status == 204
    assert ask(edge, 990, 10, key="a").status == 204
    assert ask(edge, 990, 10, key="a", at=60).reason == "tpd_exceeded"


def test_tokens_are_taken_from_both_limits_or_from_neither() -> None:
    edge = hinted(tpm=1000, tokens_per_day=1500)
    assert ask(edge, 890, 10).status == 204
    assert ask(edge, 90, 20).reason == "tpm_exceeded"
    assert ask(edge, 690, 10, at=60).reason == "tpd_exceeded", "90 and 20 were not taken from the day"
    assert ask(edge, 590, 10).status == 204, "690 and 10 were not taken from the minute"
    assert ask(edge, 1, 1, at=120).reason == "tpd_exceeded"


def test_a_later_refusal_gives_both_back() -> None:
    rule = tokens("t", tpm=1000, tokens_per_day=1200, token_source=HINT)
    edge = Edge(policy("p", rule, bucket("late", burst=1, rate=0.001)), options=TRUSTED)
    assert ask(edge, 100, 100).status == 204
    assert ask(edge, 100, 100).rule == "p/late"
    edge.reload(policy("p", rule))
    assert ask(edge, 790, 10).status == 204, "all that was left of the minute"
    assert ask(edge, 190, 10, at=60).status == 204, "all that was left of the day"
    assert ask(edge, 1, 1).reason == "tpd_exceeded"


def test_settling_gives_the_difference_back() -> None:
    edge = hinted(tpm=1000, tokens_per_day=2000)
    edge.settle(ask(edge, 500, 400).reservation, Usage(input=450, output=50))
    assert ask(edge, 399, 1).remaining == 100
    assert ask(edge, 979, 21, at=HOUR).status == 204, "1,000 of the day are left"
    assert ask(edge, 99, 1, at=2 * HOUR).remaining == 0


def test_settling_charges_what_the_estimate_missed_down_to_empty() -> None:
    edge = hinted(tpm=1000, tokens_per_day=2000)
    edge.settle(ask(edge, 100, 100).reservation, Usage(input=100, output=500))
    assert ask(edge, 1, 1).remaining == 398
    edge.settle(ask(edge, 100, 100).reservation, Usage(input=100, output=1200))
    assert ask(edge, 1, 1).reset == 1, "empty, and not in debt for longer"
    assert ask(edge, 97, 1, at=HOUR).remaining == 0, "but the day knows all 1,902"


def test_a_failed_request_gets_everything_back() -> None:
    edge = hinted(tpm=1000, tokens_per_day=1000)
    edge.settle(ask(edge, 500, 500).reservation, None)
    assert ask(edge, 500, 500).status == 204


def test_a_reservation_is_settled_once() -> None:
    edge = hinted(tpm=1000)
    token = ask(edge, 500, 100).reservation
    edge.settle(token, Usage(input=400))
    with pytest.raises(Conflict, match="already"):
        edge.settle(token, None)
    assert ask(edge, 1, 1).remaining == 598


def test_a_full_table_settles_nothing() -> None:
    edge = hinted(tpm=1000)
    token = ask(edge, 500, 100).reservation
    full = Edge(full=True)
    full.segment = edge.segment
    with pytest.raises(Conflict, match="full"):
        full.settle(token, None)
    assert ask(edge, 1, 1).remaining == 398


def evict_nonce(edge: Edge, token: str) -> None:
    """What the table does when another key needs the room."""
    now = moment(edge.at)
    reservation = unseal(edge.segment.reservation_key, token, now.wall_ns)
    assert edge.segment.table.delete(reservation.nonce, now.mono_ns)
    edge.segment.table.word_set(Word.CLAIM_STAMP, reservation.expires_wall_ns)


def test_a_settlement_whose_nonce_was_evicted_charges_and_gives_nothing_back() -> None:
    edge = hinted(tpm=1000, tokens_per_day=1000)
    token = ask(edge, 500, 100).reservation
    edge.settle(token, Usage(input=400))
    evict_nonce(edge, token)
    for usage in (None, Usage(input=400)):
        assert edge.settle(token, usage) == (Settled("p", "t", 600 * UNIT_U, 600 * UNIT_U),)
        evict_nonce(edge, token)
    assert ask(edge, 1, 1).remaining == 598, "1,000 - 400 - 2"
    edge.settle(token, Usage(input=650))
    assert ask(edge, 1, 1).remaining == 546, "50 more were used than reserved"


def test_a_reservation_that_is_younger_than_every_evicted_nonce_is_given_back_as_ever() -> None:
    edge = hinted(tpm=1000)
    old = ask(edge, 500, 100).reservation
    edge.settle(old, None)
    young = ask(edge, 500, 100, at=10).reservation
    evict_nonce(edge, old)
    edge.settle(young, Usage(input=100), at=10)
    assert ask(edge, 1, 1).remaining == 898


def test_the_other_token_of_a_repeated_question_gives_nothing_back_either() -> None:
    """It has the nonce of the first, and expires up to ten seconds later."""
    edge = hinted(tpm=1000)
    first, second = (ask(edge, 500, 100, request_id="one", at=at).reservation for at in (0, 9.9))
    edge.settle(first, None)
    evict_nonce(edge, first)
    edge.settle(second, None, at=9.9)
    assert ask(edge, 1, 1, at=10).remaining == 998, "all that was reserved came back once"


def test_a_reservation_of_another_edge_or_of_an_hour_ago_is_refused() -> None:
    edge = hinted(tpm=1000)
    token = ask(edge, 500, 100).reservation
    with pytest.raises(RequestError, match="not one that this edge made"):
        hinted().settle(token, None)
    with pytest.raises(Gone):
        edge.settle(token, None, at=HOUR)


def test_a_closed_day_is_left_alone() -> None:
    edge = hinted(tpm=1000, tokens_per_day=1000)
    token = ask(edge, 500, 500, at=DAY - 60).reservation
    assert ask(edge, 500, 100, at=DAY + 1).status == 204
    edge.settle(token, Usage(input=500, output=100), at=DAY + 2)
    assert ask(edge, 390, 11, at=DAY + 120).reason == "tpd_exceeded"
    assert ask(edge, 390, 10).status == 204


def test_settling_does_not_ask_the_bundle() -> None:
    edge = hinted(tpm=1000, weights={"output": 2})
    token = ask(edge, 100, 100).reservation
    edge.reload(policy("p", tokens("t", tpm=1000, token_source=HINT)))
    edge.settle(token, Usage(input=100, output=50))
    assert ask(edge, 1, 1).remaining == 798


def test_weights_price_kinds_of_tokens() -> None:
    weights = {"input": 0.5, "cached_input": 0.1, "cache_write": 1.25, "output": 5, "reasoning": 10}
    edge = hinted(tpm=10_000, weights=weights)
    reply = ask(edge, 100, 100)
    assert reply.remaining == 10_000 - 50 - 500
    edge.settle(reply.reservation, Usage(input=60, cached_input=50, cache_write=4, output=80, reasoning=20))
    assert ask(edge, 2, 1).remaining == 10_000 - 30 - 5 - 5 - 400 - 200 - 6


def test_default_completion_fits_in_weighted_tokens() -> None:
    assert ask(hinted(tpm=600, weights={"output": 5}), 100).remaining == 0
    assert ask(hinted(tpm=600, weights={"output": 0}), 100).remaining == 500


def test_models_may_have_limits_of_their_own() -> None:
    rules = [
        tokens(name, "header:x-key", tpm=1000, match={"llm:model": name}, token_source=HINT)
        for name in ("gpt-4o", "o3")
    ]
    edge = Edge(policy("p", *rules), options=TRUSTED)
    assert ask(edge, 900, 100, key="a", body={"model": "openai/GPT-4o"}).rule == "p/gpt-4o"
    assert ask(edge, 1, 1, key="a", body={"model": "gpt-4o-2024-08-06"}).status == 429
    assert ask(edge, 900, 100, key="a", body={"model": "o3"}).rule == "p/o3"
    assert ask(edge, 900, 100, key="b", body={"model": "gpt-4o"}).status == 204


def test_aliases_of_a_model_are_that_model() -> None:
    rule = tokens("t", tpm=1000, match={"llm:model": "gpt-4o"}, token_source=HINT)
    edge = Edge(
        policy("p", rule),
        options=TRUSTED,
        defaults={"model_aliases": {"Fast": "OpenAI/GPT-4o", "quick": "fast"}},
    )
    assert [ask(edge, 1, 1, body={"model": name}).rule for name in ("fast", "azure/FAST", "quick")] == 3 * [
        "p/t"
    ]
    assert ask(edge, 1, 1, body={"model": "faster"}).rule is None


def test_no_reservation_where_no_tokens_are_limited() -> None:
    assert "X-Fairvisor-Reservation" not in Edge(policy("p", bucket("r"))).ask().headers


def test_a_path_that_only_looks_like_embeddings_still_has_a_completion() -> None:
    edge = hinted(tpm=10_000)
    hint = {"x-token-estimate": "10"}
    paths = ("/v1/embeddings", "/v1/chat/completions#/embeddings", "/v1/%65mbeddings")
    left = [edge.ask("POST", path, hint, body={"model": "m"}).remaining for path in paths]
    assert left == [9990, 8980, 8970]


def test_a_shadow_policy_reserves_and_settles_on_its_own_counters() -> None:
    rule = tokens("t", tpm=1000, token_source=HINT)
    edge = Edge(policy("p", rule, mode="shadow"), options=TRUSTED)
    reply = ask(edge, 900, 100)
    assert "RateLimit" not in reply.headers
    assert ask(edge, 1, 1).would_reject == ["p/t"]
    edge.settle(reply.reservation, Usage(input=100))
    assert ask(edge, 890, 10).would_reject == []
    assert ask(edge, 1, 1).would_reject == ["p/t"]


def test_full_tables_let_pass_without_a_reservation_or_refuse() -> None:
    rule = tokens("t", tpm=1000, tokens_per_day=2000)
    reply = Edge(policy("p", rule), full=True).ask()
    assert (reply.status, reply.remaining) == (204, 1000)
    assert "X-Fairvisor-Reservation" not in reply.headers
    strict = Edge(policy("p", rule), full=True, options=Options(reject_when_full=True))
    assert strict.ask().reason == "tpm_exceeded"


STEPS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


@given(STEPS)
@settings(max_examples=80)
def test_real_usage_stays_within_burst_and_rate_and_what_was_reserved_before(
    steps: list[tuple[int, int, int, float, int]],
) -> None:
    """Usage never above its estimate; each request is settled after a few others, at its real usage."""
    edge = hinted(tpm=60, burst_tokens=120, tokens_per_day=100_000)
    outstanding: list[tuple[str, int, int]] = []
    used: list[tuple[int, int]] = []  # (when settled, tokens)
    held: list[tuple[int, int, int]] = []  # (from, to, reserved)
    at = 0
    for wait, prompt, completion, share, lag in steps:
        at += wait
        reply = ask(edge, prompt, completion, at=at)
        if reply.status == 204:
            outstanding.append((reply.reservation, at, prompt + completion))
            while len(outstanding) > lag:
                token, taken_at, reserved = outstanding.pop(0)
                real = max(1, int(reserved * share))
                edge.settle(token, Usage(input=real))
                used.append((at, real))
                held.append((taken_at, at, reserved))
    for start in {0, *(when for when, _ in used)}:
        for end in {when for when, _ in used if when >= start}:
            spent = sum(real for when, real in used if start <= when <= end)
            before = sum(reserved for taken, settled, reserved in held if taken < start <= settled)
            assert spent <= 120 + (end - start) + before
