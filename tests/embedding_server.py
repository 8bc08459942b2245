"""A server of OpenAI's `/v1/embeddings` in the test's own process, and the middleware around it."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from asgi import Call, body_of
from infercache.edge import CacheMiddleware

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: How servers write numbers: `json.dumps` of float32, shortest binary32, binary64, quantised.
STYLES: dict[str, Callable[[int], str]] = {
    "float32": lambda seed: repr(float(np.float32((seed - 127) / 371))),
    "short": lambda seed: str(np.float32((seed - 127) / 371)),
    "float64": lambda seed: repr((seed - 127) / 371),
    "int8": lambda seed: str(seed - 128),
    "zeros": lambda seed: ["0.0", "-0.0", "1.0", "1e-05"][seed % 4],
}


class Server:
    """A model server: its numbers are those of a hash of the item and of the fields that change them.

    Args:
        style: how numbers are written.
        count: the tokens of an item, a text or a list of tokens.
    """

    def __init__(self, style: str = "float32", count: Callable[[Any], int] = len) -> None:
        self.style = style
        self.count = count
        self.asked: list[list[Any]] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.status = 200
        self.gate: asyncio.Event | None = None
        self.spoil: Callable[[bytes], bytes] = lambda body: body

    def numbers(self, item: Any, dimensions: int) -> list[str]:
        digest = hashlib.blake2b(json.dumps([item, dimensions]).encode()).digest()
        return [STYLES[self.style](byte) for byte in digest[:dimensions]]

    def answer(self, body: bytes) -> bytes:
        asked = json.loads(body)
        given_ = asked["input"]
        items = [given_] if isinstance(given_, str) or not isinstance(given_[0], str | list) else given_
        self.asked.append(items)
        data = []
        for index, item in enumerate(items):
            numbers = self.numbers(item, asked.get("dimensions", 8))
            if asked.get("encoding_format") == "base64":
                packed = struct.pack(f"<{len(numbers)}f", *(float(number) for number in numbers))
                text = f'"{base64.b64encode(packed).decode()}"'
            else:
                text = f"[{', '.join(numbers)}]"
            data.append(f'{{"object": "embedding", "embedding": {text}, "index": {index}}}')
        tokens = sum(map(self.count, items))
        usage = f'{{"prompt_tokens": {tokens}, "total_tokens": {tokens}}}'
        model = json.dumps(asked["model"])
        return f'{{"object": "list", "data": [{", ".join(data)}], "model": {model}, "usage": {usage}}}'.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await body_of(receive)
        content = self.answer(body) if self.status == 200 else b'{"error": {"message": "no"}}'
        if self.gate is not None:
            await self.gate.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.spoil(content)})


def edge(server: Server, **options: Any) -> CacheMiddleware:
    return CacheMiddleware(server, **{"capacity": "4MB", "model_versions": {"*": "1"}, **options})


async def ask(app: Any, body: Any, *headers: tuple[bytes, bytes]) -> Call:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await Call(body=content, headers=[(b"content-type", b"application/json"), *headers])(app)


def status_of(call: Call) -> bytes:
    return call.answered.get(b"cache-status", b"")
