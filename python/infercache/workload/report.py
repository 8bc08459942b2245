"""What a simulation showed, as lines of text for a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infercache.amounts import duration, life, size, three_digits
from infercache.workload.simulation import FEW_ENTRIES, Simulation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infercache.workload.trials import Trial

__all__ = ["Style", "Table", "advice", "head", "lines", "remarks", "share_of", "tables"]

_BAR = 16  # characters of a full bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
#: Rows of the table by model.
_MOST_GROUPS = 20


@dataclass(frozen=True, slots=True)
class Style:
    """How a terminal shows what stands out; a file gets plain text."""

    coloured: bool = False

    def bold(self, text: str) -> str:
        """What is most important."""
        return f"\033[1m{text}\033[0m" if self.coloured else text

    def soft(self, text: str) -> str:
        """What explains."""
        return f"\033[2m{text}\033[0m" if self.coloured else text

    def good(self, text: str) -> str:
        """What is recommended."""
        return f"\033[1;32m{text}\033[0m" if self.coloured else text


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of text.

    Attributes:
        title: of the table.
        names: of the columns.
        rows: a text for each column.
        best: the row that is recommended; None: none is.
        left: columns that begin at the left.
        bar: the column that is a bar of a ratio; None: none is.
    """

    title: str
    names: list[str]
    rows: list[list[str]]
    best: int | None = None
    left: frozenset[int] = frozenset()
    bar: int | None = None

    def lines(self, style: Style) -> Iterator[str]:
        """The table, a line each."""
        widths = [max(map(len, column)) for column in zip(self.names, *self.rows, strict=True)]

        def row(texts: Sequence[str], mark: str) -> str:
            cells = (
                text.ljust(width) if place in self.left else text.rjust(width)
                for place, (text, width) in enumerate(zip(texts, widths, strict=True))
            )
            return f"{mark} {'  '.join(cells)}".rstrip()

        yield style.bold(self.title)
        yield style.soft(row(self.names, " "))
        for place, texts in enumerate(self.rows):
            yield style.good(row(texts, "★")) if place == self.best else row(texts, " ")


def lines(simulation: Simulation, style: Style) -> Iterator[str]:
    """All of the report."""
    yield from head(simulation, style)
    for table in tables(simulation):
        yield ""
        yield from table.lines(style)
    yield ""
    yield from advice(simulation, style)
    told = list(remarks(simulation))
    if told:
        yield ""
        yield from (style.soft(line) for line in told)


def tables(simulation: Simulation) -> list[Table]:
    """Those that have something to compare."""
    found = (by_size(simulation), by_ttl(simulation), by_eviction(simulation), by_group(simulation))
    return [table for table in found if table is not None]


def head(simulation: Simulation, style: Style) -> Iterator[str]:
    """What was read and how it was tried."""
    log = simulation.log
    models = len({group.model for group in log.groups})
    about = "" if log.rate == 1 else "about "
    said = [
        f"{simulation.requests:,} requests" + (f" in {duration(log.span, longest='d')}" if log.has_times else ""),
        f"{models} model{'s' if models > 1 else ''}" if models > 1 else "",
        f"{about}{log.different:,.0f} different, {size(log.different_bytes)} of answers",
    ]
    yield f"{style.soft('log      ')} {' · '.join(part for part in said if part)}"
    for reading in simulation.readings:
        where = f"{reading.where} ({reading.format}): " if len(simulation.readings) > 1 else f"{reading.format}: "
        found = ", ".join(
            f"{field} ← {at.name}" + (f" ({at.unit})" if at.unit else "") for field, at in reading.fields.items()
        )
        yield f"{style.soft('fields   ')} {where}{found}"
    how = "every request, through the cache's own code"
    if log.rate < 1:
        how = (
            f"the requests of {_percent(log.rate)} of the keys, {len(log.asked):,}; ± is the bound in 19 of 20 samples"
        )
    yield f"{style.soft('replayed ')} {how}"
    if log.has_costs:
        p50, p99, mean = without_cache(simulation)
        worked = float(log.seconds.sum())
        yield (
            f"{style.soft('no cache ')} {duration(worked, longest='d')} of model time{_money(simulation, worked)} · a "
            f"request p50 {duration(p50)}, p99 {duration(p99)}, mean {duration(mean)}"
        )


def without_cache(simulation: Simulation) -> tuple[float, float, float]:
    """What the model takes: median, 99th percentile and mean, in seconds."""
    log = simulation.log
    costs = log.without
    mean = float(log.seconds.sum()) / simulation.requests
    return float(np.quantile(costs, 0.50)), float(np.quantile(costs, 0.99)), mean


