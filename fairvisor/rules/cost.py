"""What a request costs: a fixed amount, or one that a header or a query parameter names.

Amounts in requests are ASCII `digits[.digits][e±digits]`, rounded up to a millionth and capped; anything else (absent,
negative, zero, NaN) is the rule's default cost. A cost from a request is the client's word unless the gateway
overwrites it; `validate` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal
from decimal import Context as Arithmetic
from typing import Final

from fairvisor.context import Context
from fairvisor.decision import UNIT_U
from fairvisor.descriptors import Descriptor

MAX_AMOUNT_U: Final = 9 * 10**18  # 9e12 units: below 2^63 millionths
_AMOUNT = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
# More digits than any amount below the cap has; what is beyond them, and beyond every exponent, is rounded up.
_EXACT = Arithmetic(prec=100, rounding=ROUND_CEILING, traps=[])

Cost = Callable[[Context], int]


def millionths(amount: Decimal) -> int:
    """An amount of the bundle in millionths, rounded up."""
    return int(_EXACT.multiply(amount, Decimal(UNIT_U)).to_integral_value(rounding=ROUND_CEILING))


def read_amount(text: str | None) -> int | None:
    """An amount as a request gives it, in millionths; None when it is not one or not above zero."""
    if text is None or not _AMOUNT.fullmatch(text):
        return None
    if text.isdigit() and len(text) <= 12:
        return int(text) * UNIT_U or None
    amount = _EXACT.create_decimal(text)
    if amount >= MAX_AMOUNT_U // UNIT_U:
        return MAX_AMOUNT_U
    return millionths(amount) or None


def compile_cost(source: Descriptor, default_cost: Decimal) -> Cost:
    """Return the reader of a cost in millionths from a header or a query parameter."""
    default_u = max(1, millionths(default_cost))
    return lambda context: read_amount(source.read(context)) or default_u
