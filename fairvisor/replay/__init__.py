"""Access logs, decided as they would have been: what a bundle does with the requests of yesterday.

    times.py      the spellings of a moment in logs
    fields.py     what the fields of a log mean, and a request made of them
    dialects.py   how nginx, Envoy, Apache and HAProxy write the format of their text logs
    formats.py    text logs: a format as a regular expression
    columns.py    W3C extended logs (CloudFront, IIS)
    documents.py  JSON logs (Caddy, Envoy, Kong, nginx and others) and the entries of HAR
    wrappings.py  lines inside lines: syslog, container runtimes, collectors
    detection.py  which format a log has, and in which wrappings
    elements.py   the elements of a JSON array, one at a time
    files.py      the bytes of a file: gzip, byte order marks, lines
    reading.py    files to requests, and what cannot be read
    clock.py      the log's own time as the engine's
    run.py        the requests through the engine, in a segment of their own
    findings.py   what each rule rejected, for whom and when
    synthetic.py  a request for every policy, where there is no log

Requests go through the same `decide` as on a live edge. Nothing here prints, and nothing here touches what a running
edge counts.
"""
