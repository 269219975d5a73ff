"""What is explored: the small configurations by the tests, the large ones by `make model`."""

from __future__ import annotations

from model.protocol import CLAIM, TIME, TOTAL, Configuration

RUNS_OUT = (2, TIME, 1, 1)  # a record of key 2 that ends at the first tick

SMALL = (
    Configuration("two processes, one slot, evictions", (("take 1", "take 1"), ("take 2",)), 1, 2, limit=2),
    Configuration("two processes, one key", (("take 1", "give 1"), ("take 1",)), 2, 1),
    Configuration("a slot that runs out", (("take 1",), ("take 1",)), 2, 2, before=(RUNS_OUT,)),
    Configuration("a sweep beside it", (("take 1",), ("sweep",)), 2, 2, before=(RUNS_OUT,)),
    Configuration("a total is never evicted", (("take 1",), ("take 2",)), 1, 2, kind=TOTAL),
    Configuration("saved while it changes", (("take 1", "delete 1"), ("save",), ("peek 1",)), 1, 1),
    Configuration(
        "a claim that gives way",
        (("settle 2", "settle 2"), ("settle 3",)),
        2,
        3,
        kind=CLAIM,
        ticks=0,
        before=((1, CLAIM, 1, 1),),
    ),
)

LARGE = (
    Configuration(
        "claims in a full window",
        (("settle 1",), ("settle 1", "settle 2"), ("settle 3", "settle 1")),
        2,
        3,
        kind=CLAIM,
        ticks=0,
        before=((2, CLAIM, 1, 1),),
    ),
    Configuration(
        "3 processes, 1 slot, 2 keys", (("take 1",), ("take 1",), ("take 2",)), 1, 2, kills=2, ticks=2
    ),
    Configuration(
        "3 processes, 2 slots, 1 key, limit 2", (("take 1",),) * 3, 2, 1, limit=2, kills=2, ticks=2
    ),
    Configuration(
        "3 processes, 2 slots, 2 keys, limit 2",
        (("take 1",), ("take 1",), ("take 2",)),
        2,
        2,
        limit=2,
        kills=2,
    ),
    Configuration(
        "3 processes, a slot that runs out", (("take 1",),) * 3, 2, 2, limit=2, kills=2, before=(RUNS_OUT,)
    ),
    Configuration(
        "take, take and give, sweep",
        (("take 1",), ("take 1", "give 1"), ("sweep",)),
        2,
        2,
        limit=2,
        before=(RUNS_OUT,),
    ),
    Configuration(
        "take, delete, another key",
        (("take 1",), ("delete 1",), ("take 2",)),
        2,
        2,
        limit=2,
        before=((2, TIME, 1, 1), (1, TIME, 1, 1)),
    ),
    Configuration(
        "a full window of 2 slots, 3 keys",
        (("take 1",), ("take 1",), ("take 3",)),
        2,
        3,
        before=((2, TIME, 2, 1),),
    ),
    Configuration(
        "totals in a full window",
        (("take 1",), ("take 1",), ("take 3",)),
        2,
        3,
        kind=TOTAL,
        before=((2, TOTAL, 2, 1),),
    ),
    Configuration(
        "3 processes, 3 slots, two run out",
        (("take 1",), ("take 1",), ("take 2",)),
        3,
        3,
        limit=2,
        before=((3, TIME, 1, 1),),
        starts=(0, 1, 2),
    ),
    Configuration(
        "3 processes, saved beside it", (("take 1",), ("take 2",), ("save",)), 2, 2, limit=2, ticks=2, kills=2
    ),
    Configuration(
        "2 processes, 3 operations each",
        (("take 1", "give 1", "take 2"), ("take 2", "take 1", "delete 1")),
        2,
        2,
        limit=2,
        kills=2,
        ticks=2,
    ),
)
