"""Bytes to requests, answers to bytes. What a request means for a policy is not known here.

worker.py       the gunicorn worker `edge`: one loop, its sockets, its connections, start and stop
accept.py       which worker takes the next connection
connection.py   one connection: framing, order, time limits
channel.py         when its transport is read, written and closed
arriving.py        a request whose body is on its way
pieces.py          reading from a client that sends much
_head.c            a plain request, read in one pass
outbox.py          the answers, in order, some of them waiting
headers.py         header fields
wire.py            answers as bytes
hub.py          what the connections of a worker share
wsgi.py         the same service for WSGI servers
start.py        what a process needs before it can answer
request.py      a request, and who sent it
gateways.py     which headers describe the original request, by gateway
service.py      request -> answer: decisions, health, usage
debug.py           sessions that explain decisions
admin.py        what operators may ask and do
admin_listener.py  their own socket and threads
operators.py       which sockets a worker serves, and opening one again
undecided.py       what is said when nothing could be decided
complaints.py      what goes wrong, told without flooding the log
"""
