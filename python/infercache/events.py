"""Events that purge: what a stream in Redis or Valkey says has changed is purged, each event at least once.

    consumer group ── read ── targets(event) ── invalidate ── acknowledged ── XACK
                        ↑                                        │
                        └── of a dead consumer, after a while ───┘ not acknowledged: again

An event is acknowledged to the stream only after its purge was acknowledged by the authority, so whoever dies in
between leaves it to others, who purge once more: a purge may be repeated. Events whose targets cannot be told are tried
a few times and then set aside, so that they hold up nobody.

Other sources (PostgreSQL's LISTEN/NOTIFY, a webhook) need a few lines around `Cache.invalidate`: docs/events.md.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from infercache.durations import Duration, milliseconds
from infercache.effects import drive
from infercache.errors import InvalidArgument, PurgeFailed, TierError, TierUnavailable, shown
from infercache.tiers import Command

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.cache import Cache
    from infercache.tiers import RedisTier

__all__ = ["Event", "Purge", "StreamEvents"]

#: Seconds between attempts while the stream or the authority is out of reach: doubled up to the second, jittered.
_PAUSES = (0.1, 3.0)
#: Events that are kept of those set aside.
_KEPT_ASIDE = 10_000
#: What a server says that no waiting will change.
_HOPELESS = frozenset({"ERR", "NOPERM", "WRONGTYPE"})
#: Characters of an error's text that go along with an event which is set aside.
_LONGEST_ERROR = 500

_log = logging.getLogger("infercache")


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of a stream.

    Attributes:
        id: the stream's own, such as "1719824000000-0".
        fields: its fields by name, as bytes.
    """

    id: str
    fields: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """A field as text.

        Raises:
            KeyError: the event has no such field.
            UnicodeDecodeError: it is no UTF-8.
        """
        return self.fields[name].decode()


@dataclass(frozen=True, slots=True)
class Purge:
    """What an event makes wrong: the arguments of `Cache.invalidate`."""

    tags: Iterable[str] | None = None
    key: Key | None = None
    model: str | None = None
    version: str | None = None
    all: bool = False
    soft: bool = False


@dataclass(slots=True)
class _Held:
    """What was read and is not finished with: events whose purge is to be acknowledged, and then themselves."""

    ids: list[str] = field(default_factory=list)
    members: list[bytes] = field(default_factory=list)
    purging: int = 0  # events that have members
    is_purged: bool = False


