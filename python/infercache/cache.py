"""`Cache`: the options, the decorators and the keys; `entries` has every operation on keys.

Look-ups that end in an answer are native (`_core.Store`); both modules hold what surrounds them.
"""

from __future__ import annotations

import os
import re
import sys
import weakref
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from infercache import _core
from infercache.batch import BatchDecorator, memoized_batch
from infercache.durations import Duration, Size, milliseconds, positive_milliseconds, size
from infercache.effects import Failure, Steps, drive, drive_async
from infercache.entries import Entries
from infercache.errors import InvalidArgument, shown
from infercache.functions import BatchOptions, Options, check_encodable, says_why, takes
from infercache.memoize import MemoizeDecorator, memoized
from infercache.stats import Stats

if TYPE_CHECKING:
    from redis import Redis, RedisCluster
    from redis.asyncio import Redis as AsyncRedis
    from redis.asyncio import RedisCluster as AsyncRedisCluster

    from infercache._core import Key
    from infercache.coherence import Coherence
    from infercache.shared import Shared
    from infercache.tiers import RedisTier

__all__ = ["Cache", "check_eviction"]

_ANYTHING = re.compile(r".+", re.DOTALL)
#: Below, the fixed parts of a shard would be a good part of the cache.
_LEAST_CAPACITY = 64 << 10
_PREFIX = re.compile(r"[a-z0-9_-]+", re.ASCII)
_PARTITION = {"untagged": "serve", "tagged": "bypass"}