def latencies(simulation: Simulation, trial: Trial) -> tuple[float, float, float]:
    """What a request takes with this cache: median, 99th percentile and mean, in seconds. Every one is looked up."""
    worked = float(simulation.log.seconds.sum() - trial.saved.sum())
    look = simulation.hit_seconds
    return look + trial.p50, look + trial.p99, look + worked / simulation.requests


def by_size(simulation: Simulation) -> Table:
    """The first life, a row a size."""
    ttl = simulation.ttls[0]
    trials = [*simulation.of(ttl), simulation.unbounded[0]]
    best = trials.index(simulation.recommended())
    rows = [[_size_of(trial), *_cells(simulation, trial)] for trial in trials]
    title = "By size" if len(simulation.ttls) == 1 and ttl is None else f"By size, life: {life(ttl)}"
    return Table(title, ["size", *_names(simulation)], rows, best, _BAR_ONLY, 1)


def by_ttl(simulation: Simulation) -> Table | None:
    """The recommended size, a row a life; None: only one was tried."""
    if len(simulation.ttls) == 1:
        return None
    chosen = simulation.recommended().setting.size
    trials = [trial for ttl in simulation.ttls for trial in simulation.of(ttl) if trial.setting.size == chosen]
    rows = [[life(trial.setting.ttl), *_cells(simulation, trial)] for trial in trials]
    return Table(f"By life, at {size(chosen or 0)}", ["life", *_names(simulation)], rows, None, _BAR_ONLY, 1)


def by_eviction(simulation: Simulation) -> Table | None:
    """Each eviction at each size of the first life; None: only one was tried."""
    if len(simulation.evictions) == 1:
        return None
    ttl = simulation.ttls[0]
    sizes = [trial.setting.size for trial in simulation.of(ttl)]
    rows = [
        [size(one or 0), eviction or "default", *_cells(simulation, simulation.of(ttl, eviction)[place])]
        for place, one in enumerate(sizes)
        for eviction in simulation.evictions
    ]
    names = ["size", "eviction", *_names(simulation)]
    return Table(f"By eviction, life: {life(ttl)}", names, rows, None, frozenset({1, 2}), 2)


def by_group(simulation: Simulation) -> Table | None:
    """The recommended cache, a row a model of a workload, those with the most requests; None: there is only one."""
    log = simulation.log
    if len(log.groups) == 1:
        return None
    trial = simulation.recommended()
    workloads = len({group.workload for group in log.groups}) > 1
    names = [*(["workload"] if workloads else []), "model", "requests", "hit ratio"]
    names += ["model time saved", "", "a run takes"] if log.has_costs else []
    order = np.argsort(-log.requests, kind="stable")
    rows = []
    for place in order[:_MOST_GROUPS]:
        group = log.groups[place]
        named = [*([group.workload or "-"] if workloads else []), group.model or "-"]
        rows.append([*named, *_of_groups(simulation, trial, order[place == order])])
    if len(order) > _MOST_GROUPS:
        others = order[_MOST_GROUPS:]
        named = [*(["…"] if workloads else []), f"{len(others):,} others"]
        rows.append([*named, *_of_groups(simulation, trial, others)])
    left = frozenset({0, 1} if workloads else {0})
    setting = trial.setting
    return Table(f"By model, at {_size_of(trial)}, life: {life(setting.ttl)}", names, rows, None, left)


def _of_groups(simulation: Simulation, trial: Trial, places: npt.NDArray[np.intp]) -> list[str]:
    """Requests, hit ratio, and what was saved, of some groups together."""
    log = simulation.log
    count = int(log.requests[places].sum())
    cells = [f"{count:,}", _percent(float(trial.hits[places].sum()) / count)]
    if log.has_costs:
        seconds, saved = float(log.seconds[places].sum()), float(trial.saved[places].sum())
        part = _percent(saved / seconds if seconds else 0.0)
        cells += [duration(saved, longest="d"), part, duration(seconds / count)]
    return cells


