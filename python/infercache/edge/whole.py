"""Whole requests, each one question: OpenAI's chat and completions, rerank, and the JSON routes that are declared.

    body ─ policy ─ key ─ look-up ─┬─ found ── replayed, a stream in the pieces that it came in
                                   ├─ asked for right now ── the same answer, as it comes
                                   └─ neither ── upstream ── recorded ── stored, if it is whole and may be

The key is of the body without `model`, which is part of the scope, and without members that do not change the answer;
so any other member makes another question, an unknown one too. A streamed answer and one that is not are different
answers.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infercache import _core
from infercache.background import refresh_in_task
from infercache.edge.asking import declines, known, must_be_made, unsatisfiable
from infercache.edge.exchange import EdgeRequest, Outcome, Reply
from infercache.edge.forwarding import Buffered
from infercache.edge.keeper import Keeper, operation_of
from infercache.edge.policy import CHAT, COMPLETIONS, DECLARED, NOT_UNDERSTOOD, RERANK, Policy
from infercache.edge.question import Asking, Question, found_reply
from infercache.edge.records import FORMAT
from infercache.effects import drive_async
from infercache.errors import InvalidJSON

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.cache import Cache
    from infercache.edge.directives import RequestDirectives
    from infercache.edge.forwarding import Forward
    from infercache.edge.settings import Settings
    from infercache.edge.versions import Versions

__all__ = ["ROUTES", "Whole", "handlers"]

#: The routes of a protocol, by path: what is asked there.
ROUTES = {
    "/v1/chat/completions": (CHAT, "openai.chat.completions"),
    "/v1/completions": (COMPLETIONS, "openai.completions"),
    "/v1/rerank": (RERANK, "rerank"),
}
#: What says in its body how it wants its answer.
_CHATS = (CHAT, COMPLETIONS)
#: What everybody accepts, or means by saying nothing.
_ACCEPTS_ANYTHING = frozenset({b"", b"*/*", b"application/json", b"application/json, */*"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks, if its answer may be cached; else why not."""

    model: str = ""
    document: Any = None
    refusal: str = ""