class StreamEvents:
    """Purges what the events of a stream name. One consumer: use one `StreamEvents` for each thread that runs it.

    Args:
        cache: where is purged. With a shared tier any one process of the deployment may consume.
        stream: the stream's key.
        group: the consumer group; it is made, with the stream, if it is not there.
        targets: `f(event)`: the tags that the event makes wrong, or a `Purge`; nothing (None, no tags) if it concerns
            nobody. What it raises is taken for the event's fault.
        tier: where the stream is, if not in the cache's own shared tier.
        consumer: this consumer's name within the group; by default one that nobody else has. With a name of its own a
            process that is started again finds at once what it had left.
        start: for a new group: "0", everything that the stream holds, or "$", what comes from now on.
        batch: events of one round; they are one purge.
        wait: how long one question to the stream may wait for an event. `stop` takes as long.
        claim_after: an event that was given to any consumer so long ago and is not acknowledged is taken over, or tried
            again. Longer than a purge takes; shorter only repeats purges.
        tries: how often an event is delivered before it is set aside, if its targets cannot be told.
        aside: the stream to which such events go; by default `stream` + ":aside". The 10,000 youngest are kept.
        durable: as in `Cache.invalidate`.

    Raises:
        InvalidArgument: there is no tier; another option's value is not acceptable.
    """

    def __init__(
        self,
        cache: Cache,
        stream: str,
        group: str,
        targets: Callable[[Event], Iterable[str] | Purge | None],
        *,
        tier: RedisTier | None = None,
        consumer: str | None = None,
        start: str = "0",
        batch: int = 64,
        wait: Duration = "1s",
        claim_after: Duration = "30s",
        tries: int = 5,
        aside: str | None = None,
        durable: int = 0,
    ) -> None:
        found = cache.l2 if tier is None else tier
        if found is None:
            raise InvalidArgument(
                "tier=None: the cache has no shared tier, so say where the stream is: tier=RedisTier(…)"
            )
        for name, given in (("stream", stream), ("group", group), ("consumer", consumer), ("aside", aside)):
            if not (isinstance(given, str) and given) and not (given is None and name in ("consumer", "aside")):
                raise InvalidArgument(f"{name}={shown(given)}: give text that is not empty")
        if not callable(targets):
            raise InvalidArgument(f"targets={shown(targets)}: give a function of an event")
        if start not in ("0", "$"):
            raise InvalidArgument(
                f"start={shown(start)}: a new group begins with '0', all there is, or '$', what comes"
            )
        for name, number in (("batch", batch), ("tries", tries)):
            if not isinstance(number, int) or number < 1:
                raise InvalidArgument(f"{name}={shown(number)}: give a whole number of at least 1")
        self._cache = cache
        self._tier = found
        self._stream = stream
        self._group = group
        self._targets = targets
        self._consumer = consumer or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._start = start
        self._batch = batch
        self._wait = milliseconds(wait, "wait")
        self._claim_after = milliseconds(claim_after, "claim_after")
        if self._wait < 1 or self._claim_after < 1:
            raise InvalidArgument("wait and claim_after: give at least a millisecond")
        self._tries = tries
        self._aside = aside or f"{stream}:aside"
        self._durable = durable
        self._counts: Counter[str] = Counter()
        self._stopped = threading.Event()
        self._running = threading.Lock()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._held = _Held()
        self._has_group = False
        # What this consumer was given before, perhaps by an answer that was lost, is read from here on; None: it was.
        self._history: str | None = "0"
        self._cursor = "0-0"
        self._claim_at = 0.0

    # ---------------------------------------------------------------------------------------------------------- running

    def run(self) -> None:
        """Consumes until `stop` is called, through outages of the server.

        Raises:
            TierError: the server refuses for good: the key is no stream, or the user may not read it.
        """
        if not self._running.acquire(blocking=False):
            raise InvalidArgument(
                "these events are being consumed already: make another StreamEvents for another thread"
            )
        try:
            pause = _PAUSES[0]
            while not self._stopped.is_set():
                try:
                    self.step()
                    pause = _PAUSES[0]
                except (TierError, PurgeFailed) as error:
                    self._note(error)
                    self._stopped.wait(random.uniform(pause / 2, pause))  # noqa: S311 - to spread consumers, no secret
                    pause = min(2 * pause, _PAUSES[1])
            self._leave()
        finally:
            self._running.release()

    def start(self) -> Self:
        """Consumes in a thread of its own, until `stop`. An error that ends it is logged, and raised by `stop`."""
        if self._thread is None:
            self._error = None
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, name="infercache-events", daemon=True)
            self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._error = error
            _log.exception("consuming the stream %r has ended: what its events make wrong is not purged", self._stream)

    def stop(self) -> None:
        """Ends `run`, wherever it runs, and waits for the thread of `start`. What is not acknowledged stays pending."""
        self._stopped.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
            if self._error is not None:
                raise self._error

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether somebody consumes at the moment."""
        return self._running.locked()

    def stats(self) -> dict[str, int]:
        """Counters, by name; what never happened is not there.

        `events`: deliveries; `purged`: events whose purge was acknowledged; `ignored`: that made nothing wrong;
        `claimed`: taken over from a consumer that left them; `failed`: deliveries whose targets could not be told;
        `set_aside`: events given up; `lost`: events that were trimmed before they were purged; `failed_purges`,
        `errors`: what the authority or the stream did not do, and was asked for again.
        """
        return {name: count for name, count in self._counts.copy().items() if count}

    # ------------------------------------------------------------------------------------------------------- one round

    def step(self) -> None:
        """One round: what was held, then what was left by the dead, then what is new, for which it waits.

        Raises:
            PurgeFailed: the purge was not acknowledged. The next round tries again, and reads nothing before.
            TierError: the stream could not be asked.
        """
        self._finish()
        if not self._has_group:
            self._make_group(self._start)
        try:
            self._take(self._read())
        except TierError as error:
            self._history = "0"  # what was delivered, perhaps by an answer that was lost, is not finished with
            if error.code == "NOGROUP":  # the server was emptied, or failed over
                self._has_group, self._start = False, "0"
            raise
        self._finish()

    def _read(self) -> list[Event]:
        if self._history is not None:
            found = self._parse(self._ask(self._reading(self._history, block=False)))
            # Until there is no more, each page begins behind the last one.
            self._history = found[-1][0] if found else None
            if found:
                return self._present(found)
        if time.monotonic() >= self._claim_at:
            claimed = self._claim()
            if claimed:
                return claimed
        block = self._wait / 1_000
        return self._present(self._parse(self._ask(self._reading(">", block=True), within=block)))

    def _reading(self, since: str, *, block: bool) -> Command:
        waiting = ("BLOCK", self._wait) if block else ()
        who = ("GROUP", self._group, self._consumer)
        return Command(
            "XREADGROUP", *who, "COUNT", self._batch, *waiting, "STREAMS", self._stream, since, key=self._stream
        )

    def _claim(self) -> list[Event]:
        """One page of what was given to anybody too long ago."""
        who = (self._stream, self._group, self._consumer, self._claim_after)
        reply = self._ask(Command("XAUTOCLAIM", *who, self._cursor, "COUNT", self._batch))
        self._cursor = reply[0].decode()
        if self._cursor == "0-0":
            self._claim_at = time.monotonic() + self._claim_after / 2_000
        if len(reply) > 2 and reply[2]:
            self._lose(len(reply[2]))  # and the server has forgotten that they were pending
        events = self._present([(entry[0].decode(), entry[1]) for entry in reply[1]])
        self._counts["claimed"] += len(events)
        return events

    def _parse(self, reply: Any) -> list[tuple[str, Any]]:
        if not reply:
            return []
        (entries,) = reply.values() if isinstance(reply, dict) else (stream[1] for stream in reply)
        return [(entry[0].decode(), entry[1]) for entry in entries]

    def _present(self, found: Sequence[tuple[str, Any]]) -> list[Event]:
        """Those that the stream still holds; of others only the ID is left."""
        gone = [ident for ident, fields in found if fields is None]
        if gone:
            self._lose(len(gone))
            self._held.ids += gone
        return [
            Event(
                ident,
                {name.decode(errors="replace"): value for name, value in zip(fields[::2], fields[1::2], strict=True)},
            )
            for ident, fields in found
            if fields is not None
        ]

    def _lose(self, count: int) -> None:
        self._counts["lost"] += count
        _log.warning(
            "%d events of the stream %r were trimmed before they were purged: keep them longer", count, self._stream
        )

    # ---------------------------------------------------------------------------------------------- from event to purge

    def _take(self, events: Sequence[Event]) -> None:
        """Finds out what is to be purged."""
        self._counts["events"] += len(events)
        for event in events:
            try:
                members = self._members(event)
            except Exception as error:  # noqa: BLE001 - the caller's own code
                self._fail(event, error)
                continue
            if members:
                self._held.purging += 1
            else:
                self._counts["ignored"] += 1
            self._held.ids.append(event.id)
            self._held.members += members

    def _members(self, event: Event) -> list[bytes]:
        wanted = self._targets(event)
        if wanted is None:
            return []
        if not isinstance(wanted, Purge):
            wanted = Purge(tags=wanted)
        tags = wanted.tags if wanted.tags is None or isinstance(wanted.tags, str | bytes) else list(wanted.tags)
        others = (wanted.key, wanted.model, wanted.version, wanted.all or None)
        if not tags and all(other is None for other in others) and not isinstance(tags, str | bytes):
            return []
        return self._cache._targets(tags, wanted.key, wanted.model, wanted.version, wanted.all, wanted.soft)

    def _fail(self, event: Event, error: Exception) -> None:
        """Leaves the event pending, to be tried again, or sets it aside if that was done often enough."""
        self._counts["failed"] += 1
        pending = self._ask(Command("XPENDING", self._stream, self._group, event.id, event.id, 1))
        deliveries = pending[0][3] if pending else self._tries
        if deliveries < self._tries:
            _log.info("event %s of %r: its targets cannot be told: %r", event.id, self._stream, error)
            return
        told = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR].encode(errors="replace")
        about = ("infercache:event", event.id, "infercache:group", self._group, "infercache:error", told)
        own = [part for name, value in event.fields.items() for part in (name, value)]
        self._ask(Command("XADD", self._aside, "MAXLEN", "~", _KEPT_ASIDE, "*", *about, *own))
        self._counts["set_aside"] += 1
        _log.warning(
            "event %s of %r is set aside in %r, and nothing was purged for it: %s",
            *(event.id, self._stream, self._aside, told.decode(errors="replace")),
            exc_info=error,
        )
        self._held.ids.append(event.id)

    def _finish(self) -> None:
        """Purges what is held, and then acknowledges it."""
        held = self._held
        if not held.ids:
            return
        if not held.is_purged:
            if held.members:
                drive(self._cache._purge_steps(held.members, self._durable))
                self._counts["purged"] += held.purging
            held.is_purged = True
        self._ask(Command("XACK", self._stream, self._group, *held.ids, idempotent=True))
        self._held = _Held()

    # ---------------------------------------------------------------------------------------------------- the stream's

    def _ask(self, command: Command, within: float = 0.0) -> Any:
        """One command's reply; an error of the server's is raised."""
        (reply,) = self._tier.exchange([command], budget=within + self._tier.timeout)
        if isinstance(reply, TierError):
            raise reply
        return reply

    def _make_group(self, start: str) -> None:
        try:
            self._ask(Command("XGROUP", "CREATE", self._stream, self._group, start, "MKSTREAM", key=self._stream))
        except TierError as error:
            if error.code != "BUSYGROUP":  # it is there
                raise
        self._has_group = True

    def _note(self, error: TierError | PurgeFailed) -> None:
        """Counts what the next round tries again; what will never go well is raised."""
        if isinstance(error, PurgeFailed):
            self._counts["failed_purges"] += 1
            return
        if error.code in _HOPELESS or (isinstance(error, TierUnavailable) and error.reason == "shut"):
            raise error
        self._counts["errors"] += 1

    def _leave(self) -> None:
        """Takes this consumer's name out of the group, if nothing is pending under it."""
        try:
            if not self._ask(Command("XPENDING", self._stream, self._group, "-", "+", 1, self._consumer)):
                self._ask(Command("XGROUP", "DELCONSUMER", self._stream, self._group, self._consumer, key=self._stream))
        except TierError as error:
            _log.debug("the consumer %r stays in the group %r: %s", self._consumer, self._group, error)
