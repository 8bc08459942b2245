"""`Cache`: the options, and every operation on keys.

Look-ups that end in an answer are native (`_core.Store`); this module holds what surrounds them.
"""

from __future__ import annotations

import inspect
import os
import re
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from infercache import _core
from infercache.batch import BatchDecorator, memoized_batch
from infercache.durations import Duration, Size, milliseconds, positive_milliseconds, size
from infercache.errors import CorruptValue, InvalidArgument
from infercache.flights import Mode, Policy, Request, compute, drive, drive_async, obtain, warn_uncacheable
from infercache.functions import UNSET, Name, Options, says_why
from infercache.lookup import Lookup, Stamp, Token, warn_unreadable
from infercache.memoize import MemoizeDecorator, memoized
from infercache.stats import Stats
from infercache.tags import Tags, TagSource, check_tags

if TYPE_CHECKING:
    from infercache._core import Key

__all__ = ["Cache"]

T = TypeVar("T")

_ANYTHING = re.compile(r".+", re.DOTALL)
#: Below, the fixed parts of a shard would be a good part of the cache.
_LEAST_CAPACITY = 64 << 10
_PREFIX = re.compile(r"[a-z0-9_-]+", re.ASCII)
_PARTITION = {"untagged": "serve", "tagged": "bypass"}
_MISSING: Any = object()
_FOR_EVER = float("inf")