class Whole(Keeper):
    """Answers the requests of one route.

    Args:
        settings: the edge's.
        cache: where answers are kept.
        versions: the models'.
        kind: one of `policy`'s.
        operation: names the route in keys.
        everybody: what all recordings together hold, and may.
    """

    def __init__(
        self, settings: Settings, cache: Cache, versions: Versions, kind: str, operation: str, everybody: Buffered
    ) -> None:
        super().__init__(settings, cache, versions)
        self.policy = Policy.of(settings)
        self.operation = operation
        self.kind = kind
        self.max_answer = settings.max_answer
        self.everybody = everybody
        self.stream_ends = frozenset(each.encode() for each in settings.policy_stream_end)
        self.also_replayed = () if settings.version_header is None else (settings.version_header.encode(),)
        #: Headers of requests that are part of the question, or of the tenant.
        self.vary_known = self.lives.vary_known | ({b"origin"} if kind in _CHATS else {b"origin", b"accept"})
        #: What is asked for right now, and may be joined.
        self.asked: dict[tuple[asyncio.AbstractEventLoop, Key], Asking] = {}

    async def answer(self, request: EdgeRequest, forward: Forward) -> Reply | None:
        """The answer."""
        return (await self.exchange(request, forward))[0]

    async def exchange(self, request: EdgeRequest, forward: Forward) -> tuple[Reply, Question | None]:
        """The answer, and the question that it is kept under; None: it is not to be cached."""
        asked = self._read(request)
        why = asked.refusal or declines(request)
        if why:
            return await self.bypass(request, forward, asked.model, why), None
        version = await self.versions.before(asked.model, request)
        if version is None:
            return await self.bypass(request, forward, asked.model, "version-unknown"), None
        question = self._question(request, asked, version)
        if not request.proves:
            return await self._answer(request, forward, question), question
        async with self.proving.turn(request, forward, [question.key]) as turned:
            return await self._answer(turned, forward, question), question

    async def _answer(self, request: EdgeRequest, forward: Forward, question: Question) -> Reply:
        directives = request.directives
        fresh = directives.no_cache or not request.proven
        found = None if fresh else self._look(question, directives)
        if found is None and directives.only_if_cached:
            found = self._look(question, directives) if not fresh and await self.fetch([question.key]) else None
            if found is None:
                return unsatisfiable(question.model)
        if found is not None:
            if found.outcome.kind == "stale":
                self._refresh(request, forward, question)
            return found
        return await self._ask(
            request, forward, question, fresh or must_be_made(directives, self.cache, [question.key])
        )

    # ---------------------------------------------------------------------------------------------------- the question

    def _read(self, request: EdgeRequest) -> Asked:
        body = request.body
        self.check_depth(body)
        try:
            # Duplicate members, numbers out of range and the like: the upstream may read them otherwise than we do.
            _core.canonical_json_from_json(body)
            asked = json.loads(body.decode())
        except (InvalidJSON, ValueError):
            return Asked(refusal=NOT_UNDERSTOOD)
        model = asked.get("model") if isinstance(asked, dict) else None
        name = model if isinstance(model, str) else ""
        if self.kind == DECLARED:
            if name:
                return Asked(name, {member: value for member, value in asked.items() if member != "model"})
            return Asked(request.path, asked)
        refusal = self.policy.refusal(self.kind, asked) if name else NOT_UNDERSTOOD
        if refusal:
            return Asked(name, refusal=refusal)
        left_out = {"model"} if self.kind == RERANK else {"model", *self.policy.ignore}
        if not asked.get("stream"):
            left_out.add("stream")
        return Asked(name, {member: value for member, value in asked.items() if member not in left_out})

    def _question(self, request: EdgeRequest, asked: Asked, version: str) -> Question:
        operation = operation_of(f"{self.operation} {FORMAT}", request)
        origin = request.headers.get(b"origin")
        if origin is not None:
            # What CORS adds to an answer is for the origin that asked, and missing where none did.
            operation += "\norigin " + origin.decode("latin-1")
        if self.kind not in _CHATS:
            # Elsewhere this header may say it, whatever `Vary` forgets.
            accept = b", ".join(request.headers.lines(b"accept")).strip().lower()
            if accept not in _ACCEPTS_ANYTHING:
                operation += "\naccept " + accept.decode("latin-1")
        key = _core.key(
            asked.document,
            model=asked.model,
            version=version,
            namespace=self.namespace(request),
            operation=operation,
            secret=self.cache._secret,
        )
        tags = self.lives.tags(asked.model, version, request.tenant)
        return Question(key, asked.model, version, self.operation, tags)

    # ---------------------------------------------------------------------------------------------------------- answers

    def _look(self, question: Question, directives: RequestDirectives) -> Reply | None:
        """What memory has, if it will do."""

        def find(stale: float | None, counted: bool) -> Reply | None:
            return found_reply(self.cache, question, stale, counted=counted)

        return known(find, directives, self.lives.stale_while_revalidate)

    def _refresh(self, request: EdgeRequest, forward: Forward, question: Question) -> None:
        def refresh() -> Any:
            return Asking(self, request, forward, question, refreshes=True).run()

        refresh_in_task((self.cache.flights, question.key, question.operation), refresh)

    async def _ask(self, request: EdgeRequest, forward: Forward, question: Question, fresh: bool) -> Reply:
        """The upstream's answer: to this request, or to one that asks the same right now."""
        name = (asyncio.get_running_loop(), question.key)
        joins = not fresh and not self.cache.disabled
        knows = joins and (name not in self.asked or await self._knows(question))
        asking = self.asked.get(name) if knows else None
        leads = asking is None or not asking.may_be_joined()
        if asking is None or leads:
            # What runs already and may not be joined is not waited for, either.
            asking = Asking(self, request, forward, question, alone=not joins or name in self.asked)
            asking.start()
            if joins:
                self.asked[name] = asking
        reader = asking.join(leads)
        try:
            await reader.begun(forward.watch())
            reply = asking.reply(reader, leads)
        except BaseException:
            await reader.aclose()
            raise
        if reply is None:
            # It belongs to who asked for it: this one asks for itself.
            reply = await forward(request, stream=True)
            kind = "miss" if reply.status < 400 else "error"
            reply.outcome = Outcome(kind=kind, model=question.model, detail=asking.refusal)
        return reply

    async def _knows(self, question: Question) -> bool:
        """Whether every purge is known here that this request must know of; where that is not sure, it is asked for."""
        shared = self.cache.shared
        if shared is None or shared._is_proven():
            return True
        asked = time.monotonic()
        await drive_async(shared.fetch([question.key], counted=False))
        age = shared.proof_age
        return age is not None and age <= time.monotonic() - asked


def handlers(settings: Settings, cache: Cache, versions: Versions) -> dict[tuple[str, str], Whole]:
    """The handlers of whole requests, by method and path."""
    everybody = Buffered(settings.max_buffered)
    routes = {**ROUTES, **{path: (DECLARED, f"json:{path}") for path in settings.json_routes}}
    return {
        ("POST", path): Whole(settings, cache, versions, kind, operation, everybody)
        for path, (kind, operation) in routes.items()
    }
