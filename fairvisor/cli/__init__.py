"""The command line: one module per command, put together in main.py.

A command reads its arguments, calls the same functions that the edge calls, and prints. Tables are for people,
`--format json` for programs; results go to stdout, errors to stderr; exit codes are named in exits.py. Nothing here
decides anything about requests or bundles, and nothing outside imports this package.
"""