def advice(simulation: Simulation, style: Style) -> Iterator[str]:
    """What to do with it."""
    trial, log = simulation.recommended(), simulation.log
    enough = 0.95 * simulation.gain(simulation.unbounded[0])
    what = "saves" if log.has_costs else "hits"
    if simulation.gain(trial) >= enough:
        text = f"the smallest of these that {what} 95 % of what one that holds everything would"
    else:
        text = f"the best of these, though {what} less than 95 % of what one that holds everything would"
    ttl = trial.setting.ttl
    yield f"★ {style.bold(_size_of(trial))}: {text}"
    eviction = "" if trial.setting.eviction is None else f", eviction={trial.setting.eviction!r}"
    yield style.soft(f"  Cache(capacity={trial.setting.size}, ttl={None if ttl is None else life(ttl)!r}{eviction})")
    for place, group in enumerate(log.groups):
        mean = float(log.seconds[place] / log.requests[place])
        if log.has_costs and 0 < mean <= simulation.hit_seconds:
            yield (
                f"! {style.bold(group.model or 'the model')}: do not cache this: a run takes {duration(mean)}, "
                f"and a look-up {duration(simulation.hit_seconds)}"
            )


def remarks(simulation: Simulation) -> Iterator[str]:
    """What a reader has to know of the figures."""
    log, options = simulation.log, simulation.options
    for reading in simulation.readings:
        yield from (f"{reading.where}: {remark}" for remark in reading.remarks)
    if log.said_sizes < 1 and not options.defaults.sizes:
        part = "no line says" if log.said_sizes == 0 else f"{_percent(1 - log.said_sizes)} of the lines do not say"
        taken = (
            f"{log.sizes.mean():,.0f} bytes are taken for each"
            if not log.said_sizes
            else "the mean of the others is taken"
        )
        yield f"{part} how large the answer is: {taken} (--bytes)"
    if not log.has_costs:
        yield "nothing says what a run of the model takes, so no time and no money: --cost 20ms, or --cost MODEL=20ms"
    elif log.said_costs < 1 and not options.defaults.costs:
        unsaid = _percent(1 - log.said_costs)
        yield f"{unsaid} of the lines do not say what the model takes: the mean of the others is taken (--cost)"
    if not log.has_times:
        yield "no times in the log: it is replayed in its order, and nothing expires"
    refused = max(simulation.trials, key=lambda trial: trial.refused)
    if refused.refused:
        which = "cache" if log.rate == 1 else "sample's cache, which need not be so of the whole one"
        yield f"at {_size_of(refused)} the answers of {refused.refused:,.0f} requests are larger than the {which}"
    if log.rate < 1:
        few = [trial for trial in simulation.trials if trial.entries * log.rate < FEW_ENTRIES]
        if few:
            yield (
                f"at {_size_of(few[0])} the sample's cache holds only {few[0].entries * log.rate:,.0f} entries, which "
                "is little to go by: a larger --sample is surer"
            )
    if len(simulation.left_out):
        yield f"{len(simulation.left_out):,} lines are no requests, and are left out:"
        yield from (f"  {line}" for line in simulation.left_out.listed())


_BAR_ONLY = frozenset({1})


def _names(simulation: Simulation) -> list[str]:
    names = ["hit ratio", ""]
    if simulation.log.has_costs:
        names += ["model time saved", ""]
        names += ["money saved"] if simulation.options.price else []
        names += ["p50", "p99", "mean"]
    return names


def _cells(simulation: Simulation, trial: Trial) -> list[str]:
    ratio = float(trial.hits.sum()) / simulation.requests
    bound = f" ± {100 * trial.hits_bound / simulation.requests:.1f}" if trial.hits_bound else ""
    cells = [_bar(ratio), f"{100 * ratio:.1f}{bound} %"]
    if simulation.log.has_costs:
        saved, worked = float(trial.saved.sum()), float(simulation.log.seconds.sum())
        about = f" ± {100 * trial.saved_bound / worked:.1f}" if trial.saved_bound and worked else ""
        cells += [duration(saved, longest="d"), f"{100 * saved / worked if worked else 0.0:.1f}{about} %"]
        cells += [f"{simulation.price_of(saved):,.2f}"] if simulation.options.price else []
        cells += [duration(each) for each in latencies(simulation, trial)]
    return cells


def _size_of(trial: Trial) -> str:
    return "everything" if trial.setting.size is None else size(trial.setting.size)


def _percent(ratio: float) -> str:
    return f"{three_digits(100 * ratio) if 0 < ratio < 0.001 else f'{100 * ratio:.1f}'} %"


def _money(simulation: Simulation, seconds: float) -> str:
    return f", {simulation.price_of(seconds):,.2f} at the price given" if simulation.options.price else ""


def share_of(bar: str) -> float:
    """The ratio that a bar shows."""
    return sum(8 if part == "█" else _EIGHTHS.index(part) for part in bar) / (8 * _BAR)


def _bar(ratio: float) -> str:
    eighths = round(min(max(ratio, 0.0), 1.0) * _BAR * 8)
    full, part = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[part] if part else "")
