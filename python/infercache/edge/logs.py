"""The log: one JSON object a line, without any input and without any credential.

What a line says is a fixed text and named facts (`extra={"edge": {…}}`). Of an exception it has the type and the
places, not the text, and of other packages' lines the first line as it stands in their source: their texts may quote a
request.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from typing import IO

from infercache.edge.exchange import CutShort, Outcome

__all__ = ["Access", "JSONLines", "Once", "configure"]

logger = logging.getLogger("infercache.edge")


class JSONLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage() if record.name.startswith("infercache") else _template(record),
        }
        facts = getattr(record, "edge", None)
        if isinstance(facts, dict):
            line |= facts
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _shape(record.exc_info[1])
        return json.dumps(line, default=lambda value: type(value).__name__)


def _template(record: logging.LogRecord) -> str:
    return str(record.msg).partition("\n")[0]


def _shape(error: BaseException | None) -> list[dict[str, object]]:
    """The exception and those that it came from: types and places."""
    found: list[dict[str, object]] = []
    while error is not None and len(found) < 5:
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        found.append(
            {"type": type(error).__qualname__, "at": [f"{each.filename}:{each.lineno} {each.name}" for each in frames]}
        )
        error = error.__cause__ or error.__context__
    return found


class Access:
    """Writes a line for each request that was answered.

    A question stands there by a digest of its key: equal for equal questions of one tenant, so that what repeats can be
    counted (`infercache simulate`). It is keyed, by the deployment's secret, or, where there is none, by a number that
    nobody outside this process knows: whoever has only the log cannot try guesses of inputs.

    Args:
        secret: the deployment's, or None.
    """

    def __init__(self, secret: bytes | None) -> None:
        self._key = secret or os.urandom(32)

    def told(self, method: str, outcome: Outcome, status: int, seconds: float) -> None:
        """A request was answered so."""
        facts: dict[str, object] = {
            "method": method if method.isalpha() else "",
            "route": outcome.route,
            "status": status,
            "kind": outcome.kind,
            "model": outcome.model[:256],
            "items": outcome.items,
            "hits": outcome.hits,
            "detail": outcome.detail,
            "ms": round(seconds * 1_000, 3),
        }
        if outcome.keys:
            took = outcome.saved_seconds + outcome.upstream_seconds
            facts |= {
                "stored": outcome.stored or outcome.collapsed,
                "model_ms": round(took * 1_000, 3) if took else None,
                "bytes": outcome.stored_bytes or None,
                "keys": [self._digest(bytes(key)) for key in outcome.keys],
            }
        logger.info("answered", extra={"edge": facts})

    def _digest(self, key: bytes) -> str:
        return hashlib.blake2b(key, digest_size=8, key=self._key, person=b"ic1 access log").hexdigest()


class Once:
    """Whether something is new: so that what happens with each request is told once.

    Args:
        most: how many things are remembered; what comes after is not told.
    """

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._seen: set[object] = set()

    def __call__(self, what: object) -> bool:
        if what in self._seen or len(self._seen) >= self._most:
            return False
        self._seen.add(what)
        return True


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the server's line is one. That an answer broke off is how a client is told that it is not whole.

    The middleware counts it as such; a server takes it for an error of the application's, with a traceback each time.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, CutShort)


def configure(level: str, stream: IO[str] | None = None) -> None:
    """Sends every logger's lines to `stream` (standard error) in this form."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server's own lines: a request that is no HTTP is the client's fault and not worth one, and an application's
    # error is told by the middleware.
    server = logging.getLogger("uvicorn.error")
    server.setLevel(logging.ERROR)
    server.addFilter(_is_news)
    logging.getLogger("uvicorn.access").disabled = True
    # aiohttp and asyncio put addresses and texts of peers into theirs.
    for name in ("aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