class Cache(Entries):
    """An inference cache: answers of models, in this process's memory and, with `l2`, in a tier that processes share.

    Args:
        capacity: bytes, or text with a unit ("512MB", "1.5GiB"); keys, values and overhead all count.
        ttl: how long an entry is fresh: seconds, a timedelta, "90s", "15m", "1h30m", "7d"; None: until evicted.
        namespace: tenant or application: enters every key, and tags belong to it.
        l2: a shared tier: "redis://…", "rediss://…", "unix://…", "redis+cluster://…", a client of redis-py, or an
            `infercache.RedisTier`, which has more options. Needs the extra `infercache[redis]`.
        l2_prefix: names one deployment: `[a-z0-9_-]+`. Its caches share one authority for purges.
        secret: 32 bytes: keys that nobody without them can compute, values of the shared tier that nobody can forge.
        max_staleness: with a shared tier: a purge acknowledged anywhere is unseen by no process for longer. "0s": every
            look-up asks the server.
        on_partition: with a shared tier: what "untagged" and "tagged" entries do when it has been out of reach for
            longer than `max_staleness`: "serve", "bypass", or a duration for which they are served.
        timeout: with a shared tier: budget of one of its operations; a call that reads and then tells it has it once.
        lease: with a shared tier: one computation per key across processes. So long after a process was killed or
            stopped while it computed another takes over. None: processes that miss a key at once each compute it.
        eviction: what goes first when the cache is full. "s3-fifo": what is asked for least, whatever it cost. "cost":
            what is cheapest to make again per byte, by the compute time that is recorded with each entry.
        clock: time for tests and simulators: an `infercache.testing.ManualClock`.
        seed: seed of the hash table, for simulators; by default nobody can know it.

    Without a shared tier purges reach this process alone: where several processes each have a cache, each must be told.

    `INFERCACHE_DISABLED=1` in the environment when a cache is made turns its every look-up into a miss.

    Raises:
        InvalidArgument: an option's value is not acceptable; the text names it.
    """

    def __init__(
        self,
        capacity: Size = "512MB",
        *,
        ttl: Duration | None = "1h",
        namespace: str = "default",
        l2: str | RedisTier | Redis | RedisCluster | AsyncRedis | AsyncRedisCluster | None = None,
        l2_prefix: str = "ic",
        secret: bytes | None = None,
        max_staleness: Duration = "2s",
        on_partition: Mapping[str, str] = _PARTITION,
        timeout: Duration = "250ms",
        lease: Duration | None = None,
        eviction: str = "s3-fifo",
        clock: _core.ManualClock | None = None,
        seed: int | None = None,
    ) -> None:
        _check_text("namespace", namespace, _ANYTHING, "give text that is not empty")
        check_encodable("namespace", namespace)
        _check_text("l2_prefix", l2_prefix, _PREFIX, "use lower-case letters, digits, '_' and '-'")
        _check_seed(seed)
        self.capacity = _capacity(capacity)
        life, held = positive_milliseconds(ttl, "ttl"), positive_milliseconds(lease, "lease", without="for no leases")
        self.ttl = None if life is None else timedelta(milliseconds=life)
        self.namespace = namespace
        self.l2_prefix = l2_prefix
        self.max_staleness = timedelta(milliseconds=milliseconds(max_staleness, "max_staleness"))
        self.on_partition = _check_partition(on_partition)
        self.timeout = timedelta(milliseconds=milliseconds(timeout, "timeout"))
        self.lease = None if held is None else timedelta(milliseconds=held)
        self.eviction = check_eviction(eviction)
        self.disabled = os.environ.get("INFERCACHE_DISABLED", "0") not in ("", "0")
        self.warned = set()
        self._secret = secret
        if l2 is not None and not self.timeout:
            raise InvalidArgument(f"timeout={shown(timeout)}: an operation of the shared tier needs some time")
        self.l2 = None if l2 is None else _tier(l2, timeout)
        # Its own tier is closed with the cache; one that the caller made is the caller's.
        self._owns_tier = self.l2 is not l2
        coherence = None if self.l2 is None else _coherence(self.l2, l2_prefix, secret)
        self._open_memory(coherence, clock, seed)
        self.shared = None if self.l2 is None or coherence is None else self._shared_by(self.l2, coherence)
        self.flights = _core.Flights(self)
        _caches.add(self)

    def _open_memory(self, coherence: Coherence | None, clock: _core.ManualClock | None, seed: int | None) -> None:
        """Opens the native cache with the options that are set."""
        staleness = self.max_staleness.total_seconds()
        self._open(
            self.capacity,
            None if self.ttl is None else self.ttl.total_seconds(),
            self.namespace,
            self._secret,
            prefix=self.l2_prefix,
            seed=seed,
            clock=clock,
            eviction=self.eviction,
            follows=None if coherence is None else coherence.authority,
            trust=(
                staleness,
                _bound(self.on_partition["untagged"], staleness),
                _bound(self.on_partition["tagged"], staleness),
            ),
        )

    def _shared_by(self, tier: RedisTier, coherence: Coherence) -> Shared:
        """What carries look-ups and purges to the shared tier."""
        from infercache.shared import Shared

        return Shared(
            self,
            tier,
            coherence,
            namespace=self.namespace,
            max_staleness=self.max_staleness.total_seconds(),
            budget=self.timeout.total_seconds(),
            lease=None if self.lease is None else self.lease.total_seconds(),
        )

    @takes(Options)
    def memoize(self, options: Options) -> MemoizeDecorator:
        """Decorates a function, method or `async def` whose repeated calls are then answered from the cache.

        Args:
            model: the model's name, or a function of the call's arguments (by name) that returns it.
            version: the model's version, likewise. Both are part of every key; functions are asked again after the run,
                and a result whose model was replaced meanwhile is not stored.
            operation: tells this function from others of the model; by default its module and qualified name.
            ttl: how long an answer is fresh; by default the cache's, None: until evicted.
            tags: what a purge may name: templates of the arguments ("user:{user}"), or `f(result, **arguments)`.
            stale_while_revalidate: for how long after that it is served while it is computed anew in the background.
            stale_if_error: for how long it stands in when the model raises. Never after a hard purge.
            ignore: parameters that do not change the answer and are left out of the key.
            document: `f(**arguments)`: its result is keyed in place of the arguments.
            store_if: `f(result)`: only results for which it is true are stored, and shared with who waits.
            copy: give out arrays that are writable instead of read-only ones over the cache's buffer.

        Raises:
            TypeError: model or version is missing; a generator function; a lambda or a closure without an operation.
            InvalidArgument: a template names no parameter; another option's value is not acceptable.
        """
        return memoized(self, options)

    @takes(BatchOptions)
    def memoize_batch(self, options: BatchOptions) -> BatchDecorator:
        """Decorates a function of many items, which is then called with the distinct unknown ones only.

        Each item has an entry of its own. The function returns one result for each item, in their order: a list, a
        tuple, or an array whose first axis is the items; the caller gets the same kind. An item's dtype and shape must
        not depend on the other items (but for the width of text): a known item is given out as it was computed, and
        where known ones do not make one array the function is asked for the whole batch, with a warning.

        Args:
            over: the parameter that takes the items.
            max_batch: most items of one call of the function; None: all at once.
            model: as in `memoize`; a function is given the whole call's arguments.
            version: likewise.
            operation: as in `memoize`.
            ttl: as in `memoize`, of each item's entry.
            tags: as in `memoize`, for each item: `over` then means the item, and the result is the item's.
            stale_while_revalidate: as in `memoize`; the stale items of a call are refreshed together.
            stale_if_error: as in `memoize`, where every item that could not be computed has an entry.
            ignore: as in `memoize`; `over` cannot be ignored.
            document: `f(**arguments)` with the item in place of all of them.
            store_if: `f(result)` of each item's result.
            copy: as in `memoize`, for items that are arrays; an assembled array is fresh and writable in any case.

        Raises:
            TypeError, InvalidArgument: as `memoize`; `over` is no parameter of the function.
        """
        return memoized_batch(self, options)

    @says_why
    def key(self, value: object, /, *, model: str, version: str, operation: str = "") -> Key:
        """The key of a question to a model, in this cache's namespace and with its secret.

        Raises:
            TypeError: model or version is missing.
            UnsupportedInput: the value cannot enter a key; the text leads to what cannot.
        """
        return _core.key(
            value, model=model, version=version, namespace=self.namespace, operation=operation, secret=self._secret
        )

    @says_why
    def key_from_json(self, text: bytes | str, /, *, model: str, version: str, operation: str = "") -> Key:
        """The key of the value that raw JSON text parses to, without making the value.

        Raises:
            TypeError: model or version is missing.
            InvalidJSON: the text is not acceptable; the error gives the byte.
        """
        return _core.key_from_json(
            text, model=model, version=version, namespace=self.namespace, operation=operation, secret=self._secret
        )

    def stats(self) -> Stats:
        """Counters and gauges."""
        # Not imported here: without a tensor on a GPU there is nothing to count.
        hashing = sys.modules.get("infercache.gpu.hashing")
        on_host = 0 if hashing is None else hashing.fallbacks()
        errors = 0 if self.shared is None else self.shared.errors.total()
        return Stats(l2_errors=errors, hashed_on_host=on_host, **self._stats())

    def clear(self) -> None:
        """Purges every entry, those being computed included, and gives the memory back.

        With a shared tier it is a purge of the namespace, which other processes then see as well.

        Raises:
            PurgeFailed: the shared tier could not be told, or not for sure; this process's memory is empty then, too.
        """
        drive(self._clear_steps())

    def _clear_steps(self) -> Steps:
        if self.shared is None:
            self._clear()
            return None
        done = yield from self.shared.purge(self._members(namespace=True))
        self._empty()
        return done if type(done) is Failure else None

    def close(self) -> None:
        """Empties the cache. One that is used afterwards begins anew.

        What waits to be written to a shared tier is written, for a second at most; what it holds stays there. A tier
        that the cache made from a URL is closed for good.
        """
        if self.shared is None:
            self._clear()
            return
        self._empty()
        self.shared.leave()
        if self._owns_tier and self.l2 is not None:
            self.l2.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclear(self) -> None:
        """As `clear`."""
        await drive_async(self._clear_steps())

    async def aclose(self) -> None:
        """As `close`, without holding up the event loop."""
        if self.shared is None:
            self._clear()
            return
        import asyncio

        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self.close)
        if self._owns_tier and self.l2 is not None:
            await self.l2.aclose()

    def _begin_anew(self) -> None:
        """In the child of a fork: no entries, no flights, nothing known of the authority."""
        self._after_fork()
        self.flights = _core.Flights(self)
        if self.shared is not None:
            self.shared.begin_anew()


