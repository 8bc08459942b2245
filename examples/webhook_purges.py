"""Purges what a webhook says has changed, if it is signed.

    WEBHOOK_SECRET=… python webhook_purges.py 127.0.0.1 8080 redis://localhost:6379/0

    POST /purge
    X-Signature: sha256=<hexadecimal HMAC-SHA256 of the body, under the secret that sender and receiver share>
    {"tags": ["product:42"]}

Answers 200 with the token once the purge is acknowledged, 503 if it is not: the sender must then send it again, as most
senders of webhooks do by themselves. A request that is replayed repeats a purge, which costs misses and is never wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from infercache import Cache, InvalidArgument, PurgeFailed

LONGEST_BODY = 64 << 10


class Hook(BaseHTTPRequestHandler):
    """One request."""

    server: Hooks
    timeout = 10.0  # seconds for a sender that stops in the middle

    def do_POST(self) -> None:
        """Purges and answers."""
        if self.path != "/purge":
            return self.answer(HTTPStatus.NOT_FOUND, error="purges are sent to /purge")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            return self.answer(HTTPStatus.LENGTH_REQUIRED, error="say how long the body is")
        if len(length) > 9 or int(length) > LONGEST_BODY:
            return self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error=f"at most {LONGEST_BODY} bytes")
        body = self.rfile.read(int(length))
        if not is_signed(body, self.headers.get("X-Signature", ""), self.server.secret):
            return self.answer(HTTPStatus.UNAUTHORIZED, error="the signature is not the body's")
        try:
            token = self.server.cache.invalidate(tags=json.loads(body)["tags"])
        except PurgeFailed as error:
            return self.answer(HTTPStatus.SERVICE_UNAVAILABLE, error=str(error))
        except (InvalidArgument, ValueError, TypeError, KeyError) as error:
            return self.answer(HTTPStatus.BAD_REQUEST, error=f'give {{"tags": ["…"]}}: {error}')
        return self.answer(HTTPStatus.OK, token=str(token))

    def answer(self, status: HTTPStatus, **said: str) -> None:
        """Sends a JSON object, and closes: what is left of a request that was refused is no other request."""
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "5")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


class Hooks(ThreadingHTTPServer):
    """Receives webhooks for a cache."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], cache: Cache, secret: bytes) -> None:
        super().__init__(address, Hook)
        self.cache = cache
        self.secret = secret


def is_signed(body: bytes, signature: str, secret: bytes) -> bool:
    """Whether the signature is the body's, in a time that tells nothing of how much of it is right."""
    wanted = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(wanted.encode(), signature.encode(errors="replace"))


if __name__ == "__main__":
    shared = os.environ["WEBHOOK_SECRET"].encode()
    with Cache("1MB", l2=sys.argv[3]) as purger, Hooks((sys.argv[1], int(sys.argv[2])), purger, shared) as hooks:
        hooks.serve_forever()
