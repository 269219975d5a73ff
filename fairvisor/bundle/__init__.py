"""From bytes to what the engine evaluates, before the first request: syntax, model, advice, then compile.

`load.parse` is the only way in, for the server, the admin API and `fairvisor validate` alike; `compile.py` builds the
engine's rules from the model; `schema.py` publishes the model as JSON Schema. Nothing here runs on a request.
"""
