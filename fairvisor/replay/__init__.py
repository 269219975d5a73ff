"""Access logs, decided as they would have been: what a bundle does with the requests of yesterday.

    times.py      the spellings of a moment in logs
    fields.py     what the fields of a log mean, and a request made of them
    formats.py    log formats of nginx and Envoy, as regular expressions
    documents.py  JSON lines (Caddy, Envoy, nginx and others) and HAR
    reading.py    files to requests: gzip, the format found out, lines that cannot be read
    clock.py      the log's own time as the engine's
    run.py        the requests through the engine, in a segment of their own
    findings.py   what each rule rejected, for whom and when
    synthetic.py  a request for every policy, where there is no log

Requests go through the same `decide` as on a live edge. Nothing here prints, and nothing here touches what a running
edge counts.
"""
