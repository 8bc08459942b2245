"""One question to the upstream: asked once, read by all who ask it meanwhile, kept if it may be.

The steps of a miss are those of every miss (`infercache.flights`): what another loop or process computes is waited for,
a purge during the answer wins, the shared tier is asked and told, a stale answer stands in for an error. What is added
is that readers get the answer as it comes. One that has begun before a purge is not joined after it, as flights are
not.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from infercache.edge import events
from infercache.edge.asking import AnswerTags, Unanswered, is_failure, stamped
from infercache.edge.directives import AnswerDirectives
from infercache.edge.exchange import CutShort, EdgeRequest, Headers, InnerFailed, Outcome, Reply
from infercache.edge.records import Record, Replay, worth_replaying
from infercache.edge.streams import Broadcast, Reader
from infercache.effects import Mode, Steps, drive_async
from infercache.flights import Policy, Request, compute, obtain, revalidate

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.cache import Cache
    from infercache.edge.forwarding import Forward
    from infercache.edge.whole import Whole

__all__ = ["Asking", "Question", "found_reply"]

logger = logging.getLogger("infercache.edge")

_EVENT_STREAM = b"text/event-stream"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        key: of the question.
        model: its model.
        version: the model's, as it was when the question was read.
        operation: names the route.
        tags: by what the answer may be purged, whatever it says.
    """

    key: Key
    model: str
    version: str
    operation: str
    tags: list[str]


def found_reply(cache: Cache, question: Question, stale: float | None, *, counted: bool = True) -> Reply | None:
    """What memory has of a question, as a reply; `stale`: seconds beyond its life for which it will do."""
    state, details = cache._find(question.key, stale, counted)
    record = None if details is None else Record.decode(details[0])
    if record is None or details is None:
        return None
    _, age, left, *_ = details
    outcome = Outcome(
        kind="stale" if state == "stale" else "hit",
        hits=1,
        model=question.model,
        age=age + record.age,
        ttl=0.0 if state == "stale" else left,
        saved_seconds=record.seconds,
        keys=(question.key,),
        stored_bytes=len(details[0]),
    )
    return reply_of(record, outcome)


def reply_of(record: Record, outcome: Outcome) -> Reply:
    """A record as a reply."""
    if record.sizes is None:
        return Reply(200, record.headers, record.body, outcome=outcome)
    return Reply(200, record.headers, Replay(record), complete=False, outcome=outcome)


