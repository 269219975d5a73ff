"""What inputs are made of beside the corpus: the words that mean something to each reader. One word a line, as Python
writes bytes without the quotes."""

from __future__ import annotations

import ast


def _words(text: str) -> tuple[bytes, ...]:
    return tuple(ast.literal_eval(f"b'''{line}'''") for line in text.splitlines() if line)


JSON = _words(r"""
{
}
[
]
:
,
"
\\u0000
\\ud800
{"a":
1e400
-0
[[[[[[[[
""")
HTTP = _words(r"""
\r\n
\r\n\r\n
HTTP/1.1
HTTP/1.0
GET\x20
POST\x20
HEAD\x20
/v1/decision
/v1/ext-authz/
%2e%2e/
Host: a\r\n
Content-Length: 5\r\n
Transfer-Encoding: chunked\r\n
Connection: close\r\n
X-Original-Method: GET\r\n
X-Original-URI: /
X-Forwarded-Uri: /
X-Forwarded-Method: GET\r\n
X-Forwarded-For: 1.2.3.4\r\n
Expect: 100-continue\r\n
Upgrade: h2c\r\n
5\r\nhello\r\n
0\r\n\r\n
""")
RESPONSE = HTTP + _words(r"""
HTTP/1.1 200 OK\r\n
Set-Cookie: a\r\n
""")
PROXY = _words(r"""
\xff\xfe
Via: 1.1 a\r\n
X-Api-Key: a\r\n
X_Api_Key: a\r\n
X-Key: bad\r\n
GET /few HTTP/1.1\r\nHost: a\r\n\r\n
POST /v1 HTTP/1.1\r\nHost: a\r\n
Content-Length: 2100\r\n
Transfer-Encoding: chunked\r\n\r\n
1;a=b\r\na\r\n
0\r\nA: b\r\n\r\n
HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n
HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n
HTTP/1.1 100 Continue\r\n\r\n
Connection: Upgrade\r\nUpgrade: websocket\r\n
""")
BUNDLE = JSON + _words(r"""
limit_keys
jwt:sub
token_bucket
cost_based
P1D
30d
""")
TOKEN = JSON + _words(r"""
.
Bearer\x20
eyJhbGciOiJub25lIn0
"exp":
"nbf":
"aud":["a"]
"a":{"b":
""")
FORWARDED = _words(r"""
for=
for="[
]"
,\x20
;
192.168.0.1
::ffff:
unknown
_x
%eth0
\\"
""")
USAGE = JSON + _words(r"""
data:\x20
\n\n
\r\n\r\n
\r
event: message_delta\n
"usage":
"usageMetadata":
[DONE]
""")
LLM_REQUEST = JSON + _words(r"""
"model":
"max_tokens":
"messages":[
"n":
"content":
"stream":true
"MODEL":
"models":[
"fallbacks":[
\r\n--b\r\n
--b--
Content-Disposition: form-data; name="model"
; filename="a"
&model=
%6d
""")
CODING = _words(r"""
\x1f\x8b\x08
\x78\x9c
\x28\xb5\x2f\xfd
\x03\x00
\x00\x00\xff\xff
""")
LOG = JSON + _words(r"""
\n
" 200\x20
GET / HTTP/1.1
[02/Mar/2026:01:34:56 +0100]
\\x22
\x1f\x8b\x08
"log":{"entries":[
"log":"
"stream":"stdout"
\xef\xbb\xbf
\xff\xfe
<134>1 2026-11-02T12:00:00Z h a - - -\x20
Nov  2 12:00:00 h a[1]:\x20
2026-11-02T12:00:00Z stdout P\x20
2026-11-02T12:00:00Z stdout F\x20
web-1  |\x20
#Fields:\x20
#Date: 2026-11-02
date time c-ip cs-method cs-uri-stem cs(X)
\t
#22
[{
""")
AUDIT = JSON + _words(r"""
\n
\r\n
"action":"reject"
"time":
""")
