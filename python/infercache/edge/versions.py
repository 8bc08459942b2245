"""Which version of a model answers: what makes a deployment's old entries misses.

Every source that is configured counts, and a change of any is another version: a name's version in `model_versions`,
the path (Open Inference Protocol), a header of the upstream's answers, a field of its model list. A model of which a
source that was asked for tells nothing has no version: its requests pass uncached, and the log says once what to set.

A handler asks `before` it forwards and `after`, and stores only if both are equal and not None. `after` looks at what
the upstream says now: a version that was read before a deployment says nothing about an answer that came after it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infercache.edge.exchange import App, EdgeRequest, Headers, InnerFailed, Reply
from infercache.edge.forwarding import ask

if TYPE_CHECKING:
    from infercache.edge.settings import Settings

__all__ = ["Versions"]

logger = logging.getLogger("infercache.edge")

#: Models, and tenants' model lists, that are remembered at once.
_MOST = 10_000
#: Largest model list that is read, in bytes, and longest version, in characters.
_LARGEST_LIST = 8 << 20
_LONGEST = 256


@dataclass(slots=True)
class _List:
    """One tenant's model list: the versions it told, when the upstream was asked, and who asks now."""

    versions: dict[str, str] = field(default_factory=dict)
    asked: float = float("-inf")
    asking: asyncio.Task[None] | None = None


class Versions:
    """The versions of models.

    Args:
        settings: the edge's.
        app: the inner application, whose model list is read.
        clock: seconds that only go forward.
    """

    def __init__(self, settings: Settings, app: App, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._configured = settings.model_versions
        self._header = None if settings.version_header is None else settings.version_header.encode()
        self._field = settings.version_field
        self._path = settings.model_list
        self._ttl = settings.version_ttl
        self._identity = {name.encode() for name in settings.identity}
        self._app = app
        self._clock = clock
        self._from_header: dict[tuple[str, str], tuple[str, float]] = {}
        self._lists: dict[str, _List] = {}
        #: Models whose version was asked for and is not known: what an operator has to set.
        self.unknown: set[str] = set()

    def configured(self, model: str) -> str | None:
        """What `model_versions` says."""
        return self._configured.get(model) or self._configured.get("*")

    async def before(self, model: str, request: EdgeRequest, *, path: str | None = None) -> str | None:
        """The version that would answer now, at most `version_ttl` old; None: unknown. `path`: the path's."""
        told = None
        if self._header is not None:
            told, at = self._from_header.get((request.tenant, model), (None, 0.0))
            if told is None or self._clock() - at > self._ttl:
                return self._unknown(model)
        listed = None
        if self._field is not None:
            listed = await self._listed(model, request, self._clock() - self._ttl)
            if listed is None:
                return self._unknown(model)
        return self._together(model, path, told, listed)

    async def after(self, model: str, request: EdgeRequest, reply: Reply, *, path: str | None = None) -> str | None:
        """The version that has answered, by what the upstream says now; None: unknown.

        To be asked where `before` said None, too: an upstream's header is learnt from what passed uncached.
        """
        told = None
        if self._header is not None:
            value = reply.headers.get(self._header)
            if value is None or len(value) > _LONGEST:
                return None
            told = value.decode("latin-1")
            if len(self._from_header) >= _MOST:
                self._from_header.clear()
            self._from_header[request.tenant, model] = told, self._clock()
        listed = None
        if self._field is not None:
            listed = await self._listed(model, request, self._clock())
            if listed is None:
                return None
        return self._together(model, path, told, listed)

    def headers(self, model: str, request: EdgeRequest) -> Headers:
        """The header that tells the version that `before` has just found, for an answer from the cache."""
        told = None if self._header is None else self._from_header.get((request.tenant, model))
        return (
            Headers([])
            if self._header is None or told is None
            else Headers([(self._header, told[0].encode("latin-1"))])
        )

    def _together(self, model: str, path: str | None, told: str | None, listed: str | None) -> str | None:
        known = {"": self.configured(model), "path": path, "header": told, "list": listed}
        parts = [(source, version) for source, version in known.items() if version is not None]
        if not parts:
            return self._unknown(model)
        if len(parts) == 1:
            return parts[0][1]
        # Length-prefixed, so that no two sets of versions read the same.
        return ";".join(f"{source}{len(version)}={version}" for source, version in parts)

    def _unknown(self, model: str) -> str | None:
        """Says once what to set; None, which is no version."""
        # What a header tells the next answer will.
        name = model[:_LONGEST]
        if self._header is None and name not in self.unknown and len(self.unknown) < 100:
            self.unknown.add(name)
            logger.warning(
                "the version of a model is not known, so its requests pass uncached: set model_versions "
                "(--model-version 'NAME=VERSION', '*=VERSION' for all), version_header or version_field",
                extra={"edge": {"model": name}},
            )
        return None

    async def _listed(self, model: str, request: EdgeRequest, since: float) -> str | None:
        """What the model list says of it, asked for no earlier than `since`."""
        known = self._lists.get(request.tenant)
        if known is None:
            if len(self._lists) >= _MOST:
                self._lists.clear()
            known = self._lists[request.tenant] = _List()
        while known.asked < since:
            if known.asking is None:
                known.asking = asyncio.get_running_loop().create_task(self._read(known, request))
            await asyncio.shield(known.asking)
        return known.versions.get(model)

    async def _read(self, known: _List, request: EdgeRequest) -> None:
        asked = self._clock()
        try:
            known.versions = await self._fetch(request)
        finally:
            known.asked = asked
            known.asking = None

    async def _fetch(self, request: EdgeRequest) -> dict[str, str]:
        headers = [pair for pair in request.headers if pair[0] in self._identity or pair[0] == b"host"]
        scope = {
            **request.scope,
            "method": "GET",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "headers": [*headers, (b"accept", b"application/json")],
            "infercache.repeatable": True,
        }
        try:
            reply = await ask(self._app, scope, b"", None, limit=_LARGEST_LIST)
        except InnerFailed:
            return {}
        if reply.status != 200 or not reply.complete or not isinstance(reply.body, bytes):
            await reply.aclose()
            return {}
        return _versions_of(reply.body, reply.headers, self._field or "")


def _versions_of(body: bytes, headers: Headers, name: str) -> dict[str, str]:
    """Of OpenAI's model list, {"data": [{"id": …, NAME: …}]}; a dotted name leads into objects."""
    if headers.get(b"content-encoding") not in (None, b"identity"):
        return {}
    try:
        listed: Any = json.loads(body)
        models = listed["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    found = {}
    for each in models if isinstance(models, list) else ():
        value = each
        for step in name.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, str | int) and not isinstance(value, bool) and isinstance(each.get("id"), str):
            text = str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else ""
            if 0 < len(text) <= _LONGEST:
                found[each["id"]] = text
    return found
