"""Which curves a simulation is shown as. `svg` draws them for the page, `plots` as images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infercache.amounts import life, size, three_digits
from infercache.workload.document import popularity
from infercache.workload.trials import Trial

if TYPE_CHECKING:
    from infercache.workload.simulation import Simulation

__all__ = ["Chart", "Curve", "charts"]

#: Models of the curves by model; more are no picture.
_MOST_MODELS = 6


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of points.

    Attributes:
        name: what it is of.
        points: x and y, x ascending.
        bounds: each y is that, give or take this; (): all are exact.
        dashed: a reference, such as what a cache that holds everything would do.
    """

    name: str
    points: list[tuple[float, float]]
    bounds: tuple[float, ...] = ()
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over one axis.

    Attributes:
        name: of the image's file.
        title: what is shown.
        x: what the abscissa is.
        y: what the ordinate is.
        curves: the lines.
        ticks: abscissae that are named, in place of numbers.
        x_log: the abscissa is a logarithm.
        y_log: the ordinate is one.
        top: the ordinate ends there; None: above the highest point.
        x_text: a number of the abscissa for a person.
        y_text: the same of the ordinate.
    """

    name: str
    title: str
    x: str
    y: str
    curves: list[Curve]
    ticks: tuple[tuple[float, str], ...] = ()
    x_log: bool = False
    y_log: bool = False
    top: float | None = None
    x_text: Callable[[float], str] = three_digits
    y_text: Callable[[float], str] = three_digits


def charts(simulation: Simulation) -> list[Chart]:
    """The curves worth looking at: of time and money where costs are known, of lives where some were tried."""
    found = [_by_size(simulation, "hit-ratio-by-size", "Hit ratio by size", _hit_ratio(simulation))]
    worked = simulation.log.has_costs
    if worked:
        found.append(_by_size(simulation, "saved-by-size", "Model time saved by size", _saved(simulation)))
    if len(simulation.log.groups) > 1:
        found.append(_by_model(simulation))
    if len(simulation.ttls) > 1:
        found.append(_by_ttl(simulation, "hit-ratio-by-ttl", "Hit ratio by life", _hit_ratio(simulation)))
        if worked:
            found.append(_by_ttl(simulation, "saved-by-ttl", "Model time saved by life", _saved(simulation)))
    if worked:
        found.append(_gpu_hours(simulation))
    found.append(_popularity(simulation))
    return found


#: A trial's value, and how sure it is.
_Measure = Callable[[Trial], tuple[float, float]]


def _hit_ratio(simulation: Simulation) -> _Measure:
    count = simulation.requests / 100
    return lambda trial: (float(trial.hits.sum()) / count, trial.hits_bound / count)


def _saved(simulation: Simulation) -> _Measure:
    worked = max(float(simulation.log.seconds.sum()), 1e-30) / 100
    return lambda trial: (float(trial.saved.sum()) / worked, trial.saved_bound / worked)


def _percent(value: float) -> str:
    return f"{value:.1f} %"


def _curve(name: str, trials: list[Trial], xs: list[float], measure: _Measure, *, dashed: bool = False) -> Curve:
    values = [measure(trial) for trial in trials]
    bounds = tuple(bound for _, bound in values) if any(bound for _, bound in values) else ()
    return Curve(name, [(x, value) for x, (value, _) in zip(xs, values, strict=True)], bounds, dashed)


def _sizes(trials: list[Trial]) -> list[float]:
    return [float(trial.setting.size or 0) for trial in trials]


def _by_life(simulation: Simulation, measure: _Measure) -> list[Curve]:
    """A curve over the sizes for each life, and for each other eviction that was tried."""
    several = len(simulation.evictions) > 1
    first, *others = simulation.evictions
    curves = []
    for eviction, ttls in [(first, simulation.ttls), *((each, simulation.ttls[:1]) for each in others)]:
        for ttl in ttls:
            trials = simulation.of(ttl, eviction)
            name = f"{life(ttl)}, {eviction or 'default'}" if several else life(ttl)
            curves.append(_curve(name, trials, _sizes(trials), measure))
    return curves


def _by_size(simulation: Simulation, name: str, title: str, measure: _Measure) -> Chart:
    curves = _by_life(simulation, measure)
    sizes = _sizes(simulation.of(simulation.ttls[0]))
    whole = measure(simulation.unbounded[0])[0]
    curves.append(Curve("holds everything", [(sizes[0], whole), (sizes[-1], whole)], dashed=True))
    return Chart(name, title, "size", "%", curves, x_log=True, top=100.0, x_text=size, y_text=_percent)


def _by_model(simulation: Simulation) -> Chart:
    log = simulation.log
    trials = simulation.of(simulation.ttls[0])
    places = sorted(range(len(log.groups)), key=lambda place: -int(log.requests[place]))[:_MOST_MODELS]
    several = len({group.workload for group in log.groups}) > 1
    curves = []
    for place in places:
        group = log.groups[place]
        name = " ".join(filter(None, [group.workload if several else "", group.model])) or "-"
        ratios = [100 * float(trial.hits[place]) / int(log.requests[place]) for trial in trials]
        curves.append(Curve(name, list(zip(_sizes(trials), ratios, strict=True))))
    title = f"Hit ratio by model, life: {life(simulation.ttls[0])}"
    return Chart("hit-ratio-by-model", title, "size", "%", curves, x_log=True, top=100.0, x_text=size, y_text=_percent)


def _by_ttl(simulation: Simulation, name: str, title: str, measure: _Measure) -> Chart:
    lives = sorted(simulation.ttls, key=lambda ttl: float("inf") if ttl is None else ttl)
    places = [float(place) for place in range(len(lives))]
    sizes = [trial.setting.size for trial in simulation.of(simulation.ttls[0])]
    chosen = dict.fromkeys([sizes[0], sizes[len(sizes) // 2], sizes[-1]])
    curves = []
    for one in chosen:
        trials = [next(trial for trial in simulation.of(ttl) if trial.setting.size == one) for ttl in lives]
        curves.append(_curve(size(one or 0), trials, places, measure))
    wholes = [next(trial for trial in simulation.unbounded if trial.setting.ttl == ttl) for ttl in lives]
    curves.append(_curve("holds everything", wholes, places, measure, dashed=True))
    ticks = tuple((place, life(ttl)) for place, ttl in zip(places, lives, strict=True))
    return Chart(name, title, "life of an entry", "%", curves, ticks, top=100.0, y_text=_percent)


def _gpu_hours(simulation: Simulation) -> Chart:
    price, worked = simulation.options.price, float(simulation.log.seconds.sum())

    def hours(trial: Trial) -> tuple[float, float]:
        return (worked - float(trial.saved.sum())) / 3_600, trial.saved_bound / 3_600

    def text(value: float) -> str:
        return f"{three_digits(value)} h" + (f", {value * price:,.2f}" if price else "")

    curves = _by_life(simulation, hours)
    sizes = _sizes(simulation.of(simulation.ttls[0]))
    curves.append(Curve("without a cache", [(sizes[0], worked / 3_600), (sizes[-1], worked / 3_600)], dashed=True))
    title = "GPU hours that remain by size" + (f", at {price:g} an hour" if price else "")
    return Chart("gpu-hours-by-size", title, "size", "GPU hours", curves, x_log=True, x_text=size, y_text=text)


def _popularity(simulation: Simulation) -> Chart:
    found = popularity(simulation)
    curve = Curve("requests", list(zip(found["rank"], found["requests"], strict=True)))

    def count(value: float) -> str:
        return f"{value:,.0f}"

    return Chart(
        *("popularity", "Popularity: how often the key of a rank is asked for", "rank", "requests", [curve]),
        x_log=True,
        y_log=True,
        x_text=count,
        y_text=count,
    )
