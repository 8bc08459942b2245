"""A log replayed through caches of several sizes and lives: what each would have answered, and saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infercache import _core
from infercache._core import ManualClock, Store
from infercache.workload.sampling import bound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infercache.workload.log import Log

__all__ = ["Setting", "Trial", "outcomes", "tried"]

F64 = npt.NDArray[np.float64]

#: Requests that are replayed between two looks at signals and the progress bar.
_SLICE = 1 << 17
#: Bytes of a shard, and most shards, as the core has them (rust/core/src/cache.rs).
#: A sample's cache has its part of them.
_SHARD_BYTES, _MOST_SHARDS = 128 << 10, 256
#: Enough for anything: entries without their values are kept.
_UNBOUNDED = 1 << 46

#: What became of a request (rust/bindings/src/replay.rs); 0: missed, and stored.
HIT, REFUSED = 1, 2


@dataclass(frozen=True, slots=True)
class Setting:
    """A cache to be tried.

    Attributes:
        size: its capacity in bytes; None: it holds everything.
        ttl: seconds of an entry's life; None: until evicted.
        eviction: the name of what decides which entry has to go; None: the cache's default.
    """

    size: int | None
    ttl: float | None
    eviction: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """What a cache would have done with the log.

    Attributes:
        setting: the cache.
        hits: (groups,): requests that it would have answered.
        saved: (groups,): seconds that the model would not have worked.
        hits_bound: the number of hits of all groups is that, give or take this (see `sampling`); 0: it is exact.
        saved_bound: the same of the seconds saved.
        p50: what the model works for a request of the middle, in seconds; 0: it is a hit.
        p99: the same of the slowest of a hundred.
        refused: requests whose answer is larger than the cache.
        evictions: live entries that had to go for others.
        expirations: expired entries whose bytes came back.
        entries: entries held at the end.
        bytes: bytes held at the end.
    """

    setting: Setting
    hits: F64
    saved: F64
    hits_bound: float
    saved_bound: float
    p50: float
    p99: float
    refused: float
    evictions: float
    expirations: float
    entries: float
    bytes: float


def _opened(log: Log, setting: Setting, seed: int) -> tuple[Store, ManualClock]:
    """A cache for the log: of a sample, its part of the capacity and of the shards."""
    size = _UNBOUNDED if setting.size is None else setting.size
    capacity, shards = size, None
    if log.rate < 1.0 and setting.size is not None:
        capacity = max(1, round(size * log.rate))
        whole = min(max(size // _SHARD_BYTES, 1), _MOST_SHARDS)
        if setting.eviction == "cost":
            whole = 1 << whole.bit_length() - 1
        shards = 1 << max(0, round(np.log2(whole * log.rate)))
    store, clock = Store(), ManualClock()
    eviction = setting.eviction or _core.EVICTIONS[0]
    store._open(capacity, setting.ttl, "simulate", seed=seed, clock=clock, shards=shards, eviction=eviction)
    return store, clock


def outcomes(
    log: Log, store: Store, clock: ManualClock, *, hollow: bool = False, advance: Callable[[int], None] = lambda _: None
) -> npt.NDArray[np.uint8]:
    """(n,): for each request of the log 1 if the cache had the answer, 0 if not, 2 if it could not keep it either.

    Args:
        log: what is asked for.
        store: a cache, which is left as it is at the end of the log.
        clock: the cache's.
        hollow: answers without bytes, so that only their number takes memory.
        advance: told how many more requests were replayed.
    """
    names = [group.model for group in log.groups]
    sizes = np.zeros_like(log.sizes) if hollow else log.sizes
    found = []
    for start in range(0, len(log.asked), _SLICE):
        part = slice(start, start + _SLICE)
        done = _core._replay(
            store,
            clock,
            log.keys,
            names,
            log.asked[part],
            log.times[part],
            sizes[part],
            log.costs[part],
            log.models[part],
        )
        found.append(np.frombuffer(done, dtype=np.uint8))
        advance(len(done))
    return np.concatenate(found) if found else np.zeros(0, np.uint8)


def _ranked(costs: npt.NDArray[np.float32], log: Log, share: float) -> float:
    """What the model works for the request than which `share` of all are no slower; these are the costs of the sample's
    misses, and all others are hits.
    """
    slower = int((1.0 - share) * float(log.requests.sum()) * log.rate)
    if slower >= len(costs):
        return 0.0
    place = len(costs) - 1 - slower
    return float(np.partition(costs, place)[place])


def tried(
    log: Log, setting: Setting, *, seed: int, parts: Sequence[Log] = (), advance: Callable[[int], None] = lambda _: None
) -> Trial:
    """Replays the log through a cache of this setting; and the parts of a sample, which tell how sure it is."""
    store, clock = _opened(log, setting, seed)
    found = outcomes(log, store, clock, hollow=setting.size is None, advance=advance)
    stats = store._stats()
    missed = found != HIT
    rate, count = log.rate, len(log.groups)
    models, costs, asked = log.models[missed], log.costs[missed], log.asked[missed]
    misses = np.bincount(models, minlength=count) / rate
    worked = np.bincount(models, weights=costs, minlength=count) / rate
    hits_bound = saved_bound = 0.0
    if parts:
        of_parts = [_missed(part, setting, seed, advance) for part in parts]
        by_key = np.bincount(asked, minlength=len(log.keys)), np.bincount(asked, costs, minlength=len(log.keys))
        hits_bound = bound(by_key[0], [requests for requests, _ in of_parts], rate)
        saved_bound = bound(by_key[1], [seconds for _, seconds in of_parts], rate)
    return Trial(
        setting=setting,
        hits=np.maximum(log.requests - misses, 0.0),
        saved=np.maximum(log.seconds - worked, 0.0),
        hits_bound=hits_bound,
        saved_bound=saved_bound,
        p50=_ranked(costs, log, 0.50),
        p99=_ranked(costs, log, 0.99),
        refused=int((found == REFUSED).sum()) / rate,
        evictions=stats["evictions"] / rate,
        expirations=stats["expirations"] / rate,
        entries=stats["entries"] / rate,
        bytes=stats["bytes"] / rate,
    )


def _missed(part: Log, setting: Setting, seed: int, advance: Callable[[int], None]) -> tuple[float, float]:
    """Requests that the whole log misses, and seconds that the model works for them, by a part of the sample alone."""
    store, clock = _opened(part, setting, seed)
    missed = outcomes(part, store, clock, hollow=setting.size is None, advance=advance) != HIT
    return float(missed.sum()) / part.rate, float(part.costs[missed].sum(dtype=np.float64)) / part.rate
