"""The tier in Redis or Valkey: commands go out, replies come back, within a budget, whatever the server does.

It knows nothing of keys, entries or fences. What it promises is in `RedisTier`; how: `blocking` and `evented` hold the
connections, `node` is one server with its `breaker`, `cluster` many, `behind` the queue of writes, `doorbell` a
subscription.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infercache.durations import Duration, Size, milliseconds, positive_milliseconds, size
from infercache.errors import InvalidArgument, TierUnavailable, shown
from infercache.tiers.breaker import Breaker
from infercache.tiers.commands import Command, Script
from infercache.tiers.target import Address, target_of

if TYPE_CHECKING:
    import asyncio

    import redis
    import redis.asyncio

    from infercache.tiers.behind import Behind
    from infercache.tiers.doorbell import Doorbell

__all__ = ["RedisTier"]

_tiers: weakref.WeakSet[RedisTier] = weakref.WeakSet()
#: Transports of the parent's event loops. Their destruction would reach into an epoll that parent and child share.
_left_to_the_parent: list[object] = []


class RedisTier:
    """A server of Redis or Valkey, or a cluster, shared by threads and event loops.

    Args:
        target: `"redis://user:password@host:port/db"`, `"rediss://…"` (TLS; `?ssl_ca_certs=…&ssl_certfile=…`),
            `"unix:///path"`, `"redis+cluster://…"`, `"rediss+cluster://…"`, or a client of redis-py, synchronous or
            asyncio, whose address, login and TLS settings are taken over; its timeouts, retries and pool are not.
        timeout: the budget of one operation, everything in it: waiting for a connection, resolving, connecting, TLS,
            login, sending, every reply, retries.
        soft_timeout: a smaller budget that a reader may give (`exchange(…, budget=tier.soft_timeout)`) where going to
            the model is better than waiting any longer. None: `timeout`.
        connections: at most so many connections of the process to a server, and as many of each event loop.
        retries: how often an operation is sent again whose outcome is unknown, if all its commands may run twice.
        write_behind: commands that may wait to be sent by `behind`; None: there is no queue.
        write_behind_bytes: bytes that they may hold.
        breaker: arguments of `Breaker`, where its own do not fit.

    Raises:
        InvalidArgument: an option, or the target, is not acceptable; the text never shows a password.
        MissingExtra: redis-py with hiredis is not installed.
    """

    def __init__(
        self,
        target: str | redis.Redis | redis.RedisCluster | redis.asyncio.Redis | redis.asyncio.RedisCluster,
        *,
        timeout: Duration = "250ms",
        soft_timeout: Duration | None = None,
        connections: int = 64,
        retries: int = 1,
        write_behind: int | None = None,
        write_behind_bytes: Size = "64MB",
        breaker: Mapping[str, Any] | None = None,
    ) -> None:
        self._target = target_of(target)
        _load()
        hard = positive_milliseconds(timeout, "timeout", without=None)
        if hard is None:
            raise InvalidArgument("timeout=None: an operation of a tier has a budget, such as '250ms'")
        self._timeout = hard / 1_000
        self._soft = self._timeout if soft_timeout is None else milliseconds(soft_timeout, "soft_timeout") / 1_000
        if not 0 < self._soft <= self._timeout:
            raise InvalidArgument(
                f"soft_timeout={soft_timeout!r}: give a positive duration of at most timeout={timeout!r}"
            )
        self._connections = _count(connections, "connections", 1)
        self._retries = _count(retries, "retries", 0)
        self._behind_limits = None
        if write_behind is not None:
            bytes_limit = size(write_behind_bytes, "write_behind_bytes")
            self._behind_limits = (_count(write_behind, "write_behind", 1), bytes_limit)
        self._breaker_options = dict(breaker or {})
        try:
            Breaker(**self._breaker_options)
        except TypeError as error:
            raise InvalidArgument(f"breaker={shown(breaker)}: {error}") from error
        self._begin()
        _tiers.add(self)

    def _begin(self) -> None:
        """Nothing is connected, and nothing is known of the server."""
        from infercache.tiers.behind import Behind
        from infercache.tiers.node import Counts

        self._counts = Counts()
        self._lock = threading.Lock()
        self._shut = False
        self._blocking = self._pools("blocking")
        self._evented: dict[asyncio.AbstractEventLoop, tuple[Any, Any]] = {}
        self._router = self._new_router()
        self._queue: Behind | None = None
        if self._behind_limits is not None:
            self._queue = Behind(self.exchange, self._counts, *self._behind_limits)

    def _new_router(self) -> Any:
        from infercache.tiers.node import Node, Single

        def node(address: Address) -> Node:
            return Node(
                address, Breaker(**self._breaker_options), self._counts, retries=self._retries, patience=self._soft
            )

        if self._target.is_cluster:
            from infercache.tiers.cluster import Cluster

            return Cluster(self._target.seeds, node, self._counts)
        return Single(node(self._target.seeds[0]))

    def _pools(self, kind: str) -> Any:
        from infercache.tiers.node import Pools

        if kind == "blocking":
            from infercache.tiers.blocking import BlockingWires as Wires
        else:
            from infercache.tiers.evented import EventedWires as Wires  # type: ignore[assignment]
        return Pools(Wires, self._target, self._connections)

    @property
    def identity(self) -> str:
        """The same for tiers of one process that reach the same data: scheme, hosts, ports, database; no password."""
        return self._target.identity

    @property
    def timeout(self) -> float:
        """The budget of one operation in seconds."""
        return self._timeout

    @property
    def soft_timeout(self) -> float:
        """The budget of a read that had better go to the model than wait, in seconds; at most `timeout`."""
        return self._soft

    @property
    def is_out(self) -> bool:
        """Whether an operation would fail at once, since the server has failed repeatedly (in a cluster: all nodes).

        It is False again as soon as somebody may try the server: whoever then asks first does.
        """
        refuses: bool = self._router.refuses
        return refuses

    def exchange(self, commands: Sequence[Command], *, budget: float | None = None) -> list[Any]:
        """Sends commands in one pipeline, in a cluster one for each node, and waits for their replies.

        Args:
            commands: in the order of the replies; not atomic as a whole.
            budget: seconds for all of it; None: the tier's `timeout`.

        Returns:
            A reply for each command: bytes, int, float, bool, None, list, dict or set. A command that the server
            answered with an error has a `TierError` in its place; in a cluster, the commands of a node that is out of
            reach have a `TierUnavailable`, which is one.

        Raises:
            TierUnavailable: there are no replies: the server is out of reach, did not answer in time, refuses the
                login, …; the text says which, and `sent` whether anything may have been done.
            InvalidArgument: an argument is of no type that can be sent.
        """
        if not commands:
            return []
        from infercache.tiers.blocking import run

        deadline = time.monotonic() + (self._timeout if budget is None else budget)
        return run(self._router.exchange(self._blocking, commands, deadline))

    async def aexchange(self, commands: Sequence[Command], *, budget: float | None = None) -> list[Any]:
        """`exchange` for asyncio: the same, awaited. Each event loop has connections of its own."""
        if not commands:
            return []
        deadline = time.monotonic() + (self._timeout if budget is None else budget)
        pools = await self._pools_of_this_loop()
        replies: list[Any] = await self._router.exchange(pools, commands, deadline)
        return replies

    async def _pools_of_this_loop(self) -> Any:
        import asyncio

        loop = asyncio.get_running_loop()
        found = self._evented.get(loop)
        if found is not None:
            return found[0]
        if self._shut:
            raise TierUnavailable("the tier is closed: make another one", sent=False, reason="shut")
        from infercache.tiers.evented import LoopEnd

        for other in [other for other in self._evented if other.is_closed()]:
            self._evented.pop(other, None)
        pools = self._pools("evented")

        def ended() -> None:
            self._evented.pop(loop, None)
            pools.shut()

        end = LoopEnd(ended)
        self._evented[loop] = (pools, end)
        await end.begin()
        return pools

    def script(self, source: bytes) -> Script:
        """A Lua script: `tier.exchange([script.call([key], [argument])])`. See `Script`."""
        return Script(source)

    def listen(self, channel: str) -> Doorbell:
        """Subscribes to a channel, for one thread that waits. It connects at the first `wait`; see `Doorbell`."""
        from infercache.tiers.blocking import open_wire
        from infercache.tiers.doorbell import Doorbell

        router = self._router
        return Doorbell(
            channel, lambda deadline: open_wire(self._target, router.anywhere(), deadline), self._timeout, self._counts
        )

    def behind(self, commands: Sequence[Command]) -> bool:
        """Queues commands to be sent by a thread of the tier: all of them in order, or none.

        Returns:
            False, and counted in `stats()["dropped_writes"]`, if the queue is full or the tier is closed.

        Raises:
            InvalidArgument: the tier was made without `write_behind`.
        """
        if self._queue is None:
            raise InvalidArgument("the tier has no queue: make it with RedisTier(…, write_behind=1000)")
        return self._queue.put(commands)

    @property
    def writes_behind(self) -> bool:
        """Whether there is a queue for `behind`."""
        return self._queue is not None

    @property
    def is_closed(self) -> bool:
        """Whether it was closed: it will never lead anywhere again."""
        return self._shut

    def flush(self, timeout: Duration = "1s") -> bool:
        """Waits until what was queued by `behind` before has been sent or dropped. False: not by the timeout."""
        return self._queue is None or self._queue.flush(milliseconds(timeout, "timeout") / 1_000)

    def stats(self) -> dict[str, int]:
        """Counters since the tier was made, by name; what never happened is not there.

        `errors_timeout`, `errors_connect`, … by the `reason` of `TierUnavailable`; `error_replies`; `refused` (by the
        open breaker); `breaker_openings`; `retries`; `reconnects` (connections that died while idle); `scripts_sent`
        (sources sent after NOSCRIPT); `dropped_writes`, `failed_writes` (of `behind`); `doorbell_reconnects`; `moved`,
        `asked`, `refreshes` (of a cluster).
        """
        return self._counts.copy()

    def close(self) -> None:
        """Sends what `behind` has queued, for at most a second, and closes the connections. Twice does nothing more.

        Connections of event loops are closed by `aclose`, or with their loop.
        """
        if self._queue is not None and not self._shut:
            self._queue.close(1.0)
        self._shut = True
        self._blocking.shut()

    async def aclose(self) -> None:
        """`close`, and the connections of the running event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.close)
        found = self._evented.pop(loop, None)
        if found is not None:
            found[0].shut()
            await found[1].end()

    def _forget(self) -> None:
        """In the child of a fork: everything anew. No lock is asked that another thread may have held."""
        blocking, evented = self._blocking, self._evented
        if evented:
            _left_to_the_parent.append(evented)
        shut = self._shut
        self._begin()
        blocking.forget()
        if shut:
            self.close()

    def __repr__(self) -> str:
        return f"RedisTier({self.identity!r})"


def _load() -> None:
    """Imports what the first exchange uses, and what Python does for a host's name.

    A fork while another thread imports something leaves that module's lock held in the child, for ever.
    """
    import encodings.idna  # noqa: F401

    from infercache.tiers import blocking, doorbell, evented  # noqa: F401


def _count(value: int, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgument(f"{name}={shown(value)}: give a whole number of at least {least}")
    return value


def _forget_all() -> None:
    for tier in list(_tiers):
        tier._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
