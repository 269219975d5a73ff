"""A provider of language models as far as LiteLLM asks one: 3 tokens in, 4 out, or an error for the user `fails`.

    python provider.py PORT

What arrived in the headers and the body is told in the text of the answer.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


class Provider(BaseHTTPRequestHandler):
    """One connection of LiteLLM."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked.get("user") == "fails":
            self._answer(400, "application/json", json.dumps({"error": {"message": "on purpose"}}))
            return
        text = json.dumps({"headers": dict(self.headers.items()), "body": asked})
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"]}
        if asked.get("stream"):
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            chunks = [{**answer, "object": "chat.completion.chunk", "choices": [choice]}]
            chunks.append({**answer, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
            events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
            self._answer(200, "text/event-stream", f"{events}data: [DONE]\n\n")
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self._answer(200, "application/json", json.dumps({**answer, "choices": [choice], "usage": USAGE}))

    def _answer(self, status: int, content_type: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Provider).serve_forever()
