"""What decides which entry goes: ours, libcachesim's, and a slow reference that knows cost.

Each is asked for the same requests, and stores what it does not have. All are charged what ours takes for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infercache import _core
from infercache._core import ManualClock, Store

if TYPE_CHECKING:
    from mixtures import Workload

__all__ = ["PEERS", "Outcome", "capacity", "gdsf_of_cost", "ours", "theirs"]

Hits = npt.NDArray[np.bool_]

#: libcachesim's classes.
PEERS = {"LRU": "LRU", "SIEVE": "Sieve", "S3-FIFO": "S3FIFO", "W-TinyLFU": "WTinyLFU", "GDSF": "GDSF"}
#: What our index, queues and fingerprints take beside an entry, on the average of the mixtures.
_ARRAYS = 24


class Outcome(NamedTuple):
    """What a policy came to, in percent."""

    hits: float
    """Requests that were answered."""
    saved: float
    """Model time that was not spent, of what is spent without a cache."""


def _outcome(workload: Workload, hits: Hits) -> Outcome:
    seconds = workload.seconds[workload.asked]
    return Outcome(float(100 * hits.mean()), float(100 * seconds[hits].sum() / seconds.sum()))


def _charged(workload: Workload) -> npt.NDArray[np.int64]:
    """(k,): bytes of each entry: header and payload in steps of 16 (rust/core/src/entry.rs), its part of the arrays."""
    return (64 + workload.bytes + 15) // 16 * 16 + _ARRAYS


def capacity(workload: Workload, percent: int) -> int:
    """So much of what all different answers take together, in bytes."""
    return int(_charged(workload)[np.unique(workload.asked)].sum()) * percent // 100


def ours(workload: Workload, size: int, eviction: str, shards: int | None = 1, seed: int = 7) -> Outcome:
    """The real cache. One shard unless said otherwise: those of so small a cache hold a few dozen entries each."""
    store, clock = Store(), ManualClock()
    store._open(size, None, "default", seed=seed, clock=clock, shards=shards, eviction=eviction)
    count = len(workload.asked)
    keys = np.frombuffer(
        b"".join(_core.key(n, model="m", version="1").__bytes__() for n in range(len(workload.bytes))), np.uint8
    )
    became = _core._replay(
        store,
        clock,
        keys.reshape(-1, 32),
        ["m"],
        workload.asked.astype(np.uint32),
        np.zeros(count, np.uint64),
        workload.bytes[workload.asked].astype(np.uint64),
        workload.seconds[workload.asked].astype(np.float32),
        np.zeros(count, np.uint16),
    )
    return _outcome(workload, np.frombuffer(became, np.uint8) == 1)


def theirs(workload: Workload, size: int, name: str) -> Outcome:
    """The policy of libcachesim of this name (a key of `PEERS`)."""
    import libcachesim

    cache = getattr(libcachesim, PEERS[name])(cache_size=size, hashpower=17)
    request = libcachesim.Request()
    get: Callable[[Any], bool] = cache.get
    charged = _charged(workload).tolist()
    hits = []
    for number in workload.asked.tolist():
        request.obj_id, request.obj_size = number, charged[number]
        hits.append(get(request))
    return _outcome(workload, np.array(hits))


def gdsf_of_cost(workload: Workload, size: int) -> Outcome:
    """GreedyDual-Size-Frequency (L. Cherkasova, 1998) with the true cost, unlimited counts and an exact order.

    An entry's priority is `level + uses × seconds ÷ bytes`; the least goes, and the level rises to its priority.
    """
    charged = _charged(workload).tolist()
    worth = (workload.seconds / _charged(workload)).tolist()
    uses: dict[int, int] = {}
    priorities: dict[int, float] = {}
    order: list[tuple[float, int, int]] = []
    level, held, hits = 0.0, 0, []
    for turn, number in enumerate(workload.asked.tolist()):
        found = number in uses
        hits.append(found)
        if not found:
            if charged[number] > size:
                continue
            while held + charged[number] > size:
                priority, _, victim = heapq.heappop(order)
                if priorities.get(victim) == priority:
                    level = priority
                    held -= charged[victim]
                    del uses[victim], priorities[victim]
            held += charged[number]
        uses[number] = uses.get(number, 0) + 1
        priorities[number] = level + uses[number] * worth[number]
        heapq.heappush(order, (priorities[number], turn, number))
    return _outcome(workload, np.array(hits))