class Asking:
    """A question that is asked of the upstream right now.

    Args:
        handler: the route's.
        request: who asked first.
        forward: asks on its behalf.
        question: what.
        alone: whatever others ask or have asked, this one is asked.
        refreshes: nobody waits for the answer.
    """

    def __init__(
        self,
        handler: Whole,
        request: EdgeRequest,
        forward: Forward,
        question: Question,
        *,
        alone: bool = False,
        refreshes: bool = False,
    ) -> None:
        self._handler = handler
        self._request = request
        self._forward = forward
        self.question = question
        self.alone = alone
        self._refreshes = refreshes
        self._broadcast = Broadcast(handler.max_answer, handler.everybody, self._deserted)
        self._task: asyncio.Task[None] | None = None
        self._leader: Reader | None = None
        #: The leader's outcome, completed at the end of a stream.
        self._outcome = Outcome(kind="miss", model=question.model, keys=(question.key,))
        self._miss: Request | None = None
        self._stamp: int | None = None
        self._was_asked = False
        self._status = 0
        self._headers = Headers()
        self._said = AnswerDirectives()
        #: Whether the upstream's answer is all there; whether anybody but who asked may have it.
        self._is_whole, self._is_shared = False, True
        #: An answer that is not kept, as far as it has not come yet: it is passed on.
        self._rest: Reply | None = None
        #: Why it is not kept.
        self.refusal = ""
        #: What there is in place of the upstream's answer: a record, or what it was not got for.
        self._record: Record | None = None
        self._error: Exception | None = None

    def start(self) -> None:
        """Asks, as a task."""
        self._task = asyncio.get_running_loop().create_task(self.run())

    def join(self, leads: bool) -> Reader:
        """Another reader; `leads`: the one whose request it is."""
        reader = self._broadcast.join()
        if leads:
            self._leader = reader
        return reader

    def may_be_joined(self) -> bool:
        """Whether one who comes now may have the answer: not if it began before a purge of it that is known here."""
        if not self._is_shared or self._broadcast.given_up or self._broadcast.has_ended:
            return False
        if self._stamp is None:
            return True  # it begins after this
        tags = [*self.question.tags, *self._said.tags]
        return self._handler.cache._judge(self._stamp, self.question.key, tags) == "valid"

    def reply(self, reader: Reader, leads: bool) -> Reply | None:
        """What a reader gets; None: the answer is not for others.

        Raises:
            Exception: what there is in place of an answer.
        """
        outcome = self._outcome if leads else replace(self._outcome, collapsed=True, stored=False)
        if self._record is not None:
            return self._replayed(self._record, outcome)
        if reader.is_dismissed:
            return None
        if self._error is not None:
            if isinstance(self._error, InnerFailed):
                raise InnerFailed(str(self._error)) from self._error.__cause__
            raise self._error
        outcome.kind = "miss" if self._status < 400 else "error"
        outcome.detail = self.refusal
        headers = self._headers
        if not leads:
            headers = worth_replaying(headers, (*self._handler.also_replayed, b"retry-after"))
        broadcast = self._broadcast
        if broadcast.has_ended and broadcast.error is None and not self._is_stream and not broadcast.given_up:
            body = b"".join(broadcast.recorded())
            broadcast.leave(reader)
            return Reply(self._status, headers, body, outcome=outcome)
        return Reply(self._status, headers, reader, complete=False, outcome=outcome)

    def _replayed(self, record: Record, outcome: Outcome) -> Reply:
        found = found_reply(self._handler.cache, self.question, float("inf"), counted=False)
        if found is None:
            outcome.age, outcome.saved_seconds = float(record.age), record.seconds
            found = reply_of(record, outcome)
        found.outcome.kind, found.outcome.detail = ("stale", "upstream-failed") if self._was_asked else ("hit", "")
        found.outcome.hits = 1
        return found

    # ------------------------------------------------------------------------------------------------------- the asking

    async def run(self) -> None:
        """Asks, and ends the broadcast, whatever comes of it."""
        error: BaseException | None = CutShort("nobody wants it any more")
        try:
            found = await drive_async(self._steps())
            if self._rest is None:
                error = self._landed(found)
            else:
                self._outcome.detail = self.refusal
                await self._listen(self._rest)
                error = None
        except Exception as raised:  # noqa: BLE001 - told to every reader
            error = self._failed(raised)
        finally:
            if self._rest is not None:
                await self._rest.aclose()
            name = (asyncio.get_running_loop(), self.question.key)
            if self._handler.asked.get(name) is self:
                del self._handler.asked[name]
            self._broadcast.end(error)

    def _steps(self) -> Steps:
        handler, question = self._handler, self.question
        rescues = handler.lives.rescue if self._request.proven or self._request.excused else None
        policy = Policy(
            handler.cache,
            question.operation,
            handler.lives.terms(self._said),
            AnswerTags(question.tags, lambda: self._said.tags),
            lambda _: not self.refusal,
            None if self._refreshes else rescues,
        )
        self._miss = miss = Request(policy, question.key, self._ask, dict)
        if self._refreshes:
            return revalidate(miss, Mode(blocking=False))
        return self._by_itself(miss) if self.alone else obtain(miss, Mode(blocking=False))

    @staticmethod
    def _by_itself(miss: Request) -> Steps:
        """The steps of a miss that joins nobody and takes nothing from the tier."""
        run = miss.flights.alone(miss.key, None)
        if miss.shared is not None:
            interrupted = yield from miss.shared.know(miss.budget)
            if interrupted is not None:
                run.abandon()
                return interrupted
        return (yield from compute(miss, run, None))

    async def _ask(self) -> bytes:
        """Asks the upstream: the answer's record. Of one that is not kept nothing is given out."""
        handler, request = self._handler, self._request
        self._was_asked = True
        self._stamp = handler.cache._stamp_of_computation()
        began = perf_counter()
        headers = stamped(request.headers.without(b"accept-encoding"), handler.cache)
        reply = await self._forward(request, headers=headers, stream=True, detached=True)
        try:
            self._begin(reply)
            if reply.status == 200 and self.refusal:
                self._rest = reply
            else:
                await self._listen(reply)
        finally:
            if self._rest is None:
                await reply.aclose()
        if self._rest is not None:
            return b""  # the flight ends here: whoever comes now asks, and does not wait for what is not kept
        self._is_whole = True
        if reply.status != 200:
            raise Unanswered(Reply(reply.status, reply.headers, b"".join(self._broadcast.recorded())))
        body = b"".join(self._broadcast.recorded())
        self.refusal = self.refusal or self._refusal_of(body)
        if await handler.versions.after(self.question.model, request, reply) != self.question.version:
            self.refusal = self.refusal or "version-changed"
        if self.refusal:
            return b""
        assert self._miss is not None  # noqa: S101 - this is its call
        self._miss.policy = replace(self._miss.policy, terms=handler.lives.terms(self._said))
        sizes = [len(piece) for piece in self._broadcast.recorded()] if self._is_stream else None
        kept = worth_replaying(reply.headers, handler.also_replayed)
        self._outcome.upstream_seconds = took = perf_counter() - began
        record = Record(kept, body, sizes, self._said.age, took).encode()
        self._outcome.stored_bytes = len(record)
        return record

    def _begin(self, reply: Reply) -> None:
        """The answer's head is there: who may have it, and whether at once."""
        self._status, self._headers = reply.status, reply.headers
        self._said = AnswerDirectives.of(Reply(reply.status, reply.headers), self._handler.vary_known)
        self.refusal = self._said.refusal
        failure = is_failure(reply)
        self._is_shared = failure or not self.refusal
        if not self._is_shared:
            self._broadcast.dismiss(self._leader)
        if not failure and self._miss is not None and self._status != 200:
            self._miss.stale_if_error = None  # it is an answer
        if not failure and (self.refusal or self._is_stream):
            self._broadcast.open()
        if self.alone and self._is_shared and not failure and not self._handler.cache.disabled:
            self._handler.asked.setdefault((asyncio.get_running_loop(), self.question.key), self)

    async def _listen(self, reply: Reply) -> None:
        """Publishes an answer, to its end or until it is too large; then the rest is `_rest`."""
        broadcast = self._broadcast
        if isinstance(reply.body, bytes):
            await broadcast.publish(reply.body)
            return
        pieces: AsyncIterator[bytes] = reply.body
        async for piece in pieces:
            await broadcast.publish(piece)
            if broadcast.given_up and self._rest is None:
                self.refusal = self.refusal or "too-large"
                if self._refreshes:
                    raise CutShort("the answer is too large to be kept, and nobody reads it")
                if reply.status == 200:
                    self._rest = reply
                    return

    @property
    def _is_stream(self) -> bool:
        kind = self._headers.get(b"content-type") or b""
        return self._status == 200 and kind.partition(b";")[0].strip().lower() == _EVENT_STREAM

    def _has_said_all(self) -> bool:
        """Whether the last event of a stream that may be kept is there."""
        broadcast = self._broadcast
        if not self._is_stream or self.refusal or broadcast.given_up:
            return False
        return not events.refusal(b"".join(broadcast.recorded()), self._handler.stream_ends)

    def _refusal_of(self, body: bytes) -> str:
        """Why a whole answer of status 200 is not kept."""
        if self._is_stream:
            return events.refusal(body, self._handler.stream_ends)
        kind = (self._headers.get(b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind == b"application/json" or kind.endswith(b"+json"):
            try:
                told = json.loads(body)
            except (ValueError, RecursionError):
                return "not-json"
            if isinstance(told, dict) and told.get("error"):
                return "error-in-answer"
            if isinstance(told, dict | list | str):
                return ""  # one that is cut short does not parse
        return "" if b"content-length" in self._headers else "length-unknown"

    # ---------------------------------------------------------------------------------------------------------- its end

    def _landed(self, found: Any) -> BaseException | None:
        """There is a record: the upstream's answer, or one of before, of another process, in place of an error."""
        if self._is_whole and self._status == 200:
            self._outcome.stored = not self.refusal and self.question.key in self._handler.cache
            self._outcome.detail = self.refusal
            if self._outcome.stored:
                self._outcome.ttl = self._handler.lives.life(self._said)
                self._outcome.age = float(self._said.age)
            return None
        if self._broadcast.is_open:
            return CutShort("the answer broke off")  # readers have a part of it: nothing else can stand in
        self._record = Record.decode(found)
        if self._record is None and not self._refreshes:
            self._handler.cache._remove(self.question.key)
            self._error = ValueError("an entry of a whole answer holds no record")
        return None

    def _failed(self, raised: Exception) -> BaseException | None:
        if self._is_whole:
            if not isinstance(raised, Unanswered):
                # The answer is there: a fault of the cache does not take it away.
                self.refusal = "fault"
                logger.error("an answer could not be kept", exc_info=raised)
            return None
        if isinstance(raised, Unanswered) and not self._status:
            # What another loop asked. Of the upstream's failures everybody is told; else each asks for itself.
            if is_failure(raised.reply):
                self._adopt(raised.reply)
            else:
                self._broadcast.dismiss(None)
            return None
        if not self._status:
            self._error = raised
        return raised

    def _adopt(self, reply: Reply) -> None:
        self._status, self._headers = reply.status, reply.headers
        self._broadcast.put(reply.body if isinstance(reply.body, bytes) else b"")

    def _deserted(self) -> None:
        """Nobody reads it any more: the upstream need not go on.

        Clients leave with the last event (OpenAI's does), which the end of the body follows: that is waited for.
        """
        if self._refreshes or self._has_said_all():
            return
        name = (asyncio.get_running_loop(), self.question.key)
        if self._handler.asked.get(name) is self:
            del self._handler.asked[name]
        if self._task is not None:
            self._task.cancel()
