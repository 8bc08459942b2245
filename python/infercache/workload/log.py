"""A log, or a sample of it, as arrays: each key once, requests in the order of their times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infercache.errors import InvalidArgument
from infercache.workload.sampling import PARTS, hashes, part_of, threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from infercache.workload.requests import Batch, Group, Groups

__all__ = ["Collector", "Defaults", "Log"]

F64 = npt.NDArray[np.float64]

#: Requests that are kept where nobody says how many: what is replayed dozens of times takes some seconds each.
MOST_KEPT = 4_000_000
#: Costs that are kept of all requests, for the times without a cache.
_COSTS_KEPT = 1 << 19
#: A clock of milliseconds in 40 bits.
_LONGEST = 34 * 365.25 * 86_400
#: Bytes of an entry beside its value: a header of 64, the index, the queues.
_HEADER, _GRAIN, _BESIDE = 64, 16, 16


@dataclass(frozen=True, slots=True)
class Defaults:
    """What lines that do not say it are taken to have, by model; "": every other model.

    Attributes:
        sizes: bytes of an answer.
        costs: seconds that the model takes.
    """

    sizes: dict[str, float]
    costs: dict[str, float]


#: Of an answer whose size nobody says: an embedding of 384 binary32.
ASSUMED_BYTES = 1536.0


@dataclass(slots=True)
class Log:
    """Requests to be replayed, and what is known of all that the logs held.

    Attributes:
        groups: whose requests there are.
        rate: the part of the keys that is here; 1: all.
        keys: (k, 32), uint8: the different keys that are here.
        asked: (n,), uint32: which of them each request asks for.
        times: (n,), uint64: milliseconds since the first request of all, ascending; all 0 if `has_times` is false.
        sizes: (n,), uint64: bytes of the answer.
        costs: (n,), float32: seconds that the model takes; 0 where nobody knows.
        models: (n,), uint16: numbers of `groups`.
        has_times: whether the log says when.
        has_costs: whether anything says what a run of a model takes.
        requests: (groups,), int64: requests of all, those that are not here included.
        seconds: (groups,), float64: what the model would take for them.
        span: seconds from the first to the last.
        without: (c,), float64: what the model takes, for requests taken evenly from all.
        without_models: (c,), uint16: their groups.
        said_sizes: the part of the requests whose line says the size.
        said_costs: the same of the cost.
    """

    groups: list[Group]
    rate: float
    keys: npt.NDArray[np.uint8]
    asked: npt.NDArray[np.uint32]
    times: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint64]
    costs: npt.NDArray[np.float32]
    models: npt.NDArray[np.uint16]
    has_times: bool
    has_costs: bool
    requests: npt.NDArray[np.int64]
    seconds: F64
    span: float
    without: F64
    without_models: npt.NDArray[np.uint16]
    said_sizes: float
    said_costs: float

    @property
    def different(self) -> float:
        """How many different keys all requests have, about."""
        return len(self.keys) / self.rate

    @property
    def different_bytes(self) -> float:
        """What a cache that holds an answer to each of them would count, about."""
        sizes = np.zeros(len(self.keys))
        sizes[self.asked] = self.sizes
        entries = np.ceil((_HEADER + sizes) / _GRAIN) * _GRAIN + _BESIDE
        return float(entries.sum()) / self.rate

    def parts(self, seed: int) -> list[Log]:
        """The log of a sample parted by its keys: each part is a sample of a smaller rate, from the same requests."""
        numbers = part_of(self.keys, seed)
        found = []
        for number in range(PARTS):
            stays = numbers == number
            renumbered = np.cumsum(stays, dtype=np.uint32) - np.uint32(1)
            keep = stays[self.asked]
            found.append(
                replace(
                    self,
                    rate=self.rate / PARTS,
                    keys=np.ascontiguousarray(self.keys[stays]),
                    asked=renumbered[self.asked[keep]],
                    **{name: getattr(self, name)[keep] for name in ("times", "sizes", "costs", "models")},
                )
            )
        return found

    def popularity(self) -> npt.NDArray[np.int64]:
        """(k,): how often each key that is here is asked for, the most popular first."""
        return np.sort(np.bincount(self.asked, minlength=len(self.keys)))[::-1]


class _Keys:
    """Numbers keys in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}

    def number(self, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
        """(n,): the number of each row of (n, 32)."""
        raw, known = keys.tobytes(), self.numbers
        each = (known.setdefault(raw[at : at + 32], len(known)) for at in range(0, len(raw), 32))
        return np.fromiter(each, dtype=np.uint32, count=len(keys))

    def matrix(self) -> npt.NDArray[np.uint8]:
        """(k, 32): the keys by number."""
        return np.frombuffer(b"".join(self.numbers), dtype=np.uint8).reshape(-1, 32)


class Collector:
    """Takes the requests of logs, keeps those of the sample, and counts all.

    Args:
        groups: the numbers of models and workloads.
        rate: the part of the keys to keep; None: all, until they are more than `most`; then half of them, and so on.
        seed: of the sample.
        most: requests kept if no rate is given.
        pace: the time of the n-th request of a log, in seconds, for logs without times; None: they have none.
    """

    def __init__(
        self,
        groups: Groups,
        *,
        rate: float | None,
        seed: int = 0,
        most: int = MOST_KEPT,
        pace: Callable[[F64], F64] | None = None,
    ) -> None:
        self._groups = groups
        self._fixed = rate is not None
        self._rate = 1.0 if rate is None else rate
        self._seed = seed
        self._most = most
        self._pace = pace
        self._keys = _Keys()
        self._kept: list[tuple[npt.NDArray[np.generic], ...]] = []
        self._count = 0
        self._timed: bool | None = None
        self._requests = np.zeros(0, dtype=np.int64)
        #: By group: how many lines say the size, and their sum; the same of the cost.
        self._said = np.zeros((0, 4))
        self._first, self._last = np.inf, -np.inf
        self._stride = 1
        self._costs: list[tuple[F64, npt.NDArray[np.uint16]]] = []
        self.kept = 0

    @property
    def count(self) -> int:
        """Requests so far."""
        return self._count

    def add(self, batch: Batch, number: int) -> None:
        """Takes requests of one log; `number`: how many of this log came before.

        Raises:
            InvalidArgument: this log has times and another has none.
        """
        count = len(batch)
        if not count:
            return
        times = self._times(batch, number)
        self._note(batch, times)
        keys, columns = batch.keys, (batch.groups, times, batch.sizes, batch.costs.astype(np.float32))
        if self._rate < 1.0:
            keep = hashes(keys, self._seed) < threshold(self._rate)
            keys, columns = keys[keep], tuple(column[keep] for column in columns)  # type: ignore[assignment]
        self._kept.append((self._keys.number(keys), *columns))
        self.kept += len(keys)
        while not self._fixed and self.kept > self._most:
            self.halve()

    def _times(self, batch: Batch, number: int) -> F64:
        timed = batch.times is not None
        if self._timed is None:
            self._timed = timed
        if timed != self._timed:
            raise InvalidArgument(
                "one log has times and another has none, so their order is unknown: simulate them one by one, or give "
                "those without times some"
            )
        if batch.times is not None:
            return batch.times
        places = np.arange(number, number + len(batch), dtype=np.float64)
        return places if self._pace is None else self._pace(places)

    def _note(self, batch: Batch, times: F64) -> None:
        """Counts what is counted of all requests."""
        groups, most = batch.groups, int(batch.groups.max()) + 1
        if most > len(self._requests):
            self._requests = np.pad(self._requests, (0, most - len(self._requests)))
            self._said = np.pad(self._said, ((0, most - len(self._said)), (0, 0)))
        self._requests += np.bincount(groups, minlength=len(self._requests))
        for column, values in ((0, batch.sizes), (2, batch.costs)):
            there = ~np.isnan(values)
            chosen = groups[there]
            self._said[:, column] += np.bincount(chosen, minlength=len(self._said))
            self._said[:, column + 1] += np.bincount(chosen, weights=values[there], minlength=len(self._said))
        self._first, self._last = min(self._first, float(times.min())), max(self._last, float(times.max()))
        self._count += len(batch)
        self._take_costs(batch)

    def _take_costs(self, batch: Batch) -> None:
        """Every `stride`-th cost of all, so that there are never too many."""
        start = -(self._count - len(batch)) % self._stride
        self._costs.append((batch.costs[start :: self._stride], batch.groups[start :: self._stride]))
        if sum(len(costs) for costs, _ in self._costs) > 2 * _COSTS_KEPT:
            costs = np.concatenate([costs for costs, _ in self._costs])
            groups = np.concatenate([groups for _, groups in self._costs])
            self._costs = [(costs[::2], groups[::2])]
            self._stride *= 2

    def halve(self) -> None:
        """Keeps half of the keys."""
        self._rate /= 2
        keys = self._keys.matrix()
        stays = hashes(keys, self._seed) < threshold(self._rate)
        renumbered = np.cumsum(stays, dtype=np.uint32) - np.uint32(1)
        asked, *columns = self._columns()
        keep = stays[asked]
        self._kept = [(renumbered[asked[keep]], *(column[keep] for column in columns))]
        self._keys = _Keys()
        self._keys.number(keys[stays])
        self.kept = int(keep.sum())

    def _columns(self) -> list[npt.NDArray[np.generic]]:
        kept = self._kept or [
            (np.zeros(0, np.uint32), np.zeros(0, np.uint16), np.zeros(0), np.zeros(0), np.zeros(0, np.float32))
        ]
        return [np.concatenate(column) for column in zip(*kept, strict=True)]

    def finish(self, defaults: Defaults, names: Iterable[str]) -> Log:
        """The log.

        Raises:
            InvalidArgument: there was no request, or its times are of more years than a cache lives.
        """
        if not self._count:
            raise InvalidArgument(f"{', '.join(names)}: no request in it")
        span = self._last - self._first
        if self._timed and span > _LONGEST:
            raise InvalidArgument(
                f"the times of the log are {span / 86_400 / 365.25:,.0f} years apart: in what unit are they? Say it "
                "with --field time=NAME:ms"
            )
        has_times = bool(self._timed) or self._pace is not None
        groups = self._groups.listed()
        sizes_filled, costs_filled, has_costs = self._filled(groups, defaults)
        asked, models, times, sizes, costs = self._columns()
        order = np.argsort(times, kind="stable")
        asked, models, times, sizes, costs = (each[order] for each in (asked, models, times, sizes, costs))
        clock = np.rint((times.astype(np.float64) - self._first) * 1e3) if has_times else np.zeros(len(times))
        without = np.concatenate([costs for costs, _ in self._costs])
        without_models = np.concatenate([groups for _, groups in self._costs])
        unsaid = self._requests - self._said[:, 2]
        return Log(
            groups=groups,
            rate=self._rate,
            keys=self._keys.matrix(),
            asked=np.ascontiguousarray(asked, np.uint32),
            times=clock.astype(np.uint64),
            sizes=_with(sizes, models, sizes_filled).astype(np.uint64),
            costs=_with(costs, models, costs_filled).astype(np.float32),
            models=np.ascontiguousarray(models, np.uint16),
            has_times=has_times,
            has_costs=has_costs,
            requests=self._requests,
            seconds=self._said[:, 3] + unsaid * costs_filled,
            span=span if has_times else 0.0,
            without=_with(without, without_models, costs_filled),
            without_models=without_models,
            said_sizes=float(self._said[:, 0].sum()) / self._count,
            said_costs=float(self._said[:, 2].sum()) / self._count,
        )

    def _filled(self, groups: list[Group], defaults: Defaults) -> tuple[F64, F64, bool]:
        """What stands for sizes and costs that lines do not say, by group: as given for the model, else the mean of the
        group's lines that do, else as given for every model.
        """

        def fill(column: int, given: dict[str, float], otherwise: float) -> F64:
            counts, sums = self._said[:, column], self._said[:, column + 1]
            means = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
            found = [
                given.get(group.model, mean if not np.isnan(mean) else given.get("", otherwise))
                for group, mean in zip(groups, means.tolist(), strict=True)
            ]
            return np.array(found)

        costs = fill(2, defaults.costs, np.nan)
        return fill(0, defaults.sizes, ASSUMED_BYTES), np.nan_to_num(costs), bool((~np.isnan(costs)).any())


def _with(values: npt.NDArray[np.generic], models: npt.NDArray[np.generic], filled: F64) -> F64:
    """Values with what stands for those that are not said."""
    said = values.astype(np.float64)
    return np.where(np.isnan(said), filled[models.astype(np.intp)], said)
