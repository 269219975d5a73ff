"""The limits: one file per kind, all with the same face.

`take` charges a request and answers with a verdict, or with None when the limit does not apply to it; `give` takes the
charge back when a later limit refuses. A limit is made at load by `bundle/compile.py`, holds everything that depends
only on the bundle, and keeps no state of its own: that is in `counters`. It knows nothing of other limits or of HTTP.

    limit.py          the face
    keys.py           for whom a rule counts: match, limit keys, what happens when one is missing
    cost.py           what a request costs
    windows.py        calendar windows
    standing.py       what a counter holds for somebody, for operators
    token_bucket.py   rate with burst (GCRA)
    budget.py         total per window, with warn, throttle and reject stages
    llm_tokens.py     tokens per minute and day: reserve, then settle
    loop.py           identical requests in a row
    breaker.py        spend per minute
    kill_switch.py    no, at once
"""
