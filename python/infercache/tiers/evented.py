"""Connections for event loops. redis-py opens them and logs in; from then on the transport is ours, with one deadline.

A pool belongs to one loop, which alone touches it, so nothing here is locked. The interface is the one of `blocking`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import hiredis

from infercache.errors import TierError, TierUnavailable
from infercache.tiers.opening import refusal, shown_address, timed_out
from infercache.tiers.polling import IN, poller

if TYPE_CHECKING:
    from infercache.tiers.target import Address, Target

__all__ = ["EventedWire", "EventedWires", "LoopEnd"]

T = TypeVar("T")

_MORE = object()  # hiredis needs more bytes
_PUSH = hiredis.PushNotification  # what the server says unasked


class EventedWire(asyncio.Protocol):
    """One connection, used by one task at a time. What ends it in mid-exchange closes it."""

    def __init__(self, writer: asyncio.StreamWriter, address: Address) -> None:
        self._writer = writer  # kept: the transport would be closed with it
        self._transport: Any = writer.transport
        self._address = address
        self._reader = hiredis.Reader(notEnoughData=_MORE, replyError=TierError)
        self._replies: list[Any] = []
        self._wanted = 0
        self._arrived: Callable[[list[Any]], None] | None = None
        self._answered: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.is_used = False
        self._transport.set_protocol(self)
        self._poll = poller(self._transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """The transport's call: bytes came."""
        if self._answered is None:  # nobody asked: the next exchange must not read it
            self.close()
            return
        try:
            self._reader.feed(data)
            gets, put = self._reader.gets, self._replies.append
            while (reply := gets()) is not _MORE:
                if type(reply) is not _PUSH:
                    put(reply)
        except hiredis.HiredisError as error:
            self._finish(error)
            return
        if len(self._replies) >= self._wanted:
            self._finish(None)
        elif self._arrived is not None:
            self._arrived(self._replies)

    def eof_received(self) -> bool:
        """The transport's call: the peer sends no more."""
        self._finish(ConnectionResetError("the server closed the connection"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport's call: the connection is gone."""
        self._finish(exc or ConnectionResetError("the server closed the connection"))

    def _finish(self, error: BaseException | None) -> None:
        self._error = self._error or error
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def is_quiet(self) -> bool:
        """Whether it may carry the next exchange: the peer has not closed it, and nothing unasked has come.

        What the loop has not been told yet counts, too: it may have been busy, or stood still.
        """
        return self._error is None and not self._transport.is_closing() and not self._poll(IN, 0)

    async def exchange(
        self, payload: Sequence[bytes], count: int, arrived: Callable[[list[Any]], None] | None, deadline: float
    ) -> list[Any]:
        """Sends the parts of `payload` and gives back the next `count` replies.

        `arrived` is told of those that have come while others have not.

        Raises:
            TierUnavailable: by the deadline not all had come, or the connection broke; it is closed then.
        """
        loop = asyncio.get_running_loop()
        self._replies, self._wanted, self._arrived = [], count, arrived
        answered = self._answered = loop.create_future()
        timer = loop.call_later(max(0.0, deadline - time.monotonic()), self._finish, timed_out())
        try:
            for part in payload:
                self._transport.write(part)
            await answered
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            self._answered = self._arrived = None
        replies, self._replies = self._replies, []
        if self._error is not None or len(replies) != count or self._reader.has_data():
            self.close()
            if len(replies) < count:
                raise refusal(self._error or ConnectionResetError("closed"), self._address, sent=True) from self._error
        self.is_used = True
        return replies[:count]

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent."""
        closing: bool = self._transport.is_closing()
        return closing

    def close(self) -> None:
        """Closes the connection at once; a second time does nothing."""
        if not self._transport.is_closing():
            self._transport.abort()


class EventedWires:
    """The connections of one event loop to one server: at most `most`, the last used taken first."""

    kind = "evented"

    def __init__(self, target: Target, address: Address, most: int) -> None:
        self._target = target
        self._address = address
        self._most = most
        self._idle: list[EventedWire] = []
        self._in_use: set[EventedWire] = set()
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._shut = False

    async def take(self, deadline: float, *, fresh: bool = False) -> EventedWire:
        """A connection that nobody else uses; `fresh`: opened now, and what lies idle is closed.

        Raises:
            TierUnavailable: none could be opened, or was given back, by the deadline.
        """
        if fresh:
            self.drop_idle()
        while True:
            if self._shut:
                raise TierUnavailable("the tier is closed: make another one", sent=False, reason="shut")
            while self._idle:
                wire = self._idle.pop()
                if wire.is_quiet():
                    self._in_use.add(wire)
                    return wire
                self._drop(wire)
            if self._open < self._most:
                break
            await self._wait_for_one(deadline)
        self._open += 1
        try:
            wire = await self._open_one(deadline)
        except BaseException:
            self._open -= 1
            self._wake()
            raise
        self._in_use.add(wire)
        return wire

    async def _wait_for_one(self, deadline: float) -> None:
        freed = asyncio.get_running_loop().create_future()
        self._waiting.append(freed)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await freed
        except BaseException as error:
            if freed in self._waiting:
                self._waiting.remove(freed)
            else:  # woken and gone at once: the next one has its turn
                self._wake()
            if not isinstance(error, TimeoutError):
                raise
            raise TierUnavailable(
                f"all {self._most} connections to {shown_address(self._address)} were in use until the budget was "
                "spent: raise RedisTier(connections=…), or look why the server is slow",
                sent=False,
                reason="busy",
            ) from None

    async def _open_one(self, deadline: float) -> EventedWire:
        import redis

        connection: Any = self._target.class_for(self.kind)(**self._target.options_at(self._address))
        if self._target.context is not None:
            connection.ssl_context.context = self._target.context
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await connection.connect()
        except (OSError, redis.RedisError) as error:
            _abandon(connection)
            raise refusal(error, self._address, sent=False) from error
        except BaseException:
            _abandon(connection)
            raise
        # From here on the transport is ours: redis-py would close it with its own object.
        writer = connection._writer
        connection._reader = connection._writer = None
        return EventedWire(writer, self._address)

    def give_back(self, wire: EventedWire, *, broken: bool = False) -> None:
        """Ends a caller's use of a connection."""
        self._in_use.discard(wire)
        if broken or self._shut or not wire.is_quiet():
            self._drop(wire)
        else:
            self._idle.append(wire)
            self._wake()

    def drop_idle(self) -> None:
        """Closes what nobody uses: the server restarted, or is no longer the primary."""
        while self._idle:
            self._drop(self._idle.pop())

    def shut(self) -> None:
        """Closes every connection now: the loop ends."""
        self._shut = True
        self.drop_idle()
        for wire in self._in_use:
            wire.close()
        while self._waiting:
            self._wake()

    @staticmethod
    async def sleep(seconds: float) -> None:
        """Lets time pass."""
        await asyncio.sleep(seconds)

    @staticmethod
    async def together(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The results of coroutines that run side by side."""
        return list(await asyncio.gather(*parts))

    def _drop(self, wire: EventedWire) -> None:
        wire.close()
        self._open -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            freed = self._waiting.popleft()
            if not freed.done():
                freed.set_result(None)
                return


def _abandon(connection: Any) -> None:
    """Closes what an attempt to connect has left."""
    writer, connection._reader, connection._writer = connection._writer, None, None
    if writer is not None:
        writer.transport.abort()


class LoopEnd:
    """Calls back when the running loop ends, if whoever runs it ends its asynchronous generators.

    `asyncio.run` does. Without it, a program that forgets `aclose` would be warned of each connection that its loop
    leaves behind.
    """

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        self._generator: AsyncGenerator[None] | None = None

    async def begin(self) -> None:
        """Has the running loop know of it."""
        self._generator = self._until_the_end()
        await anext(self._generator)

    async def end(self) -> None:
        """Calls back now, if that has not been done."""
        if self._generator is not None:
            await self._generator.aclose()

    async def _until_the_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._callback()
            await asyncio.sleep(0)  # transports close at the loop's next turn
