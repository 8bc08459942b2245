"""One answer for many readers, while it still comes.

    publish ── pieces ──┬── Reader        each at its own speed, from the first piece on
                        └── Reader

All of it is held while it is recorded. Beyond a limit the recording is given up: from then on only what some reader
still has to get is held, the fastest reader decides how fast more is asked for, and one that is too far behind is cut
off. So what one broadcast holds has a bound, and no reader holds up another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from infercache.edge.exchange import ClientGone, CutShort

if TYPE_CHECKING:
    from infercache.edge.forwarding import Buffered

__all__ = ["Broadcast", "Reader"]

#: Bytes that the fastest reader may be behind, once the recording is given up, before the upstream has to wait.
_WAITING = 256 << 10
#: What a piece costs beside its bytes.
_COST = 64


class Broadcast:
    """An answer as it comes, for everybody who reads it.

    Args:
        most: bytes that are recorded.
        everybody: what all broadcasts together hold, and may.
        when_deserted: called when the last reader leaves before the end.
    """

    def __init__(self, most: int, everybody: Buffered, when_deserted: Callable[[], None]) -> None:
        self._most = most
        self._everybody = everybody
        self._when_deserted = when_deserted
        self._pieces: dict[int, bytes] = {}
        self._first = self._next = 0
        self._held = 0
        self._more = asyncio.Event()
        self._taken = asyncio.Event()
        #: Bytes so far, with what pieces cost.
        self.published = 0
        self.readers: set[Reader] = set()
        #: Whether readers may have it.
        self.is_open = False
        #: Whether it has become too large to be kept.
        self.given_up = False
        self.has_ended = False
        self.error: BaseException | None = None

    def join(self) -> Reader:
        """Another reader, who gets all of it."""
        reader = Reader(self)
        self.readers.add(reader)
        if self.is_open or self.has_ended:
            reader.ready.set_result(None)
        return reader

    def open(self) -> None:
        """From now on readers may have it."""
        self.is_open = True
        for reader in self.readers:
            reader.be_ready()

    def dismiss(self, but: Reader | None) -> None:
        """Nobody but this reader may have it."""
        for reader in [*self.readers]:
            if reader is not but:
                reader.is_dismissed = True
                self.leave(reader)
                reader.be_ready()

    async def publish(self, piece: bytes) -> None:
        """More of it; waits, if that is more than may be held."""
        self.put(piece)
        while self.given_up and self.readers and self._behind() > _WAITING:
            await self._taken.wait()

    def put(self, piece: bytes) -> None:
        """More of it, where nobody can be made to wait."""
        self._pieces[self._next] = piece
        self._next += 1
        weight = len(piece) + _COST
        self.published += weight
        self._hold(weight)
        if not self.given_up and (self.published > self._most or self._everybody.held > self._everybody.limit):
            self._give_up()
        elif self.given_up:
            self._let_go()
        _pulse(self._more)

    def recorded(self) -> list[bytes]:
        """All pieces; of one that is given up, those that are left."""
        return list(self._pieces.values())

    def end(self, error: BaseException | None = None) -> None:
        """There is no more; `error`: it broke off."""
        self.has_ended, self.error = True, error
        for reader in self.readers:
            reader.be_ready()
        _pulse(self._more)
        if not self.readers:
            self._release()

    def leave(self, reader: Reader) -> None:
        """A reader wants no more. Without effect for one that has left."""
        if reader not in self.readers:
            return
        self.readers.discard(reader)
        if not self.readers:
            if self.has_ended:
                self._release()
            else:
                self._when_deserted()
        elif self.given_up:
            self._let_go()
        _pulse(self._taken)

    def _give_up(self) -> None:
        self.given_up = True
        # What is held now for slow readers is theirs; together they may come to hold twice as much.
        self._most = max(2 * min(self.published, self._most), _WAITING)
        self.open()
        self._let_go()

    def _behind(self) -> int:
        return self.published - max(reader.taken for reader in self.readers)

    def _let_go(self) -> None:
        """Drops what every reader has, once readers too far behind are cut off; the fastest never is."""
        if len(self.readers) > 1:
            fastest = max(self.readers, key=lambda reader: reader.taken)
            for reader in [*self.readers]:
                if reader is not fastest and self.published - reader.taken > self._most:
                    reader.is_cut = True
                    self.readers.discard(reader)
        wanted = min((reader.position for reader in self.readers), default=self._next)
        while self._first < wanted:
            self._hold(-len(self._pieces.pop(self._first)) - _COST)
            self._first += 1

    def _hold(self, weight: int) -> None:
        self._held += weight
        self._everybody.held += weight

    def _release(self) -> None:
        self._hold(-self._held)
        self._pieces.clear()


class Reader:
    """One who reads a broadcast: iterates over its pieces. Whoever does not come to the end calls `aclose`."""

    __slots__ = ("_broadcast", "is_cut", "is_dismissed", "position", "ready", "taken")

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        #: Resolved once this reader may have it, or has to ask for itself, or all is over.
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_dismissed = self.is_cut = False
        #: The next piece's number, and bytes taken so far, as `Broadcast.published` counts them.
        self.position = self.taken = 0

    def be_ready(self) -> None:
        """It need not wait any longer."""
        if not self.ready.done():
            self.ready.set_result(None)

    async def begun(self, gone: asyncio.Future[None]) -> None:
        """Waits until it is `ready`.

        Args:
            gone: resolved when who asked for it leaves.

        Raises:
            ClientGone: that happened.
        """
        if not self.ready.done():
            await asyncio.wait([self.ready, gone], return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done():
            raise ClientGone("the client left before the answer began")

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        broadcast = self._broadcast
        while True:
            if self.is_cut:
                raise CutShort("this client is too far behind the others")
            piece = broadcast._pieces.get(self.position)
            if piece is not None:
                self.position += 1
                self.taken += len(piece) + _COST
                if broadcast.given_up:
                    broadcast._let_go()
                    _pulse(broadcast._taken)
                return piece
            if broadcast.has_ended:
                broadcast.leave(self)
                if broadcast.error is not None:
                    raise CutShort("the answer broke off") from broadcast.error
                raise StopAsyncIteration
            await broadcast._more.wait()

    async def aclose(self) -> None:
        """It wants no more."""
        self._broadcast.leave(self)


def _pulse(event: asyncio.Event) -> None:
    """Wakes all that wait for it now."""
    event.set()
    event.clear()
