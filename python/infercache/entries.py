"""Entries by their keys: looked up, stored, computed, purged. `Cache` adds the options, the decorators and the keys."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from infercache import _core
from infercache.durations import Duration, positive_milliseconds
from infercache.errors import CorruptValue, InvalidArgument, shown
from infercache.flights import Mode, Policy, Request, compute, drive, drive_async, obtain
from infercache.functions import UNSET, check_encodable
from infercache.lookup import Lookup, Stamp, Token
from infercache.tags import Tags, check_tags
from infercache.uncacheable import warn_uncacheable, warn_unreadable

if TYPE_CHECKING:
    from infercache._core import Key

__all__ = ["Entries"]

T = TypeVar("T")

_MISSING: Any = object()
_FOR_EVER = float("inf")


class Entries(_core.Store):
    """What a cache does with entries, given their keys."""

    disabled: bool
    flights: _core.Flights
    ttl: timedelta | None
    warned: set[str]

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
        return self._set(key, value, self._kept(ttl, tags), since)

    def set_many(
        self,
        pairs: Mapping[Key, object] | Iterable[tuple[Key, object]],
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
        since: Stamp | None = None,
    ) -> int:
        """Stores many values as `set` does; how many can be found now."""
        kept = self._kept(ttl, tags)
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        return sum(self._set(key, value, kept, since) for key, value in items)

    def _kept(self, ttl: Duration | None, tags: Iterable[str]) -> tuple[int | None, list[str]]:
        """For how many milliseconds and under which tags an entry is kept, checked."""
        return positive_milliseconds(self.ttl if ttl is UNSET else ttl, "ttl"), check_tags(tags)

    def _set(self, key: Key, value: object, kept: tuple[int | None, list[str]], since: Stamp | None) -> bool:
        life, tags = kept
        if since is not None and not isinstance(since, Stamp):
            raise TypeError(f"since={shown(since)}: give the stamp of a look-up, lookup.stamp")
        if since is not None and since.word > self._stamp():
            raise InvalidArgument(f"since={shown(since)}: it is no stamp that a look-up of this cache gave")
        if self.disabled:
            return False
        stamp = None if since is None else since.word
        seconds = None if life is None else life / 1_000
        outcome, reason = self._store(key, value, seconds, tags=tags, stamp=stamp)
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
        kept = self._kept(ttl, tags)
        found = self.get(key, _MISSING)
        if found is _MISSING:
            found = drive(self._obtain(key, compute, kept, Mode(blocking=True)))
        value: T = found
        return value

    def _obtain(
        self, key: Key, compute_value: Callable[[], Any], kept: tuple[int | None, list[str]], mode: Mode
    ) -> Any:
        life, tags = kept
        if mode.blocking and inspect.iscoroutinefunction(compute_value):
            raise TypeError(f"{compute_value!r} is a coroutine function: use aget_or_compute")
        policy = Policy(
            self,
            getattr(compute_value, "__qualname__", "get_or_compute"),
            _core.Terms(life, 0, None, False),
            Tags.fixed(tags),
        )
        request = Request(policy, key, compute_value, dict)
        return compute(request, self.flights.alone(key, None), None) if self.disabled else obtain(request, mode)

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
        for name, given in (("model", model), ("version", version)):
            if given is not None:
                _check_name(name, given)
        if version is not None and model is None:
            raise InvalidArgument(f"version={shown(version)}: give the model whose version it is")
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
            raise TypeError(f"min_token={shown(token)}: give what invalidate returned")
        if not self._knows(token.stamp):
            raise InvalidArgument(
                f"min_token={shown(token)}: it is of another deployment (l2_prefix, secret) or process"
            )

    def _knows(self, word: int) -> bool:
        """Is this a moment that this cache's authority has seen?"""
        now = self._stamp()
        return word >> 48 == now >> 48 and word <= now

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
        kept = self._kept(ttl, tags)
        found = self.get(key, _MISSING)
        if found is _MISSING:
            found = await drive_async(self._obtain(key, compute, kept, Mode(blocking=False)))
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


def _check_name(name: str, given: object) -> None:
    if not isinstance(given, str):
        raise InvalidArgument(f"{name}={shown(given)}: give text, the {name} that keys name")
    check_encodable(name, given)
