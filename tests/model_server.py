"""A model server of the tests' own, in a process of its own: `ModelServer`. Raw bytes, so that nothing is tidied.

What a request gets is said by its path:

    /echo              200, JSON: the head's lines as they came, the body's length and SHA-256
    /raw               what the request's body holds, as the whole answer; then the connection is closed, unless ?keep=1
    /pieces?n&pause    n chunks, `pause` seconds apart, each with the time it was sent
    /endless           chunks without end, 100 a second, of 1 KB (`size` another)
    /hang              nothing, for ever
    /slow?s            200 after so many seconds
    /cut, /cut-chunked a body that ends before it is whole
    /accept            200 if the Authorization is one of those that /control accepts, else 401
    /once              closes the connection without an answer the first time that a connection is used again
    /early             200 as soon as the head is there, whatever body is to come
    /v1/models         what /control set

`control(…)` sets and reads what it knows: requests that are under way, connections that are open.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import time
import urllib.request
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

STATE: dict[str, Any] = {
    "open": 0,
    "busy": 0,
    "served": 0,
    "accepted": [],
    "models": {"data": []},
    "bytes": 0,
    "lists": 0,
}


class ModelServer:
    """The process, as a context manager."""

    #: What the process runs.
    program = __file__

    def __init__(self, *, tls: tuple[str, str] | None = None, client_authority: str | None = None) -> None:
        from leash import Leashed

        self.process = Leashed(
            [sys.executable, self.program, *(tls or ()), *((client_authority,) if client_authority else ())],
            stdout=subprocess.PIPE,
        )
        assert self.process.popen.stdout is not None
        self.port, self.control_port = (int(word) for word in self.process.popen.stdout.readline().split())
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://localhost:{self.port}" if tls else f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        if self.process.popen.stdout is not None:
            self.process.popen.stdout.close()

    def control(self, **settings: Any) -> dict[str, Any]:
        """Sets what is given, and returns all that is known."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.control_port}/", json.dumps(settings).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the loopback
            known: dict[str, Any] = json.load(answer)
        return known


async def read_request(reader: asyncio.StreamReader, counted: int = 1) -> tuple[bytes, bytes, bytes] | None:
    """The target, the head without its last line, and the body."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    lines = head.split(b"\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    body = b""
    if b" /early " in lines[0]:
        return lines[0].split(b" ")[1], head[:-4], body
    if fields.get(b"transfer-encoding") == b"chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            body += await reader.readexactly(size)
            STATE["bytes"] += size * counted
            await reader.readline()
        await reader.readline()
    elif b"content-length" in fields:
        left = int(fields[b"content-length"])
        while left:
            piece = await reader.read(min(left, 1 << 16))
            if not piece:
                return None
            STATE["bytes"] += len(piece) * counted
            left -= len(piece)
            body += piece
    return lines[0].split(b" ")[1], head[:-4], body


def plain(body: bytes, status: bytes = b"200 OK", *fields: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status, *fields, b"content-length: %d" % len(body), b"", b""]
    return b"\r\n".join(head) + body


async def answer(target: bytes, head: bytes, body: bytes, writer: asyncio.StreamWriter, uses: int) -> bool:
    """Answers; whether the connection may be used again."""
    parts = urlsplit(target.decode("latin-1"))
    query = dict(parse_qsl(parts.query))
    is_head = head.startswith(b"HEAD ")
    match parts.path:
        case "/raw":
            writer.write(body)
            return "keep" in query
        case "/pieces" | "/endless":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            count = int(query.get("n", "1000000000"))
            size = int(query.get("size", "1000" if parts.path == "/endless" else "0"))
            for number in range(count):
                text = b"data: %d %f\n\n" % (number, time.time())
                text += b"x" * (size - len(text))
                writer.write(b"%x\r\n%b\r\n" % (len(text), text))
                await writer.drain()
                await asyncio.sleep(float(query.get("pause", "0.01")))
            writer.write(b"0\r\n\r\n")
        case "/hang":
            await asyncio.Event().wait()
        case "/slow":
            await asyncio.sleep(float(query["s"]))
            writer.write(plain(b"slow"))
        case "/cut":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 50)
            return False
        case "/cut-chunked":
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            return False
        case "/accept":
            given = next(
                (line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"authorization: ")), b""
            )
            good = given.decode() in STATE["accepted"]
            writer.write(plain(b"{}", b"200 OK" if good else b"401 Unauthorized"))
        case "/once":
            if uses > 1:
                return False
            writer.write(plain(b"once"))
        case "/early":
            writer.write(plain(b"early"))
        case "/v1/models":
            STATE["lists"] += 1
            writer.write(plain(json.dumps(STATE["models"]).encode()))
        case _:
            said = {
                "head": head.decode("latin-1").split("\r\n"),
                "length": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            }
            content = json.dumps(said).encode()
            writer.write(plain(b"" if is_head else content, b"200 OK", b"content-type: application/json"))
    return True


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    STATE["open"] += 1
    uses = 0
    try:
        while (request := await read_request(reader)) is not None:
            uses += 1
            STATE["busy"] += 1
            gone = asyncio.create_task(reader.read(1))  # nobody sends more before the answer: this tells of the end
            answering = asyncio.create_task(answer(*request, writer, uses))
            try:
                await asyncio.wait([gone, answering], return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    return
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                await writer.drain()
                if not answering.result():
                    return
            finally:
                answering.cancel()
                STATE["busy"] -= 1
                STATE["served"] += 1
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        STATE["open"] -= 1
        writer.close()


async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    request = await read_request(reader, counted=0)
    if request is not None:
        STATE.update(json.loads(request[2]))
        writer.write(plain(json.dumps(STATE).encode(), b"200 OK", b"connection: close"))
        await writer.drain()
    writer.close()


async def main() -> None:
    context = None
    if sys.argv[1:]:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1], sys.argv[2])
        if sys.argv[3:]:
            context.load_verify_locations(sys.argv[3])
            context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, backlog=4096)
    controls = await asyncio.start_server(control, "127.0.0.1", 0)
    print(*(each.sockets[0].getsockname()[1] for each in (server, controls)), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