class Cache(_core.Store):
    """An inference cache: answers of models, in this process's memory.

    Args:
        capacity: bytes, or text with a unit ("512MB", "1.5GiB"); keys, values and overhead all count.
        ttl: how long an entry is fresh: seconds, a timedelta, "90s", "15m", "1h30m", "7d"; None: until evicted.
        namespace: tenant or application: enters every key, and tags belong to it.
        l2: a shared tier. This version has none yet: leave it None.
        l2_prefix: names one deployment: `[a-z0-9_-]+`.
        secret: 32 bytes: keys that nobody without them can compute.
        max_staleness: with a shared tier: a purge acknowledged anywhere is unseen by no process for longer.
        on_partition: with a shared tier: what "untagged" and "tagged" entries do when it is out of reach for longer
            than `max_staleness`: "serve" or "bypass".
        timeout: with a shared tier: budget of one of its operations.
        lease: with a shared tier: one computation per key across processes for so long.
        clock: time for tests and simulators: an `infercache.testing.ManualClock`.
        seed: seed of the hash table, for simulators; by default nobody can know it.

    Purges reach this process alone: where several processes each have a cache, each must be told.

    `INFERCACHE_DISABLED=1` in the environment when a cache is made turns its every look-up into a miss.

    Raises:
        InvalidArgument: an option's value is not acceptable; the text names it.
    """

    flights: _core.Flights
    warned: set[str]

    def __init__(
        self,
        capacity: Size = "512MB",
        *,
        ttl: Duration | None = "1h",
        namespace: str = "default",
        l2: None = None,
        l2_prefix: str = "ic",
        secret: bytes | None = None,
        max_staleness: Duration = "2s",
        on_partition: Mapping[str, str] = _PARTITION,
        timeout: Duration = "250ms",
        lease: Duration | None = None,
        clock: _core.ManualClock | None = None,
        seed: int | None = None,
    ) -> None:
        if l2 is not None:
            raise InvalidArgument(
                f"l2={l2!r}: the shared tier arrives with Redis support, which this version lacks; leave l2=None"
            )
        _check_text("namespace", namespace, _ANYTHING, "give text that is not empty")
        _check_text("l2_prefix", l2_prefix, _PREFIX, "use lower-case letters, digits, '_' and '-'")
        self.capacity = size(capacity, "capacity")
        if self.capacity < _LEAST_CAPACITY:
            raise InvalidArgument(f"capacity={capacity!r}: give at least 64KB, a few kilobytes of which are overhead")
        life = positive_milliseconds(ttl, "ttl")
        self.ttl = None if life is None else timedelta(milliseconds=life)
        self.namespace = namespace
        self.l2 = l2
        self.l2_prefix = l2_prefix
        self.max_staleness = timedelta(milliseconds=milliseconds(max_staleness, "max_staleness"))
        self.on_partition = _check_partition(on_partition)
        self.timeout = timedelta(milliseconds=milliseconds(timeout, "timeout"))
        self.lease = None if lease is None else timedelta(milliseconds=milliseconds(lease, "lease"))
        self.disabled = os.environ.get("INFERCACHE_DISABLED", "0") not in ("", "0")
        self.warned = set()
        self._secret = secret
        self._open(
            self.capacity,
            None if life is None else life / 1_000,
            namespace,
            secret,
            prefix=l2_prefix,
            seed=seed,
            clock=clock,
        )
        self.flights = _core.Flights(self)
        _caches.add(self)

    @says_why
    def memoize(
        self,
        *,
        model: Name,
        version: Name,
        operation: str | None = None,
        ttl: Duration | None = UNSET,
        tags: TagSource = (),
        stale_while_revalidate: Duration | None = None,
        stale_if_error: Duration | None = None,
        ignore: Iterable[str] = (),
        document: Callable[..., object] | None = None,
        store_if: Callable[[Any], object] | None = None,
        copy: bool = False,
    ) -> MemoizeDecorator:
        """Decorates a function, method or `async def` whose repeated calls are then answered from the cache.

        Args:
            model: the model's name, or a function of the call's arguments (by name) that returns it.
            version: the model's version, likewise. Both are part of every key.
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
        return memoized(
            self,
            Options(
                model=model,
                version=version,
                operation=operation,
                ttl=ttl,
                tags=tags,
                stale_while_revalidate=stale_while_revalidate,
                stale_if_error=stale_if_error,
                ignore=ignore if isinstance(ignore, str) else tuple(ignore),
                document=document,
                store_if=store_if,
                copy=copy,
            ),
        )

    @says_why
    def memoize_batch(
        self,
        *,
        over: str,
        max_batch: int | None = None,
        model: Name,
        version: Name,
        operation: str | None = None,
        ttl: Duration | None = UNSET,
        tags: TagSource = (),
        stale_while_revalidate: Duration | None = None,
        stale_if_error: Duration | None = None,
        ignore: Iterable[str] = (),
        document: Callable[..., object] | None = None,
        store_if: Callable[[Any], object] | None = None,
        copy: bool = False,
    ) -> BatchDecorator:
        """Decorates a function of many items, which is then called with the distinct unknown ones only.

        Each item has an entry of its own. The function returns one result for each item, in their order: a list, a
        tuple, or an array whose first axis is the items; the caller gets the same kind.

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
        return memoized_batch(
            self,
            Options(
                model=model,
                version=version,
                operation=operation,
                ttl=ttl,
                tags=tags,
                stale_while_revalidate=stale_while_revalidate,
                stale_if_error=stale_if_error,
                ignore=ignore if isinstance(ignore, str) else tuple(ignore),
                document=document,
                store_if=store_if,
                copy=copy,
            ),
            over,
            max_batch,
        )

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

    def lookup(self, key: Key, *, min_token: Token | None = None) -> Lookup[Any]:
        """The value under a key and what is known of it, stale ones included.

        `lookup.stamp` of a miss is for `set(key, value, since=lookup.stamp)`: a purge in between then wins. An entry
        that holds instances of a class which only a decorated function's annotation names is a miss, warned of once.
        """
        if min_token is not None:
            self._reach(min_token)
        now = Stamp(self._stamp())
        state, details = self._find(key, _FOR_EVER)
        if details is None:
            return Lookup(None, "miss", None, None, now)
        value, age, left, _past, _softly_purged, stamp = details
        if state == "stale":
            return Lookup(value, "stale", age, 0.0, now)
        return Lookup(value, "l1", age, left, Stamp(stamp))

    def _unreadable(self, error: CorruptValue) -> None:
        warn_unreadable(str(error), self.warned)

    def set(
        self,
        key: Key,
        value: object,
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
        since: Stamp | None = None,
    ) -> bool:
        """Stores a value; True if it can be found now.

        Args:
            key: where.
            value: what. A value that cannot be stored is warned of once and counted, never an error.
            ttl: how long it is fresh; by default the cache's, None: until evicted.
            tags: what a purge may name.
            since: the stamp of the look-up that missed. Without it the stamp is taken now, and a purge that came while
                the value was being computed is lost: the value may be of before it.
        """
        return self._set(key, value, self._life(ttl), check_tags(tags), since)

    def set_many(
        self,
        pairs: Mapping[Key, object] | Iterable[tuple[Key, object]],
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
        since: Stamp | None = None,
    ) -> int:
        """Stores many values as `set` does; how many can be found now."""
        life, tags = self._life(ttl), check_tags(tags)
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        return sum(self._set(key, value, life, tags, since) for key, value in items)

    def _life(self, ttl: Duration | None) -> float | None:
        life = positive_milliseconds(self.ttl if ttl is UNSET else ttl, "ttl")
        return None if life is None else life / 1_000

    def _set(self, key: Key, value: object, life: float | None, tags: list[str], since: Stamp | None) -> bool:
        if since is not None and not isinstance(since, Stamp):
            raise TypeError(f"since={since!r}: give the stamp of a look-up, lookup.stamp")
        if since is not None and since.word > self._stamp():
            raise InvalidArgument(f"since={since!r}: it is no stamp that a look-up of this cache gave")
        if self.disabled:
            return False
        stamp = None if since is None else since.word
        outcome, _, reason = self._store(key, value, life, tags=tags, stamp=stamp)
        if reason is not None:
            warn_uncacheable("Cache.set", reason, self.warned)
        return outcome == "kept"

    def delete(self, key: Key) -> bool:
        """Purges the value under a key, one that is being computed included; whether there was one."""
        return self._delete(key)

    def warm(self, keys: Iterable[Key]) -> int:
        """Brings values from the shared tier into memory; how many of the keys are there then."""
        return sum(key in self for key in keys)

    def get_or_compute(
        self,
        key: Key,
        compute: Callable[[], T],
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
    ) -> T:
        """The value under a key, computed, once whatever the number of callers, if there is none."""
        found = self.get(key, _MISSING)
        if found is _MISSING:
            found = drive(self._obtain(key, compute, ttl, tags, Mode(blocking=True)))
        value: T = found
        return value

    def _obtain(
        self, key: Key, compute_value: Callable[[], Any], ttl: Duration | None, tags: Iterable[str], mode: Mode
    ) -> Any:
        if mode.blocking and inspect.iscoroutinefunction(compute_value):
            raise TypeError(f"{compute_value!r} is a coroutine function: use aget_or_compute")
        policy = Policy(
            self,
            getattr(compute_value, "__qualname__", "get_or_compute"),
            _core.Terms(positive_milliseconds(self.ttl if ttl is UNSET else ttl, "ttl"), 0, None, False),
            Tags.fixed(check_tags(tags)),
        )
        request = Request(policy, key, compute_value, dict)
        return compute(request, self.flights.alone(key), None) if self.disabled else obtain(request, mode)

    def invalidate(
        self,
        *,
        tags: Iterable[str] | None = None,
        key: Key | None = None,
        model: str | None = None,
        version: str | None = None,
        all: bool = False,
        soft: bool = False,
    ) -> Token:
        """Purges entries, those being computed included: when it returns, every later look-up in this process knows.

        Several targets mean *or*: an entry goes if any of them is its.

        Args:
            tags: entries with one of these tags.
            key: the entry of this key.
            model: entries of this model in this cache's namespace.
            version: with `model`: of this version only.
            all: every entry of every cache of this process with this `l2_prefix` and secret (`clear` is for one).
            soft: mark stale instead of hiding: served while revalidated, and in place of an error.

        Raises:
            InvalidArgument: no target is given, or a version without a model.
        """
        checked = None if tags is None else check_tags(tags)
        if version is not None and model is None:
            raise InvalidArgument(f"version={version!r}: give the model whose version it is")
        if checked is None and key is None and model is None and not all:
            raise InvalidArgument("nothing to invalidate: give tags=, key=, model= or all=True")
        models, versions = None, None
        if model is not None:
            models, versions = ([model], None) if version is None else (None, [(model, version)])
        keys = None if key is None else [key]
        return Token(self._invalidate(tags=checked, keys=keys, models=models, versions=versions, all=all, soft=soft))

    def _purge(self, keys: Iterable[Key]) -> Token:
        return Token(self._invalidate(keys=list(keys)))

    def _reach(self, token: Token) -> None:
        """Makes sure that this process knows of the purge that gave `token`. Here it does when `invalidate` returns."""
        if not isinstance(token, Token):
            raise TypeError(f"min_token={token!r}: give what invalidate returned")
        if not self._knows(token.stamp):
            raise InvalidArgument(f"min_token={token!r}: it is of another deployment (l2_prefix, secret) or process")

    def _knows(self, word: int) -> bool:
        """Is this a moment that this cache's authority has seen?"""
        now = self._stamp()
        return word >> 48 == now >> 48 and word <= now

    def stats(self) -> Stats:
        """Counters and gauges."""
        return Stats(hits_l2=0, l2_errors=0, **self._stats())

    def clear(self) -> None:
        """Purges every entry, those being computed included, and gives the memory back."""
        self._clear()

    def close(self) -> None:
        """Empties the cache. One that is used afterwards begins anew."""
        self.clear()

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

    # Whatever may wait for the shared tier has an asynchronous form. Without one nothing waits.

    async def aget(self, key: Key, default: Any = None, *, min_token: Token | None = None) -> Any:
        """As `get`."""
        return self.get(key, default, min_token=min_token)

    async def aget_many(self, keys: Iterable[Key], default: Any = None, *, min_token: Token | None = None) -> list[Any]:
        """As `get_many`."""
        return self.get_many(keys, default, min_token=min_token)

    async def alookup(self, key: Key, *, min_token: Token | None = None) -> Lookup[Any]:
        """As `lookup`."""
        return self.lookup(key, min_token=min_token)

    async def aset(
        self,
        key: Key,
        value: object,
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
        since: Stamp | None = None,
    ) -> bool:
        """As `set`."""
        return self.set(key, value, ttl=ttl, tags=tags, since=since)

    async def aset_many(
        self,
        pairs: Mapping[Key, object] | Iterable[tuple[Key, object]],
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
        since: Stamp | None = None,
    ) -> int:
        """As `set_many`."""
        return self.set_many(pairs, ttl=ttl, tags=tags, since=since)

    async def adelete(self, key: Key) -> bool:
        """As `delete`."""
        return self.delete(key)

    async def awarm(self, keys: Iterable[Key]) -> int:
        """As `warm`."""
        return self.warm(keys)

    async def aget_or_compute(
        self,
        key: Key,
        compute: Callable[[], Awaitable[T]],
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
    ) -> T:
        """As `get_or_compute`; `compute` is a coroutine function."""
        found = self.get(key, _MISSING)
        if found is _MISSING:
            found = await drive_async(self._obtain(key, compute, ttl, tags, Mode(blocking=False)))
        value: T = found
        return value

    async def ainvalidate(
        self,
        *,
        tags: Iterable[str] | None = None,
        key: Key | None = None,
        model: str | None = None,
        version: str | None = None,
        all: bool = False,
        soft: bool = False,
    ) -> Token:
        """As `invalidate`."""
        return self.invalidate(tags=tags, key=key, model=model, version=version, all=all, soft=soft)

    async def aclear(self) -> None:
        """As `clear`."""
        self.clear()

    async def aclose(self) -> None:
        """As `close`."""
        self.close()

    def _begin_anew(self) -> None:
        """In the child of a fork: no entries, no flights."""
        self._after_fork()
        self.flights = _core.Flights(self)


def _check_text(name: str, given: object, pattern: re.Pattern[str], advice: str) -> None:
    if not isinstance(given, str) or not pattern.fullmatch(given):
        raise InvalidArgument(f"{name}={given!r}: {advice}")


def _check_partition(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or not set(given) <= set(_PARTITION):
        raise InvalidArgument(f"on_partition={given!r}: give what 'untagged' and 'tagged' entries do")
    for kind, does in given.items():
        if does not in ("serve", "bypass"):
            raise InvalidArgument(f"on_partition: {kind!r} entries {does!r}? They 'serve' or 'bypass'")
    return {**_PARTITION, **given}


_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def _after_fork() -> None:
    _core._forget_waits()
    for cache in list(_caches):
        cache._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
