"""`simulate`: logs read, sampled, replayed through a cache of each setting; everything that the reports show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infercache.cache import check_eviction
from infercache.errors import InvalidArgument
from infercache.workload import formats
from infercache.workload.columns import Reading
from infercache.workload.log import MOST_KEPT, Collector, Defaults, Log
from infercache.workload.requests import Groups, LeftOut
from infercache.workload.sources import Source
from infercache.workload.traces import arrivals
from infercache.workload.trials import Setting, Trial, tried

if TYPE_CHECKING:
    from infercache.workload.fields import Fields

__all__ = ["LADDER", "Options", "Simulation", "simulate"]

F64 = npt.NDArray[np.float64]

#: What a hit takes in a process: forming the key, the look-up, the value (README.md, "Numbers").
HIT_SECONDS = 1.2e-6
#: Sizes that are tried where nobody names some: percent of what all different answers take.
LADDER = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
#: Lives that are tried then, in seconds, as far as the log is long enough to tell.
_LIVES = (60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0)
#: What `Cache` accepts.
_LEAST = 64 << 10
#: Bytes of answers that replays of a sample that was not asked for hold at once.
MOST_BYTES = 1 << 30
#: A sample's cache should hold so many entries, or it is no picture of the whole one.
FEW_ENTRIES = 500

#: A bar: what is done, how much of it, in which unit; the function that it gives is told how much is done.
Bars = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


def _no_bar(_label: str, _total: int, _unit: str) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be simulated.

    Attributes:
        format: of all logs; None: as each begins.
        fields: where fields stand, for logs of JSON Lines or with named columns.
        sizes: capacities to try: bytes (int), or percent of what all different answers take (float); (): a ladder.
        ttls: lives to try, in seconds; None in it: until evicted; (): some that the log is long enough for.
        evictions: names of what decides which entry has to go; (): the cache's default.
        defaults: sizes and costs for lines that do not say them.
        hit_seconds: what a hit takes; None: as it is where the log was written.
        price: of an hour of the GPU that the model runs on; None: nothing is said about money.
        rate: the part of the keys to try with; None: all, or as many as can be tried quickly.
        seed: of the sample and of the caches' hash tables.
        most: requests that are kept where `rate` is None.
        requests_per_second: pace of logs without times; None: they have none.
        arrivals: a file with a process of arrivals that paces them instead.
    """

    format: str | None = None
    fields: Fields = field(default_factory=dict)
    sizes: Sequence[int | float] = ()
    ttls: Sequence[float | None] = ()
    evictions: Sequence[str] = ()
    defaults: Defaults = field(default_factory=lambda: Defaults({}, {}))
    hit_seconds: float | None = None
    price: float | None = None
    rate: float | None = None
    seed: int = 1
    most: int = MOST_KEPT
    requests_per_second: float | None = None
    arrivals: str | None = None


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of it.

    Attributes:
        options: what was asked for.
        readings: each log, and what stood where in it.
        left_out: lines that are no requests.
        log: the requests, or a sample of them.
        hit_seconds: what a hit takes.
        trials: a cache of each size, life and eviction, sizes ascending; those of one life and eviction follow one
            another.
        unbounded: caches that hold everything, one a life.
    """

    options: Options
    readings: list[Reading]
    left_out: LeftOut
    log: Log
    hit_seconds: float
    trials: list[Trial]
    unbounded: list[Trial]

    @property
    def requests(self) -> int:
        """All that the logs held."""
        return int(self.log.requests.sum())

    @property
    def ttls(self) -> list[float | None]:
        """The lives that were tried, in their order."""
        return [trial.setting.ttl for trial in self.unbounded]

    @property
    def evictions(self) -> list[str | None]:
        """What decided which entry had to go, in the order of the options; None: the cache's default."""
        return list(dict.fromkeys(trial.setting.eviction for trial in self.trials))

    def of(self, ttl: float | None, eviction: str | None = None) -> list[Trial]:
        """The trials of a life and an eviction (None: the first), sizes ascending."""
        wanted = self.evictions[0] if eviction is None else eviction
        return [trial for trial in self.trials if trial.setting.ttl == ttl and trial.setting.eviction == wanted]

    def gain(self, trial: Trial) -> float:
        """What a trial is judged by: seconds of the model saved, or hits where no costs are known."""
        return float((trial.saved if self.log.has_costs else trial.hits).sum())

    def recommended(self) -> Trial:
        """The smallest cache of the first life that gains nearly (95 %) as much as one that holds everything."""
        trials = self.of(self.ttls[0])
        enough = 0.95 * max(map(self.gain, [*trials, self.unbounded[0]]))
        return next((trial for trial in trials if self.gain(trial) >= enough), trials[-1])

    def price_of(self, seconds: float) -> float:
        """What so much work of the model costs."""
        return seconds / 3_600 * (self.options.price or 0.0)


