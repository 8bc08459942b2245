"""Entries by their keys: looked up, stored, computed, purged. `Cache` adds the options, the decorators and the keys."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from infercache import _core
from infercache.durations import Duration, positive_milliseconds
from infercache.effects import MISSING, Failure, Mode, Steps, arrived, drive, drive_async
from infercache.errors import CorruptValue, InvalidArgument, shown
from infercache.flights import Policy, Request, compute, obtain
from infercache.functions import UNSET, check_encodable
from infercache.lookup import Lookup, Stamp, Token
from infercache.tags import Tags, check_tags
from infercache.uncacheable import warn_uncacheable, warn_unreadable

if TYPE_CHECKING:
    from infercache._core import Key
    from infercache.shared import Shared
    from infercache.tiers import Command

__all__ = ["Entries"]

T = TypeVar("T")

_FOR_EVER = float("inf")
#: The same in milliseconds.
_ALWAYS = 2**64 - 1
#: Of the one value of a look-up.
_ALONE = _core.Places([(0, 0)])


class Entries(_core.Store):
    """What a cache does with entries, given their keys."""

    disabled: bool
    flights: _core.Flights
    shared: Shared | None
    ttl: timedelta | None
    warned: set[str]

    def lookup(self, key: Key, *, min_token: Token | None = None) -> Lookup[Any]:
        """The value under a key and what is known of it, stale ones included.

        `lookup.stamp` of a miss is for `set(key, value, since=lookup.stamp)`: a purge in between then wins. An entry
        that holds instances of a class which only a decorated function's annotation names is a miss, warned of once.
        """
        found: Lookup[Any] = drive(self._lookup_steps(key, min_token))
        return found

    def _lookup_steps(self, key: Key, min_token: Token | None) -> Steps:
        now = Stamp(self._stamp())
        budget = self._reading()
        if min_token is not None:
            known = yield from self._reach_steps(min_token, budget)
            if known is not True:
                return known if type(known) is Failure else Lookup(None, "miss", None, None, now)
            now = Stamp(self._stamp())
        found = self._lookup_near(key, now)
        if found.source in ("l1", "stale") or self.shared is None or self.disabled:
            return found
        fetched = yield from self.shared.fetch([key], window=_ALWAYS, budget=budget)
        if type(fetched) is Failure:
            return fetched
        # Whoever now computes the value begins after this moment; before the first question no stamp was known at all.
        now = Stamp(self._stamp())
        if fetched[0] is None:
            return replace(found, stamp=now)
        entry, source = fetched[0]
        again = self._lookup_near(key, now, promoted=(entry, source))
        return replace(again, source=source) if again.source == "l1" else again

    def _lookup_near(self, key: Key, now: Stamp, *, promoted: tuple[_core.Entry, str] | None = None) -> Lookup[Any]:
        state, details = self._find(key, _FOR_EVER, promoted is None)
        if state == "unreadable" and promoted is not None:
            self.shared.unreadable(*promoted)  # type: ignore[union-attr]
        if details is None:
            return Lookup(None, "miss", None, None, now)
        value, age, left, _past, _softly_purged, stamp, _cost = details
        if state == "stale":
            return Lookup(value, "stale", age, 0.0, now)
        return Lookup(value, "l1", age, left, Stamp(stamp))

    def _get_shared(self, key: Key, default: Any, budget: Any) -> Any:
        """What the shared tier has for a key that memory missed."""
        return drive(self._fetch_steps(key, default, budget))

    def _fetch_steps(self, key: Key, default: Any, budget: Any) -> Steps:
        values = [default]
        interrupted = yield from self._fetch_many_steps(values, [key], _ALONE, budget)
        return values[0] if interrupted is None else interrupted

    def _get_many_shared(self, values: list[Any], missing: list[Key], places: _core.Places, budget: Any) -> None:
        """Fills in what the shared tier has of the keys that memory missed."""
        drive(self._fetch_many_steps(values, missing, places, budget))

    def _fetch_many_steps(self, values: list[Any], missing: list[Key], places: _core.Places, budget: Any) -> Steps:
        """Puts what is found of keys into their places among the values; a `Failure` if it was interrupted."""
        if self.shared is None or self.disabled or not missing:
            return None
        fetched = yield from self.shared.fetch(missing, budget=budget)
        if type(fetched) is Failure:
            return fetched
        self.shared.note_unreadable(_core.tier_fill(self, values, places, fetched))
        return None

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
        stored: int = drive(self._set_steps([(key, value)], self._kept(ttl, tags), since))
        return stored == 1

    def set_many(
        self,
        pairs: Mapping[Key, object] | Iterable[tuple[Key, object]],
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
        since: Stamp | None = None,
    ) -> int:
        """Stores many values as `set` does; how many can be found now."""
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        stored: int = drive(self._set_steps(items, self._kept(ttl, tags), since))
        return stored

    def _kept(self, ttl: Duration | None, tags: Iterable[str]) -> tuple[int | None, list[str]]:
        """For how many milliseconds and under which tags an entry is kept, checked."""
        return positive_milliseconds(self.ttl if ttl is UNSET else ttl, "ttl"), check_tags(tags)

    def _set_steps(
        self, pairs: Iterable[tuple[Key, object]], kept: tuple[int | None, list[str]], since: Stamp | None
    ) -> Steps:
        """Stores values; how many can be found now."""
        told: list[Command] = []
        budget: Any = None if self.shared is None else self.shared.budget()
        if self.shared is not None and since is None and not self.disabled:
            interrupted = yield from self.shared.know(budget)
            if interrupted is not None:
                return interrupted
        count = sum([self._set(key, value, kept, since, told) for key, value in pairs])
        if self.shared is not None:
            interrupted = yield from self.shared.publish(told, budget)
            if interrupted is not None:
                return interrupted
        return count

    def _set(
        self,
        key: Key,
        value: object,
        kept: tuple[int | None, list[str]],
        since: Stamp | None,
        told: list[Command],
    ) -> bool:
        """Stores a value in memory; what the shared tier is to be told is added to `told`."""
        life, tags = kept
        if since is not None and not isinstance(since, Stamp):
            raise TypeError(f"since={shown(since)}: give the stamp of a look-up, lookup.stamp")
        if since is not None and since.word > self._stamp():
            raise InvalidArgument(f"since={shown(since)}: it is no stamp that a look-up of this cache gave")
        if self.disabled:
            return False
        stamp = None if since is None else since.word
        seconds = None if life is None else life / 1_000
        outcome, reason, entry = self._store(key, value, seconds, tags=tags, stamp=stamp)
        if reason is not None:
            warn_uncacheable("Cache.set", reason, self.warned)
        # What cannot be kept leaves nothing older in its place.
        removed = outcome in ("refused", "unstorable") and self._remove(key)
        if self.shared is not None and entry is not None:
            told += self.shared.stored(key, entry, _core.Terms(life, 0, None, False))
        elif self.shared is not None and removed:
            told += self.shared.removal([key])
        return outcome == "kept"

    def delete(self, key: Key) -> bool:
        """Purges the value under a key, one that is being computed included; whether memory had one."""
        there: bool = drive(self._delete_steps(key))
        return there

    def _delete_steps(self, key: Key) -> Steps:
        there = self._remove(key)
        members = self._members(keys=[key])
        if self.shared is None:
            self._invalidate(members)
            return there
        token = yield from self.shared.purge(members, also=self.shared.removal([key]))
        return token if type(token) is Failure else there

    def warm(self, keys: Iterable[Key]) -> int:
        """Brings values from the shared tier into memory, in one round trip; how many of the keys are there then."""
        warmed: int = drive(self._warm_steps(list(keys)))
        return warmed

    def _warm_steps(self, keys: list[Key]) -> Steps:
        missing = [key for key in dict.fromkeys(keys) if key not in self]
        if self.shared is not None and missing and not self.disabled:
            fetched = yield from self.shared.fetch(missing, counted=False)
            if type(fetched) is Failure:
                return fetched
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
        found = self._get_near(key, MISSING)
        if found is MISSING:
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
        durable: int = 0,
    ) -> Token:
        """Purges entries, those being computed included: when it returns, every later look-up in this process knows.

        With a shared tier no look-up in any other process serves them once `max_staleness` has passed, and reads with
        `min_token=` what this returns know at once. Several targets mean *or*: an entry goes if any of them is its.

        Args:
            tags: entries with one of these tags.
            key: the entry of this key.
            model: entries of this model in this cache's namespace.
            version: with `model`: of this version only.
            all: every entry of every cache with this `l2_prefix` and secret: of this process, or, with a shared tier,
                of every process that shares it (`clear` is for one namespace).
            soft: mark stale instead of hiding: served while revalidated, and in place of an error.
            durable: with a shared tier: so many of its primary's replicas (True: one) must have it before this returns.

        Raises:
            InvalidArgument: no target is given, or a version without a model.
            PurgeFailed: the shared tier could not be told, or not for sure; the text says which. The purge holds in
                this process all the same.
        """
        members = self._targets(tags, key, model, version, all, soft)
        token: Token = drive(self._purge_steps(members, _replicas(durable)))
        return token

    def _targets(
        self,
        tags: Iterable[str] | None,
        key: Key | None,
        model: str | None,
        version: str | None,
        all: bool,
        soft: bool,
    ) -> list[bytes]:
        """What a purge names, checked, as members of the authority's set."""
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
        return self._members(tags=checked, keys=keys, models=models, versions=versions, all=all, soft=soft)

    def _purge(self, keys: Iterable[Key]) -> Token:
        token: Token = drive(self._purge_steps(self._members(keys=list(keys))))
        return token

    async def _apurge(self, keys: Iterable[Key]) -> Token:
        keys = list(keys)
        await arrived(keys)
        token: Token = await drive_async(self._purge_steps(self._members(keys=list(keys))))
        return token

    def _purge_steps(self, members: list[bytes], durable: int = 0) -> Steps:
        if self.shared is None:
            return self._token(self._invalidate(members))
        return (yield from self.shared.purge(members, replicas=durable))

    def _token(self, word: int) -> Token:
        epoch, lsn = self._position(word) or (b"", 0)
        return Token(epoch, lsn)

    def token(self) -> Token:
        """A moment for a request to another process that caches, too, so that what comes of its answer can be stored.

        Within a memoized function it is the moment of the computation's stamp, otherwise now. The other process reads
        with `min_token=`, so that what it answers from memory is no older than what this process knows. Without a
        shared tier no other process understands it.
        """
        return self._token(self._stamp_of_computation())

    def _reach(self, token: Token) -> tuple[bool, Any]:
        """Makes sure that this process knows of the purge that gave `token`; False: it could not find out.

        With it comes what is left of the budget for the rest of the read.
        """
        budget = self._reading()
        return drive(self._reach_steps(token, budget)), budget

    def _reading(self) -> Any:
        """What a read may spend waiting for the shared tier, if there is one."""
        return None if self.shared is None else self.shared.reading()

    def _reach_steps(self, token: Token, budget: Any) -> Steps:
        if not isinstance(token, Token):
            return Failure(TypeError(f"min_token={shown(token)}: give what invalidate returned"))
        if self.shared is not None:
            return (yield from self.shared.reach(token, budget))
        word = self._stamp_at(token.epoch, token.lsn) if len(token.epoch) == 16 else None
        if word is None or word > self._stamp():
            return Failure(
                InvalidArgument(f"min_token={shown(token)}: it is of another deployment (l2_prefix, secret) or process")
            )
        return True

    # Whatever may wait for the shared tier has an asynchronous form.

    async def aget(self, key: Key, default: Any = None, *, min_token: Token | None = None) -> Any:
        """As `get`."""
        if _core._is_open(key):
            await arrived((key,))
        budget = None if min_token is None else self._reading()
        if min_token is not None and not await drive_async(self._reach_steps(min_token, budget)):
            return default
        found = self._get_near(key, MISSING)
        return await drive_async(self._fetch_steps(key, default, budget)) if found is MISSING else found

    async def aget_many(self, keys: Iterable[Key], default: Any = None, *, min_token: Token | None = None) -> list[Any]:
        """As `get_many`."""
        keys = list(keys)
        await arrived(keys)
        budget = None if min_token is None else self._reading()
        known = min_token is None or await drive_async(self._reach_steps(min_token, budget))
        values, missing, places = self._get_many_near(keys, default, known)
        if known:
            await drive_async(self._fetch_many_steps(values, missing, places, budget))
        return values

    async def alookup(self, key: Key, *, min_token: Token | None = None) -> Lookup[Any]:
        """As `lookup`."""
        if _core._is_open(key):
            await arrived((key,))
        found: Lookup[Any] = await drive_async(self._lookup_steps(key, min_token))
        return found

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
        if _core._is_open(key):
            await arrived((key,))
        stored: int = await drive_async(self._set_steps([(key, value)], self._kept(ttl, tags), since))
        return stored == 1

    async def aset_many(
        self,
        pairs: Mapping[Key, object] | Iterable[tuple[Key, object]],
        *,
        ttl: Duration | None = UNSET,
        tags: Iterable[str] = (),
        since: Stamp | None = None,
    ) -> int:
        """As `set_many`."""
        items = list(pairs.items() if isinstance(pairs, Mapping) else pairs)
        await arrived(key for pair in items if isinstance(pair, tuple | list) for key in pair[:1])
        stored: int = await drive_async(self._set_steps(items, self._kept(ttl, tags), since))
        return stored

    async def adelete(self, key: Key) -> bool:
        """As `delete`."""
        if _core._is_open(key):
            await arrived((key,))
        there: bool = await drive_async(self._delete_steps(key))
        return there

    async def awarm(self, keys: Iterable[Key]) -> int:
        """As `warm`."""
        keys = list(keys)
        await arrived(keys)
        warmed: int = await drive_async(self._warm_steps(keys))
        return warmed

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
        if _core._is_open(key):
            await arrived((key,))
        found = self._get_near(key, MISSING)
        if found is MISSING:
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
        durable: int = 0,
    ) -> Token:
        """As `invalidate`."""
        if _core._is_open(key):
            await arrived((key,))
        members = self._targets(tags, key, model, version, all, soft)
        token: Token = await drive_async(self._purge_steps(members, _replicas(durable)))
        return token


def _replicas(durable: object) -> int:
    """How many replicas must have a purge; True: one."""
    if not isinstance(durable, int) or durable < 0:
        raise InvalidArgument(
            f"durable={shown(durable)}: give how many of the server's replicas must have it; True: one"
        )
    return int(durable)


def _check_name(name: str, given: object) -> None:
    if not isinstance(given, str):
        raise InvalidArgument(f"{name}={shown(given)}: give text, the {name} that keys name")
    check_encodable(name, given)