def check_eviction(given: str) -> str:
    """The name, if it is one of what goes first when a cache is full.

    Raises:
        InvalidArgument: it is not; the text lists those that are.
    """
    if not isinstance(given, str) or given not in _core.EVICTIONS:
        raise InvalidArgument(f"eviction={shown(given)}: give {' or '.join(map(repr, _core.EVICTIONS))}")
    return given


def _check_text(name: str, given: object, pattern: re.Pattern[str], advice: str) -> None:
    if not isinstance(given, str) or not pattern.fullmatch(given):
        raise InvalidArgument(f"{name}={shown(given)}: {advice}")


def _check_seed(seed: object) -> None:
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed < 1 << 64):
        raise InvalidArgument(f"seed={shown(seed)}: give an integer of 64 bits that is not negative, or None")


def _capacity(given: Size) -> int:
    capacity = size(given, "capacity")
    if capacity < _LEAST_CAPACITY:
        raise InvalidArgument(
            f"capacity={shown(given)}: {capacity:,} bytes; give at least {_LEAST_CAPACITY:,}, which is '64KiB', a few "
            "kilobytes of which are overhead"
        )
    return capacity


def _check_partition(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or not set(given) <= set(_PARTITION):
        raise InvalidArgument(f"on_partition={shown(given)}: give what 'untagged' and 'tagged' entries do")
    for kind, does in given.items():
        if does not in ("serve", "bypass"):
            try:
                positive_milliseconds(does, kind, without=None)
            except InvalidArgument as error:
                raise InvalidArgument(
                    f"on_partition: {kind!r} entries can 'serve', 'bypass', or be served for so long ({error})"
                ) from None
    return {**_PARTITION, **given}


def _bound(does: str, max_staleness: float) -> float:
    """How many seconds old the authority's last word may be while it is out of reach."""
    if does == "serve":
        return float("inf")
    return max_staleness if does == "bypass" else max(max_staleness, milliseconds(does, "on_partition") / 1_000)


def _tier(given: Any, timeout: Duration) -> RedisTier:
    from infercache.tiers import RedisTier

    if isinstance(given, RedisTier):
        return given
    try:
        return RedisTier(given, timeout=timeout)
    except InvalidArgument as error:
        raise InvalidArgument(f"l2: {error}") from None


def _coherence(tier: RedisTier, prefix: str, secret: bytes | None) -> Coherence:
    from infercache.coherence import coherence_of

    return coherence_of(tier, prefix, secret)


_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def _after_fork() -> None:
    _core._forget_waits()
    for cache in list(_caches):
        cache._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
