"""The reverse proxy: requests are decided here and, when they may pass, forwarded to an upstream.

`front.py` is the client's connection, with `inbox.py` for what it has sent, `link.py` one to an upstream, `exchange.py`
what passes between them for one request, `returning.py` its response, `tunnel.py` what passes after an upgrade.
`gate.py` asks the engine, `backends.py` knows the upstreams. Heads and bodies are read by `heads.py` and `bodies.py`,
which refuse whatever two parsers could read in two ways, and rewritten by `rewrite.py`; `_heads.c` reads plain heads in
one pass.

For language models, `account.py` settles what was reserved and `events.py` works on streams while they pass.
"""
