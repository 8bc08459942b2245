"""A small OpenAI-compatible server of the tests' own, in a process of its own, as broken as it is asked: `ChatServer`.

Chat, completions, rerank, and `/rank`, a route of its own. Each answer holds the number of the request, so that one
that was made again is told from one that was kept. A request says in its member `test` how it wants to be answered:

    pieces, pause      of a stream: how many, and so many seconds apart
    how                "cut"             the body ends before it is whole, the connection is closed
                       "short-length"    more bytes than Content-Length says
                       "close"           neither length nor chunks: the connection's end is the body's
                       "close-cut"       likewise, but it is not all there
                       "error-event"     an event that tells of an error, then [DONE]
                       "no-done"         a stream without its last event
                       "500", "garbage"  that status; bytes that are no HTTP
    headers            more of them, as text
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from urllib.parse import urlsplit

import model_server
from model_server import STATE, ModelServer, plain

STATE.update({"asked": 0, "cancelled": 0, "down": False})


class ChatServer(ModelServer):
    """The process, as a context manager. `control()["asked"]` says how often it was asked."""

    program = __file__


def _chunk(number: int, index: int, model: str, content: str | None) -> dict[str, Any]:
    delta = {} if content is None else {"content": content} if index else {"role": "assistant", "content": content}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000 + number,
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if content is None else None}],
    }


def _whole(path: str, number: int, asked: dict[str, Any]) -> dict[str, Any]:
    model, text = asked.get("model", ""), f"answer {number}"
    about = {"id": f"x-{number}", "created": 1_700_000_000 + number, "model": model}
    if path == "/v1/chat/completions":
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return {**about, "object": "chat.completion", "choices": [choice], "usage": usage}
    if path == "/v1/completions":
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        return {**about, "object": "text_completion", "choices": [choice]}
    if path == "/v1/rerank":
        results = [
            {"index": place, "relevance_score": 1 / (place + number)} for place in range(len(asked["documents"]))
        ]
        return {**about, "results": results}
    return {"number": number, "asked": asked}


async def _stream(
    number: int, asked: dict[str, Any], test: dict[str, Any], fields: list[bytes], writer: asyncio.StreamWriter
) -> bool:
    how = test.get("how", "")
    bare = how.startswith("close")
    framing = b"connection: close" if bare else b"transfer-encoding: chunked"
    writer.write(b"\r\n".join([b"HTTP/1.1 200 OK", b"content-type: text/event-stream", framing, *fields, b"", b""]))

    async def send(piece: bytes) -> None:
        writer.write(piece if bare else b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()

    pieces = int(test.get("pieces", 3))
    for index in range(pieces):
        content = f"answer {number}" if index == 0 else f" {index}"
        event = _chunk(number, index, asked.get("model", ""), content)
        await send(b"data: %b\n\n" % json.dumps(event).encode())
        await asyncio.sleep(float(test.get("pause", 0)))
    if how in ("cut", "close-cut"):
        return False
    if how == "error-event":
        await send(b'data: {"error": {"message": "overloaded", "code": 500}}\n\n')
    await send(b"data: %b\n\n" % json.dumps(_chunk(number, pieces, asked.get("model", ""), None)).encode())
    if how != "no-done":
        await send(b"data: [DONE]\n\n")
    if bare:
        return False
    writer.write(b"0\r\n\r\n")
    return True


async def answer(target: bytes, head: bytes, body: bytes, writer: asyncio.StreamWriter, uses: int) -> bool:
    """Answers; whether the connection may be used again."""
    path = urlsplit(target.decode("latin-1")).path
    if not head.startswith(b"POST ") or path.startswith("/raw"):
        return await model_server_answer(target, head, body, writer, uses)
    STATE["asked"] += 1
    number = STATE["asked"]
    if STATE["down"]:
        writer.write(
            plain(b'{"error": {"message": "down"}}', b"503 Service Unavailable", b"content-type: application/json")
        )
        return True
    asked = json.loads(body)
    test = asked.get("test") or {}
    how = test.get("how", "")
    fields = [line.encode() for line in test.get("headers", ())]
    try:
        if how == "garbage":
            writer.write(b"HTTP/9 what\r\n\r\n\0\0")
            return False
        if how == "500":
            error = b'{"error": {"message": "broken", "code": 500}}'
            writer.write(plain(error, b"500 Internal Server Error", b"content-type: application/json"))
            return True
        if asked.get("stream") and how != "short-length":
            return await _stream(number, asked, test, fields, writer)
        await asyncio.sleep(float(test.get("pause", 0)))
        content = json.dumps(_whole(path, number, asked)).encode()
        fields.append(b"content-type: application/json")
        if how in ("", "error-event", "no-done"):
            writer.write(plain(content, b"200 OK", *fields))
            return True
        length = {"cut": len(content) + 10, "short-length": len(content) - 10}.get(how)
        fields.append(b"connection: close" if length is None else b"content-length: %d" % length)
        sent = content[:-5] if how == "close-cut" else content
        writer.write(b"\r\n".join([b"HTTP/1.1 200 OK", *fields, b"", b""]) + sent)
        return False
    except asyncio.CancelledError:
        STATE["cancelled"] += 1
        raise


model_server_answer = model_server.answer

if __name__ == "__main__":
    model_server.answer = answer
    sys.exit(asyncio.run(model_server.main()))
