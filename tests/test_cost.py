"""Amounts in requests: which texts are amounts, and that they round up to a millionth."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairvisor.rules.cost import MAX_AMOUNT_U, millionths, read_amount


@pytest.mark.parametrize(
    ("text", "amount_u"),
    [
        ("1", 1_000_000),
        ("007", 7_000_000),
        ("2.5", 2_500_000),
        ("0.0000001", 1),
        ("1.0000001", 1_000_001),
        ("1e3", 1_000_000_000),
        ("1E-3", 1_000),
        ("2.5e+1", 25_000_000),
        ("9e12", MAX_AMOUNT_U),
        ("9000000000001", MAX_AMOUNT_U),
        ("8999999999999.9999999", MAX_AMOUNT_U),
        ("1e30", MAX_AMOUNT_U),
        ("1e99999999999999999999", MAX_AMOUNT_U),
        ("1" * 5000, MAX_AMOUNT_U),
        ("1e-99999999999999999999", 1),
        ("0." + "0" * 3000 + "1", 1),
        ("1." + "0" * 3000 + "1", 1_000_001),
    ],
)
def test_amounts_round_up_to_a_millionth_and_stop_at_9e12(text: str, amount_u: int) -> None:
    assert amount_u == read_amount(text)


@pytest.mark.parametrize(
    "text",
    [None, "", "0", "0.0", "0e5", "-1", "+1", "NaN", "nan", "Infinity", "inf", ".5", "5.", "1e", "e1", "1e1.5", "1 ",
     " 1", "1,5", "1, 1", "1_000", "0x10", "\u0663", "\uff11", "1\n", "1e\u0663"],
)  # fmt: skip
def test_anything_else_is_no_amount(text: str | None) -> None:
    assert not read_amount(text)


@given(st.from_regex(r"[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?", fullmatch=True))
def test_amounts_agree_with_exact_arithmetic(text: str) -> None:
    exact = min(ceil(Fraction(text) * 10**6), MAX_AMOUNT_U)
    assert exact == (read_amount(text) or 0)


def test_amounts_of_the_bundle_round_up_too() -> None:
    assert millionths(Decimal("0.1")) == 100_000
    assert millionths(Decimal("1e-7")) == 1
