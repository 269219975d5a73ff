"""A provider on this machine that speaks the wire formats of OpenAI, Anthropic and Gemini, for real SDKs.

It answers every request with the same words, or with a call of the first tool it is offered, and tells a usage that
depends on which of the two it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from proxy_bench import read_request

WORDS = ["Hel", "lo", " there", ", how", " are", " you", " to", "day", "?", " Fine", " I", " hope", "."]
TEXT = "".join(WORDS)
ARGUMENTS = ['{"city"', ': "Par', 'is"}']
PROMPT = 9
USED = PROMPT + len(WORDS)
USED_BY_A_TOOL = PROMPT + len(ARGUMENTS)
USED_BY_AN_EMBEDDING = 5

Content = tuple[str, bytes]


def events(documents: list[Any], *, named: bool = False) -> bytes:
    """Documents as a stream; `named`: with the event's name in a line of its own."""
    return b"".join(
        (f"event: {each['type']}\n".encode() if named else b"")
        + b"data: "
        + json.dumps(each).encode()
        + b"\n\n"
        for each in documents
    )


def whole(document: Any) -> Content:
    return "application/json", json.dumps(document).encode()


def chat(document: Any) -> Content:
    """Chat completions, of OpenAI, Azure and Mistral, which tells the usage in the last chunk, unasked."""
    assert "mistral" not in document["model"] or "stream_options" not in document, "422: extra_forbidden"
    frame = {"id": "chatcmpl-1", "created": 1, "model": document["model"]}
    tools = document.get("tools")
    output = len(ARGUMENTS if tools else WORDS)
    usage = {"prompt_tokens": PROMPT, "completion_tokens": output, "total_tokens": PROMPT + output}
    finish = "tool_calls" if tools else "stop"
    if not document.get("stream"):
        message: Any = {"role": "assistant", "content": None if tools else TEXT}
        if tools:
            message["tool_calls"] = [chat_call(tools, "".join(ARGUMENTS))]
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return whole({**frame, "object": "chat.completion", "choices": [choice], "usage": usage})
    frame["object"] = "chat.completion.chunk"
    deltas: list[Any] = [{"role": "assistant", "content": word} for word in WORDS]
    if tools:
        deltas = [{"tool_calls": [{"index": 0, **chat_call(tools, ARGUMENTS[0])}]}]
        deltas += [
            {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in ARGUMENTS[1:]
        ]
    chunks = [{**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last: Any = {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    chunks.append({**last, "usage": usage} if "mistral" in document["model"] else last)
    if (document.get("stream_options") or {}).get("include_usage"):
        chunks.append({**frame, "choices": [], "usage": usage})
    return "text/event-stream", events(chunks) + b"data: [DONE]\n\n"


def chat_call(tools: Any, arguments: str) -> Any:
    function = {"name": tools[0]["function"]["name"], "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function}


def responses(document: Any) -> Content:
    usage = {"input_tokens": PROMPT, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
             "output_tokens": len(WORDS), "output_tokens_details": {"reasoning_tokens": 0},
             "total_tokens": USED}  # fmt: skip
    frame = {"id": "resp_1", "object": "response", "created_at": 1, "model": document["model"], "output": [],
             "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
    if not document.get("stream"):
        return whole({**frame, "status": "completed", "usage": usage})
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    stream: list[Any] = [
        {"type": "response.created", "sequence_number": 0, "response": {**frame, "status": "in_progress"}}
    ]
    stream += [
        {
            "type": "response.output_text.delta",
            "sequence_number": n + 1,
            "delta": word,
            "logprobs": [],
            **place,
        }
        for n, word in enumerate(WORDS)
    ]
    done = {**frame, "status": "completed", "usage": usage}
    stream.append({"type": "response.completed", "sequence_number": len(WORDS) + 1, "response": done})
    return "text/event-stream", events(stream, named=True)


def messages(document: Any) -> Content:
    """Anthropic's."""
    frame = {"id": "msg_1", "type": "message", "role": "assistant", "model": document["model"]}
    tools = document.get("tools")
    output = len(ARGUMENTS if tools else WORDS)
    stop = "tool_use" if tools else "end_turn"
    call = {"type": "tool_use", "id": "toolu_1", "name": tools[0]["name"], "input": {}} if tools else {}
    if not document.get("stream"):
        text = {"type": "text", "text": TEXT}
        content = {**call, "input": json.loads("".join(ARGUMENTS))} if tools else text
        usage = {"input_tokens": PROMPT, "output_tokens": output}
        end = {"stop_reason": stop, "stop_sequence": None, "usage": usage}
        return whole({**frame, "content": [content], **end})
    started = {**frame, "content": [], "stop_reason": None, "stop_sequence": None}
    deltas: list[Any] = [{"type": "text_delta", "text": word} for word in WORDS]
    if tools:
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ARGUMENTS]
    stream: list[Any] = [
        {
            "type": "message_start",
            "message": {**started, "usage": {"input_tokens": PROMPT, "output_tokens": 1}},
        },
        {"type": "content_block_start", "index": 0, "content_block": call or {"type": "text", "text": ""}},
        *[{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas],
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None},
         "usage": {"output_tokens": output}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return "text/event-stream", events(stream, named=True)


def embeddings(document: Any) -> Content:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": USED_BY_AN_EMBEDDING, "total_tokens": USED_BY_AN_EMBEDDING}
    return whole({"object": "list", "data": [vector], "model": document["model"], "usage": usage})


def gemini_parts(document: Any) -> list[Any]:
    """The parts of the answer, one for each chunk of a stream."""
    tools = document.get("tools")
    if not tools:
        return [{"text": word} for word in WORDS]
    declared = (
        tools[0].get("functionDeclarations") or tools[0]["function_declarations"]
    )  # protobuf takes both
    name = declared[0]["name"]
    return [{"functionCall": {"name": name, "args": json.loads("".join(ARGUMENTS))}}]


def gemini_usage(output: int) -> Any:
    return {"promptTokenCount": PROMPT, "candidatesTokenCount": output, "totalTokenCount": PROMPT + output}


def gemini(document: Any) -> Content:
    """generateContent."""
    parts = gemini_parts(document)
    output = len(ARGUMENTS if document.get("tools") else WORDS)
    candidate = {"index": 0, "content": {"role": "model", "parts": parts}, "finishReason": "STOP"}
    return whole({"candidates": [candidate], "usageMetadata": gemini_usage(output), "modelVersion": "g"})


def gemini_stream(document: Any) -> Content:
    """streamGenerateContent?alt=sse: the usage is cumulative, and in every chunk."""
    chunks: list[Any] = []
    for count, part in enumerate(gemini_parts(document), 1):
        candidate = {"index": 0, "content": {"role": "model", "parts": [part]}}
        output = len(ARGUMENTS) if document.get("tools") else count
        chunks.append({"candidates": [candidate], "usageMetadata": gemini_usage(output), "modelVersion": "g"})
    chunks[-1]["candidates"][0]["finishReason"] = "STOP"
    return "text/event-stream", events(chunks).replace(b"\n\n", b"\r\n\r\n")


def gemini_embeddings(document: Any) -> Content:
    count = USED_BY_AN_EMBEDDING
    usage = {"promptTokenCount": count, "totalTokenCount": count}
    return whole({"embeddings": [{"values": [0.5, 0.25]}], "usageMetadata": usage})


PAGES: dict[str, Callable[[Any], Content]] = {
    "/chat/completions": chat,
    "/v1/responses": responses,
    "/v1/messages": messages,
    "/embeddings": embeddings,
    ":generateContent": gemini,
    ":streamGenerateContent": gemini_stream,
    ":batchEmbedContents": gemini_embeddings,
    ":embedContent": gemini_embeddings,
}


class Provider:
    """Answers requests; `sent` is the content of each response as it was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; for `Upstream` and `bench`."""
        while True:
            head, body = await read_request(reader)
            path = head.split(b" ")[1].partition(b"?")[0].decode()
            page = next(answer for end, answer in PAGES.items() if path.endswith(end))
            kind, content = page(json.loads(body))
            self.sent.append(content)
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            for at in range(0, len(content), 100):
                piece = content[at : at + 100]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