def simulate(paths: Sequence[str], options: Options, *, bar: Bars = _no_bar) -> Simulation:
    """Replays logs through caches.

    Args:
        paths: files; "-": standard input.
        options: what is to be tried.
        bar: shows how far it is.

    Raises:
        InvalidArgument: a log cannot be read, holds no request, or an option fits nothing in it.
    """
    for name in options.evictions:
        check_eviction(name)  # before anything is read
    groups, left_out = Groups(), LeftOut()
    collector = Collector(groups, rate=options.rate, seed=options.seed, most=options.most, pace=_pace(options))
    readings = [
        _read(path, paths, options, Reading(path, options.fields, groups, left_out), collector, bar) for path in paths
    ]
    if not collector.count and len(left_out):
        raise InvalidArgument(f"{', '.join(paths)}: no request in it: " + "; ".join(left_out.listed()[:3]))
    log = collector.finish(options.defaults, paths)
    sizes = _sizes(options.sizes or LADDER, log)
    if options.rate is None:
        while log.rate * min(max(sizes), log.different_bytes) > MOST_BYTES and len(log.keys) > 1:
            collector.halve()
            log = collector.finish(options.defaults, paths)
    if not len(log.keys):
        raise InvalidArgument(f"--sample {log.rate:g}: none of the keys is in the sample; give a larger one")
    ttls = _ttls(options, log)
    evictions: list[str | None] = [*dict.fromkeys(options.evictions)] or [None]
    settings = [Setting(size, ttl, eviction) for eviction in evictions for ttl in ttls for size in sizes]
    unbounded = [Setting(None, ttl) for ttl in ttls]
    parts = log.parts(options.seed) if log.rate < 1 else []
    passes = (len(settings) + len(unbounded)) * (2 if parts else 1)
    with bar("replaying", len(log.asked) * passes, "requests") as tell:
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            tell(done)

        run = partial(tried, log, seed=options.seed, parts=parts, advance=advance)
        trials, wholes = [run(one) for one in settings], [run(one) for one in unbounded]
    known = [reading.hit_seconds for reading in readings if reading.hit_seconds is not None]
    hit = options.hit_seconds if options.hit_seconds is not None else max(known, default=HIT_SECONDS)
    return Simulation(options, readings, left_out, log, hit, trials, wholes)


def _read(
    path: str, paths: Sequence[str], options: Options, reading: Reading, collector: Collector, bar: Bars
) -> Reading:
    number = 0
    with Source(path) as source:
        reading.where = source.name
        # Several logs are several workloads, where their lines say nothing else.
        reading.workload = path.rsplit("/", 1)[-1] if len(paths) > 1 else ""
        reading.format = options.format or formats.recognised(source)
        with bar(f"reading {reading.where}", source.size, "bytes") as tell:
            for batch in formats.FORMATS[reading.format](source, reading):
                collector.add(batch, number)
                number += len(batch)
                tell(source.done)
    reading.requests = number
    return reading


def _pace(options: Options) -> Callable[[F64], F64] | None:
    if options.arrivals is not None:
        times = arrivals(options.arrivals)
        # Once through, it begins anew a mean gap later.
        round_trip = times[-1] * len(times) / (len(times) - 1)
        return lambda places: times[places.astype(np.intp) % len(times)] + places // len(times) * round_trip
    if options.requests_per_second is not None:
        pace = options.requests_per_second
        return lambda places: places / pace
    return None


def _sizes(wanted: Sequence[int | float], log: Log) -> list[int]:
    """Capacities in bytes, ascending, each once; percents to two digits, and none that a cache refuses."""
    found = set()
    for size in wanted:
        if isinstance(size, int):
            found.add(size)
        else:
            exact = log.different_bytes * size / 100
            digits = 1 - math.floor(math.log10(exact)) if exact > 0 else 0
            found.add(max(_LEAST, math.ceil(round(exact, digits))))
    return sorted(found)


def _ttls(options: Options, log: Log) -> list[float | None]:
    """Lives in seconds, each once.

    Raises:
        InvalidArgument: lives are to be tried, and the log has no times.
    """
    if options.ttls:
        if not log.has_times and any(ttl is not None for ttl in options.ttls):
            raise InvalidArgument(
                "--ttl: the log has no times, so nothing expires in it; give it some with --requests-per-second or "
                "--arrivals, or name the member that has them with --field time=NAME"
            )
        return list(dict.fromkeys(options.ttls))
    lives = [life for life in _LIVES if log.span / 1_000 <= life <= log.span]
    return [None, *sorted(lives, reverse=True)]
